"""The WebSocket terminator: one object per socket, callbacks only, over the sans-IO protocol of websockets.

`WebSocketProtocol` takes a socket over from HTTP at the end of the handshake request. It switches protocols when the
app has sent `websocket.accept`. Input of the client before that is buffered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from websockets.frames import Close, CloseCode
from websockets.protocol import State

from asgibus.interface_server.http.request import ErrorResponse, Request, address_text
from asgibus.interface_server.http.response import ResponseWriter, StandardHeaders, plain_response
from asgibus.interface_server.lingering_close import LingeringClose
from asgibus.interface_server.read_scheduler import READ_SECONDS, InputBuffer
from asgibus.interface_server.server_context import ServerContext
from asgibus.interface_server.slow_client import SlowClientGuard, unread_bytes
from asgibus.interface_server.websocket.compression import encode_compressed, negotiate
from asgibus.interface_server.websocket.frames import decode_message, encode_message
from asgibus.interface_server.websocket.handshake import check_handshake, switching_protocols
from asgibus.interface_server.websocket.reader import NOTHING_READ, SLICE, InvalidMessage, MessageReader
from asgibus.interface_server.websocket.states import WEBSOCKET_TABLE, WebSocketEvent, WebSocketState
from asgibus.protocol.connect_request import PRESENCE, STREAMS
from asgibus.protocol.events import (
    ACCEPT,
    CLOSE,
    MESSAGE_RECEIVED,
    MESSAGE_SENT,
    RESPONSE_BODY,
    RESPONSE_END,
    RESPONSE_START,
    Event,
)
from asgibus.protocol.states import transition
from asgibus.protocol.stream import PART

if TYPE_CHECKING:
    from asgibus.interface_server.connections.connection import Connection

access = logging.getLogger("asgibus.access")

EARLY_BYTES: Final = PART  # that a client may send before it is accepted; then its socket is paused
PONGS: Final = 16  # written for the pings of one slice: only the last one need be answered, RFC 6455 section 5.5.3
CLOSE_SECONDS = 10.0  # how long a client may take to answer the server's close frame

_EXTENSIONS: Final[dict[str, Any]] = {"websocket.http.response": {}, "asgibus": {STREAMS: True, PRESENCE: True}}
_REASONS: dict[int, str] = {
    CloseCode.TRY_AGAIN_LATER: "no worker",
    CloseCode.SERVICE_RESTART: "the worker is gone",
    CloseCode.INTERNAL_ERROR: "the app failed",
}


# Members of enums are looked up on their class in 50 ns: once here, instead of for every message.
_HANDSHAKE, _OPEN, _CLOSING = WebSocketState


class WebSocketServer(ServerContext, Protocol):
    """Everything that a `WebSocketProtocol` needs of the server."""

    standard_headers: StandardHeaders


class WebSocketProtocol(asyncio.Protocol):
    """One client's WebSocket. Implements `Terminator`, `Holder` and `SlicedProtocol`."""

    __slots__ = (
        "_alive",
        "_connection",
        "_guard",
        "_log_line",
        "_opened",
        "_pinged",
        "_reader",
        "_request",
        "_scheduler",
        "_server",
        "_state",
        "_transport",
        "_window_bits",
        "_window_shut",
        "_writer",
        "deadline",
        "input",
        "write_paused",
    )

    def __init__(self, server: WebSocketServer, transport: asyncio.Transport, writer: ResponseWriter) -> None:
        self._server = server
        self._scheduler = server.scheduler
        self._transport = transport
        self.input = InputBuffer(transport)
        self._writer: ResponseWriter | None = writer  # until the accept, like `_request`
        self._request: Request | None = None
        self._connection: Connection | None = None
        self._reader: MessageReader | None = None  # from the accept on
        self._state = _HANDSHAKE
        self._window_bits = 0  # of compressed messages to the client; 0: they are not compressed
        self._window_shut = False  # whether the app has more messages than it has consumed
        self._alive = True  # whether the client has sent or read something since the last ping
        self._opened = server.now
        self._pinged = 0.0
        self._guard: SlowClientGuard | None = None
        self._log_line = ""
        self.deadline = 0.0
        self.write_paused = False

    def begin(self, request: Request, tail: bytes) -> None:
        """Take the socket over: check the handshake, and offer the connection to the workers.

        Args:
            request: The handshake.
            tail: Bytes that have arrived after the handshake.
        """
        self._request = request
        target = request.target.decode("latin-1")
        self._log_line = f'{address_text(request.client)} - "WebSocket {target}"'
        self.input.unread = tail
        self.deadline = self._server.now + self._server.settings.connect_timeout + CLOSE_SECONDS
        self._transport.set_protocol(self)
        self._server.register(self)
        error = check_handshake(request)
        if error is not None:
            self._reject(error)
            return
        request.extensions = {**request.extensions, **_EXTENSIONS}
        self._connection = self._server.connections.open(request, self, ())
        self.slices_read()
        if not self.input.paused and not self._transport.is_reading():
            self._transport.resume_reading()

    @property
    def is_open(self) -> bool:
        """Whether the handshake is done, and no side has begun to close."""
        return self._state is _OPEN

    # Called by the transport.

    def data_received(self, data: bytes) -> None:
        self._alive = True
        reader, buffer = self._reader, self.input
        if (
            reader is None
            or buffer.unread
            or reader.frames
            or self._window_shut
            or self.write_paused
            or buffer.waits
            or buffer.in_slice
            or len(data) > SLICE
            or not self._scheduler.try_slice(READ_SECONDS)
        ):
            buffer.add(data)
            self._scheduler.read(self)
            return
        # Nearly every message takes this shorter way: it is one slice, and nothing is buffered before it.
        buffer.in_slice = True
        try:
            message = None
            if reader.unframed == 0 and reader.fragments is None and self._connection is not None:
                message = decode_message(data, reader.decoded_here)
            if message is not None and self._connection is not None:
                self._connection.event((MESSAGE_RECEIVED, message))
            else:
                self._parse(reader, data)
        finally:
            buffer.in_slice = False
        if reader.frames:
            self._scheduler.read(self)

    def eof_received(self) -> bool:
        return False  # the transport closes, and `connection_lost` follows

    def connection_lost(self, error: Exception | None) -> None:
        self._server.forget(self)
        self._discard_input()
        if self._writer is not None:
            self._log_handshake(self._writer.status)
        self._disconnect(CloseCode.ABNORMAL_CLOSURE)

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        self._alive = True
        if self._reader is not None and self._reader.parser.writes:
            self._write_pending()
        if self._connection is not None:
            self._connection.acknowledge()
        self._scheduler.read(self)

    # Reading.

    def has_input(self) -> bool:
        """See `SlicedProtocol`."""
        reader = self._reader
        if reader is None:
            if self._state is not _HANDSHAKE:
                self.input.unread = b""  # the handshake was rejected
            return False
        if self._window_shut or (self.write_paused and reader.parser.writes):
            return False
        return bool(self.input.unread or reader.frames)

    def read_slice(self) -> None:
        """See `SlicedProtocol`."""
        assert self._reader is not None
        self._parse(self._reader, b"" if self._reader.frames else bytes(self.input.take(SLICE)))

    def slices_read(self) -> None:
        """See `SlicedProtocol`."""
        reader = self._reader
        waits = len(self.input.unread) > EARLY_BYTES if reader is None else bool(self.input.unread or reader.frames)
        if self.input.paused:
            self._alive = True  # the answer to a ping may be among the unread data
        self.input.pause(self._window_shut or waits)

    def _parse(self, reader: MessageReader, data: bytes) -> None:
        """Handle the frames that are left of the last slice, or the frames of the next one."""
        parser = reader.parser
        if not reader.frames:
            reader.feed(data)
        try:
            while self._connection is not None and not self._window_shut:
                message = reader.next_message()
                if message is None:
                    break
                self._connection.event((MESSAGE_RECEIVED, message))
        except InvalidMessage as invalid:
            parser.fail(invalid.code, invalid.reason)
            self._end_for_error(parser.close_sent)
        if self._connection is None:
            reader.discard()
        if reader.frames:
            return
        if parser.parser_exc is not None:
            self._end_for_error(parser.close_sent)
        elif parser.close_rcvd is not None:
            self._begin_closing()
            self._disconnect(parser.close_rcvd.code, parser.close_rcvd.reason)
        if parser.writes:
            self._write_pending()

    # Called by the connection: events of the app.

    def write_event(self, event: Event) -> None:
        """See `Terminator`."""
        code: int = event[0]
        if code == MESSAGE_SENT:
            bits = self._window_bits
            self._transport.write(encode_compressed(event[1], bits) if bits else encode_message(event[1]))
        elif code == ACCEPT:
            self._accept(event[1], event[2])
        elif code == CLOSE:
            self._connection = None
            if self._state is _HANDSHAKE:
                self._reject(ErrorResponse(403, "The app refused this WebSocket."))
            else:
                self._close(event[1], event[2])
        elif code == RESPONSE_START:
            assert self._request is not None
            assert self._writer is not None
            self._writer.begin(self._request, keep_alive=False)
            self._writer.start(event)
            self.deadline = self._server.now + CLOSE_SECONDS  # from now on, `expire` checks how the client reads
        elif code == RESPONSE_BODY or code == RESPONSE_END:
            assert self._writer is not None
            if code == RESPONSE_BODY:
                self._writer.body(event[1])
            else:
                self._connection = None
                self._writer.end(event[1])
                self._log_handshake(self._writer.status)
                self._linger()
        elif self._state is _HANDSHAKE:  # ABORT
            self._reject(ErrorResponse(500, "The app failed."))
        else:
            self._connection = None
            self._transport.abort()

    def flush(self) -> None:
        """Do nothing: every event is written at once. See `Terminator`."""

    def broadcast(self, event: Event, shared: dict[str, Any]) -> None:
        """See `Terminator`."""
        if event[0] != MESSAGE_SENT or self._state is not _OPEN or self._connection is None:
            if self._connection is None or not self._connection.plain(event):
                self._server.connections.counts["broadcast out of place"] += 1
            return
        if self.write_paused and not self.keeps_up():
            return
        frame = shared.get("frame")
        if frame is None:
            frame = shared["frame"] = encode_message(event[1])
        self._transport.write(frame)

    def write_shared(self, events: Sequence[Event], shared: dict[str, Any]) -> None:
        """See `SharedWriter`."""
        if self._state is not _OPEN or self._connection is None:
            return  # its client is gone, and with it what it follows
        frames = shared.get("frames")
        if frames is None and all(event[0] == MESSAGE_SENT for event in events):
            frames = shared["frames"] = b"".join([encode_message(event[1]) for event in events])
        if frames is not None:
            self._transport.write(frames)
            return
        for index, event in enumerate(events):
            self.broadcast(event, shared.setdefault(str(index), {}))

    def detach(self) -> None:
        """Do nothing: only responses are detached. See `SharedWriter`."""

    def keeps_up(self) -> bool:
        """See `Terminator`."""
        if not self._server.check_slow_client(self._transport):
            return True
        if self._server.settings.slow_client == "close" and self._state is _OPEN:
            self._send_close(CloseCode.TRY_AGAIN_LATER, "too slow")  # the client may read it, or not
            self._begin_closing()
            self._write_pending()
            self._disconnect(CloseCode.TRY_AGAIN_LATER, "too slow")
        return False

    def pause(self) -> None:
        """See `Terminator`."""
        self._window_shut = True
        self.slices_read()

    def resume(self) -> None:
        """See `Terminator`."""
        self._window_shut = False
        self._scheduler.read(self)

    def fail(self, status: int, close_code: int) -> None:
        """See `Terminator`."""
        self._connection = None
        if self._state is _HANDSHAKE:
            text = (
                "No worker is ready for this WebSocket." if status == 503 else "The worker of this WebSocket is gone."
            )
            self._reject(ErrorResponse(status, text))
        else:
            self._close(close_code, _REASONS.get(close_code, ""))

    def abort(self) -> None:
        """See `Terminator`."""
        self._transport.abort()

    # Called by the server.

    def expire(self, now: float) -> None:
        """See `Holder`."""
        if self._state is not _OPEN:
            self._expire_unless_open(now)
            return
        settings = self._server.settings
        end = self._opened + settings.websocket_timeout
        unanswered = not self._alive and not self.input.paused  # no answer can be seen while the socket is paused
        if self.write_paused and self._check_stall(now):
            self._disconnect(CloseCode.ABNORMAL_CLOSURE)
            self._transport.abort()
        elif now >= end:
            self._disconnect(CloseCode.GOING_AWAY, "open for too long")
            self._close(CloseCode.GOING_AWAY, "open for too long")
        elif unanswered and now >= self._pinged + settings.ping_timeout:
            self._disconnect(CloseCode.ABNORMAL_CLOSURE, "no answer to a ping")
            self._transport.abort()
        else:
            # No ping is sent behind much data: it would be answered late, and a client that reads the data is alive.
            if now >= self._pinged + settings.ping_interval and not unanswered and not self.write_paused:
                self._alive = False
                self._pinged = now
                assert self._reader is not None
                self._reader.parser.send_ping(b"")
                self._write_pending()
            nexts = (self._pinged + settings.ping_interval, self._pinged + settings.ping_timeout)
            self.deadline = min(end, *(at if at > now else now + settings.ping_interval for at in nexts))

    def _expire_unless_open(self, now: float) -> None:
        self.deadline = now + CLOSE_SECONDS
        if self._reader is None and self._transport.get_write_buffer_size() > 0:  # the client reads why it is rejected
            if self._check_stall(now):
                self._disconnect(CloseCode.ABNORMAL_CLOSURE)
                self._transport.abort()
        elif self._connection is None or self._state is _CLOSING:
            self._transport.abort()

    def shut_down(self) -> None:
        """See `Holder`."""
        self._disconnect(CloseCode.SERVICE_RESTART)
        if self._state is _HANDSHAKE:
            self._reject(ErrorResponse(503, "This server is stopping."))
        elif self._state is _OPEN:
            self._close(CloseCode.SERVICE_RESTART, "")

    # The move to another process.

    @property
    def stays(self) -> bool:
        """See `Movable`. The socket is about to be closed."""
        return self._state is _CLOSING or self._transport.is_closing() or self._connection is None

    @property
    def may_move(self) -> bool:
        """See `Movable`."""
        return (
            self._state is not _CLOSING
            and self._connection is not None
            and (self._reader is None or self._reader.may_move)
            and self.input.at_rest
        )

    def export(self) -> dict[str, Any]:
        """See `Movable`."""
        now = self._server.now
        connection, reader, request, writer = self._connection, self._reader, self._request, self._writer
        assert connection is not None
        return {
            "kind": "websocket",
            "request": None if request is None else request.export(),
            "writer": None if writer is None else writer.export(),
            "unread": (b"" if reader is None else reader.unparsed) + bytes(self.input.unread),
            **(NOTHING_READ if reader is None else reader.export()),
            "writes": [] if reader is None else [bytes(each) for each in reader.parser.writes],
            "window_bits": self._window_bits,
            "window_shut": self._window_shut,
            "alive": self._alive,
            "open_for": now - self._opened,
            "pinged": now - self._pinged,
            "left": self.deadline - now,
            "log_line": self._log_line,
            "connection": self._server.connections.export_connection(connection),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `Movable`."""
        server = self._server
        now = server.now
        self.input.held = True  # the transport is paused
        self.input.unread = state["unread"]
        if state["request"] is not None:
            request = self._request = Request.restore(state["request"])
            assert self._writer is not None
            self._writer.restore(request, state["writer"])
        else:
            self._writer = None
            reader = self._reader = MessageReader(server.settings.websocket_max_message_size, state["reading_bits"])
            reader.restore(state)
            reader.parser.writes.extend(state["writes"])
            self._state = transition(WEBSOCKET_TABLE, self._state, WebSocketEvent.ACCEPT)
        self._window_bits = state["window_bits"]
        self._window_shut = state["window_shut"]
        self._alive = state["alive"]
        self._opened = now - state["open_for"]
        self._pinged = now - state["pinged"]
        self.deadline = now + state["left"]
        self._log_line = state["log_line"]
        self._connection = server.connections.restore_connection(state["connection"], self)
        self._transport.set_protocol(self)
        server.register(self)

    def moved(self) -> None:
        """See `Movable`."""
        self._connection = None
        self._log_line = ""
        self._discard_input()
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
        self.slices_read()
        self.input.release()
        self._scheduler.read(self)

    def refuse_move(self) -> None:
        """See `Movable`."""
        self.shut_down()

    # The handshake.

    def _accept(self, subprotocol: str | None, headers: bytes) -> None:
        request = self._request
        assert request is not None
        settings = self._server.settings
        agreed = negotiate(request) if settings.websocket_compression else None
        extensions = agreed.header if agreed else b""
        self._transport.write(
            switching_protocols(request, subprotocol, headers, self._server.standard_headers, extensions)
        )
        self._log_handshake(101)
        self._window_bits, reading_bits = (agreed.window_bits, agreed.reading_bits) if agreed else (0, 0)
        self._reader = MessageReader(settings.websocket_max_message_size, reading_bits)
        self._state = transition(WEBSOCKET_TABLE, self._state, WebSocketEvent.ACCEPT)
        self._opened = self._pinged = now = self._server.now
        self.deadline = now + min(settings.ping_interval, settings.websocket_timeout)
        self._request = self._writer = None
        self.resume()

    def _reject(self, error: ErrorResponse) -> None:
        """Answer the handshake with an error. If the app has begun a response, break it off."""
        self._connection = None
        assert self._writer is not None
        if self._writer.written:
            self._log_handshake(self._writer.status)
            self._transport.abort()
            return
        headers = b"sec-websocket-version: 13\r\n" if error.status == 426 else b""
        response = plain_response(error.status, error.reason, self._server.standard_headers)
        self._transport.write(response.replace(b"\r\n\r\n", b"\r\n" + headers + b"\r\n", 1))
        self._log_handshake(error.status)
        self._linger()

    def _linger(self) -> None:
        """Close after a response that rejects the handshake, in a way that lets the client read it."""
        self._state = transition(WEBSOCKET_TABLE, self._state, WebSocketEvent.REJECT)
        self.input.paused = True  # so that this protocol does not pause the socket any more
        LingeringClose(self._server, self._transport).begin(0)
        self._server.forget(self)

    def _log_handshake(self, status: int) -> None:
        """Log the answer to the handshake, once; 0 if there was none."""
        if self._server.settings.access_log and self._log_line:
            access.info("%s %s", self._log_line, status or "-")
        self._log_line = ""

    # Closing.

    def _close(self, code: int, reason: str) -> None:
        """Begin the closing handshake, if the WebSocket is open."""
        if self._state is _OPEN:
            self._send_close(code, reason)
            self._begin_closing()
            self._write_pending()
            self.resume()  # to read the client's close frame

    def _end_for_error(self, close: Close | None) -> None:
        """End the connection, because the parser has failed.

        Args:
            close: The close frame of the parser, which is pending; None if there is none.
        """
        self._begin_closing()
        self._disconnect(close.code if close else CloseCode.ABNORMAL_CLOSURE, close.reason if close else "")

    def _send_close(self, code: int, reason: str) -> None:
        reader = self._reader
        assert reader is not None
        reader.frames.clear()
        if reader.parser.state is State.OPEN:  # else the client's close frame is parsed, and the answer is pending
            reader.parser.send_close(code, reason)

    def _discard_input(self) -> None:
        self.input.unread = b""
        if self._reader is not None:
            self._reader.discard()

    def _begin_closing(self) -> None:
        if self._state is _OPEN:
            self._state = transition(WEBSOCKET_TABLE, self._state, WebSocketEvent.CLOSE)
            self.deadline = self._server.now + CLOSE_SECONDS

    def _disconnect(self, code: int, reason: str = "") -> None:
        """Tell the app that the client is gone, or is treated as gone."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.client_gone(int(code), reason)

    def _write_pending(self) -> None:
        """Write the control frames of the parser: pings, pongs and close frames."""
        reader = self._reader
        assert reader is not None
        if reader.frames:
            return
        parser = reader.parser
        # An older ping need not be answered, RFC 6455 section 5.5.3. If there is a close frame, it is the last one.
        if self.write_paused and self._state is _OPEN:
            del parser.writes[:-1]  # a client that reads no pongs must not fill the memory with them
            return  # the last one is written when the client reads on; until then the socket is not read
        if len(parser.writes) > PONGS:
            del parser.writes[:-PONGS]
        for data in parser.data_to_send():
            if data:
                self._transport.write(data)
            elif parser.close_rcvd is None and self._transport.can_write_eof():
                # The client may be in the middle of a message that is rejected. To close now would reset the connection
                # and destroy the close frame. So the rest is discarded until the client closes, or the deadline.
                self.resume()
                self._transport.write_eof()
            else:  # an empty write means that nothing more will be sent
                self._transport.close()

    def _check_stall(self, now: float) -> bool:
        self._guard = self._guard or SlowClientGuard()  # few sockets ever need one
        return self._guard.check_stall(now, unread_bytes(self._transport))
