"""Background work: a worker that runs the app for the messages of ordinary channels."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from functools import partial
from typing import Any

import anyio

from asgibus.compatibility.callables import Application, Scope
from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.contract import Bus, Delivery, Handler, Message, Statistics
from asgibus.layers.errors import ChannelFull, LayerUnavailable, MessageTooLarge
from asgibus.layers.names import MAX_NAME_LENGTH, require_channel
from asgibus.layers.streams.redelivery import Redelivery, redelivery
from asgibus.layers.streams.writer import GRACE_SECONDS
from asgibus.worker.base import CANCEL_SECONDS, BaseWorker
from asgibus.worker.settings import WorkerSettings

logger = logging.getLogger("asgibus.worker")

RETRY_SECONDS = 1.0  # before the second attempt; doubled before each further one
LONGEST_RETRY_SECONDS = 60.0
DEAD_SUFFIX = ".dead"  # appended to the name of a channel: where its dead letters go


class BackgroundWorker(BaseWorker):
    """Runs the app for the messages of `settings.channels`, and for no connections.

    Each message is handled at least once. It is acknowledged when the app has handled it, and another worker takes it
    if this one dies. With `at_most_once` it is acknowledged before.

    Args:
        settings: The settings of the worker.
        app: The application, which is called with scopes of the type `channel`.
        layer: The channel layer.

    Raises:
        ValueError: A channel can have no dead-letter channel.
    """

    _unit = "message"

    def __init__(self, settings: WorkerSettings, app: Application, layer: ChannelLayer) -> None:
        super().__init__(settings, app, layer, Handler())
        self._counts: Counter[str] = Counter()
        self._consumers = [
            ChannelConsumer(channel, settings, app, layer, self._counts, self._count_work)
            for channel in dict.fromkeys(settings.channels)
        ]

    @property
    def busy(self) -> int:
        """The number of messages that are being handled."""
        return sum(consumer.busy for consumer in self._consumers)

    def counts(self) -> dict[str, int]:
        """Return the failed, lost and repeated messages by kind."""
        return dict(self._counts + self.layer.counts)

    def gauges(self) -> dict[str, int]:
        """Return the current numbers of messages, and of streams that are written and read."""
        return {"messages": self.busy, **self.layer.gauges()}

    async def channels(self) -> dict[str, Statistics]:
        """Return the statistics of the channels that this worker consumes."""
        channels = {}
        for channel in dict.fromkeys(self._settings.channels):
            with suppress(LayerUnavailable):
                channels[channel] = await self.layer.channel_statistics(channel)
        return channels

    async def _work(self, stop: anyio.Event, ready: Callable[[], None]) -> None:
        """Take messages until `stop` is set. Messages that are being handled may end within the graceful timeout."""
        ready()
        try:
            async with anyio.create_task_group() as consuming:
                for consumer in self._consumers:
                    consuming.start_soon(consumer.consume, self.bus, self.lifespan_state)
            with anyio.move_on_after(self.graceful_timeout):
                for consumer in self._consumers:
                    await consumer.wait_idle()
            if self.busy:
                then = "lost" if self._settings.at_most_once else "given back"
                logger.warning(
                    "%d messages were not handled within %g s and are %s", self.busy, self.graceful_timeout, then
                )
        finally:
            with anyio.CancelScope(shield=True):
                await self._cancel()

    async def _cancel(self) -> None:
        """Cancel the instances: those that wait for a message, and those that are late."""
        if tasks := [task for consumer in self._consumers for task in consumer.cancel()]:
            await asyncio.wait(tasks, timeout=CANCEL_SECONDS)

    def _wake(self) -> None:
        for consumer in self._consumers:
            consumer.stop()


class ChannelConsumer:
    """Runs the app for the messages of one channel, in at most `channel_concurrency` instances.

    Args:
        channel: The channel.
        settings: The settings of the worker.
        app: The application.
        layer: The channel layer, for dead letters and for the app.
        counts: Counts failed, lost and repeated messages, by kind.
        on_taken: Called with the number of messages that were taken.

    Raises:
        ValueError, TypeError: The channel can have no dead-letter channel.
    """

    def __init__(
        self,
        channel: str,
        settings: WorkerSettings,
        app: Application,
        layer: ChannelLayer,
        counts: Counter[str],
        on_taken: Callable[[int], None],
    ) -> None:
        self.channel = channel
        self.dead_letter = dead_letter_channel(channel, settings)
        self._settings = settings
        self._app = app
        self._layer = layer
        self._counts = counts
        self._on_taken = on_taken
        self._state: dict[str, Any] = {}
        self._instances: dict[asyncio.Task[None], AppInstance] = {}
        self._idle: list[AppInstance] = []  # the instances that wait for a message
        # An event of asyncio, because it is set and cleared again for every wait; anyio's is set once.
        self._changed = asyncio.Event()
        self._stopped = False
        self._cancelled = False
        self._bus: Bus

    @property
    def busy(self) -> int:
        """The number of messages that are being handled."""
        return len(self._instances) - len(self._idle)

    def stop(self) -> None:
        """Stop waiting for a free instance, because the bus delivers no more messages."""
        self._stopped = True
        self._changed.set()

    async def consume(self, bus: Bus, state: dict[str, Any]) -> None:
        """Take messages and start their handling until the bus stops. To be called once.

        Args:
            bus: The bus.
            state: The state of the app's lifespan.
        """
        self._bus = bus
        self._state = state
        once = self._settings.at_most_once
        while True:
            while (free := self._settings.channel_concurrency - self.busy) <= 0 and not self._stopped:
                await self._wait_for_change()
            deliveries = await bus.take(self.channel, max(free, 1), once=once)
            if not deliveries:
                return
            self._on_taken(len(deliveries))
            exhausted = [delivery for delivery in deliveries if delivery.attempt > self._settings.attempts and not once]
            for delivery in deliveries:
                if delivery not in exhausted:
                    self._start(delivery)
            for delivery in exhausted:
                await self._dead_letter(delivery, "its worker died")

    async def wait_idle(self) -> None:
        """Wait until no message is being handled. More messages may come while `consume` runs."""
        while self.busy:
            await self._wait_for_change()

    def cancel(self) -> list[asyncio.Task[None]]:
        """Cancel all instances and give back their messages. Return their tasks, which have yet to end."""
        self._cancelled = True
        for task in self._instances:
            task.cancel()
        return [*self._instances]

    async def _wait_for_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _start(self, delivery: Delivery) -> None:
        """Pass a message to an idle instance, or to a new one."""
        if self._idle:
            self._idle.pop().deliver(delivery)
            return
        scope = {
            "type": "channel",
            "channel": self.channel,
            "asgi": {"version": "3.0"},
            "state": self._state.copy(),
            "extensions": {"asgibus": {"layer": self._layer}},
        }
        instance = AppInstance(scope, self._on_handled)
        instance.deliver(delivery)
        # A task of the event loop: an instance outlives `consume`, which ends when no more messages are taken.
        task = asyncio.get_running_loop().create_task(self._run(instance), name=f"channel {self.channel}")
        self._instances[task] = instance
        task.add_done_callback(self._on_ended)

    def _on_handled(self, instance: AppInstance, delivery: Delivery) -> None:
        """Acknowledge a message, because the app has asked for the next one."""
        self._acknowledge(delivery)
        self._idle.append(instance)
        self._changed.set()

    def _redelivered_within(self, instance: AppInstance) -> float:
        """Return within how many seconds a message is delivered again if its handler fails; 0 if it is not."""
        delivery = instance.delivery
        if delivery is None or self._settings.at_most_once or delivery.attempt >= self._settings.attempts:
            return 0.0
        return GRACE_SECONDS + retry_delay(delivery.attempt)

    async def _run(self, instance: AppInstance) -> None:
        instance.redelivery = Redelivery(partial(self._redelivered_within, instance))
        redelivery.set(instance.redelivery)  # of this task, and of those that it starts
        try:
            await self._app(instance.scope, instance.receive, instance.send)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and self._cancelled:
                self._give_back_unfinished(instance)
                raise
            if not isinstance(error, Exception | BaseExceptionGroup | asyncio.CancelledError):
                raise  # SystemExit and KeyboardInterrupt end the process
            await self._on_raised(instance, error)
        else:
            await self._on_returned(instance)

    def _on_ended(self, task: asyncio.Task[None]) -> None:
        instance = self._instances.pop(task)
        if instance in self._idle:
            self._idle.remove(instance)
        self._changed.set()

    async def _on_returned(self, instance: AppInstance) -> None:
        delivery = instance.delivery
        if delivery is None:
            return
        if instance.received:
            self._acknowledge(delivery)
            await instance.redelivery.fail()
        elif not self._start_elsewhere(instance, delivery):
            await self._retry(delivery, RuntimeError("the app returned without having received the message"))

    async def _on_raised(self, instance: AppInstance, error: BaseException) -> None:
        delivery = instance.delivery
        if delivery is None or (not instance.received and self._start_elsewhere(instance, delivery)):
            logger.error("the app raised between two messages of %s", self.channel, exc_info=error)
        else:
            await self._retry(delivery, error)

    def _start_elsewhere(self, instance: AppInstance, delivery: Delivery) -> bool:
        """Pass a message to another instance, if this one has handled others and ended before it received this one."""
        if not instance.handled_any:
            return False
        instance.delivery = None
        self._start(delivery)
        return True

    def _give_back_unfinished(self, instance: AppInstance) -> None:
        """Give back the message of a cancelled instance."""
        if (delivery := instance.delivery) is None:
            return
        if self._settings.at_most_once:
            self._counts["message lost"] += 1
        else:
            self._counts["message cut"] += 1
            self._bus.give_back(delivery)

    async def _retry(self, delivery: Delivery, error: BaseException) -> None:
        """Give a message back for its next attempt, or make it a dead letter after the last one."""
        self._counts["message failed"] += 1
        attempt, attempts = delivery.attempt, self._settings.attempts
        what = f"the app raised on a message of {self.channel}, {_type_of(delivery)}"
        if self._settings.at_most_once:
            self._counts["message lost"] += 1
            logger.error("%s: it is lost", what, exc_info=error)
        elif attempt < attempts:
            delay = retry_delay(attempt)
            self._bus.give_back(delivery, delay=delay)
            logger.error("%s: attempt %d of %d, again in %g s", what, attempt, attempts, delay, exc_info=error)
        else:
            logger.error("%s: attempt %d of %d", what, attempt, attempts, exc_info=error)
            await self._dead_letter(delivery, "the app raised")

    async def _dead_letter(self, delivery: Delivery, why: str) -> None:
        """Send a message to the dead-letter channel after its last attempt."""
        what = f"a message of {self.channel}, {_type_of(delivery)}"
        attempts = min(delivery.attempt, self._settings.attempts)
        try:
            await self._layer.send(self.dead_letter, delivery.message)
        except LayerUnavailable as error:
            logger.warning("%s, cannot go to %s yet: %s", what, self.dead_letter, error)
            self._bus.give_back(delivery, delay=retry_delay(delivery.attempt))
            return
        except (ChannelFull, MessageTooLarge) as error:
            self._counts["dead letter dropped"] += 1
            logger.error("%s, is lost after %d attempts (%s): %s", what, attempts, why, error)
        else:
            self._counts["dead letter"] += 1
            logger.error("%s, goes to %s after %d attempts (%s)", what, self.dead_letter, attempts, why)
        self._bus.acknowledge(delivery)

    def _acknowledge(self, delivery: Delivery) -> None:
        if not self._settings.at_most_once:
            self._bus.acknowledge(delivery)


class AppInstance:
    """One call of the app, which handles one message at a time.

    The app has handled a message when it asks for the next one. The consumer decides what it means that the app returns
    or raises.

    Args:
        scope: The scope of the app.
        on_handled: Called with the instance and the message that the app has handled.
    """

    def __init__(self, scope: Scope, on_handled: Callable[[AppInstance, Delivery], None]) -> None:
        self.scope = scope
        self.delivery: Delivery | None = None
        """The message that is not handled yet."""
        self.received = False
        """Whether the app has received that message."""
        self.handled_any = False
        """Whether the app has handled a message before."""
        self.redelivery: Redelivery
        """The message, as the writers of streams see it. It is set before the app is called."""
        self._on_handled = on_handled
        self._delivered = asyncio.Event()  # asyncio's, because it is cleared after every message

    def deliver(self, delivery: Delivery) -> None:
        """Pass the next message to the app. There must be no other message."""
        assert self.delivery is None
        self.delivery, self.received = delivery, False
        self._delivered.set()

    async def receive(self) -> Message:
        """Return the next message. ASGI's `receive`. A cancelled call takes no message."""
        if self.delivery is not None and self.received:
            delivery, self.delivery = self.delivery, None
            self.handled_any = True
            self._on_handled(self, delivery)
            await self.redelivery.fail()
        while self.delivery is None or self.received:
            self._delivered.clear()
            await self._delivered.wait()
        self.received = True
        return self.delivery.message

    async def send(self, event: MutableMapping[str, Any]) -> None:
        """Raise RuntimeError, because a message has no client. ASGI's `send`."""
        raise RuntimeError(
            f"{event.get('type', 'an event')!r} cannot be sent: a message of the channel {self.scope['channel']!r} has "
            "no client; use the channel layer"
        )


def dead_letter_channel(channel: str, settings: WorkerSettings) -> str:
    """Return the channel for messages of `channel` after their last attempt.

    Raises:
        ValueError: That channel is not possible; the text says why.
    """
    name = settings.dead_letter or channel + DEAD_SUFFIX
    if len(name) > MAX_NAME_LENGTH:
        raise ValueError(f"the dead-letter channel {name!r} has more than {MAX_NAME_LENGTH} characters: name another")
    if settings.dead_letter in settings.channels:
        raise ValueError(f"the dead letters of {channel!r} cannot go to {name!r}, which this worker handles itself")
    return require_channel(name)


def retry_delay(attempt: int) -> float:
    """Return the seconds before the next attempt.

    Args:
        attempt: The number of the attempt that has failed, from 1.
    """
    return min(RETRY_SECONDS * 2.0 ** min(attempt - 1, 16), LONGEST_RETRY_SECONDS)


def _type_of(delivery: Delivery) -> str:
    """Return the type of a message, for the log."""
    return f"type {delivery.message.get('type')!r:.100}"
