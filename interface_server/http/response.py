"""HTTP responses: heads as bytes, the framing of bodies (RFC 9112 section 6), and a writer for one socket."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping
from email.utils import formatdate
from enum import Enum
from http import HTTPStatus
from typing import Any, Final

from asgibus.interface_server.http.request import Request
from asgibus.protocol.events import RESPONSE_START_TRAILERS, TRAILERS_END, Event
from asgibus.protocol.header_lines import cache_short, is_length, split_lines, without

logger = logging.getLogger("asgibus.interface")

DRAIN_BYTES: Final = 256 * 1024  # of a body that may arrive after its response, if the connection persists: as in Go
JOIN_BYTES: Final = 16 * 1024  # a body up to this size is copied to its head, to be one write


class Framing(Enum):
    """The sign by which the client finds the end of the body."""

    NONE = "there is no body"
    LENGTH = "content-length"
    CHUNKED = "chunked"
    CLOSE = "the end of the connection"


# A member of an enum is looked up on its class in 50 ns: once here, instead of for every response.
_NONE: Final = Framing.NONE
_LENGTH: Final = Framing.LENGTH
_CHUNKED: Final = Framing.CHUNKED
_CLOSE: Final = Framing.CLOSE


class Head:
    """The head of a response, and what it announces.

    Args:
        data: The head.
        framing: How the client finds the end of the body.
        length: Bytes of body that content-length announces; 0 without one.
        close: Whether the connection ends with this response.
    """

    __slots__ = ("close", "data", "framing", "length")

    def __init__(self, data: bytes, framing: Framing, length: int, close: bool) -> None:
        self.data = data
        self.framing = framing
        self.length = length
        self.close = close


_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
_INTERPRETED: Final = re.compile(rb"\n(content-length|transfer-encoding|connection|server|date): ([^\r]*)")
_STATUS_LINES: Final = {
    status: f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\n".encode() for status in range(100, 1000)
}


class StandardHeaders:
    """The `server` and `date` headers. The date is formatted once a second."""

    __slots__ = ("_date", "_second", "_server")

    def __init__(self, *, server: bool, date: bool) -> None:
        self._server = b"server: asgibus\r\n" if server else b""
        self._date = b"" if date else None
        self._second = 0

    def get(self, *, own_server: bool, own_date: bool) -> bytes:
        """Return the header lines to add.

        Args:
            own_server: Whether the app has set `server`.
            own_date: Whether the app has set `date`.
        """
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
    headers: bytes,
    standard: StandardHeaders,
    *,
    http_version: str,
    method: str,
    keep_alive: bool,
    whole: int | None = None,
    trailers: bool = False,
) -> Head:
    """Return the head of a response.

    Args:
        status: The status code.
        headers: The headers of the app, as lines.
        standard: Makes the headers that the server adds.
        http_version: The version of the request.
        method: The method of the request.
        keep_alive: Whether the connection persists, unless the app says "connection: close".
        whole: The length of the body, if it is known already.
        trailers: Whether trailers follow the body.
    """
    sent, length, closes, own_server, own_date = _interpret(headers)
    if status == 204 and length is not None:
        sent, length = without(sent, (b"content-length",)), None  # must not be sent, RFC 9110 section 8.6
    close = closes or not keep_alive
    lines = [_STATUS_LINES[status], sent]
    if method == "HEAD" or status in (204, 304):
        framing = _NONE
    elif length is not None:
        framing = _LENGTH
    elif whole is not None and not trailers:
        framing, length = _LENGTH, whole
        lines.append(b"content-length: %d\r\n" % whole)
    elif http_version == "1.1":
        framing = _CHUNKED
        lines.append(b"transfer-encoding: chunked\r\n")
    else:
        framing, close = _CLOSE, True
    lines.append(standard.get(own_server=own_server, own_date=own_date))
    if close and http_version == "1.1":
        lines.append(b"connection: close\r\n")
    elif not close and http_version == "1.0":
        lines.append(b"connection: keep-alive\r\n")
    lines.append(b"\r\n")
    return Head(b"".join(lines), framing, length or 0, close)


def plain_response(status: int, text: str, standard: StandardHeaders, *, head_only: bool = False) -> bytes:
    """Return a whole response of the server itself, after which the connection is closed.

    Args:
        status: The status code.
        text: One sentence for the client.
        standard: Makes the headers that the server adds.
        head_only: Whether to leave out the body, as the request was a HEAD.
    """
    body = (text + "\n").encode()
    headers = b"content-type: text/plain; charset=utf-8\r\n"
    if status == 503:
        headers += b"retry-after: 1\r\n"
    head = response_head(status, headers, standard, http_version="1.1", method="GET", keep_alive=False, whole=len(body))
    return head.data if head_only else head.data + body


@cache_short
def _interpret(headers: bytes) -> tuple[bytes, int | None, bool, bool, bool]:
    """Interpret the headers of an app.

    Args:
        headers: The headers, as lines.

    Returns:
        The lines to send; the content-length, or None without one; whether the app ends the connection, and whether it
        has set `server` and `date`.
    """
    length: int | None = None
    close = own_server = own_date = rewrite = False
    for name, value in _INTERPRETED.findall(b"\n" + headers):
        if name == b"content-length" and length is None and is_length(value):
            length = int(value)
        elif name == b"server":
            own_server = True
        elif name == b"date":
            own_date = True
        else:
            rewrite = True
            close = close or (
                name == b"connection" and b"close" in [each.strip().lower() for each in value.split(b",")]
            )
    return _rewrite(headers) if rewrite else headers, length, close, own_server, own_date


def _rewrite(headers: bytes) -> bytes:
    """Return header lines without those that only the server may write."""
    lines = []
    has_length = False
    for name, given_value in split_lines(headers):
        value = given_value
        if name == b"content-length":
            if has_length or not is_length(value):
                continue  # `events.encode` rejects these; a forged frame must not end the response elsewhere
            has_length = True
        elif name == b"transfer-encoding":
            continue  # the server chooses the coding; ASGI specification, Response Start
        elif name == b"connection":
            options = [option.strip() for option in value.split(b",")]
            value = b", ".join([each for each in options if each.lower() not in (b"close", b"keep-alive", b"")])
            if not value:
                continue  # "close" and "keep-alive" are added by the server
        lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join(lines)


def chunk(body: bytes) -> bytes:
    """Return one chunk, RFC 9112 section 7.1. The body must not be empty: an empty chunk ends the response."""
    return b"%x\r\n%b\r\n" % (len(body), body)


LAST_CHUNK: Final = b"0\r\n"


class ResponseWriter:
    """Writes the responses of one socket, one after another. `begin` names the request that the next one answers.

    The head is held until the body begins, so that a small response is one write.
    """

    __slots__ = (
        "_keep_alive",
        "_request",
        "_standard",
        "_start",
        "_trailers_begun",
        "_transport",
        "close",
        "framing",
        "remaining",
        "status",
    )

    def __init__(self, transport: asyncio.WriteTransport, standard: StandardHeaders) -> None:
        self._transport = transport
        self._standard = standard
        self._start: Event | None = None
        self._request: Request | None = None
        self._keep_alive = True
        self._trailers_begun = False
        self.framing: Framing | None = None
        """The framing that the head has announced; None until the head is written."""
        self.remaining = 0
        """Bytes of body that content-length announced and that were not written yet."""
        self.close = False
        """Whether the connection ends with this response."""
        self.status = 0
        """The status of the response; 0 until it begins."""

    def export(self) -> dict[str, Any]:
        """Return how far the response has got, as `restore` takes it."""
        return {
            "keep_alive": self._keep_alive,
            "start": self._start,
            "trailers_begun": self._trailers_begun,
            "framing": None if self.framing is None else self.framing.name,
            "remaining": self.remaining,
            "close": self.close,
            "status": self.status,
        }

    def restore(self, request: Request | None, state: Mapping[str, Any]) -> None:
        """Go on with the response of another process.

        Args:
            request: The request that is answered, if there is one.
            state: The result of `export` there.
        """
        self._request = request
        self._keep_alive = state["keep_alive"]
        self._start = state["start"]
        self._trailers_begun = state["trailers_begun"]
        self.framing = None if state["framing"] is None else Framing[state["framing"]]
        self.remaining = state["remaining"]
        self.close = state["close"]
        self.status = state["status"]

    def begin(self, request: Request, *, keep_alive: bool) -> None:
        """Forget the last response, and prepare to answer a request.

        Args:
            request: The request.
            keep_alive: Whether the connection may persist after the response.
        """
        self._request = request
        self._keep_alive = keep_alive
        self._start = None
        self._trailers_begun = False
        self.framing = None
        self.remaining = 0
        self.close = not keep_alive
        self.status = 0

    def close_after(self) -> None:
        """End the connection with this response. The head says so, if it is not written yet."""
        self._keep_alive = False
        self.close = True

    @property
    def begun(self) -> bool:
        """Whether the app has begun the response. The head may still be held."""
        return self._start is not None or self.framing is not None

    @property
    def written(self) -> bool:
        """Whether the head is written."""
        return self.framing is not None

    def ask_for_body(self) -> None:
        """Write "100 Continue", unless the response has begun."""
        if not self.begun and self._request is not None:
            self._request.expects_continue = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def early_hint(self, links: bytes) -> None:
        """Write "103 Early Hints" before the head. HTTP/1.0 has no interim responses, so its clients get none.

        Args:
            links: The header lines.
        """
        if self.framing is None and self._request is not None and self._request.http_version == "1.1":
            self._transport.write(b"HTTP/1.1 103 Early Hints\r\n%b\r\n" % links)

    def start(self, event: Event) -> None:
        """Hold a RESPONSE_START event until the body begins, or `flush`."""
        self._start = event
        self.status = event[1]

    def respond(self, event: Event) -> bool:
        """Write a whole response, a RESPONSE event. Return False if the body is shorter than its content-length."""
        self._start = event
        self.status = event[1]
        return self.end(event[3])

    def flush(self) -> None:
        """Write the head if it is held."""
        if self._start is not None:
            self._transport.write(self._take_head(None))

    def body(self, body: bytes) -> None:
        """Write a part of the body."""
        if self._start is not None:
            self._write_first(body, None)
        else:
            self._write(body)

    def end(self, body: bytes, *, trailers_follow: bool = False) -> bool:
        """Write the last part of the body. Return False if the body is shorter than its content-length."""
        if self._start is not None:
            self._write_first(body, len(body))
        else:
            self._write(body)
        framing = self.framing
        if framing is _CHUNKED:
            if not trailers_follow:
                self._transport.write(LAST_CHUNK + b"\r\n")
        elif framing is _LENGTH and self.remaining:
            logger.error("a response's body is %d bytes shorter than its content-length", self.remaining)
            return False
        return True

    def trailers(self, event: Event) -> None:
        """Write trailers, if the body is chunked and the client wants them. TRAILERS_END is the last such event."""
        if self.framing is _CHUNKED:
            lines = b"" if self._trailers_begun else LAST_CHUNK
            self._trailers_begun = True
            if self._request is not None and self._request.wants_trailers:
                lines += event[1]
            self._transport.write(lines + b"\r\n" if event[0] == TRAILERS_END else lines)

    def _take_head(self, whole: int | None) -> bytes:
        """Return the head that is held, for a body of the given length if that is known."""
        start, self._start = self._start, None
        request = self._request
        assert start is not None
        assert request is not None
        headers = start[2]
        trailers = False
        if start[0] == RESPONSE_START_TRAILERS:
            trailers = request.wants_trailers
            # With trailers a body must be chunked and have no content-length, RFC 9112 section 6.2. Without, the header
            # "trailer" would announce what does not come.
            headers = without(headers, (b"content-length",) if trailers else (b"trailer",))
        head = response_head(
            start[1],
            headers,
            self._standard,
            http_version=request.http_version,
            method=request.method,
            # In an early response, the rest of the request body is discarded if it is short. If it is not, the
            # connection ends, and the client must be told: RFC 9112 sections 9.3 and 9.6.
            keep_alive=self._keep_alive and (request.complete or request.rest <= DRAIN_BYTES),
            whole=whole,
            trailers=trailers,
        )
        self.framing, self.remaining, self.close = head.framing, head.length, head.close
        return head.data

    def _write_first(self, body: bytes, whole: int | None) -> None:
        head = self._take_head(whole)
        size = len(body)
        if self.framing is _LENGTH and size <= JOIN_BYTES and size <= self.remaining:
            self.remaining -= size
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._write(body)

    def _write(self, body: bytes) -> None:
        framing = self.framing
        if not body or framing is _NONE:
            return
        if framing is _CHUNKED:
            if len(body) <= JOIN_BYTES:
                self._transport.write(chunk(body))
            else:
                self._transport.writelines((b"%x\r\n" % len(body), body, b"\r\n"))
            return
        if framing is _LENGTH:
            if len(body) > self.remaining:
                logger.error("a response's body is longer than its content-length: the rest was cut off")
                body = body[: self.remaining]
                self.framing = _NONE  # whatever follows is dropped
            self.remaining -= len(body)
        self._transport.write(body)
