"""The admin port of a process, for which the settings may name an address."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import anyio

from asgibus.cli.health import AdminError, Health
from asgibus.cli.run import END_MARGIN
from asgibus.cli.settings import ProcessSettings

logger = logging.getLogger("asgibus.admin")

RETRY_SECONDS = 0.2  # to listen on a port that the process before still has


@asynccontextmanager
async def admin_port(
    process: ProcessSettings, graceful_timeout: float, health: Health, *, supervised: bool
) -> AsyncIterator[None]:
    """Serve the admin port, if the settings name one, until the context ends.

    A supervised process retries a port that is taken, since the process that it replaces may still have it.

    Args:
        process: Host and port.
        graceful_timeout: Seconds after which the process before is gone; then a taken port is logged.
        health: The state of the servers.
        supervised: Whether there is a supervisor.

    Raises:
        AdminError: The port is taken, and the process is not supervised.

    """
    host, port = process.admin_host, process.admin_port
    if port is None:
        yield
        return
    # Imported here: a worker needs the HTTP parser for its admin port alone.
    from asgibus.cli.admin import admin  # noqa: PLC0415

    serve = partial(admin, host, port, health)
    if supervised:
        async with anyio.create_task_group() as tasks:
            warn_at = anyio.current_time() + graceful_timeout + END_MARGIN
            tasks.start_soon(_serve_when_free, serve, warn_at)
            yield
            tasks.cancel_scope.cancel()
    else:
        async with serve():
            yield


async def _serve_when_free(serve: Callable[[], AbstractAsyncContextManager[str]], warn_at: float) -> None:
    """Serve the admin port as soon as it is free, until cancelled."""
    while True:
        try:
            async with serve():
                await anyio.sleep_forever()
        except AdminError as error:
            if anyio.current_time() >= warn_at:
                logger.warning("%s; retrying until it is free", error)
                warn_at = math.inf
            await anyio.sleep(RETRY_SECONDS)
