"""What every channel layer promises, as checks that can be run on any: for whoever writes a layer for another store.

A check is an async function that takes a `LayerFactory`, makes what it needs, closes it, and raises AssertionError
saying what is wrong; or whatever the layer itself raises where it should not. It uses no test framework:

    failures = asyncio.run(run(make_layer))

With pytest, parametrise a test over the lists. The store should be the checks' own: they delete what is in it.

- `CHECKS`: the public half of the contract (`ChannelLayer`), which is all that an app or Channels needs.
- `SHARED_CHECKS`: the same between several layer objects over one store; for all but a store within the object.
- `SERVER_CHECKS`: the servers' half (`Bus`), without which asgi-interface and asgi-worker cannot use the layer.
- `SHARED_SERVER_CHECKS`: that half, between several layer objects.
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
    readers,
    statistics,
    times,
)
from asgibus.testing.conformance.tools import LayerFactory

__all__ = ["CHECKS", "SERVER_CHECKS", "SHARED_CHECKS", "SHARED_SERVER_CHECKS", "Check", "LayerFactory", "run"]

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

CHECK_SECONDS = 60.0  # for one check; all of them together take some ten


async def run(make_layer: LayerFactory, checks: Iterable[Check] = CHECKS) -> list[tuple[str, Exception]]:
    """Run checks one after another. Those that failed, by name, and why; an empty list if all is as promised.

    A check that takes longer than a minute fails with TimeoutError.
    """
    failures: list[tuple[str, Exception]] = []
    for check in checks:
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await check(make_layer)
        except Exception as error:  # noqa: BLE001 - a layer that is not finished may raise anything
            failures.append((getattr(check, "__name__", repr(check)), error))
    return failures
