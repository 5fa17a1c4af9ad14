"""What goes to a WebSocket client: the app's events, broadcasts, and our own answers and closings."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from websockets.frames import CloseCode
from websockets.protocol import Event as ParsedEvent
from websockets.protocol import Protocol, State

from asgibus.interface_server.connections.connection import Connection
from asgibus.interface_server.http.request import Refusal, Request
from asgibus.interface_server.http.response import plain_response
from asgibus.interface_server.http.response_writer import ResponseWriter
from asgibus.interface_server.read_scheduler import SlicedReader
from asgibus.interface_server.websocket.compression import encode_compressed
from asgibus.interface_server.websocket.frames import encode_message
from asgibus.protocol.events import (
    ACCEPT,
    CLOSE,
    MESSAGE_SENT,
    RESPONSE_BODY,
    RESPONSE_END,
    RESPONSE_START,
    Event,
    Headers,
)

if TYPE_CHECKING:
    pass

access = logging.getLogger("asgibus.access")

PONGS = 16  # written for the pings of one slice: only the last one need be answered, RFC 6455 section 5.5.3
CLOSE_SECONDS = 10.0  # how long a client may take to answer our close frame

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


class Answering(SlicedReader):
    """The half of the WebSocket terminator that writes; the other half reads, and keeps the time."""

    __slots__ = (
        "_connection",
        "_frames",
        "_log_line",
        "_paused",
        "_phase",
        "_protocol",
        "_request",
        "_transport",
        "_window_bits",
        "_writer",
        "deadline",
        "write_paused",
    )

    _transport: asyncio.Transport
    _connection: Connection | None
    _protocol: Protocol | None
    """From the accept on."""
    _frames: Sequence[ParsedEvent]
    """Parsed, and waiting for the window, or to be decompressed. Until they are through, nothing pending is written."""
    _request: Request | None
    """Until the accept, as is the writer."""
    _writer: ResponseWriter | None
    _phase: Phase
    _window_bits: int
    """Of compressed messages to the client; 0: they are not compressed."""
    _log_line: str
    deadline: float
    write_paused: bool

    def _accept(self, subprotocol: str | None, headers: Headers) -> None:
        """The app accepts the client."""
        raise NotImplementedError

    def _finish_refused(self) -> None:
        """Close behind the response that refuses the handshake, in a way that lets the client read it."""
        raise NotImplementedError

    def resume(self) -> None:
        """See `Terminator`."""
        raise NotImplementedError

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
            self.deadline = self._server.now + CLOSE_SECONDS  # from now on it is looked after how the client reads
        elif code == RESPONSE_BODY or code == RESPONSE_END:
            assert self._writer is not None
            if code == RESPONSE_BODY:
                self._writer.body(event[1])
            else:
                self._connection = None
                self._writer.end(event[1])
                self._log(self._writer.status)
                self._finish_refused()
        elif self._phase is Phase.HANDSHAKE:  # ABORT
            self._answer(Refusal(500, "The app failed."))
        else:
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
        if self.write_paused and not self.keeps_up():
            return
        frame = shared.get("frame")
        if frame is None:
            frame = shared["frame"] = encode_message(event[1])
        self._transport.write(frame)

    def keeps_up(self) -> bool:
        """See `Terminator`."""
        if not self._server.is_slow(self._transport):
            return True
        if self._server.settings.slow_client == "close" and self._phase is Phase.OPEN:
            self._drop_slow()
        return False

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

    def abort(self) -> None:
        """See `Terminator`."""
        self._transport.abort()

    # Writing.

    def _answer(self, refusal: Refusal) -> None:
        """Refuse the handshake; if the app has begun to do so, what it has said is cut off."""
        self._connection = None
        assert self._writer is not None
        if self._writer.written:
            self._log(self._writer.status)
            self._transport.abort()
            return
        headers = b"sec-websocket-version: 13\r\n" if refusal.status == 426 else b""
        response = plain_response(refusal.status, refusal.reason, self._server.standard)
        self._transport.write(response.replace(b"\r\n\r\n", b"\r\n" + headers + b"\r\n", 1))
        self._log(refusal.status)
        self._finish_refused()

    def _close(self, code: int, reason: str) -> None:
        if self._phase is Phase.OPEN:
            self._send_close(code, reason)
            self._begin_closing()
            self._write_pending()
            self.resume()  # to see the client's answer

    def _send_close(self, code: int, reason: str) -> None:
        assert self._protocol is not None
        self._frames = ()
        if self._protocol.state is State.OPEN:  # else the client's close frame is parsed, and its answer is pending
            self._protocol.send_close(code, reason)

    def _begin_closing(self) -> None:
        if self._phase is Phase.OPEN:
            self._phase = Phase.CLOSING
            self.deadline = self._server.now + CLOSE_SECONDS

    def _write_pending(self) -> None:
        protocol = self._protocol
        assert protocol is not None
        if self._frames:
            return
        # An older ping need not be answered, RFC 6455 section 5.5.3; if there is a close frame, it is the last.
        if self.write_paused and self._phase is Phase.OPEN:
            del protocol.writes[:-1]  # a client that does not read them must not make us keep them
            return  # the last one is written when the client reads on; until then it is not read
        if len(protocol.writes) > PONGS:
            del protocol.writes[:-PONGS]
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
        """The client cannot follow what is sent to it: it is told so, should it ever read it, and dropped."""
        self._send_close(CloseCode.TRY_AGAIN_LATER, "too slow")
        self._begin_closing()
        self._write_pending()
        self._leave(CloseCode.TRY_AGAIN_LATER, "too slow")

    def _leave(self, code: int, reason: str = "") -> None:
        """The client is gone, or as good as gone: the app learns it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.client_gone(int(code), reason)

    def _log(self, status: int) -> None:
        """Log the answer to the handshake, once; 0 if there was none."""
        if self._server.settings.access_log and self._log_line:
            access.info("%s %s", self._log_line, status or "-")
        self._log_line = ""
