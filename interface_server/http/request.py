"""One request as it was parsed, and the rules by which it is refused."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from asgibus.interface_server.http.authority import is_authority
from asgibus.interface_server.settings import MAX_HEADERS
from asgibus.protocol.connect_request import HTTP, WEBSOCKET, Address

UNKNOWN = sys.maxsize


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not served: an HTTP status and one sentence for the client."""

    status: int
    reason: str


HEAD_TOO_LARGE = Refusal(431, "The request head is too large.")
TOO_MANY_HEADERS = Refusal(431, "The request has too many headers.")


@dataclass(slots=True, eq=False)
class Request:
    """A request's head, and the parts of its body that have come and not gone on."""

    client: Address | None
    server: Address | None
    scheme: str
    extensions: dict[str, Any]
    target: bytes = b""
    method: str = ""
    http_version: str = "1.1"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    kind: str = HTTP
    raw_path: bytes = b""
    query_string: bytes = b""
    subprotocols: tuple[str, ...] = ()
    keep_alive: bool = True
    expects_continue: bool = False
    wants_trailers: bool = False
    parts: list[bytes] = field(default_factory=list)
    length: int = 0
    """Bytes of body that the head announces; `UNKNOWN` for a chunked body."""
    received: int = 0
    """Bytes of body that have come."""
    held: int = 0
    """Bytes in `parts`."""
    head_complete: bool = False
    complete: bool = False
    answered: bool = False
    """Whether its response is written: what still comes of the body is dropped."""
    refusal: Refusal | None = None

    @property
    def line(self) -> str:
        """The request line, for the log."""
        return f"{self.method} {self.target.decode('latin-1')} HTTP/{self.http_version}"

    def take_body(self) -> bytes:
        """Take what has come of the body and was not taken."""
        parts = self.parts
        if not parts:
            return b""
        self.parts, self.held = [], 0
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @property
    def rest(self) -> int:
        """Return how many bytes of the body have not come yet; `UNKNOWN` or a little less if the client alone knows.

        A client that waits for "100 Continue" and gets a final response may send the body, or not.
        """
        if self.complete:
            return 0
        if self.expects_continue and not self.received:
            return UNKNOWN
        return self.length - self.received

    def finish_head(self, *, upgrade: bool, max_size: int, max_headers: int = MAX_HEADERS) -> Refusal | None:
        """Read the headers that matter here. Returns why the request must be refused, if it must.

        The rules of RFC 9112 that keep a request from meaning two things to two servers: one Host, one way of saying
        how long the body is. Control bytes, folded lines and the like have not passed the parser.
        """
        self.head_complete = True
        if self.method in _OTHER_METHODS:
            return Refusal(501, "This server is not a proxy, nor does it stream media.")
        if self.http_version not in ("1.0", "1.1"):
            return Refusal(505, "The HTTP versions understood are 1.0 and 1.1.")
        if len(self.target) + sum([len(name) + len(value) + 4 for name, value in self.headers]) > max_size:
            return HEAD_TOO_LARGE
        if len(self.headers) > max_headers:
            return TOO_MANY_HEADERS
        hosts = 0
        chunked = has_length = websocket = False
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
                if not is_authority(value):
                    return Refusal(400, "The Host header is not valid.")
            elif name == b"content-length":
                if has_length or not value.isdigit():
                    return Refusal(400, "The Content-Length header is not one number.")
                has_length = True
                self.length = int(value)
            elif name == b"transfer-encoding":
                if chunked or value.lower() != b"chunked":
                    return Refusal(501, "The only transfer encoding understood is chunked.")
                chunked = True
                self.length = UNKNOWN
            elif name == b"expect":
                if value.lower() != b"100-continue":
                    return Refusal(417, "The only expectation understood is 100-continue.")
                self.expects_continue = self.http_version == "1.1"
            elif name == b"te":
                self.wants_trailers = self.wants_trailers or b"trailers" in [
                    coding.strip() for coding in value.lower().split(b",")
                ]
            elif name == b"connection":
                if self.http_version == "1.0" and b"close" in value.lower():
                    self.keep_alive = False  # "close" outweighs "keep-alive", RFC 9112 section 9.3
            elif name == b"upgrade":
                websocket = value.lower() == b"websocket"
        if hosts > 1 or (hosts == 0 and self.http_version == "1.1"):
            return Refusal(400, "A request needs exactly one Host header.")
        if chunked and (has_length or self.http_version == "1.0"):
            return Refusal(400, "The length of the body is given in two ways.")
        if self.target.startswith(b"/"):
            target = self.target.partition(b"#")[0] if b"#" in self.target else self.target
            self.raw_path, _, self.query_string = target.partition(b"?")
        elif not self._split_odd_target():
            return Refusal(400, "The request target is not valid.")
        if upgrade and websocket and self.method == "GET" and not self.length:
            self.kind = WEBSOCKET
            self.expects_continue = False  # there is no body to ask for
            self.scheme = "wss" if self.scheme in ("https", "wss") else "ws"
            self.subprotocols = tuple(_tokens(self.headers, b"sec-websocket-protocol"))
        elif self.http_version == "1.1":
            self.extensions = {**self.extensions, **_HTTP_1_1_EXTENSIONS}
            if self.wants_trailers:
                self.wants_trailers = self.method != "HEAD"
                if self.wants_trailers:
                    self.extensions["http.response.trailers"] = {}
        else:
            self.wants_trailers = False  # they need the chunked coding, which HTTP/1.0 lacks
        return None

    def _split_odd_target(self) -> bool:
        """The forms of a target that are not a path: `*` and an absolute URL. False if it is neither."""
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
        # Its host counts, and the header does not: RFC 9112 section 3.2.2.
        self.headers = [header for header in self.headers if header[0] != b"host"]
        self.headers.insert(0, (b"host", host))
        return True


# Known to the parser, but not of HTTP requests to an origin server: they belong to proxies, RTSP and Icecast.
_OTHER_METHODS = frozenset(
    (
        *("CONNECT", "SOURCE", "DESCRIBE", "ANNOUNCE", "SETUP", "PLAY", "PAUSE", "TEARDOWN"),
        *("GET_PARAMETER", "SET_PARAMETER", "REDIRECT", "RECORD", "FLUSH"),
    )
)
_HTTP_1_1_EXTENSIONS: dict[str, Any] = {"http.response.early_hint": {}}


def address_text(address: Address | None) -> str:
    """An address for the log."""
    return f"{address[0]}:{address[1]}" if address else "-"


def _tokens(headers: list[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [
        token.strip().decode("latin-1")
        for header, value in headers
        if header == name
        for token in value.split(b",")
        if token.strip()
    ]
