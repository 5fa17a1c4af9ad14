"""The WebSocket terminator: one object per socket, callbacks only, over the sans-IO protocol of websockets.

`WebSocketProtocol` takes a socket over from HTTP at the end of the handshake request. It switches protocols when the
app has sent `websocket.accept`. What the client sends before that is buffered.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import SERVER, State
from websockets.protocol import Event as ParsedEvent
from websockets.protocol import Protocol as Parser

from asgibus.interface_server.http.request import ErrorResponse, Request, address_text
from asgibus.interface_server.http.response import ResponseWriter, StandardHeaders, plain_response
from asgibus.interface_server.lingering_close import LingeringClose
from asgibus.interface_server.read_scheduler import READ_SECONDS, InputBuffer
from asgibus.interface_server.server_context import ServerContext
from asgibus.interface_server.slow_client import SlowClientGuard, unread_bytes
from asgibus.interface_server.websocket import debug_log
from asgibus.interface_server.websocket.compression import (
    CompressedFrame,
    CompressionMarks,
    Inflation,
    encode_compressed,
    negotiate,
)
from asgibus.interface_server.websocket.frames import decode_message, encode_message, frame_size
from asgibus.interface_server.websocket.handshake import check_handshake, switching_protocols
from asgibus.interface_server.websocket.states import WEBSOCKET_TABLE, WebSocketEvent, WebSocketState
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

SLICE: Final = 4 * 1024  # bytes that are parsed at once: some hundred of the smallest frames
EARLY_BYTES: Final = PART  # that a client may send before it is accepted; then its socket is paused
PONGS: Final = 16  # written for the pings of one slice: only the last one need be answered, RFC 6455 section 5.5.3
LARGEST_HEADER: Final = 14  # bytes of the header of a client's frame: RFC 6455 section 5.2
CLOSE_SECONDS = 10.0  # how long a client may take to answer the server's close frame

_REASONS: dict[int, str] = {
    CloseCode.TRY_AGAIN_LATER: "no worker",
    CloseCode.SERVICE_RESTART: "the worker is gone",
    CloseCode.INTERNAL_ERROR: "the app failed",
}


# Members of enums are looked up on their class in 50 ns: once here, instead of for every message.
_HANDSHAKE, _OPEN, _CLOSING = WebSocketState
_CLOSE_FRAME, _CONT, _TEXT = Opcode.CLOSE, Opcode.CONT, Opcode.TEXT


class WebSocketServer(ServerContext, Protocol):
    """Everything that a `WebSocketProtocol` needs of the server."""

    standard_headers: StandardHeaders


class WebSocketProtocol(asyncio.Protocol):
    """One client's WebSocket. Implements `Terminator`, `Holder` and `SlicedProtocol`."""

    __slots__ = (
        "_alive",
        "_connection",
        "_decoded_here",
        "_fragments",
        "_frames",
        "_guard",
        "_inflation",
        "_log_line",
        "_opened",
        "_parser",
        "_partial_head",
        "_pinged",
        "_reading_bits",
        "_request",
        "_scheduler",
        "_server",
        "_state",
        "_text",
        "_transport",
        "_unframed",
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
        self._parser: Parser | None = None  # from the accept on
        self._state = _HANDSHAKE
        # Frames that are parsed, and wait for the window or for decompression. Meanwhile nothing pending is written.
        self._frames: Sequence[ParsedEvent] = ()
        self._unframed = 0  # bytes that the parser got behind its last whole frame; at most too many, never too few
        self._partial_head = b""  # the first of the bytes behind its last whole frame, as far as they may be a header
        self._decoded_here = -1  # the largest message that is decoded without the parser; -1: none is
        self._fragments: bytearray | None = None  # no list: a client may send empty fragments without end
        self._text = False  # whether the message of the fragments is text
        self._inflation: Inflation | None = None  # of the compressed message whose frames arrive
        self._window_bits = 0  # of compressed messages to the client; 0: they are not compressed
        self._reading_bits = 0  # of compressed messages from the client
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
        request.extensions = {**request.extensions, "websocket.http.response": {}}
        self._connection = self._server.connections.open(request, self, ())
        self.slices_read()
        if not self.input.paused and not self._transport.is_reading():
            self._transport.resume_reading()

    @property
    def is_open(self) -> bool:
        """Return whether the handshake is done, and no side has begun to close."""
        return self._state is _OPEN

    # Called by the transport.

    def data_received(self, data: bytes) -> None:
        self._alive = True
        parser, buffer = self._parser, self.input
        if (
            parser is None
            or buffer.unread
            or self._frames
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
            if self._unframed == 0 and self._fragments is None and self._connection is not None:
                message = decode_message(data, self._decoded_here)
            if message is not None and self._connection is not None:
                self._connection.event((MESSAGE_RECEIVED, message))
            else:
                self._parse(parser, data)
        finally:
            buffer.in_slice = False
        if self._frames:
            self._scheduler.read(self)

    def eof_received(self) -> bool:
        return False  # the transport closes, and `connection_lost` follows

    def connection_lost(self, error: Exception | None) -> None:
        self._server.forget(self)
        self.input.unread, self._frames = b"", ()
        if self._writer is not None:
            self._log_handshake(self._writer.status)
        self._disconnect(CloseCode.ABNORMAL_CLOSURE)

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        self._alive = True
        if self._parser is not None and self._parser.writes:
            self._write_pending()
        if self._connection is not None:
            self._connection.acknowledge()
        self._scheduler.read(self)

    # Reading.

    def has_input(self) -> bool:
        """See `SlicedProtocol`."""
        parser = self._parser
        if parser is None:
            if self._state is not _HANDSHAKE:
                self.input.unread = b""  # the handshake was rejected
            return False
        if self._window_shut or (self.write_paused and parser.writes):
            return False
        return bool(self.input.unread or self._frames)

    def read_slice(self) -> None:
        """See `SlicedProtocol`."""
        assert self._parser is not None
        self._parse(self._parser, b"" if self._frames else bytes(self.input.take(SLICE)))

    def slices_read(self) -> None:
        """See `SlicedProtocol`."""
        most = 0 if self._parser is not None else EARLY_BYTES
        if self.input.paused:
            self._alive = True  # the answer to a ping may be among the unread data
        self.input.pause(self._window_shut or bool(self._frames) or len(self.input.unread) > most)

    def _parse(self, parser: Parser, data: bytes) -> None:
        """Handle the frames that are left of the last slice, or the frames of the next one."""
        frames: Sequence[ParsedEvent] = self._frames
        if not frames:
            parser.receive_data(data)
            self._unframed += len(data)
            frames = parser.events_received()
            self._note_partial(data, frames)
        for index, frame in enumerate(frames):
            assert isinstance(frame, Frame)  # the handshake is not left to the parser, so there is nothing else
            if self._window_shut or not self._handle_frame(frame):
                self._frames = frames[index:]
                return
            self._unframed -= frame_size(len(frame.data))
        self._frames = ()
        if parser.parser_exc is not None:
            self._end_for_error()
        if parser.writes:
            self._write_pending()

    def _note_partial(self, data: bytes, frames: Sequence[ParsedEvent]) -> None:
        """Note the beginning of a frame whose rest has not arrived, for another process: the parser keeps no header."""
        left = self._unframed
        for frame in frames:
            if isinstance(frame, Frame):
                left -= frame_size(len(frame.data))
        head = data[len(data) - left :] if left <= len(data) else self._partial_head + data
        self._partial_head = head[:LARGEST_HEADER]

    def _handle_frame(self, frame: Frame) -> bool:
        """Handle a frame. Return False if a part of it is left, to be decompressed in the next slice."""
        opcode = frame.opcode
        if opcode is _CLOSE_FRAME:
            self._end_for_close_frame()
            return True
        if opcode > 2 or self._connection is None:
            return True  # a control frame, or a message after the end of the connection
        if isinstance(frame, CompressedFrame):
            return self._decompress(frame)
        data = bytes(frame.data)
        if opcode is _CONT:
            assert self._fragments is not None  # the parser rejects a continuation without a first frame
            self._fragments += data
            if frame.fin:
                self._end_message()
        elif frame.fin:
            self._pass_on(opcode is _TEXT, data)
        else:
            self._fragments, self._text = bytearray(data), opcode is _TEXT
        return True

    def _decompress(self, frame: CompressedFrame) -> bool:
        """Decompress a piece of a frame. Return whether that was the last one."""
        if self._inflation is None:
            self._inflation = Inflation(self._reading_bits)
            self._fragments, self._text = bytearray(), frame.opcode is _TEXT
        inflation, fragments = self._inflation, self._fragments
        assert fragments is not None
        if inflation.done:
            inflation.add(frame)
        try:
            fragments += inflation.piece()
        except zlib.error:
            self._fail(CloseCode.PROTOCOL_ERROR, "decompression failed")
            return True
        if len(fragments) > self._server.settings.websocket_max_message_size:
            self._fail(CloseCode.MESSAGE_TOO_BIG, "the message is too large")
            return True
        if not inflation.done:
            return False
        if frame.fin:
            self._inflation = None
            self._end_message()
        return True

    def _end_message(self) -> None:
        data = bytes(self._fragments or b"")
        self._fragments = None
        self._pass_on(self._text, data)

    def _pass_on(self, text: bool, data: bytes) -> None:
        """Pass a whole message on to the app."""
        assert self._connection is not None
        if not text:
            self._connection.event((MESSAGE_RECEIVED, data))
            return
        try:
            self._connection.event((MESSAGE_RECEIVED, str(data, "utf-8")))
        except UnicodeDecodeError:
            self._fail(CloseCode.INVALID_DATA, "not UTF-8")

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
        """See `Terminator`. Nothing is buffered here."""

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
                assert self._parser is not None
                self._parser.send_ping(b"")
                self._write_pending()
            nexts = (self._pinged + settings.ping_interval, self._pinged + settings.ping_timeout)
            self.deadline = min(end, *(at if at > now else now + settings.ping_interval for at in nexts))

    def _expire_unless_open(self, now: float) -> None:
        self.deadline = now + CLOSE_SECONDS
        if self._parser is None and self._transport.get_write_buffer_size() > 0:  # the client reads why it is rejected
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
        """See `Movable`. A compressed message that has arrived in part is no state that can be exported."""
        return (
            self._state is not _CLOSING
            and self._connection is not None
            and self._inflation is None
            and self._partial_is_known()
            and self.input.at_rest
        )

    def export(self) -> dict[str, Any]:
        """See `Movable`."""
        now = self._server.now
        connection, parser, request, writer = self._connection, self._parser, self._request, self._writer
        assert connection is not None
        return {
            "kind": "websocket",
            "request": None if request is None else request.export(),
            "writer": None if writer is None else writer.export(),
            "unread": self._unparsed() + bytes(self.input.unread),
            "frames": [_export_frame(each) for each in self._frames if isinstance(each, Frame)],
            "message_size": None if parser is None else parser.current_size,
            "in_compressed": parser is not None and any(_in_message(each) for each in parser.extensions),
            "writes": [] if parser is None else [bytes(each) for each in parser.writes],
            "fragments": None if self._fragments is None else bytes(self._fragments),
            "text": self._text,
            "window_bits": self._window_bits,
            "reading_bits": self._reading_bits,
            "window_shut": self._window_shut,
            "alive": self._alive,
            "open_for": now - self._opened,
            "pinged": now - self._pinged,
            "left": self.deadline - now,
            "log_line": self._log_line,
            "connection": self._server.connections.export_connection(connection),
        }

    def _header_bytes(self, parser: Parser) -> int:
        """Return how many bytes of a frame's header the parser has taken from its buffer."""
        waiting = sum([frame_size(len(frame.data)) for frame in self._frames if isinstance(frame, Frame)])
        return self._unframed - waiting - len(parser.reader.buffer)

    def _unparsed(self) -> bytes:
        """Return the bytes of a frame that the parser has in part."""
        parser = self._parser
        if parser is None:
            return b""
        return self._partial_head[: self._header_bytes(parser)] + bytes(parser.reader.buffer)

    def _partial_is_known(self) -> bool:
        """Return whether `_unparsed` is what the client has sent.

        It is not if the client has sent a length in more bytes than necessary, against RFC 6455 section 5.2.
        """
        parser = self._parser
        if parser is None or (header := self._header_bytes(parser)) == 0:
            return True
        if not 0 < header <= len(self._partial_head):
            return False
        trial = Parser(SERVER, max_size=None, logger=debug_log.logger)
        trial.receive_data(self._unparsed())
        return not trial.events and trial.parser_exc is None and trial.reader.buffer == parser.reader.buffer

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
            parser = self._open_parser()
            parser.current_size = state["message_size"]
            parser.writes.extend(state["writes"])
            if state["reading_bits"]:
                marks = CompressionMarks()
                marks.in_message = state["in_compressed"]
                parser.extensions = [marks]
            self._state = transition(WEBSOCKET_TABLE, self._state, WebSocketEvent.ACCEPT)
        self._window_bits, self._reading_bits = state["window_bits"], state["reading_bits"]
        self._frames = [_restore_frame(each) for each in state["frames"]]
        self._unframed = sum([frame_size(len(frame[1])) for frame in state["frames"]])
        fragments: bytes | None = state["fragments"]
        self._fragments = None if fragments is None else bytearray(fragments)
        self._text = state["text"]
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
        self.input.unread, self._frames = b"", ()
        self._server.forget(self)
        self._transport.abort()

    def go_on(self) -> None:
        """See `Movable`."""
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
        parser = self._open_parser()
        if agreed:
            parser.extensions = [CompressionMarks()]
            self._window_bits, self._reading_bits = agreed.window_bits, agreed.reading_bits
        self._state = transition(WEBSOCKET_TABLE, self._state, WebSocketEvent.ACCEPT)
        self._opened = self._pinged = now = self._server.now
        self.deadline = now + min(settings.ping_interval, settings.websocket_timeout)
        self._request = self._writer = None
        self.resume()

    def _open_parser(self) -> Parser:
        """Make the parser of an open WebSocket."""
        largest = self._server.settings.websocket_max_message_size
        parser = self._parser = Parser(SERVER, max_size=largest, logger=debug_log.logger)
        if not parser.debug:  # else the parser logs each frame
            self._decoded_here = min(SLICE, largest)
        return parser

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

    def _fail(self, code: CloseCode, reason: str) -> None:
        """Close because the client has sent a message that is not valid."""
        assert self._parser is not None
        self._fragments = self._inflation = None
        self._parser.fail(code, reason)
        self._end_for_error()

    def _end_for_close_frame(self) -> None:
        assert self._parser is not None
        close = self._parser.close_rcvd
        self._begin_closing()
        self._disconnect(close.code if close else CloseCode.NO_STATUS_RCVD, close.reason if close else "")

    def _end_for_error(self) -> None:
        """End the connection, as the parser has failed. Its close frame is pending."""
        assert self._parser is not None
        close = self._parser.close_sent
        self._begin_closing()
        self._disconnect(close.code if close else CloseCode.ABNORMAL_CLOSURE, close.reason if close else "")

    def _send_close(self, code: int, reason: str) -> None:
        assert self._parser is not None
        self._frames = ()
        if self._parser.state is State.OPEN:  # else the client's close frame is parsed, and the answer is pending
            self._parser.send_close(code, reason)

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
        """Write what the parser has to say: pings, pongs and close frames."""
        parser = self._parser
        assert parser is not None
        if self._frames:
            return
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


def _in_message(extension: object) -> bool:
    return isinstance(extension, CompressionMarks) and extension.in_message


def _export_frame(frame: Frame) -> tuple[Any, ...]:
    bits = frame.fin, frame.rsv1, frame.rsv2, frame.rsv3
    return int(frame.opcode), bytes(frame.data), *bits, isinstance(frame, CompressedFrame)


def _restore_frame(values: Sequence[Any]) -> Frame:
    opcode, data, *bits, compressed = values
    return (CompressedFrame if compressed else Frame)(Opcode(opcode), data, *bits)
