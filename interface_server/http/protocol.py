"""The HTTP/1.1 terminator: one object per socket, callbacks only.

The way of a request: `_read_slice` feeds the parser, which calls `_head_complete`; `_begin` opens a connection on the
bus for it; its body follows as events; the app's events come back through `write_event` (in `http_answers`, as is all
writing); `_finish` begins the next request of the socket, or closes it. Requests that a client sends ahead are kept as
they came, and are parsed when their turn comes; reading is paused if they are many, or large.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from asgibus.interface_server.http.answers import Answering
from asgibus.interface_server.http.request import Refusal, Request
from asgibus.interface_server.http.request_parser import RequestParser
from asgibus.interface_server.http.response import Framing, plain_response
from asgibus.interface_server.http.response_writer import ResponseWriter
from asgibus.interface_server.lingering_close import LINGER_SECONDS, ClosingSocket
from asgibus.interface_server.slow_client import ClientPace, waiting_bytes
from asgibus.interface_server.websocket.protocol import WebSocketTerminator
from asgibus.protocol.connect_request import WEBSOCKET
from asgibus.protocol.events import HTTP_DISCONNECT, REQUEST_BODY, REQUEST_END, Event
from asgibus.protocol.stream import PART

if TYPE_CHECKING:
    from asgibus.interface_server.proxy_protocol import Origin
    from asgibus.interface_server.server import Server

CHECK_SECONDS = 1.0  # how often a running exchange is checked against its limits
FIRST_REQUEST_SECONDS = 1.0  # how long a stopping server still waits for it on a socket that was just accepted
HEAD_SLICE = 4 * 1024  # bytes that are parsed at once: few enough that the requests in them take little memory
AHEAD_BYTES = PART  # kept of the next requests while the socket is read on: only so it is seen that the client leaves
REST_SECONDS = 30.0  # for the rest of a body behind its response, if it is short; then the next request may come


class HttpTerminator(Answering):
    """One client's socket that speaks HTTP/1.1 or 1.0. See `Terminator` for the seam."""

    __slots__ = (
        "_body_ended",
        "_eof",
        "_origin",
        "_paused",
        "_queue",
        "_refused",
        "_started",
        "_stopping",
        "_window_shut",
        "deadline",
    )

    def __init__(self, server: Server, origin: Origin | None = None, *, refused: bool = False) -> None:
        super().__init__(server)
        self._refused = refused
        self._origin = origin
        self._pace = ClientPace()
        self._queue: deque[Request] | None = None
        self._active = None
        self._connection = None
        self._deaf = False
        self._eof = False
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
        settings = server.settings
        self._parser = RequestParser(
            peer, settings.max_head_size, self._head_complete, max_headers=settings.max_headers
        )
        self.deadline = server.now + settings.head_timeout
        if self._refused or not server.admit(self):
            self._transport.write(plain_response(503, "Too many connections.", server.standard))
            self._deaf = True
            ClosingSocket(server, self._transport).begin(0, seconds=LINGER_SECONDS)
            server.forget(self)

    def _more(self) -> bool:
        if self._deaf:
            self._unread = b""
        if not self._unread or self._window_shut or self._queue or self._parser.tail is not None:
            return False
        # The next request is parsed when its turn has come.
        return self._parser.request is not None or (self._active is None and not self.write_paused)

    def _read_slice(self) -> None:
        parser = self._parser
        before = parser.request
        refusal = parser.feed(self._take(min(parser.body_left, PART) or HEAD_SLICE))
        if self._active is None and parser.request is not before:
            self._await_request()
        if refusal is not None:
            self._refuse(refusal)
        if self._active is not None and (self._active.complete or self._active.held >= PART):
            self._progress()

    def _slices_read(self) -> None:
        self._progress()
        self._update_reading()
        if self._eof and not self._deaf and self._active is None and not self._queue and not self._unread:
            self._transport.close()  # what has come is no whole request, and the rest never comes

    def _progress(self) -> None:
        """Begin a request, or give on what has come of its body."""
        if self._connection is None:
            self._next()
        elif self._active is not None:
            self._forward(self._active)

    def eof_received(self) -> bool:
        self._eof = True
        active, connection = self._active, self._connection
        if active is None or connection is None:
            return self._server.half_close and bool(self._queue or self._unread)
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
        else:
            self._go_on()

    # The way of a request.

    def _head_complete(self, request: Request, upgrade: bool) -> None:
        """From the parser."""
        if self._origin is None or self._origin.known:
            self._server.trust_proxy(request)  # else its headers are those of an unknown client
        settings = self._server.settings
        request.refusal = request.finish_head(
            upgrade=upgrade, max_size=settings.max_head_size, max_headers=settings.max_headers
        )
        self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        if self._active is None and self._queue is None and not self.write_paused:
            self._active = request
        else:
            self._queue = self._queue or deque()
            self._queue.append(request)

    def _next(self) -> None:
        """Begin the next request that has its head, if there is one, and if the client has read the last response.

        Else whoever asks and does not read would have us keep whole responses, of which each has a window of its own.
        """
        if self._active is None and self._queue and not self.write_paused:
            self._active = self._queue.popleft()
            self._queue = self._queue or None
        if self._active is not None and self._connection is None:
            self._begin(self._active)

    def _go_on(self) -> None:
        """Begin the next request, if it has come."""
        self._next()
        self.read_on()

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
        body = request.take_body()
        for start in range(0, len(body), PART):
            connection.event((REQUEST_BODY, body[start : start + PART] if len(body) > PART else body))
        if request.complete:
            self._body_ended = True
            connection.event((REQUEST_END, b""))

    def _finish(self) -> None:
        request, self._active, self._connection = self._active, None, None
        assert request is not None
        self._log_access(request)
        self._window_shut = False
        request.answered = True
        request.take_body()
        ends = (self._deaf or self._eof) and not self._queue and not self._unread
        if self._writer.close or self._stopping or ends:
            self._deaf = True
            if self._paused or self._queue or self._unread or not request.complete:
                self._close_behind(request)
            else:
                self._transport.close()
        else:
            self._await_request()
            if self._queue or self._unread:
                self._server.loop.call_soon(self._go_on)
            self._update_reading()

    def _await_request(self) -> None:
        """Set the deadline of what comes next: the rest of a request that is answered, of a head, or a new request."""
        settings, request = self._server.settings, self._parser.request
        if request is None:
            seconds = settings.keep_alive_timeout
        elif request.answered:
            seconds = REST_SECONDS
        else:
            seconds = settings.head_timeout
        self.deadline = self._server.now + seconds

    def _close_behind(self, request: Request) -> None:
        self._deaf = True
        self._queue = None
        if self._eof:
            self._transport.close()
            return
        self._parser.release()
        # Where the end of the connection ends the body of the response, the client must not wait for it.
        rest = 0 if self._writer.framing is Framing.CLOSE else max(0, request.rest - len(self._unread))
        ClosingSocket(self._server, self._transport).begin(rest)
        self._server.forget(self)

    # The seam: what else a connection and the server ask for.

    def pause(self) -> None:
        """See `Terminator`."""
        self._window_shut = True
        self._update_reading()

    def resume(self) -> None:
        """See `Terminator`."""
        self._window_shut = False
        self._pace.expect_body(self._server.now, self._parser.body_bytes)
        self.read_on()

    def expire(self, now: float) -> None:
        """See `Terminator`."""
        self.deadline = now + CHECK_SECONDS
        settings = self._server.settings
        waiting = waiting_bytes(self._transport)
        if self._pace.stalled(now, waiting):
            self._cut()
            self._transport.abort()
        elif self._transport.is_closing():
            if not waiting:  # else the client is still reading the response
                self._transport.abort()
        elif self._active is None:
            if self._queue or self._unread:
                pass  # it waits until the client has read the last response
            elif self._parser.request is None:
                self._transport.close()  # a silent client, or one that is done
            elif self._parser.request.answered:
                self._close_behind(self._parser.request)  # the rest of its body did not come in time
            else:
                self._refuse(Refusal(408, "The request head did not come in time."))
                self._next()
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
        elif self._started == 0.0:  # accepted just now: its first request is on its way
            self.deadline = min(self.deadline, self._server.now + FIRST_REQUEST_SECONDS)
        elif self._parser.request is not None and self._parser.request.answered:
            self._close_behind(self._parser.request)
        else:
            self._transport.close()

    # What ends the reading of HTTP.

    def _refuse(self, refusal: Refusal) -> None:
        """What comes from this client cannot be read on: answer so, after the requests before it."""
        request, self._parser.request = self._parser.request, None
        if request is not None and request is self._active and self._connection is not None:
            request.complete = True  # its body is broken: no rest can be told from what follows
            self._give_up(refusal)
            return
        self._deaf = True
        assert request is not None
        if not request.head_complete:
            self._enqueue(request)
        request.refusal = request.refusal or refusal
        request.complete = True

    def _become_websocket(self, request: Request) -> None:
        tail = (self._parser.tail or b"") + self._unread
        self._unread = b""
        self._parser.release()
        self._active = None
        self._deaf = True
        self._paused = False
        self._server.forget(self)
        WebSocketTerminator(self._server, self._transport, self._writer).begin(request, tail)

    # Reading.

    def _update_reading(self) -> None:
        if self._deaf:
            return
        pause = self._window_shut or self._waits or len(self._unread) > AHEAD_BYTES
        if pause != self._paused and not self._transport.is_closing():
            self._paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()


def _first_event(request: Request) -> Event:
    """The first part of the body, for the opening: for most requests all of it."""
    body = request.take_body()
    if len(body) > PART:
        request.parts = [body[PART:]]
        request.held = len(body) - PART
        body = body[:PART]
    return (REQUEST_END if request.complete and not request.parts else REQUEST_BODY, body)
