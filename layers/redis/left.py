"""What readers left behind when they were cancelled: they may have taken a message, which must not be lost.

It is for the next reader of the channel here, and for one that waits already. If there is none for a while, it is put
back for others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from asgibus.layers.redis.blocking import UNBLOCK_SECONDS, BlockingConnections
from asgibus.layers.redis.connection import BLOCK_SECONDS

KEPT_SECONDS = 1.0
CLOSE_SECONDS = BLOCK_SECONDS + 1.0  # for the replies that are on their way: mostly one is here in a moment

Read = Callable[[Any], tuple[bytes | None, bool]]


class _Left:
    """A reply that may be on its way, or here. `item`: what it brought, None as long as that is nothing."""

    __slots__ = ("item", "reply", "since")

    def __init__(self, reply: asyncio.Future[Any], since: float) -> None:
        self.reply = reply
        self.since = since
        self.item: bytes | None = None


class Left:
    """By channel, in the order in which they were left behind; `in` says whether there is anything."""

    def __init__(
        self,
        connections: BlockingConnections,
        put_back: Callable[[str, list[bytes]], None],
        pass_on: Callable[[str], None],
    ) -> None:
        """`put_back` puts items back at the head of a channel, `pass_on` its token."""
        self._loop = asyncio.get_running_loop()
        self._connections = connections
        self._put_back = put_back
        self._pass_on = pass_on
        self._channels: dict[str, deque[_Left]] = {}
        self._tended: set[str] = set()
        self._closed = False

    def __contains__(self, channel: str) -> bool:
        return channel in self._channels

    def add(self, channel: str, read: Read, reply: asyncio.Future[Any]) -> None:
        """A reply to come, or None: `read` says what item it holds, if any, and whether the token came with it."""
        left = _Left(reply, self._loop.time())
        self._channels.setdefault(channel, deque()).append(left)
        if reply.done():
            self._settle(channel, left, read, reply)
        else:
            reply.add_done_callback(partial(self._settle, channel, left, read))

    def keep(self, channel: str, item: bytes) -> None:
        """An item that was taken before all that is here."""
        reply = self._loop.create_future()
        reply.set_result(None)
        left = _Left(reply, self._loop.time())
        left.item = item
        self._channels.setdefault(channel, deque()).appendleft(left)
        self._tend(channel)

    async def take_over(self, channel: str) -> bytes | None:
        """The first item, once its reply is here; None if it brought none."""
        left = self._channels[channel][0]
        if left.item is None:
            await asyncio.wait([left.reply])  # behind `_settle`, which has asked for it before
        return left.item if self._remove(channel, left) else None

    def clear(self) -> None:
        """Forget what is here."""
        for channel in list(self._channels):
            self._items(channel)

    async def close(self) -> None:
        """Wait for the replies that are on their way, and put back what is here; and what comes later, at once."""
        self._closed = True
        until = self._loop.time() + CLOSE_SECONDS
        while (seconds := until - self._loop.time()) > 0 and (waiting := self._on_their_way()):
            await asyncio.wait(waiting, timeout=seconds)
        for channel in list(self._channels):
            if items := self._items(channel):
                self._put_back(channel, items)

    def _on_their_way(self) -> list[asyncio.Future[Any]]:
        return [left.reply for each in self._channels.values() for left in each if not left.reply.done()]

    def _settle(self, channel: str, left: _Left, read: Read, reply: asyncio.Future[Any]) -> None:
        left.item, token = read(reply.result())
        if token:
            self._pass_on(channel)
        if left.item is None:
            self._remove(channel, left)
        else:
            self._tend(channel)

    def _tend(self, channel: str) -> None:
        """Let a reader that waits here look for an item that was left; put it back if there is none for long."""
        if self._closed:
            self._put_back(channel, self._items(channel))
            return
        self._connections.nudge(channel)
        if channel not in self._tended:
            self._tended.add(channel)
            self._loop.call_later(UNBLOCK_SECONDS, self._tend_again, channel)

    def _tend_again(self, channel: str) -> None:
        self._tended.discard(channel)
        here = [left for left in self._channels.get(channel, ()) if left.item is not None]
        if here and self._loop.time() - here[0].since > KEPT_SECONDS:
            self._put_back(channel, self._items(channel))
        elif here:
            self._tend(channel)

    def _items(self, channel: str) -> list[bytes]:
        """Take out all items that are here."""
        here = [left for left in self._channels[channel] if left.item is not None]
        for left in here:
            self._remove(channel, left)
        return [left.item for left in here if left.item is not None]

    def _remove(self, channel: str, left: _Left) -> bool:
        """False if somebody else has taken it out."""
        each = self._channels.get(channel)
        if each is None or left not in each:
            return False
        each.remove(left)
        if not each:
            del self._channels[channel]
        return True
