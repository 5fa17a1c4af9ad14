"""The bytes of one client's socket in, requests out: httptools (llhttp), and what it leaves to its user. No IO.

llhttp refuses what is not HTTP. What is, and must be refused all the same, is said in `request`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import httptools

from asgibus.interface_server.http.request import HEAD_TOO_LARGE, TOO_MANY_HEADERS, UNKNOWN, Refusal, Request
from asgibus.interface_server.settings import MAX_HEADERS
from asgibus.protocol.connect_request import WEBSOCKET

if TYPE_CHECKING:
    from asgibus.interface_server.server import Peer

_FRAMING = (b"content-length", b"transfer-encoding", b"connection")


class RequestParser:
    """Reads the requests of one socket, one after another.

    `on_head(request, upgrade)` is called when a request's head is complete; it fills in `kind` and `refusal`. The
    body follows in `request.parts`, until `request.complete`. `request` is the one that is being read, if any.
    `tail` is None until a request ends HTTP on this socket; then it is what came behind it.
    """

    __slots__ = (
        "_asks_upgrade",
        "_head_bytes",
        "_line",
        "_max_head_size",
        "_max_headers",
        "_on_head",
        "_parser",
        "_peer",
        "_section_ended",
        "body_bytes",
        "request",
        "tail",
    )

    def __init__(
        self,
        peer: Peer,
        max_head_size: int,
        on_head: Callable[[Request, bool], None],
        *,
        max_headers: int = MAX_HEADERS,
    ) -> None:
        self._peer = peer
        self._max_headers = max_headers
        self._max_head_size = max_head_size
        self._on_head = on_head
        self._parser = self._new_parser()
        self._line = b""
        self._head_bytes = 0
        self._section_ended = False
        self._asks_upgrade: Request | None = None
        self.body_bytes = 0
        self.request: Request | None = None
        self.tail: bytes | None = None

    @property
    def body_left(self) -> int:
        """Return how much of the body of `request` is still to come, if its head says how long it is; else 0."""
        request = self.request
        if request is None or request.length == UNKNOWN:
            return 0
        return request.length - request.received

    def feed(self, data: bytes | memoryview) -> Refusal | None:
        """Read on. Returns why `request` and what follows it cannot be understood, if so: then nothing more can."""
        if self.tail is not None:
            self.tail += data
            return None
        self._section_ended = False
        body_before = self.body_bytes
        rest = data
        if not self.body_left:
            self._line = self._line + data if self._line else bytes(data)
        while rest:
            try:
                self._parser.feed_data(rest)
                break
            except httptools.HttpParserUpgrade as upgrade:
                rest = self._upgrade(rest[upgrade.args[0] :])
            except httptools.HttpParserCallbackError:
                raise  # not the client's fault, but ours
            except httptools.HttpParserError as error:
                self.request = self.request or Request(*self._peer)
                return _refusal(error)
        request = self.request
        if request is None or request.head_complete or request.headers:
            self._line = b""
        if request is None:
            return None
        if not request.head_complete and len(request.headers) > self._max_headers:
            return TOO_MANY_HEADERS
        if self._section_ended or self.body_bytes != body_before:
            self._head_bytes = 0
            return None
        # Nothing but a part of a head or of trailers: held in memory until they are complete.
        self._head_bytes += len(data)
        return HEAD_TOO_LARGE if self._head_bytes > self._max_head_size else None

    def release(self) -> None:
        """Free the memory at once: parser and callbacks refer to each other."""
        del self._parser, self._on_head

    def _upgrade(self, rest: bytes | memoryview) -> bytes | memoryview:
        """A request asked to go on with another protocol, so llhttp stopped at its head. Returns what to read on."""
        request, self._asks_upgrade = self._asks_upgrade, None
        assert request is not None
        if request.kind == WEBSOCKET or request.refusal is not None:
            self.tail = bytes(rest)
            return b""
        # Not taken up: HTTP goes on. llhttp left out the request's body, so a new parser is told of it.
        framing = [b"%s: %s\r\n" % header for header in request.headers if header[0] in _FRAMING]
        self._parser = self._new_parser()
        self.request, request.complete = request, False
        self._parser.feed_data(
            b"POST / HTTP/%s\r\n%s\r\n" % (request.http_version.encode(), b"".join(framing)),
        )
        return rest

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # llhttp takes "Connection: close" in a trailer for a header, and would refuse the next request. Whether the
        # connection goes on is said by the head alone, and decided when the response is written.
        parser.set_dangerous_leniencies(lenient_keep_alive=True)
        return parser

    def _speaks_rtsp(self, request: Request) -> bool:
        """Return whether the request line ends with a version of RTSP, which llhttp takes for one of HTTP."""
        return b" RTSP/" in self._line and (
            b"%b %b RTSP/" % (request.method.encode("latin-1"), request.target) in self._line
        )

    # From httptools. A head that is complete already is that of a request whose upgrade was not taken up.

    def on_message_begin(self) -> None:
        if self.request is None:
            self.request = Request(*self._peer)

    def on_url(self, url: bytes) -> None:
        request = self.request
        assert request is not None
        if not request.head_complete:
            request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self.request
        assert request is not None
        if not request.head_complete:  # trailers of a chunked body are not headers of the request: dropped
            request.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        request, parser = self.request, self._parser
        assert request is not None
        if request.head_complete:
            return
        request.method = parser.get_method().decode("latin-1")
        request.http_version = "RTSP" if self._speaks_rtsp(request) else parser.get_http_version()
        request.keep_alive = parser.should_keep_alive()
        upgrade = parser.should_upgrade()
        if upgrade:
            self._asks_upgrade = request
        self._section_ended = True
        self._on_head(request, upgrade)

    def on_body(self, body: bytes) -> None:
        request = self.request
        assert request is not None
        self.body_bytes += len(body)
        request.received += len(body)
        if not request.answered:
            request.held += len(body)
            request.parts.append(body)

    def on_message_complete(self) -> None:
        assert self.request is not None
        self.request.complete = True
        self.request = None
        self._section_ended = True


def _refusal(error: httptools.HttpParserError) -> Refusal:
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return Refusal(501, "The request method is not known.")
    return Refusal(400, "The request is not valid HTTP.")
