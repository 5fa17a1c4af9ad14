"""Connections for commands that may block: each carries one command at a time and is kept for the next one."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis.client import LOOK_SECONDS, background, connect
from asgibus.layers.redis.config import Address
from asgibus.layers.redis.connection import SILENCE_SECONDS, OnReply, RedisConnection, RedisError
from asgibus.layers.redis.pipeline import Writer

MOVING = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN")  # errors of a cluster node while a slot moves


class Moving(LayerUnavailable):
    """The slot of a cluster has moved to another node, or is about to; the next connection finds the new node."""


class BlockingConnections:
    """The connections of one event loop to one store. All methods are called from that loop."""

    def __init__(self, address: Address, writer: Writer, name: str) -> None:
        """Prepare to connect; the first `start` opens a connection.

        Args:
            address: Where Redis is.
            writer: Its connection tells which Redis is the current one after a failover.
            name: The name of the connections in Redis.
        """
        self._loop = asyncio.get_running_loop()
        self._address = address
        self._writer = writer
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
        """Return whether the writer is connected to another Redis now. Cluster nodes report that themselves (MOVED)."""
        current = self._writer.run_id if self._writer.connected and not self._address.nodes else ""
        return bool(current and connection.run_id) and connection.run_id != current

    async def _connect(self) -> RedisConnection:
        connection = await connect(self._address, self._name)
        if self._ending is None and not self._closed:
            self._ending = background(self._end_with_loop(), f"{self._name} end")
        connection.lost.add_done_callback(partial(self._lost, connection))
        return connection

    def _reply(self, connection: RedisConnection, reply: Any) -> None:
        on_reply = self._busy.pop(connection)
        if not isinstance(reply, RedisError):
            self._idle.append(connection)
            on_reply(reply)
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
