"""The channel layer on Redis, as apps see it.

Everything that belongs to an event loop (connections, tasks, the mailbox) lives in a `_Loop`, made at the first use in
that loop, so that one layer object serves several loops, one after another or at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from asgibus.layers.codec import listed, pack, unpack
from asgibus.layers.contract import (
    GROUP_MESSAGE,
    MESSAGE,
    Bus,
    ChannelLayer,
    Frame,
    Handler,
    Message,
)
from asgibus.layers.errors import ChannelFull, LayerUnavailable, MessageTooLarge
from asgibus.layers.names import new_mailbox, require_channel, require_group, split_local
from asgibus.layers.redis import scripts
from asgibus.layers.redis.address import Address
from asgibus.layers.redis.bus import RedisBus
from asgibus.layers.redis.connection import RedisConnection, RedisError, connect
from asgibus.layers.redis.link import BLOCK_SECONDS, Outage
from asgibus.layers.redis.writer import PAYLOAD_VERSION, Writer

logger = logging.getLogger("asgibus.layers")

MESSAGE_BYTES = 16 * 1024 * 1024  # one message; Redis would take 512 MB, but one entry must not stall all others


class RedisChannelLayer(ChannelLayer):
    """A channel layer between processes. `url` as in `open_layer`; `prefix` starts every key in Redis."""

    def __init__(
        self,
        url: str = "redis://127.0.0.1:6379",
        *,
        prefix: str = "asgibus",
        expiry: int = 60,
        group_expiry: int = 86400,
        capacity: int = 100,
    ) -> None:
        self.address = Address.from_url(url)
        self.prefix = prefix
        self.expiry = expiry
        self.group_expiry = group_expiry
        self.capacity = capacity
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = WeakKeyDictionary()

    async def send(self, channel: str, message: Message) -> None:
        local = split_local(require_channel(channel))
        loop = await self._loop()
        if local is None:
            if not await self._send_ordinary(loop.writer, channel, _packed(message)):
                raise ChannelFull(channel, self.capacity)
        else:
            mailbox, part = local
            payload = _packed((PAYLOAD_VERSION, "", "", ((MESSAGE, part, _checked(message)),)))
            if not await _to_mailbox(loop.writer, mailbox, payload):
                logger.info("a message to %s was dropped: its process is gone", channel)

    async def receive(self, channel: str) -> Message:
        local = split_local(require_channel(channel, receive=True))
        loop = await self._loop()
        if local is None:
            return await loop.receive_ordinary(channel)
        return await (await loop.mailbox()).receive(channel)

    async def new_channel(self, prefix: str = "specific") -> str:
        require_channel(prefix)
        return (await (await self._loop()).mailbox()).new_channel()

    async def group_add(self, group: str, channel: str) -> None:
        key = self._group_key(group)
        loop = await self._loop()
        await _run(loop.writer, "EVAL", scripts.GROUP_ADD, 1, key, require_channel(channel), self.group_expiry)

    async def group_discard(self, group: str, channel: str) -> None:
        key = self._group_key(group)
        loop = await self._loop()
        await _run(loop.writer, "ZREM", key, require_channel(channel))

    async def group_send(self, group: str, message: Message) -> None:
        key = self._group_key(group)
        broadcast = _packed((PAYLOAD_VERSION, "", "", ((GROUP_MESSAGE, group, _checked(message)),)))
        writer = (await self._loop()).writer
        members = [member.decode() for member in await _run(writer, "ZRANGE", key, 0, -1)]
        entries: dict[str, bytes] = {}
        ordinary: list[str] = []
        locals_of: dict[str, list[str]] = {}
        for member in members:
            local = split_local(member)
            if local is None:
                ordinary.append(member)
            elif not local[1]:
                entries[member] = broadcast
            else:
                locals_of.setdefault(local[0], []).append(local[1])
        for mailbox, parts in locals_of.items():
            entries[mailbox] = _packed((PAYLOAD_VERSION, "", "", tuple((MESSAGE, part, message) for part in parts)))
        calls = [_to_mailbox(writer, mailbox, payload) for mailbox, payload in entries.items()]
        calls += [self._send_ordinary(writer, channel, _packed(message)) for channel in ordinary]
        outcomes = [await calls[0]] if len(calls) == 1 else await asyncio.gather(*calls)
        gone = [
            member
            for mailbox, reached in zip(entries, outcomes, strict=False)
            if not reached
            for member in members
            if member.startswith(mailbox)
        ]
        if gone:
            await _run(writer, "ZREM", key, *gone)
            logger.info("group %r: %d members of processes that are gone were removed", group, len(gone))
        full = outcomes[len(entries) :].count(False)
        if full:
            logger.warning("group %r: %d of %d members were full and missed a message", group, full, len(members))

    async def flush(self) -> None:
        writer = (await self._loop()).writer
        cursor: bytes | str = "0"
        while True:
            cursor, keys = await _run(writer, "SCAN", cursor, "MATCH", f"{self.prefix}:*", "COUNT", 1000)
            if keys:
                await _run(writer, "UNLINK", *keys)
            if cursor == b"0":
                return

    async def close(self) -> None:
        loop = self._loops.pop(asyncio.get_running_loop(), None)
        if loop is not None:
            await loop.close()

    @asynccontextmanager
    async def bus(self, role: str, handler: Handler) -> AsyncIterator[Bus]:
        loop = await self._loop()
        bus = RedisBus(self.address, self.prefix, new_mailbox(role), loop.outage, loop.writer, handler)
        async with bus.opened():
            yield bus

    def _group_key(self, group: str) -> str:
        return f"{self.prefix}:group:{require_group(group)}"

    async def _send_ordinary(self, writer: Writer, channel: str, payload: bytes) -> bool:
        key = f"{self.prefix}:channel:{channel}"
        sent = await _run(writer, "EVAL", scripts.SEND, 1, key, payload, self.capacity, self.expiry * 1000)
        return bool(sent)

    async def _loop(self) -> _Loop:
        running = asyncio.get_running_loop()
        loop = self._loops.get(running)
        if loop is None:
            loop = self._loops[running] = _Loop(self)
        await loop.open()
        return loop


class _Loop:
    """What the layer has in one event loop: the writer, and for `receive` a mailbox and blocking connections."""

    def __init__(self, layer: RedisChannelLayer) -> None:
        self.layer = layer
        self.outage = Outage(layer.address)
        self.writer = Writer(layer.address, layer.prefix, "asgibus-writer", self.outage)
        self._lock = asyncio.Lock()
        self._open = False
        self._mailbox: _OwnMailbox | None = None
        self._idle: list[RedisConnection] = []
        self._returned: dict[str, deque[bytes]] = {}
        self._stack = AsyncExitStack()

    async def open(self) -> None:
        """Connect at the first call. Raises LayerUnavailable."""
        if not self._open:
            async with self._lock:
                if not self._open:
                    await self.writer.open()
                    self._open = True

    async def mailbox(self) -> _OwnMailbox:
        """The mailbox for this loop's process-local channels, made at the first call."""
        if self._mailbox is None:
            async with self._lock:
                if self._mailbox is None:
                    own = _OwnMailbox(self.layer.capacity)
                    own.name = (await self._stack.enter_async_context(self.layer.bus("specific", own))).mailbox
                    self._mailbox = own
        return self._mailbox

    async def receive_ordinary(self, channel: str) -> Message:
        """The next message of an ordinary channel, over a connection of its own while it waits."""
        key = f"{self.layer.prefix}:channel:{channel}"
        while True:
            returned = self._returned.get(channel)
            if returned:
                payload: bytes = returned.popleft()
                if not returned:
                    del self._returned[channel]
                return _message(payload)
            connection = await self._take_connection()
            clean = False
            try:
                taking = connection.call("EVAL", scripts.RECEIVE, 1, key, self.layer.expiry * 1000)
                try:
                    taken = await asyncio.shield(taking)
                except asyncio.CancelledError:
                    taking.add_done_callback(partial(self._put_back, channel, connection))
                    raise
                if taken is None:
                    await connection.call("XREAD", "COUNT", 1, "BLOCK", BLOCK_SECONDS * 1000, "STREAMS", key, "0")
                clean = True
            except RedisError as error:
                raise LayerUnavailable(f"Redis refused to receive from {channel}: {error}") from error
            finally:
                if clean:
                    self._idle.append(connection)
                elif taking.done():
                    connection.abort("a blocking read was given up")
            if taken is not None:
                return _message(taken)

    async def close(self) -> None:
        await self._stack.aclose()
        for connection in self._idle:
            connection.abort("closed here")
        self._idle.clear()
        if self._open:
            await self.writer.drain() if self.outage.over else None
            await self.writer.close()

    async def _take_connection(self) -> RedisConnection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.lost.done():
                return connection
        return await connect(self.layer.address, "asgibus-receive")

    def _put_back(self, channel: str, connection: RedisConnection, future: asyncio.Future[Any]) -> None:
        """Keep what a cancelled receive had taken for the next one."""
        self._idle.append(connection)
        if not future.cancelled() and future.exception() is None and future.result() is not None:
            self._returned.setdefault(channel, deque()).append(future.result())


class _OwnMailbox:
    """The handler of a mailbox that holds process-local channels: one bounded queue for each."""

    def __init__(self, capacity: int) -> None:
        self.name = ""
        self._capacity = capacity
        self._count = 0
        self._queues: dict[str, deque[Message]] = {}
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self.dropped = 0

    def new_channel(self) -> str:
        self._count += 1
        return f"{self.name}{self._count}"

    async def receive(self, channel: str) -> Message:
        mailbox, _, local = channel.partition("!")
        if mailbox + "!" != self.name:
            raise TypeError(f"{channel!r} was made by another process or event loop; only that one can receive from it")
        while not self._queues.get(local):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiting = self._waiting.setdefault(local, deque())
            waiting.append(future)
            try:
                await future
            except asyncio.CancelledError:
                if future in waiting:
                    waiting.remove(future)
                elif self._queues.get(local):
                    self._wake(local)
                raise
            finally:
                if not waiting:
                    self._waiting.pop(local, None)
        queue = self._queues[local]
        message = queue.popleft()
        if queue:
            self._wake(local)
        else:
            del self._queues[local]
        return message

    def batch(self, sender: str, epoch: str, frames: Sequence[Frame]) -> None:
        for frame in frames:
            if frame[0] != MESSAGE:
                logger.error("mailbox %s: a frame of kind %r was dropped", self.name, frame[0])
                continue
            queue = self._queues.setdefault(frame[1], deque())
            if len(queue) >= self._capacity:
                self.dropped += 1
                logger.warning("channel %s%s is full: a message was dropped", self.name, frame[1])
                continue
            queue.append(listed(frame[2]))
            self._wake(frame[1])

    def unreachable(self, mailbox: str) -> None:
        """Nothing is posted from here."""

    def _wake(self, local: str) -> None:
        waiting = self._waiting.get(local)
        while waiting:
            future = waiting.popleft()
            if not future.done():
                future.set_result(None)
                return


async def _to_mailbox(writer: Writer, mailbox: str, payload: bytes) -> bool:
    """Write one entry to a mailbox at most once; False if there is no such mailbox."""
    added = await _run(writer, "XADD", writer.mailbox_key(mailbox), "NOMKSTREAM", "*", "b", payload)
    return added is not None


async def _run(writer: Writer, *args: str | bytes | int) -> Any:
    try:
        return await writer.call(*args, repeatable=False)
    except RedisError as error:
        raise LayerUnavailable(f"Redis refused {args[0]!r}: {error}") from error


def _checked(message: Message) -> Message:
    if not isinstance(message, dict):
        raise TypeError(f"a message is a dict, not {type(message).__name__}")
    return message


def _packed(value: Any) -> bytes:
    payload = pack(value)
    if len(payload) > MESSAGE_BYTES:
        raise MessageTooLarge(len(payload), MESSAGE_BYTES)
    return payload


def _message(payload: bytes) -> Message:
    message: Message = listed(unpack(payload))
    return message
