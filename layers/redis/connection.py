"""One connection to Redis: RESP through hiredis on an `asyncio.Protocol`, pipelined, without a coroutine per command.

Each command is written with the callback that takes its reply; replies come in the order of the commands.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import hiredis

from asgibus.layers.errors import LayerUnavailable

Argument = str | bytes | int


def pack_command(args: Sequence[Argument]) -> bytes:
    """Return a command as RESP."""
    packed: bytes = hiredis.pack_command(tuple(args))  # type: ignore[arg-type]  # its stub names a tuple of one item
    return packed


RedisError = hiredis.ReplyError
OnReply = Callable[[Any], None]

# For how long a blocking read waits in Redis, and for how long an overdue reply is waited for: then the connection is
# given up, as TCP may not notice its end. A Redis that works answers within milliseconds, or two seconds for a blocking
# read; three more are for a fork, swapping or a slow script. Neither is longer than a lease, so that a process with a
# silent connection has a new one when others see that its lease has ended.
BLOCK_SECONDS = 2
SILENCE_SECONDS = 5.0

_NOTHING = object()


class RedisConnection(asyncio.Protocol):
    """A connection to Redis. `lost` is done when it has ended; callbacks that wait for replies are dropped then."""

    __slots__ = ("_loop", "_reader", "_replies", "_transport", "client_id", "lost", "owed_since", "place", "run_id")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._replies: deque[OnReply] = deque()
        self._transport: asyncio.Transport | None = None
        self.lost: asyncio.Future[str] = loop.create_future()
        self.owed_since = 0.0
        self.client_id = 0
        self.run_id = ""
        self.place: tuple[str, int] | None = None  # host and port, as Sentinel or the cluster names them

    def write(self, data: bytes, on_replies: Iterable[OnReply]) -> None:
        """Write packed commands, with a callback for the reply of each. A reply may be a RedisError."""
        if self._transport is None or self._transport.is_closing():
            return  # the owner learns from `lost` that it has to write again
        if not self._replies:
            self.owed_since = self._loop.time()
        self._replies.extend(on_replies)
        self._transport.write(data)

    def call(self, *args: str | bytes | int) -> asyncio.Future[Any]:
        """Write a command. If there is no reply within `SILENCE_SECONDS`, the connection is ended.

        Returns:
            A future with the reply. It raises RedisError, or LayerUnavailable when the connection is lost.
        """
        future: asyncio.Future[Any] = self._loop.create_future()

        def reply(value: Any) -> None:
            if not future.done():
                if isinstance(value, RedisError):
                    future.set_exception(value)
                else:
                    future.set_result(value)

        def end(lost: asyncio.Future[str]) -> None:
            if not future.done():
                future.set_exception(LayerUnavailable(f"the connection to Redis ended: {lost.result()}"))

        def settled(_: asyncio.Future[Any]) -> None:
            self.lost.remove_done_callback(end)
            timer.cancel()

        timer = self._loop.call_later(SILENCE_SECONDS, self.abort, f"no reply for {SILENCE_SECONDS:g} s")
        self.lost.add_done_callback(end)
        future.add_done_callback(settled)
        self.write(pack_command(args), (reply,))
        return future

    def overdue(self, seconds: float) -> bool:
        """Return whether Redis has owed a reply for longer than that."""
        return bool(self._replies) and self._loop.time() - self.owed_since > seconds

    def abort(self, reason: str) -> None:
        """End the connection at once."""
        if not self.lost.done() and not self._loop.is_closed():
            self.lost.set_result(reason)
        self._replies.clear()
        if self._transport is not None and not self._loop.is_closed():  # which would have to run once more to close it
            self._transport.abort()

    # Callbacks of the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream socket has a full transport

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        reader.feed(data)
        replies = self._replies
        self.owed_since = self._loop.time()
        try:
            while (reply := reader.gets()) is not _NOTHING:
                if not replies:
                    # Redis refuses a connection in this way: in protected mode, or when it has too many clients.
                    said = reply if isinstance(reply, RedisError) else "a reply that nobody asked for"
                    self.abort(f"Redis sent {said}")
                    return
                replies.popleft()(reply)
        except hiredis.ProtocolError as error:
            self.abort(f"Redis sent something that is not RESP: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self._replies.clear()
        if not self.lost.done():
            self.lost.set_result(str(error) if error else "Redis closed the connection")


def reason_of(error: OSError) -> str:
    """Return why there is no connection, in the words of the system; those of asyncio repeat the address."""
    if error.errno is not None and error.errno > 0 and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__
