"""The HTTP/1.1 terminator: one object per socket, callbacks only, over httptools (llhttp).

The way of a request: `data_received` feeds the parser, whose callbacks fill a `Request`; `_begin` opens a connection on
the bus for it; its body follows as events; the app's events come back through `write_event`; `_finish` begins the next
request of the socket, or closes it. Requests that a client sends ahead wait in order, and reading is paused meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

import httptools

from asgibus.interface_server.connection import Connection
from asgibus.interface_server.request import Refusal, Request, address_text
from asgibus.interface_server.response import Framing, chunk, header_lines, plain_response
from asgibus.interface_server.response_writer import ResponseWriter
from asgibus.interface_server.websocket import WebSocketTerminator
from asgibus.protocol.events import (
    ABORT,
    CONTINUE,
    EARLY_HINT,
    HTTP_DISCONNECT,
    REQUEST_BODY,
    REQUEST_END,
    RESPONSE_BODY,
    RESPONSE_END,
    RESPONSE_START,
    RESPONSE_START_TRAILERS,
    TRAILERS_END,
    Event,
    Headers,
)
from asgibus.protocol.opening import WEBSOCKET
from asgibus.protocol.session import PART
from asgibus.protocol.states import App

if TYPE_CHECKING:
    from asgibus.interface_server.server import Server

access = logging.getLogger("asgibus.access")

CHECK_SECONDS = 1.0  # how often a running exchange is checked against its limits
BODY_GRACE_SECONDS = 5.0  # a body may pause this long before its rate counts
STALL_SECONDS = 60.0  # a client that reads nothing for this long while data waits for it is dropped
LINGER_SECONDS = 2.0  # how long the rest of an unread body is discarded, so that the client sees the response


class HttpTerminator(asyncio.Protocol):
    """One client's socket that speaks HTTP/1.1 or 1.0. See `Terminator` for the seam."""

    __slots__ = (
        "_active",
        "_body_bytes",
        "_body_ended",
        "_body_since",
        "_broken",
        "_connection",
        "_eof",
        "_head_bytes",
        "_lingering",
        "_parser",
        "_parsing",
        "_paused",
        "_peer",
        "_queue",
        "_server",
        "_stall",
        "_started",
        "_stopping",
        "_tail",
        "_trailers",
        "_transport",
        "_upgrading",
        "_window_shut",
        "_writer",
        "deadline",
        "write_paused",
    )

    _transport: asyncio.Transport
    _writer: ResponseWriter

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._parsing: Request | None = None
        self._queue: deque[Request] | None = None
        self._active: Request | None = None
        self._connection: Connection | None = None
        self._head_bytes = 0
        self._upgrading = False
        self._tail = b""
        self._broken = False
        self._eof = False
        self._lingering = False
        self._stopping = False
        self._paused = False
        self._window_shut = False
        self._trailers: Headers = ()
        self._stall: tuple[float, int] = (0.0, 0)
        self._started = 0.0
        self._body_since = 0.0
        self._body_bytes = 0
        self._body_ended = False
        self.write_paused = False
        self.deadline = 0.0

    # From the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream socket has a full transport
        self._writer = ResponseWriter(self._transport, self._server.standard)
        self._peer = self._server.peer_of(self._transport)
        self.deadline = self._server.now + self._server.settings.head_timeout
        if not self._server.admit(self):
            self._broken = True
            self._transport.write(plain_response(503, "Too many connections.", self._server.standard))
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        if self._broken or self._lingering:
            return
        if self._upgrading:
            self._keep_tail(data)
            return
        if self._parsing is None and self._active is None:
            self.deadline = self._server.now + self._server.settings.head_timeout
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(_refusal(error))
        else:
            parsing = self._parsing
            if parsing is not None and not parsing.head_complete:
                self._head_bytes += len(data)
                if self._head_bytes > self._server.settings.max_head_size:
                    self._refuse(Refusal(431, "The request head is too large."))
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
        self._active = None
        self._queue = None

    def pause_writing(self) -> None:
        self.write_paused = True
        self._stall = (self._server.now, self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._connection is not None:
            self._connection.acknowledge()

    # From the parser.

    def on_message_begin(self) -> None:
        self._parsing = Request(*self._peer)
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        assert self._parsing is not None
        self._parsing.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self._parsing is not None
        if not self._parsing.head_complete:  # trailers of a chunked body are not headers of the request: dropped
            self._parsing.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        request, parser = self._parsing, self._parser
        assert request is not None
        request.method = parser.get_method().decode("latin-1")
        request.http_version = parser.get_http_version()
        request.keep_alive = parser.should_keep_alive()
        request.refusal = request.finish_head(
            upgrade=parser.should_upgrade(), max_size=self._server.settings.max_head_size
        )
        self._server.trust_proxy(request)
        self._enqueue(request)

    def on_body(self, body: bytes) -> None:
        assert self._parsing is not None
        self._body_bytes += len(body)
        self._parsing.parts.append(body)

    def on_message_complete(self) -> None:
        assert self._parsing is not None
        self._parsing.complete = True
        self._parsing = None

    # The way of a request.

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

    def _begin(self, request: Request) -> None:
        now = self._server.now
        self._started = now
        self.deadline = now + CHECK_SECONDS
        self._writer.begin(request, keep_alive=request.keep_alive and not self._stopping)
        if request.refusal is not None:
            self._answer(request.refusal)
        elif request.kind == WEBSOCKET:
            if request.complete:
                self._become_websocket(request)
        else:
            self._body_since, self._body_bytes = now, 0
            first = _first_event(request)
            self._body_ended = first[0] == REQUEST_END
            self._connection = self._server.connections.open(request, self, (first,))
            self._forward(request)

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
        elif self._writer.close or self._stopping or self._eof or (self._broken and not self._queue):
            self._broken = True
            self._transport.close()
        else:
            self.deadline = self._server.now + self._server.settings.keep_alive_timeout
            if self._queue:
                self._server.loop.call_soon(self._next)
            self._update_reading()

    def _linger(self) -> None:
        """Close, but first discard for a while what the client still sends: else it may never see the response."""
        self._lingering = True
        self._queue = None
        self.deadline = self._server.now + LINGER_SECONDS
        if self._transport.can_write_eof() and not self._eof:
            self._transport.write_eof()
            self._update_reading()
        else:
            self._transport.close()

    # The seam: what the app sends.

    def write_event(self, event: Event) -> None:
        """See `Terminator`."""
        code = event[0]
        writer = self._writer
        if code == RESPONSE_START or code == RESPONSE_START_TRAILERS:
            writer.start(event)
            self._server.connections.hold(self)
        elif code == RESPONSE_END:
            trailers_follow = self._connection is not None and self._connection.app is App.TRAILERS
            if not writer.end(event[1], trailers_follow=trailers_follow):
                self._cut()
            elif not trailers_follow:
                self._finish()
        elif code == RESPONSE_BODY:
            writer.body(event[1])
        elif code == CONTINUE:
            if not writer.begun and self._active is not None and not self._active.complete:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif code == EARLY_HINT:
            if self._active is not None and self._active.http_version == "1.1":
                self._transport.write(b"HTTP/1.1 103 Early Hints\r\n" + header_lines(event[1]) + b"\r\n")
        elif code == ABORT:
            self._cut()
        else:  # TRAILERS, TRAILERS_END
            self._trailers += event[1]
            if code == TRAILERS_END:
                trailers, self._trailers = self._trailers, ()
                writer.trailers(trailers)
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
        self._body_since, self._body_bytes = self._server.now, 0
        self._update_reading()

    def fail(self, status: int, close_code: int) -> None:
        """See `Terminator`."""
        if self._writer.written:
            self._cut()
        else:
            text = "No worker is ready for this request." if status == 503 else "The worker of this request is gone."
            self._answer(Refusal(status, text))

    def expire(self, now: float) -> None:
        """See `Terminator`."""
        self.deadline = now + CHECK_SECONDS
        active = self._active
        limit = self._server.settings.http_timeout
        if self._transport.is_closing() or self._lingering:
            if self._lingering or self._stalled(now):
                self._transport.abort()
        elif active is None:
            if self._parsing is not None:
                self._refuse(Refusal(408, "The request head did not come in time."))
                self._next()
            else:
                self._transport.close()  # a silent client, or one that is done
        elif self._stalled(now):
            self._cut()
        elif not active.complete and not self._paused and self._too_slow(now):
            self._give_up(Refusal(408, "The request body came too slowly."))
        elif limit is not None and now - self._started > limit:
            self._give_up(Refusal(503, "The app did not answer in time."))

    def shut_down(self) -> None:
        """See `Terminator`."""
        self._stopping = True
        if self._active is None:
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
        self._broken = True
        if self._writer.framing in (Framing.CHUNKED, Framing.LENGTH) and not self.write_paused:
            self._transport.close()
        else:
            self._transport.abort()

    def _give_up(self, refusal: Refusal) -> None:
        """The exchange has hit a limit."""
        self._leave()
        if self._writer.written:
            self._cut()
        else:
            self._answer(refusal)

    def _answer(self, refusal: Refusal) -> None:
        """Answer the active request ourselves, and close."""
        request, self._active, self._connection = self._active, None, None
        assert request is not None
        self._writer.begin(request, keep_alive=False)
        self._writer.status = refusal.status
        self._broken = True
        self._transport.write(plain_response(refusal.status, refusal.reason, self._server.standard))
        self._log_access(request)
        self._linger()

    def _refuse(self, refusal: Refusal) -> None:
        """What comes from this client cannot be read on: answer so, after the requests before it."""
        request, self._parsing = self._parsing, None
        if request is not None and request is self._active and self._connection is not None:
            self._give_up(refusal)  # its body is broken
            return
        self._broken = True
        if request is None or not request.head_complete:
            request = request or Request(*self._peer)
            self._enqueue(request)
        request.refusal = refusal
        request.complete = True

    def _leave(self) -> None:
        """The client is gone, or as good as gone: the app learns it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.client_gone()

    # Upgrading.

    def _upgrade(self, tail: bytes) -> None:
        """The parser has met the end of a request with Upgrade; `tail` is what came behind it."""
        last = self._queue[-1] if self._queue else self._active
        if last is None or last.refusal is not None:
            self._broken = True
        elif last.kind == WEBSOCKET:
            self._upgrading = True
            self._keep_tail(tail)
        else:
            self._parser = httptools.HttpRequestParser(self)  # an upgrade that is not taken: HTTP goes on
            if tail:
                self._server.loop.call_soon(self.data_received, tail)

    def _keep_tail(self, data: bytes) -> None:
        self._tail += data
        self._update_reading()

    def _become_websocket(self, request: Request) -> None:
        self._active = None
        self._broken = True
        self._server.forget(self)
        WebSocketTerminator(self._server, self._transport, self._writer).begin(request, self._tail)

    # Reading and limits.

    def _update_reading(self) -> None:
        pause = not self._lingering and (self._window_shut or bool(self._queue) or len(self._tail) > PART)
        if pause != self._paused and not self._transport.is_closing():
            self._paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _stalled(self, now: float) -> bool:
        """Whether the client has read nothing of what waits for it for too long."""
        if not self.write_paused:
            return False
        since, size = self._stall
        waiting = self._transport.get_write_buffer_size()
        if waiting != size:
            self._stall = (now, waiting)
            return False
        return now - since > STALL_SECONDS

    def _too_slow(self, now: float) -> bool:
        seconds = now - self._body_since
        return seconds > BODY_GRACE_SECONDS and self._body_bytes < seconds * self._server.settings.min_body_rate

    def _log_access(self, request: Request) -> None:
        if self._server.settings.access_log:
            client = address_text(request.client)
            target = request.target.decode("latin-1")
            status = self._writer.status or "-"
            access.info('%s - "%s %s HTTP/%s" %s', client, request.method, target, request.http_version, status)


def _first_event(request: Request) -> Event:
    """The first part of the body, for the opening: for most requests all of it."""
    if not request.parts:
        return (REQUEST_END if request.complete else REQUEST_BODY, b"")
    first = request.parts.pop(0)
    if len(first) > PART:
        request.parts.insert(0, first[PART:])
        first = first[:PART]
    return (REQUEST_END if request.complete and not request.parts else REQUEST_BODY, first)


def _refusal(error: httptools.HttpParserError) -> Refusal:
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return Refusal(501, "The request method is not known.")
    return Refusal(400, "The request is not valid HTTP.")
