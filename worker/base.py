"""The life cycle of every worker: its place on the bus, the app's lifespan, and the drain."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import anyio

from asgibus.compatibility.callables import Application
from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.contract import Bus, Handler, Statistics
from asgibus.worker.lifespan import Lifespan, lifespan
from asgibus.worker.settings import WorkerSettings

logger = logging.getLogger("asgibus.worker")

CANCEL_SECONDS = 5.0  # for an app to end after it was cancelled; one that refuses must not keep the process
WATCH_SECONDS = 1.0  # between two checks of the event loop
STALL_SECONDS = 3.0  # log a warning when the event loop was blocked for this long; the lease expires after 10 to 15 s
SPREAD = 0.1  # `max_requests` and `max_lifetime` vary by this share, so that not all workers end at once


class BaseWorker(ABC):
    """A worker process.

    Args:
        settings: The settings of the worker.
        app: The application.
        layer: The channel layer.
        handler: The reader of the worker's mailbox.
    """

    bus: Bus
    """The place on the bus, once the worker is ready."""
    _unit: str
    """The name of the work, for people to read: connection or message."""

    def __init__(self, settings: WorkerSettings, app: Application, layer: ChannelLayer, handler: Handler) -> None:
        self._settings = settings
        self._app = app
        self._handler = handler
        self.layer = layer
        self.graceful_timeout = settings.graceful_timeout
        self.lifespan_state: dict[str, Any] = {}
        self.suspended: list[asyncio.Task[Any]] = []
        """Tasks of the app that wait until the process exits, and are not to be cancelled."""
        self._stop = anyio.Event()
        self._exhausted = anyio.Event()  # set after `max_requests`
        self._remaining = _spread(settings.max_requests)

    @property
    def mailbox(self) -> str:
        """The worker's mailbox, once the worker is ready."""
        return self.bus.mailbox

    def ready(self) -> str | None:
        """Return None if the worker takes work, else a sentence that says why not."""
        if self._stop.is_set():
            return f"stopping: no new {self._unit}s are taken"
        if not self.bus.available:
            return "the channel layer cannot be reached"
        if self.bus.refusal is not None:
            return f"the channel layer takes nothing: {self.bus.refusal}"
        return self.bus.unreadable

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """Return the repaired, lost and dropped items by kind."""

    @abstractmethod
    def gauges(self) -> dict[str, int]:
        """Return current numbers by their names."""

    @abstractmethod
    async def channels(self) -> dict[str, Statistics]:
        """Return the statistics of the channels that this worker takes from; empty while the layer is away."""

    async def serve(
        self, stop: anyio.Event, ready: Callable[[], None], retiring: Callable[[], None] = lambda: None
    ) -> None:
        """Start the app, serve until `stop` is set, then drain.

        After `max_requests` or `max_lifetime` the worker drains by itself.

        Args:
            stop: Set to stop the worker.
            ready: Called when the worker is about to take work.
            retiring: Called when the worker begins to drain by itself.

        Raises:
            LifespanError: The start-up of the app failed.
            LayerUnavailable: The store cannot be reached at the start.
        """
        self._stop = stop
        async with self.layer.bus("worker", self._handler) as bus:
            self._on_bus(bus)
            mode, notice = self._settings.lifespan, self._settings.shutdown_notice
            async with lifespan(self._app, mode, stop, notice=notice) as app_lifespan:
                if stop.is_set():
                    return
                self.lifespan_state = app_lifespan.state
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._stop_taking, stop, app_lifespan)
                    tasks.start_soon(self._retire, stop, retiring)
                    tasks.start_soon(_watch_event_loop)
                    try:
                        await self._work(stop, ready)
                    finally:
                        tasks.cancel_scope.cancel()
                with anyio.move_on_after(CANCEL_SECONDS):  # a layer that is away must not keep the process
                    await bus.drain()

    def _on_bus(self, bus: Bus) -> None:
        """Take a place on the bus. The handler may be called from now on."""
        self.bus = bus

    @abstractmethod
    async def _work(self, stop: anyio.Event, ready: Callable[[], None]) -> None:
        """Call `ready`, take work until `stop` is set, drain, and leave no task running."""

    async def _stop_taking(self, stop: anyio.Event, app_lifespan: Lifespan) -> None:
        await stop.wait()
        self.bus.stop_claiming()
        app_lifespan.notify()
        self._wake()

    @abstractmethod
    def _wake(self) -> None:
        """Wake the task that waits for room, because `stop` is set."""

    def _count_work(self, count: int) -> None:
        """Count connections or messages that were taken."""
        self._remaining -= count
        if self._remaining <= 0:
            self._exhausted.set()

    async def _retire(self, stop: anyio.Event, retiring: Callable[[], None]) -> None:
        """Set `stop` after `max_requests` or `max_lifetime`."""
        with anyio.move_on_after(_spread(self._settings.max_lifetime)):
            await self._exhausted.wait()
        if stop.is_set():
            return
        logger.info("retiring after %s", f"its last {self._unit}" if self._exhausted.is_set() else "its lifetime")
        retiring()
        stop.set()


async def run_beside(
    services: Iterable[Callable[[], Coroutine[Any, Any, object]]],
    ready: Callable[[], None],
    claim: Callable[[], Coroutine[Any, Any, object]],
    drain: Callable[[], Coroutine[Any, Any, object]],
    end: Callable[[], Coroutine[Any, Any, object]],
) -> None:
    """Claim until there is nothing to claim any more, and drain, while services run.

    Compiled, a task group that is left by an exception would show that exception in every later traceback of an app.

    Args:
        services: Run until the end.
        ready: Called when the services have been started.
        claim: Claims and starts work.
        drain: Called after `claim`.
        end: Called after `drain`, and if any of these raises or is cancelled.
    """
    async with anyio.create_task_group() as tasks:
        for service in services:
            tasks.start_soon(service)
        ready()
        try:
            # In a task of its own: each reply to a claim would otherwise pass through all frames that await it.
            async with anyio.create_task_group() as claiming:
                claiming.start_soon(claim)
            await drain()
        finally:
            await end()
            tasks.cancel_scope.cancel()


async def _watch_event_loop() -> None:
    """Log a warning when the event loop was blocked. Other processes only see that the worker's lease has expired."""
    while True:
        due = anyio.current_time() + WATCH_SECONDS
        await anyio.sleep(WATCH_SECONDS)
        if (late := anyio.current_time() - due) >= STALL_SECONDS:
            logger.warning(
                "nothing ran here for %.0f s: the app blocked the event loop (let a thread do such work), or the "
                "process was stopped; a worker is taken for dead when it was stopped for 5 s, or blocked for 10 s",
                late,
            )


def _spread(limit: float | None) -> float:
    """Return a limit that differs a little between workers; infinity if there is none."""
    return math.inf if limit is None else limit * random.uniform(1 - SPREAD, 1 + SPREAD)
