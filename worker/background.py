"""The background worker: runs the app for messages of ordinary channels, and drains when it is told to stop."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import anyio

from asgibus.compatibility.callables import Application
from asgibus.layers.contract import ChannelLayer, Handler, Statistics
from asgibus.layers.errors import LayerUnavailable
from asgibus.worker.base import CANCEL_SECONDS, BaseWorker
from asgibus.worker.consumer import Listener
from asgibus.worker.settings import WorkerSettings

logger = logging.getLogger("asgibus.worker")


class BackgroundWorker(BaseWorker):
    """Runs `app` for the messages of `settings.channels`, and for nothing else.

    Each message is handled at least once: it is acknowledged when the app has handled it, and another worker takes it
    if this one dies. With `at_most_once` it is acknowledged before. Raises ValueError if a channel can have no
    dead-letter channel.
    """

    _unit = "message"

    def __init__(self, settings: WorkerSettings, app: Application, layer: ChannelLayer) -> None:
        super().__init__(settings, app, layer, Handler())
        self._counts: Counter[str] = Counter()
        self._listeners = [
            Listener(channel, settings, app, layer, self._counts, self._count_work)
            for channel in dict.fromkeys(settings.channels)
        ]

    @property
    def busy(self) -> int:
        """How many messages are being handled."""
        return sum(listener.busy for listener in self._listeners)

    def counts(self) -> dict[str, int]:
        return dict(self._counts + self.layer.counts)

    def gauges(self) -> dict[str, int]:
        return {"messages": self.busy}

    async def channels(self) -> dict[str, Statistics]:
        channels = {}
        for channel in dict.fromkeys(self._settings.channels):
            with suppress(LayerUnavailable):
                channels[channel] = await self.layer.channel_statistics(channel)
        return channels

    async def _work(self, stop: anyio.Event, ready: Callable[[], None]) -> None:
        """No more is taken after `stop`; what is being handled may end within the graceful timeout."""
        ready()
        try:
            async with anyio.create_task_group() as listening:
                for listener in self._listeners:
                    listening.start_soon(listener.listen, self.bus, self.lifespan_state)
            with anyio.move_on_after(self.graceful_timeout):
                for listener in self._listeners:
                    await listener.finished()
            if self.busy:
                then = "lost" if self._settings.at_most_once else "given back"
                logger.warning(
                    "%d messages were not handled within %g s and are %s", self.busy, self.graceful_timeout, then
                )
        finally:
            with anyio.CancelScope(shield=True):
                await self._cancel()

    async def _cancel(self) -> None:
        """End the instances: those that wait for a message, and those that are late."""
        if tasks := [task for listener in self._listeners for task in listener.cut()]:
            await asyncio.wait(tasks, timeout=CANCEL_SECONDS)

    def _wake(self) -> None:
        for listener in self._listeners:
            listener.stop()
