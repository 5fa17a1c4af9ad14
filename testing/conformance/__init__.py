"""Checks of the promises that every channel layer makes, for authors of layers for other stores.

A check is an async function that takes a `LayerFactory`, makes the layers that it needs, and closes them. It raises
AssertionError with a sentence, or an unexpected error of the layer. No test framework is needed:

    failures = asyncio.run(run(make_layer))

With pytest, parametrise a test over the lists. The checks delete everything in the store.

- `CHECKS`: the part of the contract for apps and Channels (`ChannelLayer`).
- `SHARED_CHECKS`: the same part between several layer objects over one store.
- `SERVER_CHECKS`: the part for asgi-interface and asgi-worker (`Bus`).
- `SHARED_SERVER_CHECKS`: that part between several layer objects.
- `STREAM_CHECKS`, `SHARED_STREAM_CHECKS`: streams, which a layer may do without; see `ChannelLayer.extensions`.
- `PRESENCE_CHECKS`: who is in a group, and wills, which a layer may do without, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from asgibus.testing.conformance import (
    capacity,
    claims,
    deliveries,
    groups,
    mailboxes,
    messages,
    names,
    presence,
    readers,
    statistics,
    streams,
    times,
)
from asgibus.testing.conformance.tools import LayerFactory

__all__ = [
    "CHECKS",
    "PRESENCE_CHECKS",
    "SERVER_CHECKS",
    "SHARED_CHECKS",
    "SHARED_SERVER_CHECKS",
    "SHARED_STREAM_CHECKS",
    "STREAM_CHECKS",
    "Check",
    "LayerFactory",
    "run",
]

Check = Callable[[LayerFactory], Awaitable[None]]

CHECKS: tuple[Check, ...] = (
    *messages.CHECKS,
    *names.CHECKS,
    *capacity.CHECKS,
    *times.CHECKS,
    *readers.CHECKS,
    *groups.CHECKS,
    *statistics.CHECKS,
)
SHARED_CHECKS: tuple[Check, ...] = (
    *capacity.SHARED_CHECKS,
    *times.SHARED_CHECKS,
    *readers.SHARED_CHECKS,
    *groups.SHARED_CHECKS,
    *statistics.SHARED_CHECKS,
)
SERVER_CHECKS: tuple[Check, ...] = (*mailboxes.CHECKS, *claims.CHECKS, *deliveries.CHECKS)
SHARED_SERVER_CHECKS: tuple[Check, ...] = mailboxes.SHARED_CHECKS
PRESENCE_CHECKS: tuple[Check, ...] = presence.CHECKS
STREAM_CHECKS: tuple[Check, ...] = streams.CHECKS
SHARED_STREAM_CHECKS: tuple[Check, ...] = streams.SHARED_CHECKS

CHECK_SECONDS = 60.0  # for one check; all together take some ten


async def run(make_layer: LayerFactory, checks: Iterable[Check] = CHECKS) -> list[tuple[str, Exception]]:
    """Run checks one after another. A check fails with TimeoutError after a minute.

    Args:
        make_layer: Makes the layers.
        checks: The checks.

    Returns:
        The names and errors of checks that failed.
    """
    failures: list[tuple[str, Exception]] = []
    for check in checks:
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await check(make_layer)
        except Exception as error:  # noqa: BLE001 - a layer that is not finished may raise anything
            failures.append((getattr(check, "__name__", repr(check)), error))
    return failures
