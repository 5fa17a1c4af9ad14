"""Taking messages out of ordinary channels: a reader that waits has a connection of its own, kept for the next."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

from asgibus.layers.contract import Message
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis import scripts
from asgibus.layers.redis.address import Address
from asgibus.layers.redis.connection import BLOCK_SECONDS, RedisConnection, RedisError, connect
from asgibus.layers.redis.entries import Entries
from asgibus.layers.redis.keys import Keys

logger = logging.getLogger("asgibus.layers")

EMPTIED_CHANNELS = 1000  # of which it is known that their last message was taken here
MOVING = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN")  # what a node of a cluster says meanwhile
MOVING_SECONDS = 0.1  # until it is tried again: a slot moves in less, and a new master comes in seconds


class Entry(NamedTuple):
    """A message as it was taken out of a channel. `payload` is packed."""

    id: str
    attempt: int
    payload: bytes


class Pause(NamedTuple):
    """How to wait for a channel: the last id of the stream that wakes its readers; ms until a message is due, or -1.

    With -1 the channel was empty.
    """

    woken: bytes
    due: int


class _Moving(LayerUnavailable):
    """The slot of a cluster has moved to another node, or is about to; the next connection goes where it is then."""


class Receiver:
    """Takes messages out of ordinary channels, for one event loop.

    A message is taken by a script, so it goes to one reader; only to wait, the reader blocks on the stream, which
    takes nothing. A reader that is cancelled while the script runs leaves it behind, and the next reader of the channel
    here takes it over, so that nothing is lost and the order is kept.
    """

    def __init__(self, address: Address, keys: Keys, entries: Entries, *, expiry: float, group_expiry: float) -> None:
        self._address = address
        self._keys = keys
        self._entries = entries
        self._expiry = expiry
        self._taken_expiry = group_expiry
        self._idle: list[RedisConnection] = []
        self._blocked: dict[str, list[tuple[RedisConnection, asyncio.Future[Any]]]] = {}
        # By channel: what was left behind, and until when it may be delivered.
        self._left: dict[str, deque[tuple[float, asyncio.Future[Any]]]] = {}
        self._emptied: dict[str, Pause] = {}

    async def receive(self, channel: str) -> Message:
        """The next message of a channel, as `ChannelLayer.receive` gives it. Raises LayerUnavailable."""
        while True:
            entry = await self._take_over(channel)
            if entry is None:
                try:
                    if pause := self._emptied.pop(channel, None):  # it is not asked again what it has just said
                        await self.wait(channel, pause)
                        continue
                    entries, pause = await self.take(channel, 1, "")
                    if not entries:
                        await self.wait(channel, pause)
                        continue
                except _Moving:
                    await asyncio.sleep(MOVING_SECONDS)
                    continue
                entry = entries[0]
                if pause.due < 0:
                    if len(self._emptied) >= EMPTIED_CHANNELS:
                        self._emptied.clear()
                    self._emptied[channel] = pause
            try:
                return self._entries.unpack_message(self._keys.messages(channel), entry.payload)
            except ValueError as error:
                self._entries.refused(f"channel {channel}", entry.id, error)

    async def take(self, channel: str, limit: int, consumer: str) -> tuple[list[Entry], Pause]:
        """Take up to `limit` messages if there are any; and what `wait` needs to know. Raises LayerUnavailable.

        `consumer`: under whose name they stay until they are acknowledged; "" if they need not be.
        """
        async with self._connected() as connection:
            return await self._run_script(connection, channel, limit, consumer)

    async def wait(self, channel: str, pause: Pause) -> None:
        """Until the channel holds something, or something is due or was left behind, or for a while.

        Raises LayerUnavailable.
        """
        async with self._connected() as connection:
            await self._block(connection, channel, pause)

    def close(self) -> dict[str, list[bytes]]:
        """End the idle connections. Returns, by channel, what cancelled readers had taken and nobody has read since."""
        for connection in self._idle:
            connection.abort("closed here")
        self._idle.clear()
        left = {
            channel: [entry.payload for _, taking in kept if _has_ended(taking) for entry in _read(taking.result())[0]]
            for channel, kept in self._left.items()
        }
        self._left.clear()
        return left

    async def _run_script(
        self, connection: RedisConnection, channel: str, limit: int, consumer: str
    ) -> tuple[list[Entry], Pause]:
        keys = self._keys
        names = keys.messages(channel), keys.delayed(channel), keys.wake(channel), keys.taken(channel)
        expiry, taken_expiry = round(self._expiry * 1000), round(self._taken_expiry * 1000)
        taking = connection.call("EVAL", scripts.TAKE, 4, *names, expiry, limit, consumer, taken_expiry)
        try:
            return _read(await asyncio.shield(taking))
        except asyncio.CancelledError:
            if not consumer:  # else it is given back when the consumer ends
                end = asyncio.get_running_loop().time() + self._expiry
                self._left.setdefault(channel, deque()).append((end, taking))
                taking.add_done_callback(partial(self._settled, channel, connection))
            raise

    async def _take_over(self, channel: str) -> Entry | None:
        """What an earlier reader left behind, if anything."""
        while kept := self._left.get(channel):
            end, taking = kept.popleft()
            if not kept:
                del self._left[channel]
            try:
                entries, _ = _read(await asyncio.shield(taking))
            except asyncio.CancelledError:
                self._left.setdefault(channel, deque()).appendleft((end, taking))
                raise
            except (RedisError, LayerUnavailable):
                continue  # nobody knows whether it took anything: at most once is what was promised
            if entries and end > asyncio.get_running_loop().time():
                return entries[0]
        return None

    def _settled(self, channel: str, connection: RedisConnection, taking: asyncio.Future[Any]) -> None:
        """A script that was left behind has ended."""
        if _has_ended(taking):
            self._idle.append(connection)
            if _read(taking.result())[0]:
                self._nudge(channel)
                return
        kept = self._left.get(channel, deque())
        for entry in [entry for entry in kept if entry[1] is taking]:
            kept.remove(entry)
        if not kept:
            self._left.pop(channel, None)

    async def _block(self, connection: RedisConnection, channel: str, pause: Pause) -> None:
        longest = BLOCK_SECONDS * 1000
        milliseconds = longest if pause.due < 0 else max(1, min(pause.due, longest))
        streams = self._keys.messages(channel), self._keys.wake(channel), "0", pause.woken
        waiting = connection.call("XREAD", "COUNT", 1, "BLOCK", milliseconds, "STREAMS", *streams)
        entry = (connection, waiting)
        self._blocked.setdefault(channel, []).append(entry)
        try:
            await waiting
        except asyncio.CancelledError:
            connection.abort("a blocking read was given up")
            raise
        finally:
            blocked = self._blocked[channel]
            blocked.remove(entry)
            if not blocked:
                del self._blocked[channel]

    def _nudge(self, channel: str) -> None:
        """Let one reader that blocks look for what was left behind."""
        for connection, waiting in self._blocked.get(channel, ()):
            if not waiting.done():
                waiting.set_result(None)
                connection.abort("it blocks, and its reader does not")
                return

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[RedisConnection]:
        """A connection for one command; it is kept for the next one unless that was cancelled."""
        while self._idle and self._idle[-1].lost.done():
            self._idle.pop()
        connection = self._idle.pop() if self._idle else await connect(self._address, "asgibus-receive")
        try:
            yield connection
        except RedisError as error:
            connection.abort("a read was refused")
            if str(error).startswith(MOVING):
                for each in self._idle:
                    each.abort("its slot of the cluster has moved")
                raise _Moving("the channel is moving to another node of the cluster") from error
            raise LayerUnavailable(f"Redis refused to receive: {error}") from error
        if not connection.lost.done():
            self._idle.append(connection)


def _has_ended(taking: asyncio.Future[Any]) -> bool:
    return taking.done() and taking.exception() is None


def _read(reply: Any) -> tuple[list[Entry], Pause]:
    """What TAKE answers."""
    woken, due, *rest = reply
    triples = zip(rest[::3], rest[1::3], rest[2::3], strict=True)
    entries = [Entry(entry_id.decode(), int(attempt), payload) for entry_id, attempt, payload in triples]
    return entries, Pause(woken, int(due))
