"""What goes to an HTTP client: the app's events, and our own answers where it gives none or cannot end its own."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from asgibus.interface_server.connections.connection import Connection
from asgibus.interface_server.http.request import Refusal, Request, address_text
from asgibus.interface_server.http.request_parser import RequestParser
from asgibus.interface_server.http.response import Framing, chunk, plain_response
from asgibus.interface_server.http.response_writer import ResponseWriter
from asgibus.interface_server.read_scheduler import SlicedReader
from asgibus.interface_server.slow_client import ClientPace
from asgibus.protocol.events import (
    ABORT,
    CONTINUE,
    EARLY_HINT,
    RESPONSE,
    RESPONSE_BODY,
    RESPONSE_END,
    RESPONSE_START,
    RESPONSE_START_TRAILERS,
    TRAILERS_END,
    Event,
)
from asgibus.protocol.states import AppState

if TYPE_CHECKING:
    pass

access = logging.getLogger("asgibus.access")

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER, on, for no time


class Answering(SlicedReader):
    """The half of the HTTP terminator that writes; the other half reads, and says when the next request's turn is."""

    __slots__ = (
        "_active",
        "_connection",
        "_deaf",
        "_pace",
        "_parser",
        "_transport",
        "_writer",
        "write_paused",
    )

    _transport: asyncio.Transport
    _writer: ResponseWriter
    _parser: RequestParser
    _pace: ClientPace
    _active: Request | None
    _connection: Connection | None
    _deaf: bool
    """What comes from the client is not looked at any more."""
    write_paused: bool

    def _finish(self) -> None:
        """The response is written in full."""
        raise NotImplementedError

    def _close_behind(self, request: Request) -> None:
        """Close behind the response to `request`, in a way that lets the client read it."""
        raise NotImplementedError

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
            trailers_follow = self._connection is not None and self._connection.app is AppState.TRAILERS
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
        if connection is not None and self.write_paused and not self.keeps_up():
            return
        if (
            event[0] == RESPONSE_BODY
            and connection is not None
            and connection.app is AppState.STARTED
            and self._writer.framing is Framing.CHUNKED
        ):
            data = shared.get("chunk")
            if data is None:
                data = shared["chunk"] = chunk(event[1]) if event[1] else b""
            self._transport.write(data)
        elif connection is None or not connection.plain(event):
            self._server.connections.counts["broadcast out of place"] += 1

    def keeps_up(self) -> bool:
        """See `Terminator`."""
        if not self._server.is_slow(self._transport):
            return True
        if self._server.settings.slow_client == "close":
            self._cut()
        return False

    def fail(self, status: int, close_code: int) -> None:
        """See `Terminator`."""
        text = "No worker is ready for this request." if status == 503 else "The worker of this request is gone."
        self._fail(Refusal(status, text))

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
        self._close_behind(request)

    def _leave(self) -> None:
        """The client is gone, or as good as gone: the app learns it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.client_gone()

    def _log_access(self, request: Request) -> None:
        if self._server.settings.access_log:
            line = request.line if request.head_complete else "- - HTTP/-"
            access.info('%s - "%s" %s', address_text(request.client), line, self._writer.status or "-")
