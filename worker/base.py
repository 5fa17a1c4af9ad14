"""What every worker does: its place on the bus, the app's start-up and shut-down, and its end."""

from __future__ import annotations

import logging
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import anyio

from asgibus.compatibility.callables import Application
from asgibus.layers.contract import Bus, ChannelLayer, Handler, Statistics
from asgibus.worker.lifespan import lifespan
from asgibus.worker.settings import WorkerSettings

logger = logging.getLogger("asgibus.worker")

CANCEL_SECONDS = 5.0  # for an app to end when it is cancelled; one that refuses must not keep the process
WATCH_SECONDS = 1.0  # between two looks at the clock
STALL_SECONDS = 3.0  # of standing still are told: the lease ends after 10 to 15
SPREAD = 0.1  # by which share of it max_requests and max_lifetime vary, so that not all workers end at once


class BaseWorker(ABC):
    """A worker process. `serve` is the whole life. `handler` reads its mailbox."""

    bus: Bus
    _unit: str
    """What it takes, for people to read."""

    def __init__(self, settings: WorkerSettings, app: Application, layer: ChannelLayer, handler: Handler) -> None:
        self._settings = settings
        self._app = app
        self._handler = handler
        self.layer = layer
        self.graceful_timeout = settings.graceful_timeout
        self.lifespan_state: dict[str, Any] = {}
        self._stop = anyio.Event()
        self._spent = anyio.Event()  # it has taken as much as it may
        self._left = _spread(settings.max_requests)

    @property
    def mailbox(self) -> str:
        """Its name on the bus, once it is ready."""
        return self.bus.mailbox

    def ready(self) -> str | None:
        """None if work is taken; else why not, in a sentence."""
        if self._stop.is_set():
            return f"stopping: no new {self._unit}s are taken"
        if not self.bus.available:
            return "the channel layer cannot be reached"
        if self.bus.refusal is not None:
            return f"the channel layer takes nothing: {self.bus.refusal}"
        return self.bus.unreadable

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """What went wrong or was repaired so far, by what it was."""

    @abstractmethod
    def gauges(self) -> dict[str, int]:
        """How much there is of what, now."""

    @abstractmethod
    async def channels(self) -> dict[str, Statistics]:
        """The channels from which it takes, by name; none while the layer is away."""

    async def serve(
        self, stop: anyio.Event, ready: Callable[[], None], retiring: Callable[[], None] = lambda: None
    ) -> None:
        """Start the app, call `ready`, serve until `stop` is set, then drain.

        Calls `retiring` and drains by itself after `max_requests` or `max_lifetime`. Raises LifespanError,
        LayerUnavailable (at the start only).
        """
        self._stop = stop
        async with self.layer.bus("worker", self._handler) as bus:
            self._on_bus(bus)
            async with lifespan(self._app, self._settings.lifespan, stop) as state:
                if stop.is_set():
                    return
                self.lifespan_state = state
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._stop_taking, stop)
                    tasks.start_soon(self._retire, stop, retiring)
                    tasks.start_soon(_tell_stalls)
                    try:
                        await self._work(stop, ready)
                    finally:
                        tasks.cancel_scope.cancel()
                with anyio.move_on_after(CANCEL_SECONDS):  # a layer that is away must not keep the process
                    await bus.drain()

    def _on_bus(self, bus: Bus) -> None:
        """It has its place on the bus; the handler may be called from now on."""
        self.bus = bus

    @abstractmethod
    async def _work(self, stop: anyio.Event, ready: Callable[[], None]) -> None:
        """Call `ready`, take work until `stop` is set, drain, and leave nothing behind."""

    async def _stop_taking(self, stop: anyio.Event) -> None:
        await stop.wait()
        self.bus.stop_claiming()
        self._wake()

    @abstractmethod
    def _wake(self) -> None:
        """`stop` is set: nothing may wait for room any more."""

    def _count_work(self, count: int) -> None:
        """So many connections or messages were taken."""
        self._left -= count
        if self._left <= 0:
            self._spent.set()

    async def _retire(self, stop: anyio.Event, retiring: Callable[[], None]) -> None:
        """End after as long, or as much work, as the settings say."""
        with anyio.move_on_after(_spread(self._settings.max_lifetime)):
            await self._spent.wait()
        if stop.is_set():
            return
        logger.info("retiring after %s", f"its last {self._unit}" if self._spent.is_set() else "its lifetime")
        retiring()
        stop.set()


async def _tell_stalls() -> None:
    """Say so when the event loop stood still: what others make of it, a dead worker, does not tell the cause."""
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
    """A limit that varies a little from worker to worker; without end if there is none."""
    return math.inf if limit is None else limit * random.uniform(1 - SPREAD, 1 + SPREAD)
