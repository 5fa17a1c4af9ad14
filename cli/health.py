"""What a process tells on its admin port: of its start-up, and then of the servers that run in it."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import anyio

from asgibus.cli.admin import AdminError, Health, admin
from asgibus.cli.run import END_MARGIN, Life
from asgibus.cli.settings import ProcessSettings
from asgibus.layers.contract import ChannelLayer, Statistics

logger = logging.getLogger("asgibus.admin")

RETRY_SECONDS = 0.2  # how soon a process has the admin port that the one before it has left


class ProcessHealth:
    """The health of all servers of a process, as one."""

    def __init__(self, life: Life, layer: ChannelLayer, *servers: Health) -> None:
        self._life = life
        self._layer = layer
        self._servers = servers

    def ready(self) -> str | None:
        """Why one of them is not ready, or None."""
        if not self._life.has_started:
            return self._life.status
        return next((reason for server in self._servers if (reason := server.ready()) is not None), None)

    def counts(self) -> Mapping[str, int]:
        """The sums; what the layer has counted is in each server's counts, and counts once."""
        counts = Counter(self._layer.counts)
        if self._life.has_started:
            for server in self._servers:
                counts += Counter(server.counts()) - self._layer.counts
        return counts

    def gauges(self) -> Mapping[str, int]:
        """The sums."""
        gauges: Counter[str] = Counter()
        if self._life.has_started:
            for server in self._servers:
                gauges.update(server.gauges())
        return gauges

    async def channels(self) -> Mapping[str, Statistics]:
        """Of all servers; none while the layer is away."""
        channels: dict[str, Statistics] = {}
        if self._life.has_started:
            for server in self._servers:
                channels |= await server.channels()
        return channels


@asynccontextmanager
async def admin_port(
    process: ProcessSettings, graceful_timeout: float, health: Health, *, supervised: bool
) -> AsyncIterator[None]:
    """Serve the admin port if there is one, until the context ends.

    Raises AdminError if the port is taken. A supervised process tries until it is free instead: the process whose place
    it takes may be about to leave, and the log tells of it only when that one should be gone.
    """
    host, port = process.admin_host, process.admin_port
    if port is None:
        yield
    elif supervised:
        async with anyio.create_task_group() as tasks:
            warn_at = anyio.current_time() + graceful_timeout + END_MARGIN
            tasks.start_soon(_patiently, host, port, health, warn_at)
            yield
            tasks.cancel_scope.cancel()
    else:
        async with _telling(host, port, health):
            yield


@asynccontextmanager
async def _telling(host: str, port: int, health: Health) -> AsyncIterator[None]:
    async with admin(host, port, health) as where:
        logger.info("Admin on %s", where)
        yield


async def _patiently(host: str, port: int, health: Health, warn_at: float) -> None:
    while True:
        try:
            async with _telling(host, port, health):
                await anyio.sleep_forever()
        except AdminError as error:
            if anyio.current_time() >= warn_at:
                logger.warning("%s; it is tried until it is free", error)
                warn_at = math.inf
            await anyio.sleep(RETRY_SECONDS)
