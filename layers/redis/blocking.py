"""Connections for commands that may block: each carries one command at a time and is kept for the next one.

A command whose caller is cancelled may have taken something already. So its connection is not ended: Redis is told to
end the wait, and the reply that comes all the same is for whoever looks after it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis.client import LOOK_SECONDS, background, connect
from asgibus.layers.redis.config import Address
from asgibus.layers.redis.connection import SILENCE_SECONDS, RedisConnection, RedisError
from asgibus.layers.redis.pipeline import Writer

logger = logging.getLogger("asgibus.layers")

MOVING = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN")  # what a node of a cluster says meanwhile
UNBLOCK_SECONDS = 0.05  # until a command that was not blocked yet when it was to be ended is ended again

OnGivenUp = Callable[["asyncio.Future[Any]"], None]


class Moving(LayerUnavailable):
    """The slot of a cluster has moved to another node, or is about to; the next connection goes where it is then."""


class _Asked:
    """A command under way. `late` takes the reply when the caller has been cancelled, None if it is not known."""

    __slots__ = ("channel", "connection", "late", "reply", "takes")

    def __init__(self, channel: str, connection: RedisConnection, takes: bool, loop: asyncio.AbstractEventLoop) -> None:
        self.channel = channel
        self.takes = takes
        self.connection = connection
        self.reply: asyncio.Future[Any] = loop.create_future()
        self.late: asyncio.Future[Any] = loop.create_future()


class BlockingConnections:
    """Those of one event loop to one store."""

    def __init__(self, address: Address, writer: Writer, name: str) -> None:
        """`writer`: by it Redis is told to end the wait of a command."""
        self._loop = asyncio.get_running_loop()
        self._address = address
        self._writer = writer
        self._name = name
        self._idle: list[RedisConnection] = []
        self._busy: dict[RedisConnection, _Asked] = {}
        self._making: list[asyncio.Task[RedisConnection]] = []  # connections whose callers have been cancelled
        self._watching = False
        self._closed = False
        self._telling: set[asyncio.Task[None]] = set()
        self._run_id = ""
        self._ending: asyncio.Task[None] | None = None  # ends the connections if the event loop ends without a `close`
        self.generation = 0
        """What was learned of the store under another number may not hold any more: it may be another store."""

    async def ask(self, channel: str, command: bytes, on_given_up: OnGivenUp | None = None) -> Any:
        """The reply to a packed command, which is about that channel. Raises LayerUnavailable.

        When it is cancelled, `on_given_up` gets a future that will have the reply, or None.
        """
        connection = await self._free()
        asked = self._busy[connection] = _Asked(channel, connection, on_given_up is not None, self._loop)
        connection.write(command, (partial(self._reply, asked),))
        if not self._watching:
            self._watching = True
            self._loop.call_later(LOOK_SECONDS, self._watch)
        try:
            return await asked.reply
        except asyncio.CancelledError:
            if not asked.reply.cancelled():  # both at the same time
                asked.late.set_result(None if asked.reply.exception() else asked.reply.result())
            elif not asked.late.done():
                self._unblock(asked)
            if on_given_up is not None:
                on_given_up(asked.late)
            raise

    def nudge(self, channel: str) -> None:
        """Let one caller that waits for that channel, and would be told when given up, have its reply now, empty."""
        for asked in self._busy.values():
            if asked.takes and asked.channel == channel and not asked.reply.done():
                self._end_wait(asked)
                return

    def tell(self, *command: str | bytes | int, run_id: str | None = None, patient: bool = False) -> None:
        """Write a command that needs no reply; also when this was closed while somebody waited.

        `run_id`: that of the Redis for which it is. `patient`: when Redis refuses it for now, it waits.
        """
        if self._closed:  # and the writer may be closed before it writes this
            task = self._loop.create_task(self._tell_by_itself(command, run_id), name="asgibus tell")
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)
        elif run_id is None or (self._writer.connected and self._writer.run_id == run_id):
            self._writer.write(command, _ignore, repeatable=False, patient=patient)

    async def _tell_by_itself(self, command: tuple[str | bytes | int, ...], run_id: str | None) -> None:
        try:
            connection = await connect(self._address, self._name)
        except LayerUnavailable as error:
            logger.debug("what was left of a reader could not be put right: %s", error)
            return
        if run_id is not None and connection.run_id != run_id:
            connection.abort("it is another Redis")
            return
        try:
            await connection.call(*command)
        except (RedisError, LayerUnavailable) as error:
            logger.debug("what was left of a reader could not be put right: %s", error)
        finally:
            connection.abort("closed here")

    def close(self) -> None:
        """End the connections that have nothing to do; the others, when they have their replies."""
        self._closed = True
        if self._ending is not None:
            self._ending.cancel()
        self._end_idle()

    async def _end_with_loop(self) -> None:
        try:
            await self._loop.create_future()  # until it is cancelled, as every task is at the end of `asyncio.run`
        finally:
            if not self._closed:
                self._end_idle()
                for connection in list(self._busy):
                    connection.abort("the event loop has ended")

    def _end_idle(self) -> None:
        for connection in self._idle:
            connection.abort("closed here")
        self._idle.clear()
        for making in self._making:
            _drop(making)
        self._making.clear()

    async def _free(self) -> RedisConnection:
        """An idle connection, or a new one. Raises LayerUnavailable.

        One that is being made when its caller is cancelled is for the next: readers that wait for less than that takes
        would never get one.
        """
        while self._idle:
            connection = self._idle.pop()
            if self._is_left(connection):
                connection.abort("another Redis has taken its place")
            if not connection.lost.done():
                return connection
        self._making = [making for making in self._making if not making.done() or _is_made(making)]
        making = self._making.pop() if self._making else self._loop.create_task(self._connect(), name="asgibus connect")
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(_is_made)  # looked at, so that nothing is logged if nobody comes for it
            if self._closed:
                _drop(making)
            else:
                self._making.append(making)
            raise

    def _is_left(self, connection: RedisConnection) -> bool:
        """Return whether the writer is connected to another Redis now. Nodes of a cluster say so themselves (MOVED)."""
        current = self._writer.run_id if self._writer.connected and not self._address.nodes else ""
        return bool(current and connection.run_id) and connection.run_id != current

    async def _connect(self) -> RedisConnection:
        connection = await connect(self._address, self._name)
        if self._ending is None and not self._closed:
            self._ending = background(self._end_with_loop(), f"{self._name} end")
        if not connection.run_id or connection.run_id != self._run_id:
            self._run_id = connection.run_id
            self.generation += 1
        connection.lost.add_done_callback(partial(self._lost, connection))
        return connection

    def _reply(self, asked: _Asked, reply: Any) -> None:
        del self._busy[asked.connection]
        if not isinstance(reply, RedisError):
            self._idle.append(asked.connection)
            if not asked.reply.done():
                asked.reply.set_result(reply)
            else:
                asked.late.set_result(reply)
            if self._closed:
                self._loop.call_soon(self._end_idle)
            return
        asked.connection.abort("a read was refused")
        if str(reply).startswith(MOVING):
            for each in self._idle:
                each.abort("its slot of the cluster has moved")
            self._fail(asked, Moving("the channel is moving to another node of the cluster"))
        else:
            self._fail(asked, LayerUnavailable(f"Redis refused to receive: {reply}"))

    def _lost(self, connection: RedisConnection, lost: asyncio.Future[str]) -> None:
        asked = self._busy.pop(connection, None)
        if asked is not None:
            self._fail(asked, LayerUnavailable(f"the connection to Redis ended: {lost.result()}"))

    def _fail(self, asked: _Asked, error: LayerUnavailable) -> None:
        self.generation += 1
        if not asked.reply.done():
            asked.reply.set_exception(error)
        else:
            asked.late.set_result(None)

    def _unblock(self, asked: _Asked) -> None:
        """End the wait of a command that was given up; again, as long as it has no reply."""
        if self._busy.get(asked.connection) is asked:
            self._end_wait(asked)
            self._loop.call_later(UNBLOCK_SECONDS, self._unblock, asked)

    def _end_wait(self, asked: _Asked) -> None:
        # An id is that of a client of one Redis: of another one, it might be anybody's.
        self.tell("CLIENT", "UNBLOCK", asked.connection.client_id, run_id=asked.connection.run_id)

    def _watch(self) -> None:
        """End connections that owe a reply for too long: TCP has not noticed that they are dead.

        Likewise those to a Redis that the writer has left: another one has taken its place.
        """
        for connection in list(self._busy):
            if connection.overdue(SILENCE_SECONDS):
                connection.abort(f"no reply for {SILENCE_SECONDS:g} s")
            elif self._is_left(connection):
                connection.abort("another Redis has taken its place")
        self._watching = bool(self._busy)
        if self._watching:
            self._loop.call_later(LOOK_SECONDS, self._watch)


def _is_made(making: asyncio.Task[RedisConnection]) -> bool:
    return making.done() and not making.cancelled() and making.exception() is None and not making.result().lost.done()


def _drop(making: asyncio.Task[RedisConnection]) -> None:
    making.cancel()
    making.add_done_callback(lambda made: made.result().abort("closed here") if _is_made(made) else None)


def _ignore(reply: Any) -> None:
    """What is told is a help: without it, waits end and readers look by themselves within two seconds."""
