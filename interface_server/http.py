"""The HTTP/1.1 terminator: one object per socket, callbacks only.

The way of a request: `data_received` feeds the parser, which calls `_head_complete`; `_begin` opens a connection on the
bus for it; its body follows as events; the app's events come back through `write_event`; `_finish` begins the next
request of the socket, or closes it. Requests that a client sends ahead wait in order, and reading is paused meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from asgibus.interface_server.connection import Connection
from asgibus.interface_server.pace import ClientPace, waiting_bytes
from asgibus.interface_server.request import Refusal, Request, address_text
from asgibus.interface_server.request_parser import RequestParser
from asgibus.interface_server.response import Framing, chunk, plain_response
from asgibus.interface_server.response_writer import ResponseWriter
from asgibus.interface_server.websocket import WebSocketTerminator
from asgibus.protocol.events import (
    ABORT,
    CONTINUE,
    EARLY_HINT,
    HTTP_DISCONNECT,
    REQUEST_BODY,
    REQUEST_END,
    RESPONSE,
    RESPONSE_BODY,
    RESPONSE_END,
    RESPONSE_START,
    RESPONSE_START_TRAILERS,
    TRAILERS_END,
    Event,
)
from asgibus.protocol.opening import WEBSOCKET
from asgibus.protocol.session import PART
from asgibus.protocol.states import App

if TYPE_CHECKING:
    from asgibus.interface_server.proxy_protocol import Origin
    from asgibus.interface_server.server import Server

access = logging.getLogger("asgibus.access")

CHECK_SECONDS = 1.0  # how often a running exchange is checked against its limits
FIRST_REQUEST_SECONDS = 1.0  # how long a stopping server still waits for it on a socket that was just accepted
LINGER_SECONDS = 2.0  # how long the rest of an unread body is discarded, so that the client sees the response


_RESET = struct.pack("ii", 1, 0)  # SO_LINGER, on, for no time


class HttpTerminator(asyncio.Protocol):
    """One client's socket that speaks HTTP/1.1 or 1.0. See `Terminator` for the seam."""

    __slots__ = (
        "_active",
        "_body_ended",
        "_connection",
        "_deaf",
        "_eof",
        "_lingering",
        "_origin",
        "_pace",
        "_parser",
        "_paused",
        "_queue",
        "_server",
        "_started",
        "_stopping",
        "_transport",
        "_window_shut",
        "_writer",
        "deadline",
        "write_paused",
    )

    _transport: asyncio.Transport
    _writer: ResponseWriter
    _parser: RequestParser

    def __init__(self, server: Server, origin: Origin | None = None) -> None:
        self._server = server
        self._origin = origin
        self._pace = ClientPace()
        self._queue: deque[Request] | None = None
        self._active: Request | None = None
        self._connection: Connection | None = None
        self._deaf = False  # what comes from the client is not looked at any more
        self._eof = False
        self._lingering = False
        self._stopping = False
        self._paused = False
        self._window_shut = False
        self._started = 0.0
        self._body_ended = False
        self.write_paused = False
        self.deadline = 0.0

    # From the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        server = self._server
        self._transport = transport  # type: ignore[assignment]  # a stream socket has a full transport
        self._writer = ResponseWriter(self._transport, server.standard)
        peer = server.peer_of(self._transport, self._origin)
        self._parser = RequestParser(peer, server.settings.max_head_size, self._head_complete)
        self.deadline = server.now + server.settings.head_timeout
        if not server.admit(self):
            self._transport.write(plain_response(503, "Too many connections.", server.standard))
            self._linger()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        parser = self._parser
        idle = self._active is None and parser.request is None
        refusal = parser.feed(data)
        if idle and parser.request is not None:
            self.deadline = self._server.now + self._server.settings.head_timeout
        if refusal is not None:
            self._refuse(refusal)
        if self._connection is None:
            self._next()
        elif self._active is not None:
            self._forward(self._active)
            self._update_reading()

    def eof_received(self) -> bool:
        self._eof = True
        active, connection = self._active, self._connection
        if active is None or connection is None:
            return False
        if active.complete:
            # The client may have closed, or only be done with sending. The app hears that no more comes, and may
            # still answer: whether the client is there shows when it is written to.
            connection.event((HTTP_DISCONNECT, False))
            return self._server.half_close
        self._leave()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._server.forget(self)
        if self._active is not None:
            self._log_access(self._active)
        self._leave()
        self._deaf = True
        self._active = None
        self._queue = None
        self._parser.release()

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._connection is not None:
            self._connection.acknowledge()

    # The way of a request.

    def _head_complete(self, request: Request, upgrade: bool) -> None:
        """From the parser."""
        self._server.trust_proxy(request)
        request.refusal = request.finish_head(upgrade=upgrade, max_size=self._server.settings.max_head_size)
        self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        if self._active is None and self._queue is None:
            self._active = request
        else:
            self._queue = self._queue or deque()
            self._queue.append(request)

    def _next(self) -> None:
        """Begin the next request that has its head, if there is one."""
        if self._active is None and self._queue:
            self._active = self._queue.popleft()
            self._queue = self._queue or None
        if self._active is not None and self._connection is None:
            self._begin(self._active)
        self._update_reading()

    def _begin(self, request: Request) -> None:
        now = self._server.now
        self._started = now
        self.deadline = now + CHECK_SECONDS
        self._writer.begin(request, keep_alive=request.keep_alive and not self._stopping)
        if request.refusal is not None:
            self._answer(request.refusal)
        elif self._eof and (not request.complete or request.kind == WEBSOCKET):
            self._active = None
            self._transport.close()
        elif request.kind == WEBSOCKET:
            self._become_websocket(request)
        else:
            first = _first_event(request)
            self._body_ended = first[0] == REQUEST_END
            if request.expects_continue:
                self._pace.expect_nothing()
            else:
                self._pace.expect_body(now, self._parser.body_bytes)
            self._connection = self._server.connections.open(request, self, (first,))
            self._forward(request)
            if self._eof:
                self._connection.event((HTTP_DISCONNECT, False))

    def _forward(self, request: Request) -> None:
        """Give on what has come of the body since the last time."""
        connection = self._connection
        if connection is None or self._body_ended:
            return
        parts, request.parts = request.parts, []
        for body in parts:
            for start in range(0, len(body), PART):
                connection.event((REQUEST_BODY, body[start : start + PART] if len(body) > PART else body))
        if request.complete:
            self._body_ended = True
            connection.event((REQUEST_END, b""))

    def _finish(self) -> None:
        """The response is written in full."""
        request, self._active, self._connection = self._active, None, None
        assert request is not None
        self._log_access(request)
        self._window_shut = False
        if not request.complete:
            self._linger()
        elif self._writer.close or self._stopping or ((self._deaf or self._eof) and not self._queue):
            self._deaf = True
            if self._paused or self._queue:
                self._linger()
            else:
                self._transport.close()
        else:
            settings = self._server.settings
            idle = self._parser.request is None
            self.deadline = self._server.now + (settings.keep_alive_timeout if idle else settings.head_timeout)
            if self._queue:
                self._server.loop.call_soon(self._next)
            self._update_reading()

    def _linger(self) -> None:
        """Close, but first discard for a while what the client still sends: else it may never see the response."""
        self._lingering = self._deaf = True
        self._queue = None
        self.deadline = self._server.now + LINGER_SECONDS
        if self._eof:
            self._transport.close()
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._update_reading()

    # The seam: what the app sends.

    def write_event(self, event: Event) -> None:
        """See `Terminator`."""
        code = event[0]
        writer = self._writer
        if code == RESPONSE:
            writer.start(event)
            if writer.end(event[3]):
                self._finish()
            else:
                self._connection = None
                self._cut()
        elif code == RESPONSE_START or code == RESPONSE_START_TRAILERS:
            writer.start(event)
            self._server.connections.hold(self)
        elif code == RESPONSE_END:
            trailers_follow = self._connection is not None and self._connection.app is App.TRAILERS
            if not writer.end(event[1], trailers_follow=trailers_follow):
                self._connection = None
                self._cut()
            elif not trailers_follow:
                self._finish()
        elif code == RESPONSE_BODY:
            writer.body(event[1])
        elif code == CONTINUE:
            if self._active is not None and not self._active.complete:
                self._pace.expect_body(self._server.now, self._parser.body_bytes)
                writer.ask_for_body()
        elif code == EARLY_HINT:
            writer.early_hint(event[1])
        elif code == ABORT:
            self._fail(Refusal(500, "The app failed."))
        else:  # TRAILERS, TRAILERS_END
            writer.trailers(event)
            if code == TRAILERS_END:
                self._finish()

    def flush(self) -> None:
        """See `Terminator`."""
        if self._active is not None:
            self._writer.flush()

    def broadcast(self, event: Event, shared: dict[str, Any]) -> None:
        """See `Terminator`: for HTTP, a part of the body of a stream."""
        connection = self._connection
        if connection is not None and self.write_paused and self._server.is_slow(self._transport):
            if self._server.settings.slow_client == "close":
                self._cut()
        elif (
            event[0] == RESPONSE_BODY
            and connection is not None
            and connection.app is App.STARTED
            and self._writer.framing is Framing.CHUNKED
        ):
            data = shared.get("chunk")
            if data is None:
                data = shared["chunk"] = chunk(event[1]) if event[1] else b""
            self._transport.write(data)
        elif connection is None or not connection.plain(event):
            self._server.connections.counts["broadcast out of place"] += 1

    def pause(self) -> None:
        """See `Terminator`."""
        self._window_shut = True
        self._update_reading()

    def resume(self) -> None:
        """See `Terminator`."""
        self._window_shut = False
        self._pace.expect_body(self._server.now, self._parser.body_bytes)
        self._update_reading()

    def fail(self, status: int, close_code: int) -> None:
        """See `Terminator`."""
        text = "No worker is ready for this request." if status == 503 else "The worker of this request is gone."
        self._fail(Refusal(status, text))

    def expire(self, now: float) -> None:
        """See `Terminator`."""
        self.deadline = now + CHECK_SECONDS
        settings = self._server.settings
        waiting = waiting_bytes(self._transport)
        if self._pace.stalled(now, waiting):
            self._cut()
            self._transport.abort()
        elif self._lingering or self._transport.is_closing():
            if waiting:
                pass  # the client is still reading the response
            elif self._transport.is_closing():
                self._transport.abort()
            else:
                self._transport.close()
        elif self._active is None:
            if self._parser.request is not None:
                self._refuse(Refusal(408, "The request head did not come in time."))
                self._next()
            else:
                self._transport.close()  # a silent client, or one that is done
        elif (
            not self._active.complete
            and not self._paused
            and not self._writer.begun  # then the two may well wait for each other in other ways
            and self._pace.body_too_slow(now, self._parser.body_bytes, settings.min_body_rate)
        ):
            self._give_up(Refusal(408, "The request body came too slowly."))
        elif settings.http_timeout is not None and now - self._started > settings.http_timeout:
            self._give_up(Refusal(503, "The app did not answer in time."))

    def shut_down(self) -> None:
        """See `Terminator`."""
        self._stopping = True
        if self._active is not None:
            self._writer.close_after()
        elif self._started == 0.0 and not self._lingering:  # accepted just now: its first request is on its way
            self.deadline = min(self.deadline, self._server.now + FIRST_REQUEST_SECONDS)
        elif not self._lingering:
            self._transport.close()

    def abort(self) -> None:
        """See `Terminator`."""
        self._transport.abort()

    # Endings.

    def _cut(self) -> None:
        """End a response that cannot be completed, so that the client sees it."""
        self._leave()
        if self._active is not None:
            self._log_access(self._active)
        self._active = None
        self._deaf = True
        if self._writer.framing in (Framing.CHUNKED, Framing.LENGTH) and not self.write_paused:
            self._transport.close()
        else:
            self._reset()

    def _reset(self) -> None:
        """Break the connection off; where its end would end the response, the client must see a reset instead."""
        if self._writer.framing is Framing.CLOSE:
            with suppress(OSError):  # the client is gone already
                plain = self._transport.get_extra_info("socket")
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def _fail(self, refusal: Refusal) -> None:
        """The app's side of the exchange has ended without a whole response."""
        self._connection = None
        if self._writer.written:
            self._cut()
        else:
            self._answer(refusal)

    def _give_up(self, refusal: Refusal) -> None:
        """The client's side of the exchange has hit a limit, or the whole has."""
        self._leave()
        self._fail(refusal)

    def _answer(self, refusal: Refusal) -> None:
        """Answer the active request ourselves, and close."""
        request, self._active, self._connection = self._active, None, None
        assert request is not None
        self._writer.begin(request, keep_alive=False)
        self._writer.status = refusal.status
        head_only = request.method == "HEAD"
        self._transport.write(
            plain_response(refusal.status, refusal.reason, self._server.standard, head_only=head_only)
        )
        self._log_access(request)
        self._linger()

    def _refuse(self, refusal: Refusal) -> None:
        """What comes from this client cannot be read on: answer so, after the requests before it."""
        request, self._parser.request = self._parser.request, None
        if request is not None and request is self._active and self._connection is not None:
            self._give_up(refusal)  # its body is broken
            return
        self._deaf = True
        assert request is not None
        if not request.head_complete:
            self._enqueue(request)
        request.refusal = request.refusal or refusal
        request.complete = True

    def _leave(self) -> None:
        """The client is gone, or as good as gone: the app learns it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.client_gone()

    def _become_websocket(self, request: Request) -> None:
        tail = self._parser.tail or b""
        self._parser.release()
        self._active = None
        self._deaf = True
        self._paused = False
        self._server.forget(self)
        WebSocketTerminator(self._server, self._transport, self._writer).begin(request, tail)

    # Reading.

    def _update_reading(self) -> None:
        if self._deaf and not self._lingering:
            return
        tail = self._parser.tail
        pause = not self._lingering and (
            self._window_shut or bool(self._queue) or (tail is not None and len(tail) > PART)
        )
        if pause != self._paused and not self._transport.is_closing():
            self._paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _log_access(self, request: Request) -> None:
        if self._server.settings.access_log:
            line = request.line if request.head_complete else "- - HTTP/-"
            access.info('%s - "%s" %s', address_text(request.client), line, self._writer.status or "-")


def _first_event(request: Request) -> Event:
    """The first part of the body, for the opening: for most requests all of it."""
    if not request.parts:
        return (REQUEST_END if request.complete else REQUEST_BODY, b"")
    first = request.parts.pop(0)
    if len(first) > PART:
        request.parts.insert(0, first[PART:])
        first = first[:PART]
    return (REQUEST_END if request.complete and not request.parts else REQUEST_BODY, first)
