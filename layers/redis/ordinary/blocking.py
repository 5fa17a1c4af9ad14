"""Connections for commands that may block: each carries one operation at a time and is kept for the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from asgibus.layers.compiling import mypyc_attr
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis.client import (
    LOOK_SECONDS,
    RedisConnection,
    RedisError,
    background,
    connect,
)
from asgibus.layers.redis.config import Address
from asgibus.layers.redis.pipeline import Pipeline

NAME = "asgibus-receive"  # of the connections, in Redis
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

    def __init__(self, address: Address, pipeline: Pipeline) -> None:
        """Prepare to connect; the first `start` opens a connection.

        Args:
            address: Where Redis is.
            pipeline: Its connection tells which Redis is the current one after a failover.
        """
        self._loop = asyncio.get_running_loop()
        self._address = address
        self._pipeline = pipeline
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
            connection = await connect(self._address, NAME)
        except LayerUnavailable as error:
            self._fail_queued(error, 1)
            return
        if self._ending is None:
            self._ending = background(self._last(), f"{NAME} end")
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
            if not connection.abort_if_silent() and self._is_outdated(connection):
                connection.abort("another Redis has taken its place")
        self._watching = bool(self._busy)
        if self._watching:
            self._loop.call_later(LOOK_SECONDS, self._watch)
