"""The HTTP/1.1 terminator: one object per socket, callbacks only.

One request goes this way: `data_received` feeds the parser; `_begin` opens a connection on the bus and `_forward_body`
passes the body to it; the app's events come back to `write_event`; `_finish` starts the next request of the socket, or
closes it. Requests that a client pipelines stay unparsed until their turn. The socket is paused if they are many, or
large.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from asgibus.interface_server.http.event_stream import SERVER_STOPS, EventStreamTerminator
from asgibus.interface_server.http.request import ErrorResponse, Peer, Request, RequestParser, address_text
from asgibus.interface_server.http.response import Framing, ResponseWriter, StandardHeaders, chunk, plain_response
from asgibus.interface_server.http.states import (
    CLIENT_EOF,
    CLOSE,
    CLOSED,
    DRAINING,
    HALF_CLOSED,
    INVALID_INPUT,
    OPEN,
    REJECTING,
    SERVER_STOP,
    SOCKET_TABLE,
    SocketEvent,
    SocketState,
)
from asgibus.interface_server.lingering_close import LINGER_SECONDS, LingeringClose
from asgibus.interface_server.proxy_headers import TrustedProxies
from asgibus.interface_server.proxy_protocol import Origin
from asgibus.interface_server.read_scheduler import READ_SECONDS, InputBuffer
from asgibus.interface_server.server_context import ServerContext
from asgibus.interface_server.slow_client import SlowClientGuard, unread_bytes
from asgibus.protocol.connect_request import WEBSOCKET
from asgibus.protocol.events import (
    ABORT,
    CONTINUE,
    EARLY_HINT,
    EVENT_STREAM,
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
from asgibus.protocol.states import AppState, ConnectionState, transition
from asgibus.protocol.stream import PART
from asgibus.protocol.stream_frames import KEEP_ALIVE

if TYPE_CHECKING:
    from asgibus.interface_server.connections.connection import Connection
    from asgibus.interface_server.http.streams import StreamEndpoint, StreamReader

access = logging.getLogger("asgibus.access")

CHECK_SECONDS = 1.0  # how often a running request is checked against its limits
FIRST_REQUEST_SECONDS = 1.0  # how long a stopping server waits for it on a socket that was just accepted
HEAD_SLICE: Final = 4 * 1024  # bytes that are parsed at once: few enough that the requests in them take little memory
AHEAD_BYTES: Final = PART  # of the next requests that are buffered before the socket is paused
WRITE_HIGH_WATER: Final = 64 * 1024  # bytes in the write buffer at which the connection stops acknowledging
REST_SECONDS = 30.0  # for the rest of a short body after its response; then the next request may come

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER, on, for no time
# Looked up once: see `http.response`.
_STARTED: Final = AppState.STARTED
_TRAILERS: Final = AppState.TRAILERS
_LENGTH: Final = Framing.LENGTH
_CHUNKED: Final = Framing.CHUNKED
_CLOSE: Final = Framing.CLOSE


class HttpServer(ServerContext, Protocol):
    """Everything that an `HttpProtocol` needs of the server."""

    standard_headers: StandardHeaders
    streams: StreamEndpoint | None
    """The streams that HTTP clients may read."""

    def peer_of(self, transport: asyncio.Transport, origin: Origin | None, /) -> Peer:
        """Return the two ends of a socket, as a scope has them."""

    def proxies_for(self, peer: Peer, /) -> TrustedProxies | None:
        """Return a reader of forwarding headers if the peer is a trusted proxy."""

    def upgrade(self, request: Request, transport: asyncio.Transport, writer: ResponseWriter, tail: bytes, /) -> None:
        """Hand a socket over to the WebSocket protocol.

        Args:
            request: The handshake.
            transport: The socket.
            writer: Writes the answer if the handshake is rejected.
            tail: Bytes that have arrived after the handshake.
        """


class HttpProtocol(asyncio.Protocol):
    """One client's socket that speaks HTTP/1.1 or 1.0. Implements `Terminator`, `Holder` and `SlicedProtocol`."""

    __slots__ = (
        "_connection",
        "_guard",
        "_origin",
        "_parser",
        "_queue",
        "_reader",
        "_rejected",
        "_request",
        "_scheduler",
        "_server",
        "_started",
        "_state",
        "_transport",
        "_window_shut",
        "_writer",
        "deadline",
        "input",
        "write_paused",
    )

    input: InputBuffer
    _parser: RequestParser
    _transport: asyncio.Transport
    _writer: ResponseWriter

    def __init__(self, server: HttpServer, origin: Origin | None = None, *, rejected: bool = False) -> None:
        """Make the protocol of a socket that was accepted.

        Args:
            server: The server.
            origin: The addresses that the PROXY protocol has reported.
            rejected: Whether to answer with 503, because too many sockets are open.
        """
        self._server = server
        self._scheduler = server.scheduler
        self._origin = origin
        self._rejected = rejected
        self._state = OPEN
        self._guard = SlowClientGuard()
        self._request: Request | None = None  # the one that is being answered
        self._connection: Connection | None = None  # of that request
        self._reader: StreamReader | None = None  # of that request, if it is one for a stream
        self._queue: deque[Request] | None = None  # requests whose head is parsed and whose turn has not come
        self._started = 0.0  # when the last request began; 0.0 before the first one
        self._window_shut = False  # whether the app has more of the body than it has consumed
        self.write_paused = False
        self.deadline = 0.0

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        server = self._server
        self._attach(transport)
        if self._rejected or not server.admit(self):
            self._transport.write(plain_response(503, "Too many connections.", server.standard_headers))
            self._change(CLOSE)
            LingeringClose(server, self._transport).begin(0, seconds=LINGER_SECONDS)
            server.forget(self)

    def _attach(self, transport: asyncio.BaseTransport) -> None:
        """Make the objects that need the transport."""
        server, settings = self._server, self._server.settings
        self._transport = transport  # type: ignore[assignment]  # a stream socket has a full transport
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        self.input = InputBuffer(self._transport)
        self._writer = ResponseWriter(self._transport, server.standard_headers)
        peer = server.peer_of(self._transport, self._origin)
        # Behind a proxy that does not report the client, forwarding headers are those of an unknown client.
        proxies = server.proxies_for(peer) if self._origin is None or self._origin.known else None
        self._parser = RequestParser(
            peer, settings.max_head_size, self._enqueue, max_headers=settings.max_headers, proxies=proxies
        )
        self.deadline = server.now + settings.head_timeout

    def data_received(self, data: bytes) -> None:
        parser, buffer = self._parser, self.input
        if (
            buffer.unread
            or len(data) > HEAD_SLICE
            or self._queue
            or self._window_shut
            or self.write_paused
            or buffer.waits
            or buffer.in_slice
            or self._state is not OPEN
            or parser.tail is not None
            or (parser.request is None and self._request is not None)
            or not self._scheduler.try_slice(READ_SECONDS)
        ):
            buffer.add(data)
            self._scheduler.read(self)
            return
        # Nearly every request takes this shorter way: it is one slice, and nothing is buffered before it.
        buffer.in_slice = True
        try:
            self._parse(data)
            self._progress()
        finally:
            buffer.in_slice = False

    def eof_received(self) -> bool:
        if self._state is HALF_CLOSED:  # the process that had the socket before has seen it
            return True
        self._change(CLIENT_EOF)
        request, connection = self._request, self._connection
        half_close = self._server.settings.ssl_certfile is None  # TLS has no half-closed connections
        if self._reader is not None:
            self._reader.stop_waiting()  # the client may have closed the connection; writing shows that
            return half_close
        if request is None or connection is None:
            return half_close and bool(self._queue or self.input.unread)
        if request.complete:
            # The client may have closed the connection, or only its sending side. The app learns that nothing more will
            # come, and may still answer. Writing shows whether the client is still there.
            connection.event((HTTP_DISCONNECT, False))
            return half_close
        self._disconnect()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._server.forget(self)
        if self._request is not None:
            self._log_access(self._request)
        self._disconnect()
        self._change(CLOSE)
        self._request = None
        self._queue = None
        self._parser.release()

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._connection is not None:
            self._connection.acknowledge()
        elif self._reader is not None:
            self._reader.resume()
        else:
            self._go_on()

    # Reading.

    def has_input(self) -> bool:
        """See `SlicedProtocol`."""
        if self._state is REJECTING or self._state is CLOSED:
            self.input.unread = b""
        if not self.input.unread or self._window_shut or self._queue or self._parser.tail is not None:
            return False
        # The next request is parsed when its turn has come.
        return self._parser.request is not None or (self._request is None and not self.write_paused)

    def read_slice(self) -> None:
        """See `SlicedProtocol`."""
        self._parse(self.input.take(min(self._parser.body_left, PART) or HEAD_SLICE))
        if self._request is not None and (self._request.complete or self._request.held >= PART):
            self._progress()

    def slices_read(self) -> None:
        """See `SlicedProtocol`."""
        self._progress()
        self._update_reading()
        if self._state is HALF_CLOSED and self._request is None and not self._queue and not self.input.unread:
            self._transport.close()  # an incomplete request, whose rest will not come

    def _parse(self, data: bytes | memoryview) -> None:
        parser = self._parser
        before = parser.request
        error = parser.feed(data)
        if self._request is None and parser.request is not before:
            self._await_request()
        if error is not None:
            self._reject_input(error)

    def _enqueue(self, request: Request) -> None:
        """Take a request from the parser, whose head is complete."""
        if self._request is None and self._queue is None and not self.write_paused:
            self._request = request
        else:
            self._queue = self._queue or deque()
            self._queue.append(request)

    def _reject_input(self, error: ErrorResponse) -> None:
        """Answer with an error, after the requests before it, because the client's input cannot be parsed."""
        request, self._parser.request = self._parser.request, None
        if request is not None and request is self._request and self._connection is not None:
            request.complete = True  # its body is broken, and its end cannot be found
            self._end_exchange(error)
            return
        self._change(INVALID_INPUT)
        assert request is not None
        if not request.head_complete:
            self._enqueue(request)
        request.error = request.error or error
        request.complete = True

    def _update_reading(self) -> None:
        if self._state is not REJECTING and self._state is not CLOSED:
            self.input.pause(self._window_shut or self.input.waits or len(self.input.unread) > AHEAD_BYTES)

    # One request.

    def _progress(self) -> None:
        """Begin the next request, or pass on what has arrived of the current one's body."""
        if self._connection is None:
            self._start_next_request()
        elif self._request is not None:
            self._forward_body(self._request)

    def _start_next_request(self) -> None:
        """Begin the next request whose head is parsed, if the client has read the last response.

        A client that sends requests and does not read would otherwise make the server keep whole responses, each with
        a window of its own.
        """
        if self._request is None and self._queue and not self.write_paused:
            self._request = self._queue.popleft()
            self._queue = self._queue or None
        if self._request is not None and self._connection is None and self._reader is None:
            self._begin(self._request)

    def _go_on(self) -> None:
        """Begin the next request, and parse what has arrived meanwhile."""
        self._start_next_request()
        self._scheduler.read(self)

    def _begin(self, request: Request) -> None:
        server = self._server
        self._started = now = server.now
        self.deadline = now + CHECK_SECONDS
        self._writer.begin(request, keep_alive=request.keep_alive and self._state is not DRAINING)
        if request.error is not None:
            self._send_error(request.error)
        elif self._state is HALF_CLOSED and (not request.complete or request.kind == WEBSOCKET):
            self._request = None
            self._transport.close()
        elif request.kind == WEBSOCKET:
            self._upgrade(request)
        elif server.streams is not None and (reader := server.streams.open(request, self)) is not None:
            self._reader = reader
        elif request.complete and request.held <= PART:
            request.forwarded = True
            self._connection = server.connections.open(request, self, ((REQUEST_END, request.take_body()),))
        else:
            if request.expects_continue:
                self._guard.expect_nothing()
            else:
                self._guard.expect_body(now, self._parser.body_bytes)
            body = request.take_body()
            if len(body) > PART:
                request.parts = [body[PART:]]
                request.held = len(body) - PART
                body = body[:PART]
            self._connection = server.connections.open(request, self, ((REQUEST_BODY, body),))
            self._forward_body(request)
        if self._state is HALF_CLOSED:
            if self._connection is not None:
                self._connection.event((HTTP_DISCONNECT, False))
            elif self._reader is not None:
                self._reader.stop_waiting()

    def _forward_body(self, request: Request) -> None:
        """Pass on what has arrived of the body since the last time."""
        connection = self._connection
        if connection is None or request.forwarded:
            return
        body = request.take_body()
        for start in range(0, len(body), PART):
            connection.event((REQUEST_BODY, body[start : start + PART] if len(body) > PART else body))
        if request.complete:
            request.forwarded = True
            connection.event((REQUEST_END, b""))

    def _upgrade(self, request: Request) -> None:
        tail = (self._parser.tail or b"") + self.input.unread
        self.input.unread = b""
        self._parser.release()
        self._request = None
        self._change(CLOSE)
        self.input.paused = False
        self._server.forget(self)
        self._server.upgrade(request, self._transport, self._writer, tail)

    def _finish(self) -> None:
        """Close the socket after a response, or go on with the next request."""
        request, self._request, self._connection = self._request, None, None
        assert request is not None
        self._log_access(request)
        self._window_shut = False
        request.answered = True
        if request.parts:
            request.take_body()
        state = self._state
        ahead = bool(self._queue or self.input.unread)
        if self._writer.close or state is DRAINING or (state is not OPEN and not ahead):
            if ahead or self.input.paused or not request.complete:
                self._linger(request)
            else:
                self._change(CLOSE)
                self._transport.close()
        else:
            self._await_request()
            if ahead:
                self._server.loop.call_soon(self._go_on)
            if self.input.paused:
                self._update_reading()

    def _await_request(self) -> None:
        """Set the deadline for the next request, the rest of a head, or the rest of a body that is answered."""
        settings, request = self._server.settings, self._parser.request
        if request is None:
            seconds = settings.keep_alive_timeout
        elif request.answered:
            seconds = REST_SECONDS
        else:
            seconds = settings.head_timeout
        self.deadline = self._server.now + seconds

    def _log_access(self, request: Request) -> None:
        if self._server.settings.access_log:
            line = request.line if request.head_complete else "- - HTTP/-"
            access.info('%s - "%s" %s', address_text(request.client), line, self._writer.status or "-")

    # Called by the connection: events of the app.

    def write_event(self, event: Event) -> None:
        """See `Terminator`."""
        code: int = event[0]
        writer = self._writer
        if code == RESPONSE:
            if writer.respond(event):
                self._finish()
            else:
                self._connection = None
                self._abort_response()
        elif code == RESPONSE_START or code == RESPONSE_START_TRAILERS:
            writer.start(event)
            self._server.connections.flush_later(self)
        elif code == RESPONSE_END:
            trailers_follow = self._connection is not None and self._connection.app_state is _TRAILERS
            if not writer.end(event[1], trailers_follow=trailers_follow):
                self._connection = None
                self._abort_response()
            elif not trailers_follow:
                self._finish()
        elif code == RESPONSE_BODY:
            writer.body(event[1])
        elif code == CONTINUE:
            if self._request is not None and not self._request.complete:
                self._guard.expect_body(self._server.now, self._parser.body_bytes)
                writer.ask_for_body()
        elif code == EARLY_HINT:
            writer.early_hint(event[1])
        elif code == ABORT:
            self._fail(ErrorResponse(500, "The app failed."))
        elif code == EVENT_STREAM:
            self._begin_event_stream(event)
        else:  # TRAILERS, TRAILERS_END
            writer.trailers(event)
            if code == TRAILERS_END:
                self._finish()

    def _begin_event_stream(self, head: Event) -> None:
        self._writer.start(head)
        self._writer.flush()
        if self._writer.framing is _CHUNKED:
            self.detach()

    def flush(self) -> None:
        """See `Terminator`."""
        if self._request is not None:
            self._writer.flush()

    def broadcast(self, event: Event, shared: dict[str, Any]) -> None:
        """See `Terminator`. To HTTP, a group sends parts of streamed bodies."""
        connection = self._connection
        if connection is not None and self.write_paused and not self.keeps_up():
            return
        if (
            event[0] == RESPONSE_BODY
            and connection is not None
            and (connection.app_state is _STARTED or connection.events is not None)
            and self._writer.framing is _CHUNKED
        ):
            data = shared.get("chunk")
            if data is None:
                data = shared["chunk"] = chunk(event[1]) if event[1] else b""
            self._transport.write(data)
        elif connection is None or not connection.plain(event):
            self._server.connections.counts["broadcast out of place"] += 1

    def write_shared(self, events: Sequence[Event], shared: dict[str, Any]) -> None:
        """See `SharedWriter`."""
        if self._connection is None:
            return
        chunks = shared.get("chunks")
        if self._writer.framing is _CHUNKED and chunks is None and all(event[0] == RESPONSE_BODY for event in events):
            chunks = shared["chunks"] = b"".join([chunk(event[1]) for event in events if event[1]])
        if self._writer.framing is _CHUNKED and chunks is not None:
            self._transport.write(chunks)
            return
        for index, event in enumerate(events):
            if event[0] == RESPONSE_BODY:
                self._writer.body(event[1])
            else:
                self.broadcast(event, shared.setdefault(str(index), {}))

    def detach(self) -> None:
        """See `SharedWriter`. If the server stops, the client is told to connect again."""
        connection, request = self._connection, self._request
        if connection is not None and request is not None and connection.events is None:
            log = self._server.connections.log
            terminator = EventStreamTerminator(self, connection, tuple(request.headers), log)
            connection.begin_event_stream(terminator, terminator.events)

    def keeps_up(self) -> bool:
        """See `Terminator`."""
        if not self._server.check_slow_client(self._transport):
            return True
        if self._server.settings.slow_client == "close":
            self._abort_response()
        return False

    def pause(self) -> None:
        """See `Terminator`."""
        self._window_shut = True
        self._update_reading()

    def resume(self) -> None:
        """See `Terminator`."""
        self._window_shut = False
        self._guard.expect_body(self._server.now, self._parser.body_bytes)
        self._scheduler.read(self)

    def fail(self, status: int, close_code: int) -> None:
        """See `Terminator`."""
        text = "No worker is ready for this request." if status == 503 else "The worker of this request is gone."
        self._fail(ErrorResponse(status, text))

    def abort(self) -> None:
        """See `Terminator`."""
        self._transport.abort()

    # Called by the server.

    def expire(self, now: float) -> None:
        """See `Holder`."""
        self.deadline = now + CHECK_SECONDS
        settings, request = self._server.settings, self._request
        unread = unread_bytes(self._transport)
        if self._guard.check_stall(now, unread):
            self._abort_response()
            self._transport.abort()
        elif self._transport.is_closing():
            if not unread:  # else the client is still reading the response
                self._transport.abort()
        elif request is None:
            self._expire_idle()
        elif (
            not request.complete
            and not self.input.paused
            and not self._writer.begun  # then client and app may wait for each other in other ways
            and self._guard.body_too_slow(now, self._parser.body_bytes, settings.min_body_rate)
        ):
            self._end_exchange(ErrorResponse(408, "The request body came too slowly."))
        elif self._reader is not None:
            self._reader.tick(now)
        elif settings.http_timeout is not None and now - self._started > settings.http_timeout:
            self._end_exchange(ErrorResponse(503, "The app did not answer in time."))
        elif self._state is HALF_CLOSED and self._is_detached and not self.write_paused:
            # A client that is gone looks the same as one that has closed its sending side. Writing tells them apart,
            # and no app learns of it and ends the response.
            self._writer.body(KEEP_ALIVE[1])

    @property
    def _is_detached(self) -> bool:
        return self._connection is not None and self._connection.state is ConnectionState.DETACHED

    def _expire_idle(self) -> None:
        incoming = self._parser.request
        if self._queue or self.input.unread:
            pass  # the next request waits until the client has read the last response
        elif incoming is None:
            self._transport.close()  # the client is silent, or done
        elif incoming.answered:
            self._linger(incoming)  # the rest of its body did not come in time
        else:
            self._reject_input(ErrorResponse(408, "The request head did not come in time."))
            self._start_next_request()

    @property
    def is_event_stream(self) -> bool:
        """Whether the response is an event stream that outlives its runs, or a live read of a stream."""
        return self._reader is not None or (self._connection is not None and self._connection.events is not None)

    def shut_down(self) -> None:
        """See `Holder`."""
        self._change(SERVER_STOP)
        incoming = self._parser.request
        if self._request is not None:
            self._writer.close_after()
            if self._reader is not None:
                self._reader.stop_waiting()
            elif self._connection is not None and self.is_event_stream:
                self._connection.fail(SERVER_STOPS)  # it would last until the server aborts it
        elif self._started == 0.0:  # the socket was accepted just now, and its first request is on the way
            self.deadline = min(self.deadline, self._server.now + FIRST_REQUEST_SECONDS)
        elif incoming is not None and incoming.answered:
            self._linger(incoming)
        else:
            self._transport.close()

    # The move to another process.

    @property
    def stays(self) -> bool:
        """See `Movable`. The socket is about to be closed."""
        return self._state is CLOSED or self._transport.is_closing()

    @property
    def may_move(self) -> bool:
        """See `Movable`."""
        at_rest = self.input.at_rest and (self._reader is None or self._reader.may_move)
        return self._state in (OPEN, HALF_CLOSED) and self._parser.may_move and at_rest

    def export(self) -> dict[str, Any]:
        """See `Movable`."""
        now = self._server.now
        incoming = self._parser.request
        requests = [each for each in (self._request, *(self._queue or ())) if each is not None]
        if incoming is not None and incoming not in requests:
            requests.append(incoming)  # it is answered, and the rest of its body is to come
        connection = self._connection
        return {
            "kind": "http",
            "state": self._state.name,
            "origin": self._origin,
            "unread": bytes(self.input.unread),
            "requests": [each.export() for each in requests],
            "answering": self._request is not None,
            "queued": len(self._queue or ()),
            "incoming": None if incoming is None else requests.index(incoming),
            "body_bytes": self._parser.body_bytes,
            "writer": self._writer.export(),
            "started": now - self._started if self._started else None,
            "left": self.deadline - now,
            "window_shut": self._window_shut,
            "connection": None if connection is None else self._server.connections.export_connection(connection),
            "reader": None if self._reader is None else self._reader.export(),
        }

    def restore(self, transport: asyncio.Transport, state: Mapping[str, Any]) -> None:
        """See `Movable`."""
        server = self._server
        now = server.now
        origin = state["origin"]
        self._origin = None if origin is None else Origin(*origin)
        self._attach(transport)
        self.input.held = True  # the transport is paused
        self.input.unread = state["unread"]
        self._state = SocketState[state["state"]]
        requests = [Request.restore(each) for each in state["requests"]]
        answering = 1 if state["answering"] else 0
        if answering:
            self._request = requests[0]
        if queued := requests[answering : answering + state["queued"]]:
            self._queue = deque(queued)
        incoming = None if state["incoming"] is None else requests[state["incoming"]]
        self._parser.restore(incoming, state["body_bytes"])
        self._writer.restore(self._request, state["writer"])
        self._started = now - state["started"] if state["started"] is not None else 0.0
        self.deadline = now + state["left"]
        self._window_shut = state["window_shut"]
        if incoming is not None and incoming is self._request:
            self._guard.expect_body(now, self._parser.body_bytes)
        if state["connection"] is not None:
            connection = server.connections.restore_connection(state["connection"], self)
            self._connection = connection
            if state["connection"]["events"] is not None and self._request is not None:
                headers = tuple(self._request.headers)
                stream = EventStreamTerminator(self, connection, headers, server.connections.log)
                stream.events.restore(state["connection"]["events"])
                connection.terminator, connection.events = stream, stream.events
        if (reader := state.get("reader")) is not None:
            if server.streams is not None:
                self._reader = server.streams.restore(reader, self)
            else:  # the option --streams was left out of this process
                transport.abort()
        transport.set_protocol(self)
        server.register(self)

    def moved(self) -> None:
        """See `Movable`."""
        self._change(CLOSE)
        if self._reader is not None:
            self._reader.close()
        self._request = self._connection = self._queue = self._reader = None
        self._server.forget(self)
        self._transport.abort()

    def hold_back(self) -> bool:
        """See `Movable`."""
        connection = self._connection
        return connection is not None and self.input.is_unwritten and connection.hold_back()

    def go_on(self) -> None:
        """See `Movable`."""
        if self._connection is not None:
            self._connection.go_on()
        self._update_reading()
        self.input.release()
        self._go_on()

    def refuse_move(self) -> None:
        """See `Movable`."""
        if self._request is not None:
            self._end_exchange(ErrorResponse(503, "This server is being replaced."))
        elif self._parser.request is not None and not self._parser.request.answered:
            self._reject_input(ErrorResponse(503, "This server is being replaced."))
            self._start_next_request()
        else:
            self._transport.close()

    # Errors and closing.

    def _change(self, event: SocketEvent) -> None:
        self._state = transition(SOCKET_TABLE, self._state, event)

    def _disconnect(self) -> None:
        """Tell the app that the client is gone, or is treated as gone."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.client_gone()
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def reader_done(self) -> None:
        """Forget the reader of the request. Its last event follows. See `StreamTerminator`."""
        self._reader = None

    def _end_exchange(self, error: ErrorResponse) -> None:
        """End the current request because it exceeds a limit, and answer with an error if that is still possible."""
        self._disconnect()
        self._fail(error)

    def _fail(self, error: ErrorResponse) -> None:
        """Answer the current request with an error, as the app will not answer it in full."""
        self._connection = None
        if self._writer.written:
            self._abort_response()
        else:
            self._send_error(error)

    def _send_error(self, error: ErrorResponse) -> None:
        """Answer the current request with an error, and close."""
        request, self._request, self._connection = self._request, None, None
        assert request is not None
        self._writer.begin(request, keep_alive=False)
        self._writer.status = error.status
        self._transport.write(
            plain_response(
                error.status, error.reason, self._server.standard_headers, head_only=request.method == "HEAD"
            )
        )
        self._log_access(request)
        self._linger(request)

    def _abort_response(self) -> None:
        """Break off a response that cannot be completed, so that the client notices."""
        self._disconnect()
        if self._request is not None:
            self._log_access(self._request)
        self._request = None
        self._change(CLOSE)
        framing = self._writer.framing
        if (framing is _CHUNKED or framing is _LENGTH) and not self.write_paused:
            self._transport.close()
            return
        if framing is _CLOSE:  # the client would take an ordinary close for the end of the response
            with suppress(OSError):  # the client has closed already
                plain = self._transport.get_extra_info("socket")
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def _linger(self, request: Request) -> None:
        """Close after the response to `request`, in a way that lets the client read it."""
        half_closed = self._state is HALF_CLOSED
        self._change(CLOSE)
        self._queue = None
        if half_closed:
            self._transport.close()
            return
        self._parser.release()
        # If the end of the connection ends the response, the client must not wait for it.
        rest = 0 if self._writer.framing is _CLOSE else max(0, request.rest - len(self.input.unread))
        LingeringClose(self._server, self._transport).begin(rest)
        self._server.forget(self)
