"""Ordinary channels: receiving from them, and taking messages that are acknowledged later.

A reader waits with a command that takes nothing (BLMOVE from the head of a list to its head), and then takes with a
script. So a reader that is cancelled while it waits holds no message. If a reader is cancelled while the script runs,
its message is put back at the head, and the readers of this event loop wait for that. Commands that may block have
connections of their own: each carries one command at a time and is kept for the next one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from asgibus.layers.compiling import mypyc_attr
from asgibus.layers.contract import Delivery, Message
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.leases import Beat
from asgibus.layers.redis import scripts
from asgibus.layers.redis.client import (
    BLOCK_SECONDS,
    LOOK_SECONDS,
    SILENCE_SECONDS,
    OnReply,
    RedisConnection,
    RedisError,
    background,
    connect,
    ignore_reply,
    pack_command,
)
from asgibus.layers.redis.codec import EntryCodec, Unreadable
from asgibus.layers.redis.config import Address
from asgibus.layers.redis.keys import Keys
from asgibus.layers.redis.pipeline import Pipeline, Refused

logger = logging.getLogger("asgibus.layers")

KNOWN_CHANNELS = 1000  # channels whose state is kept between two calls
EMPTY_SECONDS = 0.1  # how long a reader relies on having found a channel empty: it waits then without a look
MOVING_SECONDS = 0.1  # until a retry: a slot moves in less, and a new master comes in seconds
CLOSE_SECONDS = 1.0  # for takes that are under way when the layer is closed
RETRY_SECONDS = 0.5  # until a retry when a store cannot be reached
GIVE_BACK_AT_ONCE = 100  # messages that one script puts back: it holds up Redis for less than a millisecond
MOVING = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN")  # errors of a cluster node while a slot moves


@mypyc_attr(native_class=False)
class Moving(LayerUnavailable):
    """The slot of a cluster has moved to another node, or is about to; the next connection finds the new node."""


@mypyc_attr(native_class=False)
class OutOfMemory(LayerUnavailable):
    """Redis has no memory left. It refuses to wait for messages then, but not to take them."""


class BlockingConnections:
    """The connections of one event loop to one store. All methods are called from that loop."""

    def __init__(self, address: Address, pipeline: Pipeline, name: str) -> None:
        """Prepare to connect; the first `start` opens a connection.

        Args:
            address: Where Redis is.
            pipeline: Its connection tells which Redis is the current one after a failover.
            name: The name of the connections in Redis.
        """
        self._loop = asyncio.get_running_loop()
        self._address = address
        self._pipeline = pipeline
        self._name = name
        self._idle: list[RedisConnection] = []
        self._busy: dict[RedisConnection, OnReply] = {}
        self._making: list[asyncio.Task[RedisConnection]] = []  # connections whose callers have been cancelled
        self._watching = False
        self._closed = False
        self._ending: asyncio.Task[None] | None = None  # ends the connections if the event loop ends without a `close`

    async def start(self, command: bytes, on_reply: OnReply) -> RedisConnection:
        """Write a packed command on a connection that carries nothing else.

        Args:
            command: The command.
            on_reply: Called with the reply, or with LayerUnavailable when the connection is lost or Redis refuses.

        Returns:
            The connection. Aborting it gives the command up.

        Raises:
            LayerUnavailable: Redis cannot be reached.
        """
        connection = await self._free()
        self._busy[connection] = on_reply
        connection.write(command, (partial(self._reply, connection),))
        if connection.lost.done():  # since it was made
            self._lost(connection, connection.lost)
        elif not self._watching:
            self._watching = True
            self._loop.call_later(LOOK_SECONDS, self._watch)
        return connection

    def stop(self) -> None:
        """Start no command any more. Those under way go on."""
        self._closed = True

    def close(self) -> None:
        """End all connections; commands under way fail."""
        self._closed = True
        if self._ending is not None:
            self._ending.cancel()
        self._end_all()

    async def _end_with_loop(self) -> None:
        try:
            await self._loop.create_future()  # until it is cancelled, as every task is at the end of `asyncio.run`
        finally:
            if not self._closed:
                self._end_all()

    def _end_all(self) -> None:
        for connection in (*self._idle, *self._busy):
            connection.abort("closed here")
        self._idle.clear()
        for making in self._making:
            _drop(making)
        self._making.clear()

    async def _free(self) -> RedisConnection:
        """Return an idle connection, or a new one. Raises LayerUnavailable.

        If the caller is cancelled while its connection is being made, the next caller gets that connection. Otherwise
        callers with short time limits would never get one.
        """
        if self._closed:
            raise LayerUnavailable("the layer was closed")
        while self._idle:
            connection = self._idle.pop()
            if self._is_outdated(connection):
                connection.abort("another Redis has taken its place")
            if not connection.lost.done():
                return connection
        self._making = [making for making in self._making if not making.done() or _is_made(making)]
        making = self._making.pop() if self._making else self._loop.create_task(self._connect(), name="asgibus connect")
        try:
            connection = await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(_is_made)  # retrieves the exception, so that asyncio does not log it
            if self._closed:
                _drop(making)
            else:
                self._making.append(making)
            raise
        if self._closed:
            connection.abort("closed here")
            raise LayerUnavailable("the layer was closed")
        return connection

    def _is_outdated(self, connection: RedisConnection) -> bool:
        """Return whether the pipeline is connected to another Redis. Cluster nodes report that themselves (MOVED)."""
        current = self._pipeline.run_id if self._pipeline.connected and not self._address.nodes else ""
        return bool(current and connection.run_id) and connection.run_id != current

    async def _connect(self) -> RedisConnection:
        connection = await connect(self._address, self._name)
        if self._ending is None and not self._closed:
            self._ending = background(self._end_with_loop(), f"{self._name} end")
        connection.lost.add_done_callback(partial(self._lost, connection))
        return connection

    def _reply(self, connection: RedisConnection, reply: Any) -> None:
        on_reply = self._busy.pop(connection)
        refused_for_memory = isinstance(reply, RedisError) and str(reply).startswith("OOM")
        if refused_for_memory or not isinstance(reply, RedisError):
            self._idle.append(connection)
            on_reply(OutOfMemory(f"Redis refused to receive: {reply}") if refused_for_memory else reply)
            return
        connection.abort("a read was refused")
        if str(reply).startswith(MOVING):
            for each in self._idle:
                each.abort("its slot of the cluster has moved")
            on_reply(Moving("the channel is moving to another node of the cluster"))
        else:
            on_reply(LayerUnavailable(f"Redis refused to receive: {reply}"))

    def _lost(self, connection: RedisConnection, lost: asyncio.Future[str]) -> None:
        on_reply = self._busy.pop(connection, None)
        if on_reply is not None:
            reason = "the layer was closed" if self._closed else f"the connection to Redis ended: {lost.result()}"
            on_reply(LayerUnavailable(reason))

    def _watch(self) -> None:
        """End the connections that have been silent for too long, and those to a Redis that has been replaced."""
        for connection in list(self._busy):
            if connection.overdue(SILENCE_SECONDS):
                connection.abort(f"no reply for {SILENCE_SECONDS:g} s")
            elif self._is_outdated(connection):
                connection.abort("another Redis has taken its place")
        self._watching = bool(self._busy)
        if self._watching:
            self._loop.call_later(LOOK_SECONDS, self._watch)


def _is_made(making: asyncio.Task[RedisConnection]) -> bool:
    return making.done() and not making.cancelled() and making.exception() is None and not making.result().lost.done()


def _drop(making: asyncio.Task[RedisConnection]) -> None:
    making.cancel()
    making.add_done_callback(lambda made: made.result().abort("closed here") if _is_made(made) else None)


class Entry(NamedTuple):
    """A message as it was taken from a channel."""

    id: str
    """Names a message that is to be acknowledged; "" for others."""
    stamp: int
    """Since when it can be received, in ms by Redis's clock."""
    attempt: int
    payload: bytes
    """The packed message."""


class _Channel:
    """The state that the readers of one channel share in one event loop.

    Attributes:
        lock: Held by the one reader that waits and takes.
        blocking: Whether a wait is under way in Redis. It goes on if its reader is cancelled.
        waiting: Futures of the readers that are woken when that wait ends.
        returned: Done when the messages of cancelled readers are back.
        returning: How many cancelled readers have messages that are not back.
        due: When the next delayed message is due, by the event loop's clock.
        empty_until: Until when the channel is thought to be empty, by the event loop's clock.
    """

    __slots__ = ("blocking", "due", "empty_until", "lock", "returned", "returning", "waiting")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.blocking = False
        self.waiting: set[asyncio.Future[None]] = set()
        self.returned: asyncio.Future[None] | None = None
        self.returning = 0
        self.due = math.inf
        self.empty_until = 0.0


class ChannelReader:
    """Takes messages from ordinary channels, for one event loop and one store."""

    def __init__(
        self,
        address: Address,
        keys: Keys,
        entries: EntryCodec,
        pipeline: Pipeline,
        *,
        expiry: float,
        group_expiry: float,
    ) -> None:
        """Prepare to read for the running event loop.

        Args:
            address: Where Redis is.
            keys: The names of keys.
            entries: Unpacks messages.
            pipeline: Writes to the same Redis.
            expiry: Seconds after which an unread message is dropped.
            group_expiry: Seconds after which a message that was taken and not acknowledged is dropped.
        """
        self._loop = asyncio.get_running_loop()
        self._keys = keys
        self._entries = entries
        self._pipeline = pipeline
        self._expiry = round(expiry * 1000)
        self._taken_expiry = round(group_expiry * 1000)
        self._connections = BlockingConnections(address, pipeline, "asgibus-receive")
        self._channels: dict[str, _Channel] = {}
        self._underway: set[asyncio.Future[Any]] = set()  # takes, and messages that are put back

    async def receive(self, channel: str) -> Message:
        """Wait for the next message of a channel and take it. Raises LayerUnavailable."""
        while True:
            try:
                return await self._receive(channel, self._channel(channel))
            except Moving:
                # The pipeline, which may have nothing else to write, has to follow the slot to the new node.
                self._pipeline.write(
                    ("EXISTS", self._keys.messages(channel)), ignore_reply, repeatable=False, patient=False
                )
                await asyncio.sleep(MOVING_SECONDS)

    async def _receive(self, channel: str, state: _Channel) -> Message:
        async with state.lock:
            while True:
                if self._is_empty(state):
                    await self._wait(channel, state)
                if (message := await self._take_one(channel, state)) is not None:
                    return message

    async def take(self, channel: str, limit: int, *, consumer: str = "", name: str = "") -> list[Entry]:
        """Take up to `limit` messages, without waiting for any.

        Args:
            channel: The channel.
            limit: How many messages to take.
            consumer: Under whose name the messages stay until they are acknowledged; "" if they need not be.
            name: Begins the ids of those messages; no other call has it.

        Returns:
            The messages, oldest first. If there are none, call `wait`.

        Raises:
            LayerUnavailable: Redis cannot be reached, or refuses.
        """
        acknowledged = (consumer, self._taken_expiry, name) if consumer else ()
        reply = await self._take(channel, self._channel(channel), limit, *acknowledged)
        return [_parse(entry_id.decode(), item) for entry_id, item in zip(reply[2::2], reply[3::2], strict=True)]

    async def wait(self, channel: str) -> None:
        """Wait until a channel may hold something to take, for two seconds at most. Raises LayerUnavailable."""
        state = self._channel(channel)
        if self._is_empty(state):
            await self._wait(channel, state)

    async def close(self) -> None:
        """Wait for what is being taken now and for what is put back, and close the connections.

        Readers that wait get LayerUnavailable.
        """
        self._connections.stop()
        if self._underway:
            await asyncio.wait(self._underway, timeout=CLOSE_SECONDS)
        self._connections.close()

    def _channel(self, channel: str) -> _Channel:
        state = self._channels.get(channel)
        if state is None:
            if len(self._channels) >= KNOWN_CHANNELS:
                self._channels.clear()  # the readers that wait keep theirs
            state = self._channels[channel] = _Channel()
        return state

    def _is_empty(self, state: _Channel) -> bool:
        return self._loop.time() < state.empty_until

    async def _wait(self, channel: str, state: _Channel) -> None:
        """Wait until the list of the channel holds something, or a delayed message is due, or for two seconds."""
        if not state.blocking:
            key = self._keys.messages(channel)
            seconds = max(0.001, min(BLOCK_SECONDS, state.due - self._loop.time()))
            command = pack_command(("BLMOVE", key, key, "LEFT", "LEFT", f"{seconds:.3f}"))
            connection = await self._connections.start(command, partial(self._wake, state))
            if connection.lost.done():
                return
            state.blocking = True
        woken: asyncio.Future[None] = self._loop.create_future()
        state.waiting.add(woken)
        try:
            await woken
        finally:
            state.waiting.discard(woken)

    def _wake(self, state: _Channel, reply: object) -> None:
        """Wake all who wait for a channel: its wait in Redis has ended."""
        if isinstance(reply, OutOfMemory):  # look again soon
            seconds = max(0.0, min(RETRY_SECONDS, state.due - self._loop.time()))
            self._loop.call_later(seconds, self._wake, state, None)
            return
        state.blocking = False
        state.empty_until = 0.0
        for woken in state.waiting:
            _settle(woken, reply if isinstance(reply, Exception) else None)

    async def _take(self, channel: str, state: _Channel, limit: int, *acknowledged: str | int) -> list[Any]:
        """Run the script that takes, and return its reply.

        When this is cancelled, the messages are put back, unless they are to be acknowledged. Raises LayerUnavailable.
        """
        taken: asyncio.Future[list[Any]] = self._loop.create_future()
        put_back = None if acknowledged else partial(self._put_back, channel, state)

        def on_reply(reply: Any) -> None:
            self._underway.discard(taken)
            if not isinstance(reply, Exception):
                more, due = reply[:2]
                now = self._loop.time()
                state.due = now + due / 1000 if due >= 0 else math.inf
                state.empty_until = 0.0 if more else min(now + EMPTY_SECONDS, state.due)
            if taken.cancelled() and put_back is not None:
                put_back(reply)
            else:
                _settle(taken, reply)

        keys = self._keys
        names = keys.messages(channel), keys.delayed(channel), keys.taken(channel)
        command = ("EVAL", scripts.CHANNEL_TAKE, 3, *names, self._expiry, limit, *acknowledged)
        await self._connections.start(pack_command(command), on_reply)
        if not taken.done():
            self._underway.add(taken)
        try:
            return await taken
        except asyncio.CancelledError:
            if put_back is not None:
                state.returning += 1
                if state.returned is None:
                    state.returned = self._loop.create_future()
                    self._underway.add(state.returned)
                if not taken.cancelled():  # the reply has come at the same time
                    put_back(taken.exception() or taken.result())
            raise

    async def _take_one(self, channel: str, state: _Channel) -> Message | None:
        """Take the oldest message. Return None if there is none, or it cannot be read, which is counted and logged."""
        if state.returned is not None:
            await asyncio.wait((state.returned,))
        reply = await self._take(channel, state, 1)
        if len(reply) == 2:
            return None
        entry = _parse("", reply[3])
        try:
            return self._entries.unpack_message(self._keys.messages(channel), entry.payload)
        except ValueError as error:
            self._entries.log_rejected(f"channel {channel}", str(entry.stamp), error)
            return None

    def _put_back(self, channel: str, state: _Channel, reply: Any) -> None:
        """Put what a cancelled reader took back at the head. The next reader here waits for that.

        If that fails, the message is lost: at most once is what was promised.
        """
        items = [] if isinstance(reply, Exception) else reply[3::2]
        if items:
            command = ("EVAL", scripts.CHANNEL_PUT_BACK, 1, self._keys.messages(channel), self._expiry, *items)
            self._pipeline.write(command, partial(self._on_put_back, channel, state), repeatable=False)
        else:
            self._on_put_back(channel, state, None)

    def _on_put_back(self, channel: str, state: _Channel, reply: object) -> None:
        if isinstance(reply, Exception):
            logger.warning("a message of %s was lost with its reader, which was cancelled: %s", channel, reply)
        state.empty_until = 0.0
        state.returning -= 1
        if not state.returning and state.returned is not None:
            returned, state.returned = state.returned, None
            self._underway.discard(returned)
            returned.set_result(None)


class ChannelStore(Protocol):
    """The store of a channel, as a consumer uses it."""

    reader: ChannelReader
    pipeline: Pipeline
    keys: Keys


class AckingConsumer:
    """Takes messages for one process and keeps them under its name until they are acknowledged.

    They lie in a hash beside their channel. Other consumers of the channel put back what a dead process had taken.
    """

    def __init__(
        self,
        store_of: Callable[[str], Awaitable[ChannelStore]],
        entries: EntryCodec,
        consumer: str,
        counts: Counter[str],
        expiry: float,
    ) -> None:
        """Prepare to take.

        Args:
            store_of: Returns the store of a channel; raises LayerUnavailable.
            entries: Unpacks messages.
            consumer: The mailbox of this process, which is its name as a consumer.
            counts: Counts what was given back.
            expiry: Seconds after which an unread message is dropped.
        """
        self._store_of = store_of
        self._stores: dict[str, ChannelStore] = {}
        self._entries = entries
        self._consumer = consumer
        self._counts = counts
        self._expiry = round(expiry * 1000)
        self._channels: set[str] = set()
        self.unreadable = Unreadable()
        self._stopped = asyncio.Event()

    async def take(self, channel: str, limit: int, *, once: bool) -> list[Delivery]:
        """Wait for messages and take up to `limit`; see `Bus.take`."""
        if not once:
            self._channels.add(channel)
        name = ""  # begins the ids of what was taken last, until the reply has come
        while not self._stopped.is_set():
            try:
                reader = (await self._store(channel)).reader
                if name:
                    entries = await self._find_taken(channel, name)
                else:
                    name = "" if once else secrets.token_hex(8)
                    entries = await reader.take(channel, limit, consumer=name and self._consumer, name=name)
                name = ""
                deliveries, pause = self._read(channel, entries, once=once)
                if deliveries:
                    return deliveries
                await self._unless_stopped(reader.wait(channel) if pause is None else asyncio.sleep(pause))
            except LayerUnavailable as error:
                if isinstance(error, Refused):
                    self._entries.log_unexpected("take refused", f"channel {channel}", f"nothing can be taken: {error}")
                logger.debug("nothing can be taken from %s: %s", channel, error)
                await self._unless_stopped(asyncio.sleep(RETRY_SECONDS))
        return []

    def stop(self) -> None:
        """Make every running and later `take` return."""
        self._stopped.set()

    def acknowledge(self, delivery: Delivery) -> None:
        """Note that a message is handled; buffered."""
        self._forget(delivery.channel, delivery.id)

    def give_back(self, delivery: Delivery, delay: float) -> None:
        """Let a message be taken again, by any consumer, after `delay` seconds; buffered."""
        self._put_back(delivery.channel, [delivery.id], delay)

    @property
    def active(self) -> bool:
        """Return whether this process takes messages."""
        return bool(self._channels) and not self._stopped.is_set()

    async def list_claims(self) -> dict[str, list[tuple[str, str]]]:
        """Return the id and the consumer of each message that is not acknowledged, by channel: see `OrphanClaimer`.

        Channels whose store is away are left out.
        """
        channels = [channel for channel in self._channels if channel in self._stores]
        replies = await asyncio.gather(*map(self._taken, channels), return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, LayerUnavailable):
                raise reply
        each = zip(channels, replies, strict=True)
        return {channel: reply for channel, reply in each if not isinstance(reply, BaseException)}

    async def claim_orphans(self, claims: Mapping[str, Sequence[tuple[str, str]]], beat: Beat) -> bool:
        """Put back what dead processes had taken from the channels of this one: see `OrphanClaimer`."""
        for channel, taken in claims.items():
            if ids := [entry_id for entry_id, consumer in taken if beat.is_dead(consumer)]:
                self._counts["message given back"] += len(ids)
                logger.warning("%d messages of %s had been taken by processes that died", len(ids), channel)
                self._put_back(channel, ids, 0.0)
        return self._channels <= claims.keys()

    async def close(self) -> None:
        """Put back what was not acknowledged."""
        for channel in self._channels:
            try:
                ids = [entry_id for entry_id, consumer in await self._taken(channel) if consumer == self._consumer]
            except LayerUnavailable as error:
                logger.debug("other processes have to put back what was taken from %s: %s", channel, error)
            else:
                self._put_back(channel, ids, 0.0)

    async def _taken(self, channel: str) -> list[tuple[str, str]]:
        """Return the id and the consumer of each message of a channel that is not acknowledged."""
        store = await self._store(channel)
        reply = await store.pipeline.call("EVAL", scripts.CHANNEL_TAKEN, 1, store.keys.taken(channel), until=_soon())
        # A message without a consumer's name is not given back to anybody.
        pairs = (self._entries.valid_names(f"taken of {channel}", reply[i : i + 2]) for i in range(0, len(reply), 2))
        return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]

    async def _find_taken(self, channel: str, name: str) -> list[Entry]:
        """Return what a take removed whose reply was lost, by the beginning of the ids. Raises LayerUnavailable."""
        store = await self._store(channel)
        ids = [each for each, _ in await self._taken(channel) if each.startswith(name)]
        if not ids:
            return []
        ids.sort(key=lambda each: int(each.removeprefix(f"{name}x")))  # the number in that take
        values = await store.pipeline.call("HMGET", store.keys.taken(channel), *ids, until=_soon())
        return [_parse_taken(each, value) for each, value in zip(ids, values, strict=True) if value is not None]

    async def _store(self, channel: str) -> ChannelStore:
        store = self._stores[channel] = await self._store_of(channel)
        return store

    def _forget(self, channel: str, entry_id: str) -> None:
        store = self._stores[channel]
        store.pipeline.write(("HDEL", store.keys.taken(channel), entry_id), _log_error)

    def _put_back(self, channel: str, ids: list[str], delay: float, *, tried: bool = True) -> None:
        store = self._stores[channel]
        keys = store.keys
        names = keys.messages(channel), keys.delayed(channel), keys.taken(channel)
        for start in range(0, len(ids), GIVE_BACK_AT_ONCE):
            some = ids[start : start + GIVE_BACK_AT_ONCE]
            times = self._expiry, round(delay * 1000)
            store.pipeline.write(("EVAL", scripts.CHANNEL_GIVE_BACK, 3, *names, *times, int(tried), *some), _log_error)

    def _read(self, channel: str, entries: Collection[Entry], *, once: bool) -> tuple[list[Delivery], float | None]:
        """Unpack what was taken.

        A message that another process may be able to read is put back, unless it was acknowledged when it was taken.

        Returns:
            What can be read; and if that is nothing, for how many seconds nothing is to be taken.
        """
        place = self._stores[channel].keys.messages(channel)
        deliveries, foreign, why = [], [], ""
        for entry in entries:
            try:
                message = self._entries.unpack_message(place, entry.payload)
            except ValueError as error:
                reason = None if once else self._entries.count_foreign(error)
                if reason is None:
                    self._entries.log_rejected(f"channel {channel}", entry.id, error)
                    self._forget(channel, entry.id)
                else:
                    foreign.append(entry.id)
                    why = reason
            else:
                deliveries.append(Delivery(channel, entry.id, message, entry.attempt))
        if foreign:
            self._put_back(channel, foreign, 0.0, tried=False)
        if deliveries:
            self.unreadable.on_read()
            return deliveries, None
        return [], self.unreadable.on_unreadable_batch(f"channel {channel}", why) if foreign else None

    async def _unless_stopped(self, waiting: Awaitable[object]) -> None:
        """Wait, at most until `stop`. Raises what the waiting raises."""
        tasks = asyncio.ensure_future(waiting), asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if not tasks[0].cancelled():
            tasks[0].result()


def _parse(entry_id: str, item: bytes) -> Entry:
    """Parse a list item. A malformed item has an empty payload, which cannot be unpacked."""
    try:
        stamp, attempt, payload = item.split(b":", 2)
        return Entry(entry_id, int(stamp), int(attempt), payload)
    except ValueError:
        return Entry(entry_id, 0, 1, b"")


def _parse_taken(entry_id: str, value: bytes) -> Entry:
    """Parse a value of the hash of taken messages, which does not say since when the message can be received."""
    return _parse(entry_id, b"0:" + value.partition(b"!")[2])


def _settle(future: asyncio.Future[Any], reply: Any) -> None:
    """Give a future its reply, or the error in the place of one, unless it was cancelled."""
    if future.done():
        return
    if isinstance(reply, Exception):
        future.set_exception(reply)
        future.exception()  # seen, also if the task that awaits it is cancelled in this moment
    else:
        future.set_result(reply)


def _soon() -> float:
    """Return when a call gives up for a process that ends, or one with others to look after."""
    return asyncio.get_running_loop().time() + RETRY_SECONDS


def _log_error(reply: object) -> None:
    if isinstance(reply, RedisError):
        logger.error("Redis refused a command: %s", reply)
