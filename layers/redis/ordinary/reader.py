"""Ordinary channels: receiving from them, and taking several messages at once.

A reader writes a command that waits and takes nothing (BLMOVE from the head of a list to its head) and the command that
takes at once, so that a message costs one round trip. If the reader is cancelled, the wait is ended (CLIENT UNBLOCK),
and a message that was taken all the same is put back at the head. The cancelled call returns when that is done, and the
next reader of this event loop waits for it.

A message is taken with a script, which drops expired messages and knows the delayed ones. While there are none, LPOP
takes; each tenth of a second, and whenever a delayed message is sent, a reader looks with the script. LPOP may take an
expired message. Only the script decides that, by the clock of Redis; a reader that knows this clock from its last look
puts a message back that seems to have expired.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter, deque
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from asgibus.layers.contract import Message
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis import scripts
from asgibus.layers.redis.client import BLOCK_SECONDS, Argument, RedisError, ignore_reply, pack_command
from asgibus.layers.redis.codec import EntryCodec
from asgibus.layers.redis.config import Address
from asgibus.layers.redis.keys import Keys
from asgibus.layers.redis.ordinary.blocking import BlockingConnections, Moving, OnEnd, Operation
from asgibus.layers.redis.pipeline import Pipeline

logger = logging.getLogger("asgibus.layers")

KNOWN_CHANNELS = 1000  # channels whose state is kept between two calls
EMPTY_SECONDS = 0.1  # how long a reader relies on having found a channel empty: it waits then without a look
MOVING_SECONDS = 0.1  # until a retry: a slot moves in less, and a new master comes in seconds
RETRY_SECONDS = 0.5  # until a retry when Redis is out of memory
SETTLE_SECONDS = 1.0  # for what is on the way to a cancelled reader to be put back
UNBLOCK_SECONDS = 0.01  # until a wait that was not blocked yet when it should have been ended is ended again


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
        plain_until: Until when it is thought to have no delayed messages.
        wait_and_pop: The packed commands that wait for a message and take it, while there are no delayed ones.
    """

    __slots__ = (
        *("due", "empty_until", "name", "operation", "plain_until", "readers", "returning", "settled", "wait_and_pop"),
        "waits",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.readers: deque[asyncio.Future[bytes]] = deque()
        self.operation: Operation | None = None
        self.waits = False
        self.returning = 0
        self.settled: asyncio.Future[None] | None = None
        self.due = math.inf
        self.empty_until = 0.0
        self.plain_until = 0.0
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
        counts: Counter[str],
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
            counts: Counts the messages that may be lost.
            expiry: Seconds after which an unread message is dropped.
            group_expiry: Seconds after which a message that was taken and not acknowledged is dropped.
        """
        self._loop = asyncio.get_running_loop()
        self._keys = keys
        self._entries = entries
        self._pipeline = pipeline
        self._counts = counts
        self._expiry = round(expiry * 1000)
        self._taken_expiry = round(group_expiry * 1000)
        self._clock_offset = 0.0  # of Redis's clock to that of the event loop, at the last look
        self._connections = BlockingConnections(address, pipeline)
        self._channels: dict[str, _Channel] = {}
        # Calls of `take` under way, and how many messages of which channel are lost without the reply.
        self._takes: dict[asyncio.Future[list[Any]], tuple[str, int]] = {}
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
            entry = parse_item("", item)
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
            self._takes.pop(taken, None)
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
        self._takes[taken] = (channel, 0 if consumer else limit)
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
        return [parse_item(entry_id.decode(), item) for entry_id, item in zip(reply[2::2], reply[3::2], strict=True)]

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
        """Put back what is on the way to readers, and close the connections. The readers get LayerUnavailable.

        A message that may be on the way after a second is counted as lost.
        """
        self._closed = True
        for state in self._channels.values():
            while state.readers:
                _settle(state.readers.popleft(), LayerUnavailable("the layer was closed"))
        await asyncio.gather(*(self._until_settled(state) for state in self._channels.values()))
        if self._takes:
            await asyncio.wait(self._takes, timeout=SETTLE_SECONDS)
        reads = [(state.name, 1) for state in self._channels.values() if state.operation is not None]
        for channel, count in (*reads, *self._takes.values()):
            self._count_lost(channel, count, "Redis did not answer before the layer was closed")
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
        state.plain_until = now + EMPTY_SECONDS if state.due == math.inf else 0.0
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
        now = self._loop.time()
        state.waits = now < state.empty_until or now < state.plain_until
        on_end: OnEnd
        if not state.waits:
            data, on_end = pack_command(("TIME",)) + self._pack_take(state.name, 1), partial(self._on_looked, state)
        elif state.due < math.inf:
            data, on_end = self._pack_wait(state) + self._pack_take(state.name, 1), partial(self._on_taken, state)
        else:
            if not state.wait_and_pop:
                state.wait_and_pop = self._pack_wait(state) + pack_command(("LPOP", self._keys.messages(state.name)))
            data, on_end = state.wait_and_pop, partial(self._on_popped, state)
        state.operation = self._connections.start(data, 2, on_end)

    def _on_looked(self, state: _Channel, result: list[Any] | LayerUnavailable) -> None:
        if not isinstance(result, Exception):
            seconds, microseconds = result[0]
            self._clock_offset = int(seconds) + int(microseconds) / 1e6 - self._loop.time()
        self._on_taken(state, result)

    def _on_taken(self, state: _Channel, result: list[Any] | LayerUnavailable) -> None:
        if isinstance(result, Exception):
            self._on_failed(state, result)
        else:
            self._on_read(state, result[0], self._note(state, result[1])[3::2])

    def _on_popped(self, state: _Channel, result: list[Any] | LayerUnavailable) -> None:
        if isinstance(result, Exception):
            self._on_failed(state, result)
            return
        waited, item = result
        if item and not self._seems_expired(item):
            self._on_read(state, waited, (item,))
            return
        state.empty_until = state.plain_until = 0.0  # the next read looks with the script
        if item:
            self._put_back(state, (item,))
        self._on_read(state, waited, (), woken=item == b"")

    def _seems_expired(self, item: bytes) -> bool:
        stamp = parse_item("", item).stamp
        return 0 < stamp <= (self._loop.time() + self._clock_offset) * 1000 - self._expiry

    def _on_failed(self, state: _Channel, error: LayerUnavailable) -> None:
        state.operation = None
        while state.readers:
            _settle(state.readers.popleft(), error)
        self._read(state)

    def _on_read(self, state: _Channel, waited: object, items: Sequence[bytes], *, woken: bool = False) -> None:
        """Deliver what a read has taken, and read for the next reader.

        Args:
            state: The channel.
            waited: The reply to the command that waits.
            items: What was taken.
            woken: Whether the read was only woken, because there is a delayed message.
        """
        state.operation = None
        if items:
            self._deliver(state, items)
        elif isinstance(waited, RedisError):  # it cannot wait, as Redis is out of memory
            self._loop.call_later(max(0.0, min(RETRY_SECONDS, state.due - self._loop.time())), self._read, state)
            return
        elif not state.readers and (state.due < math.inf or woken):
            self._put_back(state, ())  # wakes others, who may not know of the delayed message
        self._read(state)

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
        """Put what was taken back at the head. If that fails, it is lost: each message is received at most once."""
        state.returning += 1
        names = self._keys.messages(state.name), self._keys.delayed(state.name)
        command: tuple[Argument, ...] = ("EVAL", scripts.CHANNEL_PUT_BACK, 2, *names, self._expiry, *items)
        self._pipeline.write(command, partial(self._on_put_back, state, len(items)), repeatable=False)

    def _on_put_back(self, state: _Channel, count: int, reply: object) -> None:
        if isinstance(reply, Exception):
            self._count_lost(state.name, count, f"they were taken and could not be put back: {reply}")
        state.empty_until = state.plain_until = 0.0
        state.returning -= 1
        self._read(state)

    def _count_lost(self, channel: str, count: int, reason: str) -> None:
        if count:
            self._counts["message lost"] += count
            logger.warning("up to %d messages of %s may be lost: %s", count, channel, reason)

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


def parse_item(entry_id: str, item: bytes) -> Entry:
    """Parse a list item. A malformed item has an empty payload, which cannot be unpacked."""
    try:
        stamp, attempt, payload = item.split(b":", 2)
        return Entry(entry_id, int(stamp), int(attempt), payload)
    except ValueError:
        return Entry(entry_id, 0, 1, b"")


def _settle(future: asyncio.Future[Any], reply: Any) -> None:
    """Give a future its reply, or the error in the place of one, unless it was cancelled."""
    if future.done():
        return
    if isinstance(reply, Exception):
        future.set_exception(reply)
        future.exception()  # seen, also if the task that awaits it is cancelled in this moment
    else:
        future.set_result(reply)
