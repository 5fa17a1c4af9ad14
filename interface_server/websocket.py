"""The WebSocket terminator: one object per socket, callbacks only, over the sans-IO protocol of websockets.

It takes a socket over from the HTTP terminator at the end of the handshake request. Nothing is switched before the app
has sent `websocket.accept`; what the client sends until then is kept.
"""

from __future__ import annotations

import asyncio
import logging
from enum import Enum
from typing import TYPE_CHECKING, Any

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import SERVER, Protocol

from asgibus.interface_server.compression import agree, encode_compressed
from asgibus.interface_server.connection import Connection
from asgibus.interface_server.handshake import check_handshake, switching_protocols
from asgibus.interface_server.pace import ClientPace, waiting_bytes
from asgibus.interface_server.request import Refusal, Request, address_text
from asgibus.interface_server.response import plain_response
from asgibus.interface_server.response_writer import ResponseWriter
from asgibus.interface_server.websocket_frames import encode_message
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
from asgibus.protocol.session import PART

if TYPE_CHECKING:
    from asgibus.interface_server.server import Server

logger = logging.getLogger("asgibus.interface")
access = logging.getLogger("asgibus.access")
_quiet = logging.getLogger("asgibus.websockets")  # the protocol's own log: bad input of clients, frame by frame

CLOSE_SECONDS = 10.0  # how long a client may take to answer our close frame
EARLY_BYTES = PART  # kept of what a client sends before it is accepted; then its socket is not read


_REASONS: dict[int, str] = {
    CloseCode.TRY_AGAIN_LATER: "no worker",
    CloseCode.SERVICE_RESTART: "the worker is gone",
    CloseCode.INTERNAL_ERROR: "the app failed",
}


class Phase(Enum):
    """Where a WebSocket is."""

    HANDSHAKE = "waiting for the app to accept"
    OPEN = "open"
    CLOSING = "closing"


class WebSocketTerminator(asyncio.Protocol):
    """One client's WebSocket. See `Terminator` for the seam."""

    __slots__ = (
        "_alive",
        "_connection",
        "_early",
        "_fragments",
        "_log_line",
        "_opened",
        "_pace",
        "_paused",
        "_phase",
        "_pinged",
        "_protocol",
        "_request",
        "_server",
        "_text",
        "_transport",
        "_window_bits",
        "_writer",
        "deadline",
        "write_paused",
    )

    def __init__(self, server: Server, transport: asyncio.Transport, writer: ResponseWriter) -> None:
        self._server = server
        self._transport = transport
        self._writer: ResponseWriter | None = writer
        self._request: Request | None = None
        self._connection: Connection | None = None
        self._protocol: Protocol | None = None
        self._phase = Phase.HANDSHAKE
        self._early = b""
        self._fragments: list[bytes] | None = None
        self._text = False
        self._paused = False
        self._alive = True
        self._pinged = 0.0
        self._opened = server.now
        self._pace: ClientPace | None = None
        self._log_line = ""
        self._window_bits = 0  # of compressed messages to the client; 0: they are not compressed
        self.deadline = 0.0
        self.write_paused = False

    def begin(self, request: Request, tail: bytes) -> None:
        """Take the socket over: check the handshake, and offer the connection to the workers."""
        self._request = request
        target = request.target.decode("latin-1")
        self._log_line = f'{address_text(request.client)} - "WebSocket {target}"'
        self._early = tail
        self.deadline = self._server.now + self._server.settings.connect_timeout + CLOSE_SECONDS
        self._transport.set_protocol(self)
        self._server.readmit(self)
        refusal = check_handshake(request)
        if refusal is not None:
            self._answer(refusal)
            return
        request.extensions = {**request.extensions, "websocket.http.response": {}}
        self._connection = self._server.connections.open(request, self, ())
        if not self._transport.is_reading():
            self._transport.resume_reading()

    # From the transport.

    def data_received(self, data: bytes) -> None:
        self._alive = True
        protocol = self._protocol
        if protocol is None:
            if self._phase is Phase.HANDSHAKE:
                self._early += data
                if len(self._early) > EARLY_BYTES:
                    self.pause()
            return
        protocol.receive_data(data)
        for frame in protocol.events_received():
            assert isinstance(frame, Frame)  # the handshake is ours, so nothing else comes
            opcode = frame.opcode
            if opcode is Opcode.CLOSE:
                self._client_closed()
            elif opcode <= 2:
                self._received(opcode is Opcode.TEXT, opcode is Opcode.CONT, frame.fin, bytes(frame.data))
        if protocol.parser_exc is not None:
            self._failed()
        if protocol.writes:
            self._write_pending()

    def eof_received(self) -> bool:
        return False  # the transport closes, and connection_lost follows

    def connection_lost(self, error: Exception | None) -> None:
        self._server.forget(self)
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

    # From the client.

    def _received(self, text: bool, continuation: bool, final: bool, data: bytes) -> None:
        connection = self._connection
        if connection is None:
            return  # behind the end of the session: nobody is there to read it
        if continuation:
            assert self._fragments is not None  # the protocol lets no continuation through without a beginning
            self._fragments.append(data)
        elif not final:
            self._fragments, self._text = [data], text
        if not final:
            return
        if continuation:
            data, text = b"".join(self._fragments or ()), self._text
            self._fragments = None
        if text:
            try:
                connection.event((MESSAGE_RECEIVED, str(data, "utf-8")))
            except UnicodeDecodeError:
                assert self._protocol is not None
                self._protocol.fail(CloseCode.INVALID_DATA, "not UTF-8")
                self._failed()
        else:
            connection.event((MESSAGE_RECEIVED, data))

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

    # The seam: what the app sends.

    def write_event(self, event: Event) -> None:
        """See `Terminator`."""
        code = event[0]
        if code == MESSAGE_SENT:
            bits = self._window_bits
            self._transport.write(encode_compressed(event[1], bits) if bits else encode_message(event[1]))
        elif code == ACCEPT:
            self._accept(event[1], event[2])
        elif code == CLOSE:
            self._connection = None
            if self._phase is Phase.HANDSHAKE:
                self._answer(Refusal(403, "The app refused this WebSocket."))
            else:
                self._close(event[1], event[2])
        elif code == RESPONSE_START:
            assert self._request is not None
            assert self._writer is not None
            self._writer.begin(self._request, keep_alive=False)
            self._writer.start(event)
        elif code == RESPONSE_BODY or code == RESPONSE_END:
            assert self._writer is not None
            if code == RESPONSE_BODY:
                self._writer.body(event[1])
            else:
                self._connection = None
                self._writer.end(event[1])
                self._log(self._writer.status)
                self._finish_refused()
        else:  # ABORT
            self._connection = None
            self._transport.abort()

    def flush(self) -> None:
        """See `Terminator`: nothing is held here."""

    def broadcast(self, event: Event, shared: dict[str, Any]) -> None:
        """See `Terminator`."""
        if event[0] != MESSAGE_SENT or self._phase is not Phase.OPEN or self._connection is None:
            if self._connection is None or not self._connection.plain(event):
                self._server.connections.counts["broadcast out of place"] += 1
            return
        if self.write_paused and self._server.is_slow(self._transport):
            if self._server.settings.slow_client == "close":
                self._drop_slow()
            return
        frame = shared.get("frame")
        if frame is None:
            frame = shared["frame"] = encode_message(event[1])
        self._transport.write(frame)

    def pause(self) -> None:
        """See `Terminator`."""
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """See `Terminator`."""
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._alive = True  # an answer to a ping may be among what was not read
            self._transport.resume_reading()

    def fail(self, status: int, close_code: int) -> None:
        """See `Terminator`."""
        self._connection = None
        if self._phase is Phase.HANDSHAKE:
            text = (
                "No worker is ready for this WebSocket." if status == 503 else "The worker of this WebSocket is gone."
            )
            self._answer(Refusal(status, text))
        else:
            self._close(close_code, _REASONS.get(close_code, ""))

    def expire(self, now: float) -> None:
        """See `Terminator`."""
        if self._phase is not Phase.OPEN:
            if self._connection is None or self._phase is Phase.CLOSING:
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

    def shut_down(self) -> None:
        """See `Terminator`."""
        self._leave(CloseCode.SERVICE_RESTART)
        if self._phase is Phase.HANDSHAKE:
            self._answer(Refusal(503, "This server is stopping."))
        elif self._phase is Phase.OPEN:
            self._close(CloseCode.SERVICE_RESTART, "")

    def abort(self) -> None:
        """See `Terminator`."""
        self._transport.abort()

    # Writing.

    def _accept(self, subprotocol: str | None, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        request = self._request
        assert request is not None
        settings = self._server.settings
        agreed = agree(request) if settings.websocket_compression else None
        extensions = agreed.header if agreed else b""
        self._transport.write(switching_protocols(request, subprotocol, headers, self._server.standard, extensions))
        self._log(101)
        self._protocol = Protocol(SERVER, max_size=settings.websocket_max_message_size, logger=_quiet)
        if agreed:
            self._protocol.extensions = [agreed.reading]
            self._window_bits = agreed.window_bits
        self._phase = Phase.OPEN
        self._opened = self._pinged = now = self._server.now
        self.deadline = now + min(settings.ping_interval, settings.websocket_timeout)
        self._request = self._writer = None
        early, self._early = self._early, b""
        if early:
            self.resume()
            self.data_received(early)  # at once: what comes next may be read before any later callback

    def _answer(self, refusal: Refusal) -> None:
        """Refuse the handshake."""
        self._connection = None
        headers = b"sec-websocket-version: 13\r\n" if refusal.status == 426 else b""
        response = plain_response(refusal.status, refusal.reason, self._server.standard)
        self._transport.write(response.replace(b"\r\n\r\n", b"\r\n" + headers + b"\r\n", 1))
        self._log(refusal.status)
        self._finish_refused()

    def _finish_refused(self) -> None:
        self._phase = Phase.CLOSING
        self.deadline = self._server.now + CLOSE_SECONDS
        self._transport.close()

    def _close(self, code: int, reason: str) -> None:
        if self._phase is Phase.OPEN:
            assert self._protocol is not None
            self._protocol.send_close(code, reason)
            self._begin_closing()
            self._write_pending()
            self.resume()  # to see the client's answer

    def _begin_closing(self) -> None:
        if self._phase is Phase.OPEN:
            self._phase = Phase.CLOSING
            self.deadline = self._server.now + CLOSE_SECONDS

    def _write_pending(self) -> None:
        protocol = self._protocol
        assert protocol is not None
        if self.write_paused and self._phase is Phase.OPEN:
            # Only pongs are pending, and a client that does not read them must not make us keep them: the last one
            # will do, RFC 6455 section 5.5.3. It is written when the client reads on.
            del protocol.writes[:-1]
            return
        for data in protocol.data_to_send():
            if data:
                self._transport.write(data)
            elif protocol.close_rcvd is None and self._transport.can_write_eof():
                # The client may be in the middle of what we refuse. Closing now would reset the connection, and the
                # close frame would be lost with it: the rest is discarded until the client closes, or the deadline.
                self.resume()
                self._transport.write_eof()
            else:  # the protocol's sign that nothing more will be sent
                self._transport.close()

    def _drop_slow(self) -> None:
        """The client cannot follow its group: it is told so, should it ever read it, and dropped."""
        assert self._protocol is not None
        self._protocol.send_close(CloseCode.TRY_AGAIN_LATER, "too slow")
        self._begin_closing()
        self._write_pending()
        self._leave(CloseCode.TRY_AGAIN_LATER, "too slow")

    # Endings and limits.

    def _leave(self, code: int, reason: str = "") -> None:
        """The client is gone, or as good as gone: the app learns it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.client_gone(int(code), reason)

    def _stalled(self, now: float) -> bool:
        self._pace = self._pace or ClientPace()  # few sockets ever need one
        return self._pace.stalled(now, waiting_bytes(self._transport))

    def _log(self, status: int) -> None:
        if self._server.settings.access_log:
            access.info("%s %s", self._log_line, status)
        self._log_line = ""
