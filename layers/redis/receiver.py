"""Receiving from ordinary channels: each waiting reader has a connection of its own, kept for the next reader."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from functools import partial
from typing import Any

from asgibus.layers.codec import unpack_message
from asgibus.layers.contract import Message
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis import scripts
from asgibus.layers.redis.address import Address
from asgibus.layers.redis.connection import BLOCK_SECONDS, RedisConnection, RedisError, connect

logger = logging.getLogger("asgibus.layers")


class Receiver:
    """Takes messages out of ordinary channels, for one event loop.

    A message is taken by a script, so it goes to one reader; only to wait, the reader blocks on the stream, which
    takes nothing. A reader that is cancelled while the script runs leaves it behind, and the next reader of the channel
    here takes it over, so that nothing is lost and the order is kept.
    """

    def __init__(self, address: Address, *, expiry: int) -> None:
        self._address = address
        self._expiry = expiry
        self._idle: list[RedisConnection] = []
        self._blocked: dict[str, list[tuple[RedisConnection, asyncio.Future[Any]]]] = {}
        # By key: what was left behind, and until when it may be delivered.
        self._left: dict[str, deque[tuple[float, asyncio.Future[bytes | None]]]] = {}
        self.damaged = 0

    async def receive(self, key: str) -> Message:
        """The next message of the channel at `key`, as `ChannelLayer.receive` gives it. Raises LayerUnavailable."""
        while True:
            payload = await self._take_over(key) or await self._take(key)
            if payload is None:
                continue
            try:
                return unpack_message(payload)
            except ValueError as error:
                self.damaged += 1
                logger.error("channel %s: an entry was dropped: %s", key, error)

    def close(self) -> dict[str, list[bytes]]:
        """End the idle connections. Returns, by key, what cancelled readers had taken and nobody has read since."""
        for connection in self._idle:
            connection.abort("closed here")
        self._idle.clear()
        left = {
            key: [taking.result() for _, taking in kept if taking.done() and taking.exception() is None]
            for key, kept in self._left.items()
        }
        self._left.clear()
        return {key: [payload for payload in payloads if payload] for key, payloads in left.items()}

    async def _take(self, key: str) -> bytes | None:
        """The next payload, or None after a while without one."""
        connection = await self._connection()
        try:
            payload = await self._run_script(connection, key)
            if payload is None:
                await self._block(connection, key)
        except RedisError as error:
            connection.abort("a read was refused")
            raise LayerUnavailable(f"Redis refused to receive: {error}") from error
        if not connection.lost.done():
            self._idle.append(connection)
        return payload

    async def _run_script(self, connection: RedisConnection, key: str) -> bytes | None:
        taking: asyncio.Future[bytes | None] = connection.call("EVAL", scripts.RECEIVE, 1, key, self._expiry * 1000)
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            end = asyncio.get_running_loop().time() + self._expiry
            self._left.setdefault(key, deque()).append((end, taking))
            taking.add_done_callback(partial(self._settled, key, connection))
            raise

    async def _take_over(self, key: str) -> bytes | None:
        """What an earlier reader left behind, if anything."""
        while kept := self._left.get(key):
            end, taking = kept.popleft()
            if not kept:
                del self._left[key]
            try:
                payload = await asyncio.shield(taking)
            except asyncio.CancelledError:
                self._left.setdefault(key, deque()).appendleft((end, taking))
                raise
            except (RedisError, LayerUnavailable):
                continue  # nobody knows whether it took anything: at most once is what was promised
            if payload is not None and end > asyncio.get_running_loop().time():
                return payload
        return None

    def _settled(self, key: str, connection: RedisConnection, taking: asyncio.Future[bytes | None]) -> None:
        """A script that was left behind has ended."""
        if taking.exception() is None:
            self._idle.append(connection)
            if taking.result() is not None:
                self._nudge(key)
                return
        kept = self._left.get(key, deque())
        for entry in [entry for entry in kept if entry[1] is taking]:
            kept.remove(entry)
        if not kept:
            self._left.pop(key, None)

    async def _block(self, connection: RedisConnection, key: str) -> None:
        """Wait until the channel holds something, or somebody left something behind, or a while has passed."""
        waiting = connection.call("XREAD", "COUNT", 1, "BLOCK", BLOCK_SECONDS * 1000, "STREAMS", key, "0")
        entry = (connection, waiting)
        self._blocked.setdefault(key, []).append(entry)
        try:
            await waiting
        except asyncio.CancelledError:
            connection.abort("a blocking read was given up")
            raise
        finally:
            blocked = self._blocked[key]
            blocked.remove(entry)
            if not blocked:
                del self._blocked[key]

    def _nudge(self, key: str) -> None:
        """Let one reader that blocks look for what was left behind."""
        for connection, waiting in self._blocked.get(key, ()):
            if not waiting.done():
                waiting.set_result(None)
                connection.abort("it blocks, and its reader does not")
                return

    async def _connection(self) -> RedisConnection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.lost.done():
                return connection
        return await connect(self._address, "asgibus-receive")
