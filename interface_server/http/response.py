"""Response heads as bytes, and how a response's body is framed on the wire (RFC 9112 section 6)."""

from __future__ import annotations

import time
from email.utils import formatdate
from enum import Enum
from http import HTTPStatus
from typing import NamedTuple

from asgibus.protocol.events import Headers, is_length


class Framing(Enum):
    """How the client knows where the body ends."""

    NONE = "there is none"
    LENGTH = "content-length"
    CHUNKED = "chunked"
    CLOSE = "the end of the connection"


class Head(NamedTuple):
    """A response's head, and what it promised."""

    data: bytes
    framing: Framing
    length: int
    """Bytes of body that content-length announced; 0 where it did not."""
    close: bool
    """Whether the connection ends with this response."""


_REASONS = {status.value: status.phrase for status in HTTPStatus}
_STATUS_LINES = {status: f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\n".encode() for status in range(100, 1000)}


class StandardHeaders:
    """The `server` and `date` headers; the date is made once a second."""

    __slots__ = ("_date", "_second", "_server")

    def __init__(self, *, server: bool, date: bool) -> None:
        self._server = b"server: asgibus\r\n" if server else b""
        self._date = b"" if date else None
        self._second = 0

    def get(self, *, own_server: bool, own_date: bool) -> bytes:
        """The headers to add, less those that the app gave itself."""
        if self._date is not None:
            second = int(time.time())
            if second != self._second:
                self._second = second
                self._date = b"date: %s\r\n" % formatdate(second, usegmt=True).encode()
        if own_server or own_date:
            return (b"" if own_server else self._server) + (b"" if own_date else self._date or b"")
        return self._server + (self._date or b"")


def response_head(
    status: int,
    headers: Headers,
    standard: StandardHeaders,
    *,
    http_version: str,
    method: str,
    keep_alive: bool,
    whole: int | None = None,
    trailers: bool = False,
) -> Head:
    """The head of a response. `whole` is the length of the body if it is known in full."""
    lines = [_STATUS_LINES[status]]
    length: int | None = None
    close = not keep_alive
    own_server = own_date = False
    for given_name, given_value in headers:
        name, value = given_name.lower(), given_value
        if name == b"content-length":
            if length is not None or not is_length(value):
                continue  # `events.encode` lets none through; a forged frame must not end the response elsewhere
            length = int(value)
            if status == 204:
                continue  # RFC 9110 section 8.6: must not be sent
        elif name == b"transfer-encoding":
            continue  # how the body travels is this server's business; ASGI, Response Start
        elif name == b"connection":
            options = [option.strip() for option in value.split(b",")]
            close = close or b"close" in [option.lower() for option in options]
            value = b", ".join([option for option in options if option.lower() not in (b"close", b"keep-alive")])
            if not value:
                continue  # whether the connection goes on is said once, below
        elif name == b"server":
            own_server = True
        elif name == b"date":
            own_date = True
        lines.append(b"%s: %s\r\n" % (name, value))
    if method == "HEAD" or status in (204, 304):
        framing = Framing.NONE
    elif length is not None:
        framing = Framing.LENGTH
    elif whole is not None and not trailers:
        framing, length = Framing.LENGTH, whole
        lines.append(b"content-length: %d\r\n" % whole)
    elif http_version == "1.1":
        framing = Framing.CHUNKED
        lines.append(b"transfer-encoding: chunked\r\n")
    else:
        framing, close = Framing.CLOSE, True
    lines.append(standard.get(own_server=own_server, own_date=own_date))
    if close and http_version == "1.1":
        lines.append(b"connection: close\r\n")
    elif not close and http_version == "1.0":
        lines.append(b"connection: keep-alive\r\n")
    lines.append(b"\r\n")
    return Head(b"".join(lines), framing, length or 0, close)


def plain_response(status: int, text: str, standard: StandardHeaders, *, head_only: bool = False) -> bytes:
    """A whole response of this server itself, after which the connection is closed; without its body for HEAD."""
    body = (text + "\n").encode()
    headers: Headers = ((b"content-type", b"text/plain; charset=utf-8"),)
    if status == 503:
        headers += ((b"retry-after", b"1"),)
    head = response_head(status, headers, standard, http_version="1.1", method="GET", keep_alive=False, whole=len(body))
    return head.data if head_only else head.data + body


def header_lines(headers: Headers) -> bytes:
    """Headers as they stand in a head or a trailer section, without the empty line."""
    return b"".join([b"%s: %s\r\n" % (name.lower(), value) for name, value in headers])


def chunk(body: bytes) -> bytes:
    """One chunk of the chunked coding, RFC 9112 section 7.1. Not for an empty body, which would end it."""
    return b"%x\r\n%b\r\n" % (len(body), body)


LAST_CHUNK = b"0\r\n"
