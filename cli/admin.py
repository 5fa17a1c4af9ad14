"""The admin port of both commands: whether the process lives, whether it is ready, and what it has counted.

It is meant for probes and for Prometheus, on an address that the public does not reach: it asks for no password.
"""

from __future__ import annotations

import logging
import socket
from asyncio import StreamReader, StreamWriter, start_server
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import anyio
import httptools

from asgibus.layers.contract import Statistics

logger = logging.getLogger("asgibus.admin")

MAX_HEAD_SIZE = 8 * 1024  # bytes; a probe sends some hundred
MAX_UNWANTED = 64 * 1024  # bytes that are read behind a request: what a client has on its way when it is answered
MAX_SOCKETS = 16  # probes come one by one; what is more is a mistake, and must not take file descriptors from clients
SECONDS = 5.0  # for a request's head to come, and again for its answer to be taken
TEXT = "text/plain; charset=utf-8"


class AdminError(Exception):
    """The admin port cannot be listened on; the text says which, and why not."""


class Health(Protocol):
    """What a server tells about itself. Called in the event loop; must not block."""

    def ready(self) -> str | None:
        """None when it can take new connections; else why not, in one sentence."""

    def counts(self) -> Mapping[str, int]:
        """How often things happened since the start, by what it was, such as "takeover" or "slow client"."""

    def gauges(self) -> Mapping[str, int]:
        """How much there is of something now, by its name, such as "connections"."""

    async def channels(self) -> Mapping[str, Statistics]:
        """The channels that the process works for, by their names: few, and named by whoever runs it."""


@asynccontextmanager
async def admin(host: str, port: int, health: Health) -> AsyncIterator[str]:
    """Answer GET and HEAD of /healthz, /readyz and /metrics until the context ends; yields the URL.

    /healthz is answered from the event loop: its 200 shows that the loop turns, and no more. /readyz is 503, with the
    reason, while the process is not ready. Raises AdminError.
    """
    listening = _listening_socket(host, port)
    answers = _Answers(health)
    sockets = _Sockets()
    ended = False

    def accept(reader: StreamReader, writer: StreamWriter) -> None:
        if ended or not sockets.admit(writer):
            writer.transport.abort()
        else:
            tasks.start_soon(serve, reader, writer)

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        try:
            await _serve(reader, writer, answers, sockets)
        except (OSError, RuntimeError):
            pass  # the client is gone (uvloop: "the handler is closed"), and nobody else waits for the answer
        finally:
            sockets.forget(writer)
            writer.transport.abort()

    async with (
        await start_server(accept, sock=listening, backlog=MAX_SOCKETS, start_serving=False) as server,
        anyio.create_task_group() as tasks,
    ):
        await server.start_serving()
        try:
            yield _url(listening)
        finally:
            ended = True
            server.close()
            tasks.cancel_scope.cancel()


def _listening_socket(host: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(MAX_SOCKETS)  # another process may have bound the same port, and is seen only now
        listening.setblocking(False)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or error
        raise AdminError(f"cannot listen on {host}:{port} for the admin port: {reason}") from error
    return listening


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class _Sockets:
    """The open sockets, oldest first. Those that ask for nothing make room for new ones."""

    def __init__(self) -> None:
        self._idle: dict[StreamWriter, None] = {}
        self._asking: set[StreamWriter] = set()

    def admit(self, writer: StreamWriter) -> bool:
        """Take a new socket in, and close the oldest idle one if there are too many. False if all ask for something."""
        if len(self._idle) + len(self._asking) >= MAX_SOCKETS:
            if not self._idle:
                return False
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            oldest.transport.abort()
        self._idle[writer] = None
        return True

    def asks(self, writer: StreamWriter) -> None:
        """Keep a socket whose request is there, until it is answered."""
        if writer in self._idle:
            del self._idle[writer]
            self._asking.add(writer)

    def answered(self, writer: StreamWriter) -> None:
        """Take a socket for idle again, which only waits for its client to go."""
        if writer in self._asking:
            self._asking.discard(writer)
            self._idle[writer] = None

    def forget(self, writer: StreamWriter) -> None:
        """Leave out a socket that has ended."""
        self._idle.pop(writer, None)
        self._asking.discard(writer)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: bytes
    body: bytes
    content_type: str = TEXT

    def head(self) -> bytes:
        allow = b"Allow: GET, HEAD\r\n" if self.status.startswith(b"405") else b""
        return (
            b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n%s"
            b"Cache-Control: no-store\r\nConnection: close\r\n\r\n"
            % (self.status, self.content_type.encode(), len(self.body), allow)
        )


class _Head:
    """The head of one request. What comes behind it is not read: the answer is the last thing on its socket."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self.method = b""
        self.target = b""
        self.complete = False

    def feed(self, data: bytes) -> None:
        """Read on. Raises httptools.HttpParserError for what is no request."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # to another protocol: not taken up
        except httptools.HttpParserError:
            if not self.complete:
                raise

    def on_url(self, url: bytes) -> None:
        if not self.complete:
            self.target += url

    def on_headers_complete(self) -> None:
        if not self.complete:
            self.complete = True
            self.method = self._parser.get_method()


async def _serve(reader: StreamReader, writer: StreamWriter, answers: _Answers, sockets: _Sockets) -> None:
    head = _Head()
    try:
        with anyio.fail_after(SECONDS):
            refusal = await _read(reader, head)
            sockets.asks(writer)
            answer = refusal or await answers.to(head)
    except TimeoutError:
        answer = _Answer(b"408 Request Timeout", b"The request did not come in time.\n")
    except EOFError:
        return
    with anyio.move_on_after(SECONDS):
        writer.write(answer.head() + (b"" if head.method == b"HEAD" else answer.body))
        await writer.drain()
        writer.write_eof()
        sockets.answered(writer)
        # Closing with bytes unread would reset the connection, and the client might not see the answer.
        unwanted = 0
        while unwanted <= MAX_UNWANTED and (data := await reader.read(MAX_HEAD_SIZE)):
            unwanted += len(data)


async def _read(reader: StreamReader, head: _Head) -> _Answer | None:
    """Read the head, and return why it is refused, if so. Raises EOFError if the client goes before."""
    size = 0
    while not head.complete:
        if size >= MAX_HEAD_SIZE:
            return _Answer(b"431 Request Header Fields Too Large", b"The request head is too large.\n")
        data = await reader.read(MAX_HEAD_SIZE - size)
        if not data:
            raise EOFError
        size += len(data)
        try:
            head.feed(data)
        except httptools.HttpParserError:
            return _Answer(b"400 Bad Request", b"The request is not valid HTTP.\n")
    return None


class _Answers:
    """The three pages."""

    def __init__(self, health: Health) -> None:
        self._health = health
        # Not above: its library takes a tenth of a command's start-up, and without an admin port nobody needs it.
        from asgibus.cli.metrics import Metrics  # noqa: PLC0415

        self._all_metrics = Metrics(health)
        self._pages = {b"/healthz": self._healthz, b"/readyz": self._readyz, b"/metrics": self._metrics}

    async def to(self, head: _Head) -> _Answer:
        page = self._pages.get(head.target.partition(b"?")[0])
        if page is None:
            return _Answer(b"404 Not Found", b"There are /healthz, /readyz and /metrics.\n")
        if head.method not in {b"GET", b"HEAD"}:
            return _Answer(b"405 Method Not Allowed", b"Only GET and HEAD.\n")
        try:
            return await page()
        except Exception:
            # A mistake in counting must not end the servers whose counts they are.
            logger.exception("no answer to %s", head.target.decode("latin-1"))
            return _Answer(b"500 Internal Server Error", b"See the log.\n")

    async def _healthz(self) -> _Answer:
        return _Answer(b"200 OK", b"ok\n")

    async def _readyz(self) -> _Answer:
        reason = self._health.ready()
        if reason is None:
            return _Answer(b"200 OK", b"ready\n")
        return _Answer(b"503 Service Unavailable", f"{reason}\n".encode())

    async def _metrics(self) -> _Answer:
        page, kind = await self._all_metrics.page()
        return _Answer(b"200 OK", page, kind)
