"""Closing a socket after its last response, so that the client can read it: RFC 9112 section 9.6."""

from __future__ import annotations

import asyncio

from asgibus.interface_server.server_context import SocketRegistry
from asgibus.interface_server.slow_client import SlowClientGuard, unread_bytes

CHECK_SECONDS = 1.0  # how often the limits below are checked
SILENCE_SECONDS = 1.0  # without data, after which the server's side is closed
LINGER_SECONDS = 2.0  # without data, after which a socket is closed from which nothing is expected
REST_LINGER_SECONDS = 5.0  # the same for a socket on which a part of a request body is still to come
DISCARD_SECONDS = 30.0  # after which the socket is closed in any case, as in nginx


class LingeringClose(asyncio.Protocol):
    """Discards what a client still sends until it closes, so that no reset destroys the last response.

    If a socket is closed while data waits in it, or arrives later, it is reset, and the client may lose a response that
    it has not read. Many clients write their whole request before they read, and some treat the end of their input as
    the end of the connection. So the socket is half-closed when the rest of the request body has arrived, or the client
    pauses. It is closed when the client closes, when it sends nothing for a few seconds, or after half a minute. With
    TLS it is never half-closed.
    """

    __slots__ = (
        "_end",
        "_guard",
        "_linger",
        "_received_at",
        "_registry",
        "_rest",
        "_transport",
        "_writing",
        "deadline",
    )

    def __init__(self, registry: SocketRegistry, transport: asyncio.Transport) -> None:
        self._registry = registry
        self._transport = transport
        self._guard = SlowClientGuard()
        self._rest = 0
        self._writing = True
        self._linger = self._received_at = self._end = self.deadline = 0.0

    def begin(self, rest: int, *, seconds: float | None = None) -> None:
        """Take the socket over. The protocol that had it must write nothing more.

        Args:
            rest: How many bytes the client still has to send.
            seconds: How long to discard at most; `DISCARD_SECONDS` by default.
        """
        now = self._registry.now
        self._rest = rest
        self._linger = REST_LINGER_SECONDS if rest else LINGER_SECONDS
        self._received_at = now
        self._end = now + (DISCARD_SECONDS if seconds is None else seconds)
        self.deadline = now + min(SILENCE_SECONDS, CHECK_SECONDS)
        self._transport.set_protocol(self)
        self._registry.register(self)
        if not rest:
            self._end_writing()
        if not self._transport.is_closing() and not self._transport.is_reading():
            self._transport.resume_reading()

    # Called by the transport.

    def data_received(self, data: bytes) -> None:
        self._received_at = self._registry.now
        self._rest -= len(data)
        if self._rest <= 0:
            self._linger = LINGER_SECONDS
            self._end_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._registry.forget(self)

    # Called by the server.

    def expire(self, now: float) -> None:
        """See `Holder`."""
        self.deadline = now + CHECK_SECONDS
        unread = unread_bytes(self._transport)
        if self._guard.check_stall(now, unread):
            self._transport.abort()
        elif unread:
            self._end = max(self._end, now + LINGER_SECONDS)  # the client is still reading the response
        elif self._transport.is_closing():
            self._transport.abort()
        elif now >= min(self._end, self._received_at + self._linger):
            self._transport.close()
        elif now >= self._received_at + SILENCE_SECONDS:
            self._end_writing()

    def shut_down(self) -> None:
        """See `Holder`."""
        self._end = min(self._end, self._registry.now + LINGER_SECONDS)

    def abort(self) -> None:
        """See `Holder`."""
        self._transport.abort()

    def _end_writing(self) -> None:
        if self._writing and self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
        self._writing = False
