"""Ordinary channels: receiving from them, and taking messages that are acknowledged later.

A reader writes a command that waits and takes nothing (BLMOVE from the head of a list to its head) and the command that
takes at once, so that a message costs one round trip. If the reader is cancelled, the wait is ended (CLIENT UNBLOCK),
and a message that was taken all the same is put back at the head. The cancelled call returns when that is done, and the
next reader of this event loop waits for it. Commands that may block have connections of their own: each carries one
operation at a time and is kept for the next one.

A message is taken with a script, which drops expired messages and knows the delayed ones. While there are none, LPOP
takes; each tenth of a second, and whenever a delayed message is sent, a reader looks with the script.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections import Counter, deque
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
    Argument,
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
RETRY_SECONDS = 0.5  # until a retry when a store cannot be reached
SETTLE_SECONDS = 1.0  # for what is on the way to a cancelled reader to be put back
UNBLOCK_SECONDS = 0.01  # until a wait that was not blocked yet when it should have been ended is ended again
GIVE_BACK_AT_ONCE = 100  # messages that one script puts back: it holds up Redis for less than a millisecond
MOVING = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN")  # errors of a cluster node while a slot moves


@mypyc_attr(native_class=False)
class Moving(LayerUnavailable):
    """The slot of a cluster has moved to another node, or is about to; the next connection finds the new node."""


OnEnd = Callable[[list[Any] | LayerUnavailable], None]


class Operation:
    """Commands that are written at once on a connection of their own, of which the first may block."""

    __slots__ = ("connection", "data", "on_end", "replies", "size")

    def __init__(self, data: bytes, size: int, on_end: OnEnd) -> None:
        self.data = data
        self.size = size
        self.replies: list[Any] = []
        self.on_end = on_end
        self.connection: RedisConnection | None = None
        """Carries the commands, once they are written."""


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
        self._busy: dict[RedisConnection, Operation] = {}
        self._queued: deque[Operation] = deque()  # wait for a connection
        self._connecting: set[asyncio.Task[None]] = set()
        self._watching = False
        self._closed = False
        self._ending: asyncio.Task[None] | None = None  # ends the connections if the event loop ends without a `close`

    def start(self, data: bytes, size: int, on_end: OnEnd) -> Operation:
        """Write commands on a connection that carries nothing else.

        Args:
            data: The packed commands.
            size: How many they are.
            on_end: Called later with the reply of each; or with LayerUnavailable if Redis cannot be reached, or refuses
                the last command for another reason than that it is out of memory.
        """
        operation = Operation(data, size, on_end)
        connection = self._take_idle()
        if connection is not None:
            self._write(connection, operation)
        elif self._closed:
            self._loop.call_soon(on_end, LayerUnavailable("the layer was closed"))
        else:
            self._queued.append(operation)
            connecting = background(self._connect(), "asgibus connect")
            self._connecting.add(connecting)
            connecting.add_done_callback(self._connecting.discard)
        return operation

    def withdraw(self, operation: Operation) -> None:
        """Give up an operation that waits for a connection, which is made all the same for the next one."""
        if operation in self._queued:
            self._queued.remove(operation)

    def close(self) -> None:
        """End all connections; operations under way fail."""
        self._closed = True
        for connecting in self._connecting:
            connecting.cancel()
        self._fail_queued(LayerUnavailable("the layer was closed"), len(self._queued))
        if self._ending is not None:
            self._ending.cancel()
        self._end_all()

    async def _last(self) -> None:
        await self._loop.create_future()  # until the task is cancelled, as every task is at the end of `asyncio.run`

    def _end_all(self) -> None:
        for connection in (*self._idle, *self._busy):
            connection.abort("closed here")
        self._idle.clear()

    def _take_idle(self) -> RedisConnection | None:
        while self._idle and not self._closed:
            connection = self._idle.pop()
            if self._is_outdated(connection):
                connection.abort("another Redis has taken its place")
            if not connection.lost.done():
                return connection
        return None

    def _is_outdated(self, connection: RedisConnection) -> bool:
        """Return whether the pipeline is connected to another Redis. Cluster nodes report that themselves (MOVED)."""
        current = self._pipeline.run_id if self._pipeline.connected and not self._address.nodes else ""
        return bool(current and connection.run_id) and connection.run_id != current

    async def _connect(self) -> None:
        try:
            connection = await connect(self._address, self._name)
        except LayerUnavailable as error:
            self._fail_queued(error, 1)
            return
        if self._ending is None:
            self._ending = background(self._last(), f"{self._name} end")
            self._ending.add_done_callback(lambda _: self._end_all())
        connection.lost.add_done_callback(partial(self._lost, connection))
        self._release(connection)

    def _fail_queued(self, error: LayerUnavailable, count: int) -> None:
        for _ in range(min(count, len(self._queued))):
            self._queued.popleft().on_end(error)

    def _release(self, connection: RedisConnection) -> None:
        """Use a connection for the next operation, or keep it."""
        if self._queued:
            self._write(connection, self._queued.popleft())
        else:
            self._idle.append(connection)

    def _write(self, connection: RedisConnection, operation: Operation) -> None:
        operation.connection = connection
        self._busy[connection] = operation
        on_reply = partial(self._reply, connection, operation)
        connection.write(operation.data, (on_reply,) * operation.size)
        if not self._watching:
            self._watching = True
            self._loop.call_later(LOOK_SECONDS, self._watch)

    def _reply(self, connection: RedisConnection, operation: Operation, reply: Any) -> None:
        operation.replies.append(reply)
        if len(operation.replies) < operation.size:
            return
        del self._busy[connection]
        if not isinstance(reply, RedisError) or str(reply).startswith("OOM"):
            self._release(connection)
            operation.on_end(operation.replies)
            return
        connection.abort("a read was refused")
        if str(reply).startswith(MOVING):
            for each in self._idle:
                each.abort("its slot of the cluster has moved")
            operation.on_end(Moving("the channel is moving to another node of the cluster"))
        else:
            operation.on_end(LayerUnavailable(f"Redis refused to receive: {reply}"))

    def _lost(self, connection: RedisConnection, lost: asyncio.Future[str]) -> None:
        operation = self._busy.pop(connection, None)
        if operation is not None:
            reason = "the layer was closed" if self._closed else f"the connection to Redis ended: {lost.result()}"
            operation.on_end(LayerUnavailable(reason))

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
    """The state of one channel in one event loop.

    Attributes:
        name: Its name.
        readers: The readers that wait, in order. Each gets the item of a message.
        operation: Reads for them; None if nothing is being read.
        waits: Whether the operation waits for a message. It is ended if no reader is left.
        returning: How many messages of cancelled calls are to be put back, or may have to. Nothing is read meanwhile.
        settled: Done when nothing is being read or put back, if a caller waits for that.
        due: When the next delayed message is due, by the event loop's clock.
        empty_until: Until when the channel is thought to be empty, but for what is sent now, by the event loop's clock.
        wait_and_pop: The packed commands that wait for a message and take it, while there are no delayed ones.
    """

    __slots__ = ("due", "empty_until", "name", "operation", "readers", "returning", "settled", "wait_and_pop", "waits")

    def __init__(self, name: str) -> None:
        self.name = name
        self.readers: deque[asyncio.Future[bytes]] = deque()
        self.operation: Operation | None = None
        self.waits = False
        self.returning = 0
        self.settled: asyncio.Future[None] | None = None
        self.due = math.inf
        self.empty_until = 0.0
        self.wait_and_pop = b""

    @property
    def is_used(self) -> bool:
        return bool(self.readers or self.operation or self.returning)


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
        self._takes: set[asyncio.Future[list[Any]]] = set()  # calls of `take` under way
        self._closed = False

    async def receive(self, channel: str) -> Message:
        """Wait for the next message of a channel and take it. Raises LayerUnavailable.

        When a cancelled call returns, a message that was on the way to it is back in the channel.
        """
        while True:
            moving = False
            try:
                item = await self._receive(self._channel(channel))
            except Moving:
                moving = True
            if moving:
                # The pipeline, which may have nothing else to write, has to follow the slot to the new node.
                self._pipeline.write(
                    ("EXISTS", self._keys.messages(channel)), ignore_reply, repeatable=False, patient=False
                )
                await asyncio.sleep(MOVING_SECONDS)
                continue
            entry = _parse("", item)
            try:
                return self._entries.unpack_message(self._keys.messages(channel), entry.payload)
            except ValueError as error:
                self._entries.log_rejected(f"channel {channel}", str(entry.stamp), error)

    async def _receive(self, state: _Channel) -> bytes:
        reader: asyncio.Future[bytes] = self._loop.create_future()
        state.readers.append(reader)
        self._read(state)
        try:
            return await reader
        except asyncio.CancelledError as error:
            cancelled = error
        # Outside of `except`: compiled, a `raise` that repeats an error after an `await` crashes.
        if not reader.cancelled():  # its message has come at the same time
            if reader.exception() is None:
                self._deliver(state, [reader.result()])
        elif reader in state.readers:
            state.readers.remove(reader)
        await self._until_settled(state)
        raise cancelled

    async def take(self, channel: str, limit: int, *, consumer: str = "", name: str = "") -> list[Entry]:
        """Take up to `limit` messages, without waiting for any.

        Args:
            channel: The channel.
            limit: How many messages to take.
            consumer: Under whose name the messages stay until they are acknowledged; "" if they need not be. Those are
                put back if the call is cancelled.
            name: Begins the ids of those messages; no other call has it.

        Returns:
            The messages, oldest first. If there are none, call `wait`.

        Raises:
            LayerUnavailable: Redis cannot be reached, or refuses.
        """
        state = self._channel(channel)
        taken: asyncio.Future[list[Any]] = self._loop.create_future()

        def on_end(result: list[Any] | LayerUnavailable) -> None:
            self._takes.discard(taken)
            reply = result if isinstance(result, Exception) else self._note(state, result[0])
            if not taken.cancelled():
                _settle(taken, reply)
            elif not consumer:
                put_back(reply)

        def put_back(reply: Any) -> None:
            state.returning -= 1
            if not isinstance(reply, Exception) and len(reply) > 2:
                self._put_back(state, reply[3::2])
            self._read(state)

        acknowledged = (consumer, self._taken_expiry, name) if consumer else ()
        self._connections.start(self._pack_take(channel, limit, *acknowledged), 1, on_end)
        self._takes.add(taken)
        cancelled: asyncio.CancelledError | None = None
        try:
            await asyncio.wait((taken,))
        except asyncio.CancelledError as error:
            cancelled = error
            taken.cancel()
        if cancelled is not None:
            if not consumer:
                state.returning += 1
                if not taken.cancelled():  # the reply has come at the same time
                    put_back(taken.exception() or taken.result())
                await self._until_settled(state)
            raise cancelled
        reply = taken.result()
        return [_parse(entry_id.decode(), item) for entry_id, item in zip(reply[2::2], reply[3::2], strict=True)]

    async def wait(self, channel: str) -> None:
        """Wait until a channel may hold something to take, for two seconds at most. Raises LayerUnavailable."""
        state = self._channel(channel)
        if self._loop.time() >= state.empty_until:
            return
        ended: asyncio.Future[Any] = self._loop.create_future()
        self._connections.start(self._pack_wait(state), 1, partial(_settle, ended))
        (reply,) = await ended
        state.empty_until = 0.0
        if isinstance(reply, RedisError):  # Redis is out of memory
            raise LayerUnavailable(f"Redis refused to wait: {reply}")

    async def close(self) -> None:
        """Put back what is on the way to readers, and close the connections. The readers get LayerUnavailable."""
        self._closed = True
        for state in self._channels.values():
            while state.readers:
                _settle(state.readers.popleft(), LayerUnavailable("the layer was closed"))
        await asyncio.gather(*(self._until_settled(state) for state in self._channels.values()))
        if self._takes:
            await asyncio.wait(self._takes, timeout=SETTLE_SECONDS)
        self._connections.close()

    def _channel(self, channel: str) -> _Channel:
        if self._closed:
            raise LayerUnavailable("the layer was closed")
        state = self._channels.get(channel)
        if state is None:
            if len(self._channels) >= KNOWN_CHANNELS:
                self._channels = {name: each for name, each in self._channels.items() if each.is_used}
            state = self._channels[channel] = _Channel(channel)
        return state

    def _pack_wait(self, state: _Channel) -> bytes:
        """Return the command that waits until the list is not empty, or a delayed message is due, and takes nothing."""
        key = self._keys.messages(state.name)
        seconds = max(0.001, min(BLOCK_SECONDS, state.due - self._loop.time()))
        return pack_command(("BLMOVE", key, key, "LEFT", "LEFT", f"{seconds:.3f}"))

    def _pack_take(self, channel: str, limit: int, *acknowledged: Argument) -> bytes:
        keys = self._keys
        names = keys.messages(channel), keys.delayed(channel), keys.taken(channel)
        return pack_command(("EVAL", scripts.CHANNEL_TAKE, 3, *names, self._expiry, limit, *acknowledged))

    def _note(self, state: _Channel, reply: list[Any]) -> list[Any]:
        """Note from the reply to a take whether there is more. Return the reply."""
        more, due = reply[:2]
        now = self._loop.time()
        state.due = now + due / 1000 if due >= 0 else math.inf
        state.empty_until = 0.0 if more else min(now + EMPTY_SECONDS, state.due)
        return reply

    def _read(self, state: _Channel) -> None:
        """Read for the first reader, unless there is none, or something is being read or put back.

        The command that waits and the one that takes are written at once, so that a message costs one round trip.
        """
        if state.operation is not None or state.returning:
            return
        if not state.readers:
            if state.settled is not None:
                settled, state.settled = state.settled, None
                settled.set_result(None)
            return
        state.waits = self._loop.time() < state.empty_until
        if not state.waits:
            data, size = self._pack_take(state.name, 1), 1
        elif state.due < math.inf:
            data, size = self._pack_wait(state) + self._pack_take(state.name, 1), 2
        else:
            if not state.wait_and_pop:
                pop = "LPOP", self._keys.messages(state.name)
                state.wait_and_pop = self._pack_wait(state) + pack_command(("TIME",)) + pack_command(pop)
            data, size = state.wait_and_pop, 3
        state.operation = self._connections.start(data, size, partial(self._on_read, state))

    def _on_read(self, state: _Channel, result: list[Any] | LayerUnavailable) -> None:
        state.operation = None
        if isinstance(result, Exception):
            while state.readers:
                _settle(state.readers.popleft(), result)
            self._read(state)
            return
        items = self._note(state, result[-1])[3::2] if len(result) < 3 else self._check_popped(state, *result[1:])
        if items:
            self._deliver(state, items)
        elif isinstance(result[0], RedisError):  # it cannot wait, as Redis is out of memory
            self._loop.call_later(max(0.0, min(RETRY_SECONDS, state.due - self._loop.time())), self._read, state)
            return
        elif not state.readers and (state.due < math.inf or result[-1] == b""):
            self._put_back(state, ())  # wakes others, who may not know of the delayed message
        self._read(state)

    def _check_popped(self, state: _Channel, time: list[bytes], item: bytes | None) -> list[bytes]:
        """Return the item unless it has expired, or only wakes. Then the next read looks with the script."""
        if item:
            stamp = _parse("", item).stamp
            if not stamp or stamp > int(time[0]) * 1000 + int(time[1]) // 1000 - self._expiry:
                return [item]
        state.empty_until = 0.0
        return []

    def _deliver(self, state: _Channel, items: Sequence[bytes]) -> None:
        """Give an item to the first reader, or put it back if there is none."""
        for item in items:
            while state.readers:
                reader = state.readers.popleft()
                if not reader.done():
                    reader.set_result(item)
                    break
            else:
                self._put_back(state, [item])

    def _put_back(self, state: _Channel, items: Sequence[bytes]) -> None:
        """Put what a cancelled call took back at the head. If that fails, it is lost: each is received at most once."""
        state.returning += 1
        names = self._keys.messages(state.name), self._keys.delayed(state.name)
        command: tuple[Argument, ...] = ("EVAL", scripts.CHANNEL_PUT_BACK, 2, *names, self._expiry, *items)
        self._pipeline.write(command, partial(self._on_put_back, state), repeatable=False)

    def _on_put_back(self, state: _Channel, reply: object) -> None:
        if isinstance(reply, Exception):  # perhaps there was none, but a wake-up
            logger.warning("a message of %s may be lost with its reader, which was cancelled: %s", state.name, reply)
        state.empty_until = 0.0
        state.returning -= 1
        self._read(state)

    async def _until_settled(self, state: _Channel) -> None:
        """Wait until no message is on the way to a reader that has left. Give up after a second."""
        if state.readers or not state.is_used:
            return
        settled = state.settled = state.settled or self._loop.create_future()
        if state.operation is not None:
            self._end(state, state.operation)
        await asyncio.wait((settled,), timeout=SETTLE_SECONDS)

    def _end(self, state: _Channel, operation: Operation) -> None:
        """End a read if it waits, unless a reader has come meanwhile."""
        if state.operation is not operation or state.readers:
            return
        connection = operation.connection
        if connection is None:
            self._connections.withdraw(operation)
            state.operation = None
            self._read(state)
        elif connection.run_id != self._pipeline.run_id:
            connection.abort("another Redis has taken its place")
        elif state.waits:
            on_reply = partial(self._on_unblocked, state, operation)
            self._pipeline.write(("CLIENT", "UNBLOCK", connection.client_id), on_reply, patient=False)

    def _on_unblocked(self, state: _Channel, operation: Operation, reply: object) -> None:
        if reply == 0:  # the command that blocks has not arrived yet
            self._loop.call_later(UNBLOCK_SECONDS, self._end, state, operation)


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
                continue
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
        cancelled: asyncio.CancelledError | None = None
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError as error:
            cancelled = error
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        if cancelled is not None:
            raise cancelled
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
