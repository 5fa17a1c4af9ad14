"""HTTP requests: parsed from bytes, and checked against the rules of RFC 9112. No IO.

httptools (llhttp) rejects input that is not HTTP. `Request.finish_head` rejects requests that are HTTP, but ambiguous,
too large, or not meant for an origin server.
"""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httptools

from asgibus.interface_server.proxy_headers import TrustedProxies
from asgibus.interface_server.settings import MAX_HEADERS
from asgibus.protocol.connect_request import (
    EVENT_STREAMS,
    HTTP,
    PRESENCE,
    STREAMS,
    WEBSOCKET,
    Address,
    RequestHead,
)
from asgibus.protocol.header_lines import cache_short

UNKNOWN: Final = sys.maxsize
"""The length of a body that the head does not announce."""
Headers = list[tuple[bytes, bytes]]
Peer = tuple[Address | None, Address | None, str, dict[str, Any]]
"""The two ends of a socket, as a scope has them: client, server, scheme, extensions."""


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """The server's own answer to a request that the app does not answer."""

    status: int
    reason: str
    """One sentence for the client."""


HEAD_TOO_LARGE: Final = ErrorResponse(431, "The request head is too large.")
TOO_MANY_HEADERS: Final = ErrorResponse(431, "The request has too many headers.")


class Request(RequestHead):
    """One request: its head, and the parts of its body that were not passed on yet.

    Args:
        client: The address of the client.
        server: The address of the server.
        scheme: The scheme of the scope.
        extensions: The extensions of the scope. The dict is shared, and not altered.
    """

    # A dataclass would have an interpreted `__init__`, which takes a microsecond for so many attributes.
    __slots__ = (
        "answered",
        "complete",
        "error",
        "forwarded",
        "from_proxy",
        "head_complete",
        "held",
        "keep_alive",
        "length",
        "parts",
        "received",
        "target",
        "wants_trailers",
    )

    def __init__(self, client: Address | None, server: Address | None, scheme: str, extensions: dict[str, Any]) -> None:
        self.client = client
        self.server = server
        self.scheme = scheme
        self.extensions = extensions
        self.target = b""
        self.method = ""
        self.http_version = "1.1"
        self.headers = []
        self.kind = HTTP
        self.raw_path = b""
        self.query_string = b""
        self.subprotocols = ()
        self.keep_alive = True
        self.expects_continue = False
        self.wants_trailers = False
        self.from_proxy = False
        """Whether there are headers that report another client or scheme than those of the socket."""
        self.parts: list[bytes] = []
        self.length = 0
        """Bytes of body that the head announces; `UNKNOWN` for a chunked body."""
        self.received = 0
        """Bytes of body that have arrived."""
        self.held = 0
        """Bytes in `parts`."""
        self.head_complete = False
        self.complete = False
        self.forwarded = False
        """Whether the whole body was passed to the app."""
        self.answered = False
        """Whether the response is written; the rest of the body is then discarded."""
        self.error: ErrorResponse | None = None
        """The answer, if the request is rejected."""

    def export(self) -> dict[str, Any]:
        """Return the values of all attributes by name, of types that msgpack knows, for another process."""
        values = {name: getattr(self, name) for name in _FIELDS}
        error = self.error
        values["error"] = None if error is None else (error.status, error.reason)
        return values

    @classmethod
    def restore(cls, values: Mapping[str, Any]) -> Request:
        """Return a request of another process. `values` is the result of `export` there; others are ignored."""
        error = values["error"]
        request = cls(values["client"], values["server"], values["scheme"], values["extensions"])
        for name, value in values.items():
            if name in _FIELDS:
                setattr(request, name, list(value) if name in _LISTS else value)
        request.error = None if error is None else ErrorResponse(*error)
        return request

    @property
    def line(self) -> str:
        """The request line, for the log."""
        return f"{self.method} {self.target.decode('latin-1')} HTTP/{self.http_version}"

    def take_body(self) -> bytes:
        """Return the parts of the body that have arrived since the last call, and forget them."""
        parts = self.parts
        if not parts:
            return b""
        self.parts, self.held = [], 0
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @property
    def rest(self) -> int:
        """The bytes of the body that have not arrived yet.

        The number is `UNKNOWN`, or a little less, if only the client knows. A client that waits for "100 Continue" and
        gets a final response may send the body, or not.
        """
        if self.complete:
            return 0
        if self.expects_continue and not self.received:
            return UNKNOWN
        return self.length - self.received

    @property
    def head_size(self) -> int:
        """The bytes of the target and the headers."""
        return len(self.target) + sum([len(name) + len(value) + 4 for name, value in self.headers])

    def finish_head(self, *, upgrade: bool) -> ErrorResponse | None:
        """Interpret the complete head, and return an error if the request must be rejected.

        RFC 9112 has rules so that two servers never read one request differently: one Host, one way to give the length
        of the body. Control bytes and folded lines were rejected by the parser.

        Args:
            upgrade: Whether the client asks for another protocol.
        """
        method, version, headers = self.method, self.http_version, self.headers
        if method in _OTHER_METHODS:
            return ErrorResponse(501, "This server is not a proxy, nor does it stream media.")
        if version not in ("1.0", "1.1"):
            return ErrorResponse(505, "The HTTP versions understood are 1.0 and 1.1.")
        hosts = 0
        chunked = has_length = websocket = False
        for name, value in headers:
            if name not in _INTERPRETED:
                continue
            if name == b"host":
                hosts += 1
                if not is_authority(value):
                    return ErrorResponse(400, "The Host header is not valid.")
            elif name == b"content-length":
                if has_length or not value.isdigit():
                    return ErrorResponse(400, "The Content-Length header is not one number.")
                has_length = True
                self.length = int(value)
            elif name == b"transfer-encoding":
                if chunked or value.lower() != b"chunked":
                    return ErrorResponse(501, "The only transfer encoding understood is chunked.")
                chunked = True
                self.length = UNKNOWN
            elif name == b"expect":
                if value.lower() != b"100-continue":
                    return ErrorResponse(417, "The only expectation understood is 100-continue.")
                self.expects_continue = version == "1.1"
            elif name == b"te":
                self.wants_trailers = self.wants_trailers or b"trailers" in [
                    coding.strip() for coding in value.lower().split(b",")
                ]
            elif name == b"x-forwarded-for" or name == b"x-forwarded-proto":
                self.from_proxy = True
            elif name == b"connection":
                if version == "1.0" and b"close" in value.lower():
                    self.keep_alive = False  # "close" outweighs "keep-alive", RFC 9112 section 9.3
            else:
                websocket = value.lower() == b"websocket"
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            return ErrorResponse(400, "A request needs exactly one Host header.")
        if chunked and (has_length or version == "1.0"):
            return ErrorResponse(400, "The length of the body is given in two ways.")
        target = self.target
        if target.startswith(b"/"):
            if _HASH in target:
                target = target.partition(b"#")[0]
            self.raw_path, _, self.query_string = target.partition(b"?")
        elif not self._split_other_target():
            return ErrorResponse(400, "The request target is not valid.")
        if upgrade and websocket and method == "GET" and not self.length:
            self._become_handshake()
        elif version == "1.1":
            self.extensions = {**self.extensions, **(_GET_EXTENSIONS if method == "GET" else _HTTP_1_1_EXTENSIONS)}
            if self.wants_trailers:
                self.wants_trailers = method != "HEAD"
                if self.wants_trailers:
                    self.extensions["http.response.trailers"] = {}
        else:
            self.extensions = {**self.extensions, "asgibus": {STREAMS: True}}
            self.wants_trailers = False  # they need the chunked coding, which HTTP/1.0 lacks
        return None

    def _become_handshake(self) -> None:
        self.kind = WEBSOCKET
        self.expects_continue = False  # there is no body to ask for
        self.subprotocols = tuple(
            token.strip().decode("latin-1")
            for name, value in self.headers
            if name == b"sec-websocket-protocol"
            for token in value.split(b",")
            if token.strip()
        )

    def _split_other_target(self) -> bool:
        """Split a target that is no path, `*` or an absolute URL; return False if it is neither."""
        target, _, self.query_string = self.target.partition(b"#")[0].partition(b"?")
        if target == b"*":
            self.raw_path = target
            return self.method == "OPTIONS"
        scheme, mark, rest = target.partition(b"://")
        authority, slash, path = rest.partition(b"/")
        host = authority.rpartition(b"@")[2]
        if not scheme or not mark or not host or not is_authority(host):
            return False
        self.raw_path = slash + path or b"/"
        # The host of the target replaces the header, RFC 9112 section 3.2.2.
        self.headers = [header for header in self.headers if header[0] != b"host"]
        self.headers.insert(0, (b"host", host))
        return True


# All attributes of a request but `error`, which is no value of msgpack.
_FIELDS: Final = (
    *("client", "expects_continue", "extensions", "headers", "http_version", "kind", "method", "query_string"),
    *("raw_path", "scheme", "server", "subprotocols", "answered", "complete", "forwarded", "from_proxy"),
    *("head_complete", "held", "keep_alive", "length", "parts", "received", "target", "wants_trailers"),
)
_LISTS: Final = ("headers", "parts")  # unpacked as tuples
_INTERPRETED: Final = frozenset(
    (
        *(b"host", b"content-length", b"transfer-encoding", b"expect", b"te", b"connection", b"upgrade"),
        *(b"x-forwarded-for", b"x-forwarded-proto"),
    )
)
# llhttp knows these, but they belong to proxies, RTSP and Icecast, and no origin server answers them.
_OTHER_METHODS: Final = frozenset(
    (
        *("CONNECT", "SOURCE", "DESCRIBE", "ANNOUNCE", "SETUP", "PLAY", "PAUSE", "TEARDOWN"),
        *("GET_PARAMETER", "SET_PARAMETER", "REDIRECT", "RECORD", "FLUSH"),
    )
)
_HASH: Final = ord(b"#")  # as an integer, since `in` looks for those ten times as fast as for bytes
_OFFERED = {STREAMS: True, PRESENCE: True}
_HTTP_1_1_EXTENSIONS: dict[str, Any] = {"http.response.early_hint": {}, "asgibus": _OFFERED}
# A worker has this member in its place: see `worker.connection.Extension`.
_GET_EXTENSIONS: dict[str, Any] = {**_HTTP_1_1_EXTENSIONS, "asgibus": {EVENT_STREAMS: True, **_OFFERED}}


MAX_PORT = 65535

_USUAL: Final = re.compile(rb"[A-Za-z0-9.-]+(?::[0-9]{1,4})?\Z")  # nearly all hosts; a sixth of the time
_NAME = rb"[A-Za-z0-9._~!$&'()*+,;=-]*"  # unreserved and sub-delims; IPv4 addresses match, too
_AUTHORITY: Final = re.compile(
    rb"(" + _NAME + rb"(?:%[0-9A-Fa-f]{2}" + _NAME + rb")*"
    rb"|\[[0-9A-Fa-f:.]+\]"
    rb"|\[[Vv][0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+,;=:-]+\])"
    rb"(?::([0-9]*))?\Z"
)


@cache_short
def is_authority(value: bytes) -> bool:
    """Return whether a value is a host with an optional port, RFC 3986 section 3.2.2 and RFC 9110 section 7.2.

    The host may be a name, with percent-encoded bytes, an IPv4 address, or an IPv6 or later address in brackets. An
    empty value is valid: the client's target has no authority. A port is at most `MAX_PORT`, and needs a host.
    """
    if _USUAL.match(value):
        return True
    match = _AUTHORITY.match(value)
    if match is None:
        return False
    host, port = match.groups()
    if port is not None:
        digits = port.lstrip(b"0")
        if not host or len(digits) > 5 or int(digits or b"0") > MAX_PORT:
            return False
    if host.startswith(b"[") and host[1:2] not in b"Vv":
        try:
            ipaddress.IPv6Address(host[1:-1].decode("ascii"))
        except ValueError:
            return False
    return True


def address_text(address: Address | None) -> str:
    """Return an address for the log."""
    return f"{address[0]}:{address[1]}" if address else "-"


class RequestParser:
    """Parses the requests of one socket, one after another.

    `on_head(request)` is called when the head of a request is complete; `request.error` is set if the request must be
    rejected. The body follows in `request.parts`, until `request.complete`.
    """

    __deletable__ = ("_on_head", "_parser")  # mypyc makes only these attributes deletable: see `release`
    __slots__ = (
        "_asks_upgrade",
        "_fed",
        "_head_bytes",
        "_line",
        "_max_head_size",
        "_max_headers",
        "_on_head",
        "_parser",
        "_peer",
        "_proxies",
        "_section_ended",
        "_size_unknown",
        "body_bytes",
        "request",
        "tail",
    )

    def __init__(
        self,
        peer: Peer,
        max_head_size: int,
        on_head: Callable[[Request], None],
        *,
        max_headers: int = MAX_HEADERS,
        proxies: TrustedProxies | None = None,
    ) -> None:
        """Make a parser.

        Args:
            peer: The two ends of the socket.
            max_head_size: Bytes of a head that are accepted.
            on_head: Called with each request whose head is complete.
            max_headers: Header lines that are accepted.
            proxies: Reads forwarding headers; None if the peer is not a trusted proxy.
        """
        self._peer = peer
        self._max_headers = max_headers
        self._max_head_size = max_head_size
        self._on_head = on_head
        self._proxies = proxies
        self._parser = self._new_parser()
        self._line = b""
        self._head_bytes = 0  # of a part of a head or of trailers, in earlier calls of `feed`
        self._fed = 0  # bytes of the current call
        self._size_unknown = False  # whether the head began in a call with other bytes before it
        self._section_ended = False
        self._asks_upgrade: Request | None = None
        self.body_bytes = 0
        """Bytes of body that have arrived on this socket."""
        self.request: Request | None = None
        """The request that is being parsed."""
        self.tail: bytes | None = None
        """None until a request ends HTTP on this socket; then all bytes that followed the request."""

    @property
    def body_left(self) -> int:
        """The bytes of the body that are still to come, if the head of `request` says so, else 0."""
        request = self.request
        if request is None or request.length == UNKNOWN:
            return 0
        return request.length - request.received

    def feed(self, data: bytes | memoryview) -> ErrorResponse | None:
        """Parse more bytes of the client.

        Returns:
            An error if `request` is not valid HTTP or exceeds a limit. The socket cannot be parsed any further then.
        """
        if self.tail is not None:
            self.tail += data
            return None
        self._section_ended = False
        self._fed = len(data)
        body_before = self.body_bytes
        rest = data
        if self.request is None or not self.body_left:
            self._line = self._line + data if self._line else bytes(data)
        while rest:
            try:
                self._parser.feed_data(rest)
                break
            except httptools.HttpParserUpgrade as upgrade:
                rest = self._upgrade(rest[upgrade.args[0] :])
            except httptools.HttpParserCallbackError:
                raise  # a fault of this server, not of the client
            except httptools.HttpParserError as error:
                self.request = self.request or self._new_request()
                return _parse_error(error)
        request = self.request
        if request is None:
            self._line = b""
            # Empty lines before a request are skipped, RFC 9112 section 2.2, but not without end.
            self._head_bytes = 0 if self._section_ended else self._head_bytes + self._fed
            if self._head_bytes <= self._max_head_size:
                return None
            self.request = self._new_request()
            return HEAD_TOO_LARGE
        if request.head_complete or request.headers:
            self._line = b""
        if not request.head_complete and len(request.headers) > self._max_headers:
            return TOO_MANY_HEADERS
        if self._section_ended or self.body_bytes != body_before:
            self._head_bytes = 0
            self._size_unknown = not request.head_complete
            return None
        # A part of a head, or of trailers, is kept in memory until the section is complete.
        self._head_bytes += self._fed
        return HEAD_TOO_LARGE if self._head_bytes > self._max_head_size else None

    @property
    def may_move(self) -> bool:
        """Whether another process can go on parsing: the rest of what it needs to know is in `request`.

        Within a head or a chunked body it cannot, because llhttp does not tell how far it has got there.
        """
        request = self.request
        if request is None:
            return self.tail is None
        return self.tail is None and request.head_complete and request.length != UNKNOWN

    def restore(self, request: Request | None, body_bytes: int) -> None:
        """Go on where the parser of another process has stopped.

        Args:
            request: The request that is being parsed: the rest of its body follows.
            body_bytes: Bytes of body that have arrived on this socket.
        """
        self.body_bytes = body_bytes
        self.request = request
        if request is not None:  # as for an ignored upgrade, a head tells llhttp what follows
            self._parser.feed_data(b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % self.body_left)

    def release(self) -> None:
        """Break the reference cycle of parser and callbacks, so that the memory is freed at once."""
        del self._parser, self._on_head

    def _upgrade(self, rest: bytes | memoryview) -> bytes | memoryview:
        """Handle a request for another protocol, at whose head llhttp stops; return the bytes to parse next."""
        request, self._asks_upgrade = self._asks_upgrade, None
        assert request is not None
        if request.kind == WEBSOCKET or request.error is not None:
            self.tail = bytes(rest)
            return b""
        # The upgrade is ignored, and HTTP goes on. llhttp has skipped the body, so a new parser is told of it.
        framing = [b"%s: %s\r\n" % header for header in request.headers if header[0] in _FRAMING]
        self._parser = self._new_parser()
        self.request, request.complete = request, False
        self._parser.feed_data(
            b"POST / HTTP/%s\r\n%s\r\n" % (request.http_version.encode(), b"".join(framing)),
        )
        return rest

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # llhttp takes "Connection: close" in a trailer for a header, and would reject the next request. Only the head
        # says whether the connection persists, and that is decided when the response is written.
        parser.set_dangerous_leniencies(lenient_keep_alive=True)
        return parser

    def _new_request(self) -> Request:
        client, server, scheme, extensions = self._peer
        return Request(client, server, scheme, extensions)

    def _speaks_rtsp(self, request: Request) -> bool:
        """Return whether the request line ends with a version of RTSP, which llhttp takes for one of HTTP."""
        return b"%b %b RTSP/" % (request.method.encode("latin-1"), request.target) in self._line

    # Callbacks of httptools. If the head is complete already, the request is one whose upgrade was ignored.

    def on_message_begin(self) -> None:
        if self.request is None:
            self.request = self._new_request()

    def on_url(self, url: bytes) -> None:
        request = self.request
        assert request is not None
        if not request.head_complete:
            request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self.request
        assert request is not None
        if not request.head_complete:  # trailers of a chunked body are not headers of the request, and are dropped
            request.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        request, parser = self.request, self._parser
        assert request is not None
        if request.head_complete:
            return
        request.method = parser.get_method().decode("latin-1")
        request.http_version = parser.get_http_version()
        if self._line.find(b" RTSP/") >= 0 and self._speaks_rtsp(request):
            request.http_version = "RTSP"
        request.keep_alive = parser.should_keep_alive()
        upgrade = parser.should_upgrade()
        if upgrade:
            self._asks_upgrade = request
        self._section_ended = True
        request.head_complete = True
        # Twice the bytes are more than `head_size`, which is not computed for ordinary requests.
        measure = self._size_unknown or 2 * (self._head_bytes + self._fed) > self._max_head_size
        if measure and request.head_size > self._max_head_size:
            request.error = HEAD_TOO_LARGE
        elif len(request.headers) > self._max_headers:
            request.error = TOO_MANY_HEADERS
        else:
            request.error = request.finish_head(upgrade=upgrade)
        if self._proxies is not None and (request.from_proxy or request.error is not None):
            request.client, request.scheme = self._proxies.forwarded(request.headers, request.client, request.scheme)
        if request.kind == WEBSOCKET:
            request.scheme = "wss" if request.scheme == "https" else "ws"
        self._on_head(request)

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


_FRAMING = (b"content-length", b"transfer-encoding", b"connection")


def _parse_error(error: httptools.HttpParserError) -> ErrorResponse:
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return ErrorResponse(501, "The request method is not known.")
    return ErrorResponse(400, "The request is not valid HTTP.")
