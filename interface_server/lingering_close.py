"""Closing a socket behind its last response, so that the client can read it: RFC 9112 section 9.6."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from asgibus.interface_server.slow_client import ClientPace, waiting_bytes

if TYPE_CHECKING:
    from asgibus.interface_server.server import Server

CHECK_SECONDS = 1.0  # how often the limits below are checked
SILENCE_SECONDS = 1.0  # without data, after which the client is told that nothing more is read
LINGER_SECONDS = 2.0  # without data, after which a socket is closed from which nothing is expected
REST_LINGER_SECONDS = 5.0  # the same for a socket on which a part of a request body is still to come
DISCARD_SECONDS = 30.0  # after which it is closed in any case, as in nginx


class ClosingSocket(asyncio.Protocol):
    """Discard what a client still sends until it closes, so that no reset takes the last response from it.

    A socket that is closed while data waits in it, or comes later, is reset, and the client may lose a response that
    it has not read. Many clients write their whole request before they read, and some take the end of what they read
    for the end of the connection. So the socket is first half-closed when the rest of the request body has come, or
    the client pauses; and closed when the client closes, or sends nothing for a few seconds, or after half a minute.
    TLS knows no half-closed connection.
    """

    __slots__ = ("_end", "_heard_at", "_linger", "_pace", "_rest", "_server", "_transport", "_writing", "deadline")

    def __init__(self, server: Server, transport: asyncio.Transport) -> None:
        self._server = server
        self._transport = transport
        self._pace = ClientPace()
        self._rest = 0
        self._writing = True
        self._linger = self._heard_at = self._end = self.deadline = 0.0

    def begin(self, rest: int, *, seconds: float | None = None) -> None:
        """Take the socket over. The terminator that had it must write nothing more.

        Args:
            rest: How many bytes the client still has to send.
            seconds: How long to discard at most; `DISCARD_SECONDS` by default.
        """
        now = self._server.now
        self._rest = rest
        self._linger = REST_LINGER_SECONDS if rest else LINGER_SECONDS
        self._heard_at = now
        self._end = now + (DISCARD_SECONDS if seconds is None else seconds)
        self.deadline = now + min(SILENCE_SECONDS, CHECK_SECONDS)
        self._transport.set_protocol(self)
        self._server.readmit(self)
        if not rest:
            self._end_writing()
        if not self._transport.is_closing() and not self._transport.is_reading():
            self._transport.resume_reading()

    # From the transport.

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._server.now
        self._rest -= len(data)
        if self._rest <= 0:
            self._linger = LINGER_SECONDS
            self._end_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._server.forget(self)

    # The seam: what the server asks for.

    def expire(self, now: float) -> None:
        """See `Holder`."""
        self.deadline = now + CHECK_SECONDS
        waiting = waiting_bytes(self._transport)
        if self._pace.stalled(now, waiting):
            self._transport.abort()
        elif waiting:
            self._end = max(self._end, now + LINGER_SECONDS)  # the client is still reading the response
        elif self._transport.is_closing():
            self._transport.abort()
        elif now >= min(self._end, self._heard_at + self._linger):
            self._transport.close()
        elif now >= self._heard_at + SILENCE_SECONDS:
            self._end_writing()

    def shut_down(self) -> None:
        """See `Holder`."""
        self._end = min(self._end, self._server.now + LINGER_SECONDS)

    def abort(self) -> None:
        """See `Holder`."""
        self._transport.abort()

    def _end_writing(self) -> None:
        if self._writing and self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
        self._writing = False
