"""One channel of a background worker: takes its messages, runs the app for them, and sees to those that fail."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from asgibus.compatibility.callables import Application
from asgibus.layers.contract import Bus, ChannelLayer, Delivery
from asgibus.layers.errors import ChannelFull, LayerUnavailable, MessageTooLarge
from asgibus.layers.names import MAX_NAME_LENGTH, require_channel
from asgibus.worker.instance import Instance
from asgibus.worker.settings import WorkerSettings

logger = logging.getLogger("asgibus.worker")

RETRY_SECONDS = 1.0  # before the second attempt; doubled before each further one
LONGEST_RETRY_SECONDS = 60.0
DEAD_SUFFIX = ".dead"  # behind a channel's name: where its dead letters go


class Listener:
    """Runs `app` for messages of `channel`, in at most `channel_concurrency` instances. `listen` is called once.

    `took` is told how many messages were taken, `counts` is added to. Raises ValueError, TypeError if there can be no
    dead-letter channel.
    """

    def __init__(
        self,
        channel: str,
        settings: WorkerSettings,
        app: Application,
        layer: ChannelLayer,
        counts: Counter[str],
        took: Callable[[int], None],
    ) -> None:
        self.channel = channel
        self.dead_letter = dead_letter_channel(channel, settings)
        self._settings = settings
        self._app = app
        self._layer = layer
        self._counts = counts
        self._took = took
        self._state: dict[str, Any] = {}
        self._instances: dict[asyncio.Task[None], Instance] = {}
        self._idle: list[Instance] = []  # they wait for a message
        self._changed = asyncio.Event()
        self._stopped = False
        self._cut = False
        self._bus: Bus

    @property
    def busy(self) -> int:
        """How many messages are being handled."""
        return len(self._instances) - len(self._idle)

    def stop(self) -> None:
        """The bus gives no more messages: do not wait for room."""
        self._stopped = True
        self._changed.set()

    async def listen(self, bus: Bus, state: dict[str, Any]) -> None:
        """Take messages and start their handling, until the bus stops. `state`: of the app's lifespan."""
        self._bus = bus
        self._state = state
        once = self._settings.at_most_once
        while True:
            while (free := self._settings.channel_concurrency - self.busy) <= 0 and not self._stopped:
                await self._change()
            deliveries = await bus.take(self.channel, max(free, 1), once=once)
            if not deliveries:
                return
            self._took(len(deliveries))
            spent = [delivery for delivery in deliveries if delivery.attempt > self._settings.attempts and not once]
            for delivery in deliveries:
                if delivery not in spent:
                    self._begin(delivery)
            for delivery in spent:
                await self._bury(delivery, "whoever handled it died")

    async def finished(self) -> None:
        """Wait until no message is being handled; more may come while `listen` runs."""
        while self.busy:
            await self._change()

    def cut(self) -> list[asyncio.Task[None]]:
        """Cancel all instances; what they have not handled is given back. The tasks that are about to end."""
        self._cut = True
        for task in self._instances:
            task.cancel()
        return [*self._instances]

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _begin(self, delivery: Delivery) -> None:
        if self._idle:
            self._idle.pop().give(delivery)
            return
        scope = {
            "type": "channel",
            "channel": self.channel,
            "asgi": {"version": "3.0"},
            "state": self._state.copy(),
            "extensions": {"asgibus": {"layer": self._layer}},
        }
        instance = Instance(scope, self._handled)
        instance.give(delivery)
        task = asyncio.get_running_loop().create_task(self._run(instance), name=f"channel {self.channel}")
        self._instances[task] = instance
        task.add_done_callback(self._ended)

    def _handled(self, instance: Instance, delivery: Delivery) -> None:
        """The app has asked for the next message."""
        self._acknowledge(delivery)
        self._idle.append(instance)
        self._changed.set()

    async def _run(self, instance: Instance) -> None:
        try:
            await self._app(instance.scope, instance.receive, instance.send)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and self._cut:
                self._given_up(instance)
                raise
            if not isinstance(error, Exception | BaseExceptionGroup | asyncio.CancelledError):
                raise  # SystemExit and KeyboardInterrupt are for the process
            await self._failed(instance, error)
        else:
            await self._returned(instance)

    def _ended(self, task: asyncio.Task[None]) -> None:
        instance = self._instances.pop(task)
        if instance in self._idle:
            self._idle.remove(instance)
        self._changed.set()

    async def _returned(self, instance: Instance) -> None:
        delivery = instance.delivery
        if delivery is None:
            return
        if instance.has_it:
            self._acknowledge(delivery)
        elif not self._passed_on(instance, delivery):
            await self._try_again(delivery, RuntimeError("the app returned without having received the message"))

    async def _failed(self, instance: Instance, error: BaseException) -> None:
        delivery = instance.delivery
        if delivery is None or (not instance.has_it and self._passed_on(instance, delivery)):
            logger.error("the app raised between two messages of %s", self.channel, exc_info=error)
        else:
            await self._try_again(delivery, error)

    def _passed_on(self, instance: Instance, delivery: Delivery) -> bool:
        """An instance that ended just when it was to handle one more has not failed at that: it is for another one."""
        if not instance.handled_any:
            return False
        instance.delivery = None
        self._begin(delivery)
        return True

    def _given_up(self, instance: Instance) -> None:
        """The time to finish is over."""
        if (delivery := instance.delivery) is None:
            return
        if self._settings.at_most_once:
            self._counts["message lost"] += 1
        else:
            self._counts["message cut"] += 1
            self._bus.give_back(delivery)

    async def _try_again(self, delivery: Delivery, error: BaseException) -> None:
        """The app has failed at this message."""
        self._counts["message failed"] += 1
        attempt, attempts = delivery.attempt, self._settings.attempts
        what = f"the app raised on a message of {self.channel}, {_kind(delivery)}"
        if self._settings.at_most_once:
            self._counts["message lost"] += 1
            logger.error("%s: it is lost", what, exc_info=error)
        elif attempt < attempts:
            delay = retry_delay(attempt)
            self._bus.give_back(delivery, delay=delay)
            logger.error("%s: attempt %d of %d, again in %g s", what, attempt, attempts, delay, exc_info=error)
        else:
            logger.error("%s: attempt %d of %d", what, attempt, attempts, exc_info=error)
            await self._bury(delivery, "the app raised")

    async def _bury(self, delivery: Delivery, why: str) -> None:
        """Make a dead letter of a message that had its attempts."""
        what = f"a message of {self.channel}, {_kind(delivery)}"
        had = min(delivery.attempt, self._settings.attempts)
        try:
            await self._layer.send(self.dead_letter, delivery.message)
        except LayerUnavailable as error:
            logger.warning("%s, cannot go to %s yet: %s", what, self.dead_letter, error)
            self._bus.give_back(delivery, delay=retry_delay(delivery.attempt))
            return
        except (ChannelFull, MessageTooLarge) as error:
            self._counts["dead letter dropped"] += 1
            logger.error("%s, is lost after %d attempts (%s): %s", what, had, why, error)
        else:
            self._counts["dead letter"] += 1
            logger.error("%s, goes to %s after %d attempts (%s)", what, self.dead_letter, had, why)
        self._bus.acknowledge(delivery)

    def _acknowledge(self, delivery: Delivery) -> None:
        if not self._settings.at_most_once:
            self._bus.acknowledge(delivery)


def dead_letter_channel(channel: str, settings: WorkerSettings) -> str:
    """Where messages of `channel` go when they had their attempts. Raises ValueError if they cannot go there."""
    name = settings.dead_letter or channel + DEAD_SUFFIX
    if len(name) > MAX_NAME_LENGTH:
        raise ValueError(f"the dead-letter channel {name!r} has more than {MAX_NAME_LENGTH} characters: name another")
    if settings.dead_letter in settings.channels:
        raise ValueError(f"the dead letters of {channel!r} cannot go to {name!r}, which this worker handles itself")
    return require_channel(name)


def retry_delay(attempt: int) -> float:
    """Seconds until a message is tried again whose attempt of that number has failed."""
    return min(RETRY_SECONDS * 2.0 ** min(attempt - 1, 16), LONGEST_RETRY_SECONDS)


def _kind(delivery: Delivery) -> str:
    """How a message is called in the log."""
    return f"type {delivery.message.get('type')!r:.100}"
