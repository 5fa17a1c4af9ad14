"""Writes one response at a time to a socket: the head with the first of the body, then the body as it is framed."""

from __future__ import annotations

import asyncio
import logging

from asgibus.interface_server.http.request import Request
from asgibus.interface_server.http.response import (
    LAST_CHUNK,
    Framing,
    StandardHeaders,
    chunk,
    header_lines,
    response_head,
)
from asgibus.protocol.events import RESPONSE_START_TRAILERS, TRAILERS_END, Event, Headers

logger = logging.getLogger("asgibus.interface")

DRAIN_BYTES = 256 * 1024  # of a body that may come behind its response while the connection goes on: as in Go
JOIN_BYTES = 16 * 1024  # a body up to this is copied behind its head, to be one write; a larger one is written as it is


class ResponseWriter:
    """The responses of one socket. `begin` names the request that the next events answer."""

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

    def __init__(self, transport: asyncio.Transport, standard: StandardHeaders) -> None:
        self._transport = transport
        self._standard = standard
        self._start: Event | None = None
        self._request: Request | None = None
        self._keep_alive = True
        self._trailers_begun = False
        self.framing: Framing | None = None
        self.remaining = 0
        self.close = False
        self.status = 0

    def begin(self, request: Request, *, keep_alive: bool) -> None:
        """Forget the last response."""
        self._request = request
        self._keep_alive = keep_alive
        self._start = None
        self._trailers_begun = False
        self.framing = None
        self.remaining = 0
        self.close = not keep_alive
        self.status = 0

    def close_after(self) -> None:
        """The connection ends with this response; its head says so if it is not written yet."""
        self._keep_alive = False
        self.close = True

    @property
    def begun(self) -> bool:
        """Whether the head is on its way to the client, or held to go with the first of the body."""
        return self._start is not None or self.framing is not None

    @property
    def written(self) -> bool:
        """Whether the client has seen something of the response."""
        return self.framing is not None

    def ask_for_body(self) -> None:
        """Write "100 Continue", unless the response has begun."""
        if not self.begun and self._request is not None:
            self._request.expects_continue = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def early_hint(self, links: Headers) -> None:
        """Write "103 Early Hints". Not behind the head, where it has no place, nor to HTTP/1.0, which knows no 1xx."""
        if not self.written and self._request is not None and self._request.http_version == "1.1":
            self._transport.write(b"HTTP/1.1 103 Early Hints\r\n%b\r\n" % header_lines(links))

    def start(self, event: Event) -> None:
        """Hold a RESPONSE_START event until the body begins, or `flush`."""
        self._start = event
        self.status = event[1]

    def flush(self) -> None:
        """Write the head if it is held."""
        if self._start is not None:
            self._transport.write(self._head(None))

    def body(self, body: bytes) -> None:
        """Write a part of the body."""
        if self._start is not None:
            self._first(body, None)
        else:
            self._write(body)

    def end(self, body: bytes, *, trailers_follow: bool = False) -> bool:
        """Write the last part of the body. False if the response is shorter than it promised."""
        if self._start is not None:
            self._first(body, len(body))
        else:
            self._write(body)
        if self.framing is Framing.CHUNKED and not trailers_follow:
            self._transport.write(LAST_CHUNK + b"\r\n")
        if self.framing is Framing.LENGTH and self.remaining:
            logger.error("a response's body is %d bytes shorter than its content-length", self.remaining)
            return False
        return True

    def trailers(self, event: Event) -> None:
        """Write trailers where the response can have them and the client wants them; TRAILERS_END ends them."""
        if self.framing is Framing.CHUNKED:
            lines = b"" if self._trailers_begun else LAST_CHUNK
            self._trailers_begun = True
            if self._request is not None and self._request.wants_trailers:
                lines += header_lines(event[1])
            self._transport.write(lines + b"\r\n" if event[0] == TRAILERS_END else lines)

    def _head(self, whole: int | None) -> bytes:
        start, self._start = self._start, None
        request = self._request
        assert start is not None
        assert request is not None
        headers = start[2]
        trailers = False
        if start[0] == RESPONSE_START_TRAILERS:
            trailers = request.wants_trailers
            # With trailers a body must be chunked, and its length must not be said: RFC 9112 section 6.2. Without,
            # none must be announced.
            unfit = b"content-length" if trailers else b"trailer"
            headers = tuple([header for header in headers if header[0].lower() != unfit])
        head = response_head(
            start[1],
            headers,
            self._standard,
            http_version=request.http_version,
            method=request.method,
            # An early response: the rest of the body is read and dropped if it is short. If it is not, the client must
            # know that the connection ends: RFC 9112 sections 9.3 and 9.6.
            keep_alive=self._keep_alive and request.rest <= DRAIN_BYTES,
            whole=whole,
            trailers=trailers,
        )
        self.framing, self.remaining, self.close = head.framing, head.length, head.close
        return head.data

    def _first(self, body: bytes, whole: int | None) -> None:
        head = self._head(whole)
        if self.framing is Framing.LENGTH and len(body) <= JOIN_BYTES and len(body) <= self.remaining:
            self.remaining -= len(body)
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._write(body)

    def _write(self, body: bytes) -> None:
        if not body or self.framing is Framing.NONE:
            return
        if self.framing is Framing.CHUNKED:
            if len(body) <= JOIN_BYTES:
                self._transport.write(chunk(body))
            else:
                self._transport.writelines((b"%x\r\n" % len(body), body, b"\r\n"))
            return
        if self.framing is Framing.LENGTH:
            if len(body) > self.remaining:
                logger.error("a response's body is longer than its content-length: the rest was cut off")
                body = body[: self.remaining]
            self.remaining -= len(body)
        self._transport.write(body)
