"""The WebSocket terminator: one object per socket, callbacks only, over the sans-IO protocol of websockets.

It takes a socket over from the HTTP terminator at the end of the handshake request. Nothing is switched before the app
has sent `websocket.accept`; what the client sends until then is kept. All writing is in `websocket_answers`.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import SERVER, Event, Protocol

from asgibus.interface_server.http.request import Refusal, Request, address_text
from asgibus.interface_server.http.response_writer import ResponseWriter
from asgibus.interface_server.lingering_close import ClosingSocket
from asgibus.interface_server.read_scheduler import READ_SECONDS
from asgibus.interface_server.slow_client import ClientPace, waiting_bytes
from asgibus.interface_server.websocket import debug_log
from asgibus.interface_server.websocket.answers import CLOSE_SECONDS, Answering, Phase
from asgibus.interface_server.websocket.compression import CompressedFrame, CompressionMarks, Inflation, agree
from asgibus.interface_server.websocket.handshake import check_handshake, switching_protocols
from asgibus.protocol.events import MESSAGE_RECEIVED, Headers
from asgibus.protocol.stream import PART

if TYPE_CHECKING:
    from asgibus.interface_server.server import Server


SLICE = 4 * 1024  # bytes that are parsed at once: some hundred of the smallest frames
# Looked up once: see `protocol.stream`.
_CLOSE, _CONT, _TEXT = Opcode.CLOSE, Opcode.CONT, Opcode.TEXT
EARLY_BYTES = PART  # kept of what a client sends before it is accepted; then its socket is not read


class WebSocketTerminator(Answering):
    """One client's WebSocket. See `Terminator` for the seam."""

    __slots__ = (
        "_alive",
        "_fragments",
        "_inflation",
        "_opened",
        "_pace",
        "_pinged",
        "_reading_bits",
        "_text",
        "_window_shut",
    )

    def __init__(self, server: Server, transport: asyncio.Transport, writer: ResponseWriter) -> None:
        super().__init__(server)
        self._transport = transport
        self._writer = writer
        self._request = None
        self._connection = None
        self._protocol = None
        self._phase = Phase.HANDSHAKE
        self._fragments: bytearray | None = None  # no list: a client may send empty ones without end
        self._text = False
        self._paused = self._window_shut = False
        self._alive = True
        self._pinged = 0.0
        self._opened = server.now
        self._pace: ClientPace | None = None
        self._log_line = ""
        self._window_bits = self._reading_bits = 0
        self._inflation: Inflation | None = None  # of the message of which frames have come
        self._frames = ()
        self.deadline = 0.0
        self.write_paused = False

    def begin(self, request: Request, tail: bytes) -> None:
        """Take the socket over: check the handshake, and offer the connection to the workers."""
        self._request = request
        target = request.target.decode("latin-1")
        self._log_line = f'{address_text(request.client)} - "WebSocket {target}"'
        self._unread = tail
        self.deadline = self._server.now + self._server.settings.connect_timeout + CLOSE_SECONDS
        self._transport.set_protocol(self)
        self._server.readmit(self)
        refusal = check_handshake(request)
        if refusal is not None:
            self._answer(refusal)
            return
        request.extensions = {**request.extensions, "websocket.http.response": {}}
        self._connection = self._server.connections.open(request, self, ())
        self._slices_read()
        if not self._paused and not self._transport.is_reading():
            self._transport.resume_reading()

    # From the transport.

    def _more(self) -> bool:
        protocol = self._protocol
        if protocol is None:
            if self._phase is not Phase.HANDSHAKE:
                self._unread = b""  # of a client that was refused
            return False
        if self._window_shut or (self.write_paused and protocol.writes):
            return False
        return bool(self._unread or self._frames)

    def data_received(self, data: bytes) -> None:
        self._alive = True
        protocol = self._protocol
        if (
            protocol is None
            or self._unread
            or self._frames
            or self._window_shut
            or self.write_paused
            or self._waits
            or self._in_slice
            or len(data) > SLICE
            or self._server.turns.over(READ_SECONDS)
        ):
            super().data_received(data)
            return
        # The way of nearly every message: one slice, with nothing before it. It costs a third less than the other way.
        self._in_slice = True
        try:
            self._parse(protocol, data)
        finally:
            self._in_slice = False
        if self._frames:
            self.read_on()

    def _slices_read(self) -> None:
        most = 0 if self._protocol is not None else EARLY_BYTES
        pause = self._window_shut or bool(self._frames) or len(self._unread) > most
        if pause is not self._paused and not self._transport.is_closing():
            self._paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._alive = True  # an answer to a ping may be among what was not read
                self._transport.resume_reading()

    def _read_slice(self) -> None:
        protocol = self._protocol
        assert protocol is not None
        self._parse(protocol, b"" if self._frames else bytes(self._take(SLICE)))

    def _parse(self, protocol: Protocol, data: bytes) -> None:
        """Take the frames that are left of the last slice, or those of the next one."""
        frames: Sequence[Event] = self._frames
        if not frames:
            protocol.receive_data(data)
            frames = protocol.events_received()
        for index, frame in enumerate(frames):
            assert isinstance(frame, Frame)  # the handshake is ours, so nothing else comes
            if self._window_shut or not self._received(frame):
                self._frames = frames[index:]
                return
        self._frames = ()
        if protocol.parser_exc is not None:
            self._failed()
        if protocol.writes:
            self._write_pending()

    def eof_received(self) -> bool:
        return False  # the transport closes, and connection_lost follows

    def connection_lost(self, error: Exception | None) -> None:
        self._server.forget(self)
        self._unread, self._frames = b"", ()
        if self._writer is not None:
            self._log(self._writer.status)
        self._leave(CloseCode.ABNORMAL_CLOSURE)

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        self._alive = True  # it reads
        if self._protocol is not None and self._protocol.writes:
            self._write_pending()
        if self._connection is not None:
            self._connection.acknowledge()
        self.read_on()

    # From the client.

    def _received(self, frame: Frame) -> bool:
        """Take a frame. Return False if a part of it is left to be decompressed in the next slice."""
        opcode = frame.opcode
        if opcode is _CLOSE:
            self._client_closed()
            return True
        if opcode > 2 or self._connection is None:
            return True  # behind the end of the session nobody is there to read it
        if isinstance(frame, CompressedFrame):
            return self._decompress(frame)
        data = bytes(frame.data)
        if opcode is _CONT:
            assert self._fragments is not None  # the protocol lets no continuation through without a beginning
            self._fragments += data
            if frame.fin:
                self._end_message()
        elif frame.fin:
            self._message(opcode is _TEXT, data)
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
        self._message(self._text, data)

    def _message(self, text: bool, data: bytes) -> None:
        assert self._connection is not None
        if not text:
            self._connection.event((MESSAGE_RECEIVED, data))
            return
        try:
            self._connection.event((MESSAGE_RECEIVED, str(data, "utf-8")))
        except UnicodeDecodeError:
            self._fail(CloseCode.INVALID_DATA, "not UTF-8")

    def _fail(self, code: CloseCode, reason: str) -> None:
        """Close, because what the client has sent cannot be read."""
        assert self._protocol is not None
        self._fragments = self._inflation = None
        self._protocol.fail(code, reason)
        self._failed()

    def _client_closed(self) -> None:
        assert self._protocol is not None
        close = self._protocol.close_rcvd
        self._begin_closing()
        self._leave(close.code if close else CloseCode.NO_STATUS_RCVD, close.reason if close else "")

    def _failed(self) -> None:
        """The client broke the protocol; the close frame that says so is on its way."""
        assert self._protocol is not None
        close = self._protocol.close_sent
        self._begin_closing()
        self._leave(close.code if close else CloseCode.ABNORMAL_CLOSURE, close.reason if close else "")

    # The seam: what else a connection and the server ask for.

    def pause(self) -> None:
        """See `Terminator`."""
        self._window_shut = True
        self._slices_read()

    def resume(self) -> None:
        """See `Terminator`."""
        self._window_shut = False
        self.read_on()

    def expire(self, now: float) -> None:
        """See `Terminator`."""
        if self._phase is not Phase.OPEN:
            refused = self._protocol is None and self._transport.get_write_buffer_size() > 0  # it is to read why
            if refused and self._stalled(now):
                self._leave(CloseCode.ABNORMAL_CLOSURE)
                self._transport.abort()
            elif not refused and (self._connection is None or self._phase is Phase.CLOSING):
                self._transport.abort()
            self.deadline = now + CLOSE_SECONDS
            return
        settings = self._server.settings
        end = self._opened + settings.websocket_timeout
        unanswered = not self._alive and not self._paused  # one that is not read cannot be heard
        if self.write_paused and self._stalled(now):
            self._leave(CloseCode.ABNORMAL_CLOSURE)
            self._transport.abort()
        elif now >= end:
            self._leave(CloseCode.GOING_AWAY, "open for too long")
            self._close(CloseCode.GOING_AWAY, "open for too long")
        elif unanswered and now >= self._pinged + settings.ping_timeout:
            self._leave(CloseCode.ABNORMAL_CLOSURE, "no answer to a ping")
            self._transport.abort()
        else:
            # No ping is sent behind much data: it would be answered late, and whoever reads that data is alive.
            if now >= self._pinged + settings.ping_interval and not unanswered and not self.write_paused:
                self._alive = False
                self._pinged = now
                assert self._protocol is not None
                self._protocol.send_ping(b"")
                self._write_pending()
            nexts = (self._pinged + settings.ping_interval, self._pinged + settings.ping_timeout)
            self.deadline = min(end, *(at if at > now else now + settings.ping_interval for at in nexts))

    @property
    def is_open(self) -> bool:
        """Whether the handshake is done, and nobody has begun to close it."""
        return self._phase is Phase.OPEN

    def shut_down(self) -> None:
        """See `Terminator`."""
        self._leave(CloseCode.SERVICE_RESTART)
        if self._phase is Phase.HANDSHAKE:
            self._answer(Refusal(503, "This server is stopping."))
        elif self._phase is Phase.OPEN:
            self._close(CloseCode.SERVICE_RESTART, "")

    def _accept(self, subprotocol: str | None, headers: Headers) -> None:
        request = self._request
        assert request is not None
        settings = self._server.settings
        agreed = agree(request) if settings.websocket_compression else None
        extensions = agreed.header if agreed else b""
        self._transport.write(switching_protocols(request, subprotocol, headers, self._server.standard, extensions))
        self._log(101)
        self._protocol = Protocol(SERVER, max_size=settings.websocket_max_message_size, logger=debug_log.logger)
        if agreed:
            self._protocol.extensions = [CompressionMarks()]
            self._window_bits, self._reading_bits = agreed.window_bits, agreed.reading_bits
        self._phase = Phase.OPEN
        self._opened = self._pinged = now = self._server.now
        self.deadline = now + min(settings.ping_interval, settings.websocket_timeout)
        self._request = self._writer = None
        self.resume()

    def _finish_refused(self) -> None:
        self._phase = Phase.CLOSING
        self._paused = True  # the socket is no longer this terminator's to pause
        ClosingSocket(self._server, self._transport).begin(0)
        self._server.forget(self)

    def _stalled(self, now: float) -> bool:
        self._pace = self._pace or ClientPace()  # few sockets ever need one
        return self._pace.stalled(now, waiting_bytes(self._transport))
