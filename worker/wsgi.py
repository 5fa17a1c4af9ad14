"""WSGI apps (PEP 3333), in threads that never wait for the network.

A request gets a thread when its body is whole. The thread writes the response as fast as the app runs, and is free for
the next request as soon as the app has returned, even if the client has not read the response.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import IO, Any
from urllib.parse import unquote_to_bytes

from asgibus.compatibility.callables import Receive, Scope, Send
from asgibus.protocol.stream import PART
from asgibus.worker.sendfile import place_in_file
from asgibus.worker.settings import WorkerSettings
from asgibus.worker.spool import RequestBody, ResponseBody, Spool, SpoolFull

Environ = dict[str, Any]
Write = Callable[[bytes], object]
StartResponse = Callable[..., Write]
WSGICallable = Callable[[Environ, StartResponse], Iterable[bytes]]
Headers = list[tuple[bytes, bytes]]


class BodyTooLarge(Exception):
    """The body of a request is larger than the settings allow."""


class WSGIApplication:
    """An ASGI 3 app that runs a WSGI app in a pool of threads.

    When a request is cancelled, the app's next write raises, and the request ends when its thread has ended.
    WebSockets are rejected with 403.

    Args:
        app: The WSGI app.
        settings: The settings of the worker.
    """

    def __init__(self, app: WSGICallable, settings: WorkerSettings) -> None:
        self._app = app
        self._threads = settings.threads
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="WSGI")
        self._max_body_size = settings.wsgi_max_body_size
        self._ahead = settings.wsgi_response_buffer
        self._spool = Spool(settings.wsgi_spool_size)
        self._waiting = 0  # requests that wait for their client and need no thread
        self.on_free: Callable[[], object] = lambda: None
        """Called when a request has released its thread."""

    def free_threads(self, connections: int) -> int:
        """Return the number of free threads while that many connections are served."""
        return self._threads - (connections - self._waiting)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        elif scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            while (await receive())["type"] != "lifespan.shutdown":
                pass  # the notice before it
            await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._wait()
        request = RequestBody(self._spool)
        try:
            body = await self._await_body(request, scope, receive, send)
            if body is not None:
                response = ResponseBody(self._spool, self._ahead)
                exchange = _Exchange(self._app, _environ(scope, body, request.size), self._spool, response)
                await self._respond(exchange, send)
        finally:
            await request.close()
            self._waiting -= 1

    async def _await_body(self, request: RequestBody, scope: Scope, receive: Receive, send: Send) -> IO[bytes] | None:
        """Wait until the body is whole. Return None if the client is gone or was refused."""
        try:
            if (body := await self._gather(request, scope, receive)) is not None:
                return body
            status = HTTPStatus.SERVICE_UNAVAILABLE  # the worker stops, or the client is gone
        except BodyTooLarge:
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        except SpoolFull:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            text = "a request gets 503: others have used up --wsgi-spool-size, or the number of open files"
            self._spool.log.count(text, text, level=logging.ERROR)
        except OSError as error:
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            text = "a request gets 500: its body cannot be kept in a temporary file: %s"
            self._spool.log.count(text, text, error, level=logging.ERROR)
        await _refuse(send, status)
        return None

    async def _gather(self, request: RequestBody, scope: Scope, receive: Receive) -> IO[bytes] | None:
        """Write the body to `request`.

        Returns:
            The whole body as a file; None if the client is gone.

        Raises:
            BodyTooLarge: The body is larger than the settings allow.
            SpoolFull: The spool has no room.
            OSError: The body cannot be written.
        """
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if int(length) > self._max_body_size:
            raise BodyTooLarge
        more = True
        while more:
            event = await receive()
            if event["type"] != "http.request":
                return None
            await request.write(event.get("body", b""))
            if request.size > self._max_body_size:
                raise BodyTooLarge
            more = event.get("more_body", False)
        return await request.rewind()

    async def _respond(self, exchange: _Exchange, send: Send) -> None:
        """Run the app in a thread and send its response."""
        self._waiting -= 1
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        run = loop.run_in_executor(self._pool, context.run, exchange.run)
        run.add_done_callback(self._wait)
        try:
            await exchange.forward(send)
            await run  # raises the exception of the app
        except BaseException as error:
            if not run.done():
                exchange.response.abort(error if isinstance(error, Exception) else OSError("the request was cut off"))
                await asyncio.wait([run])
                run.exception()  # marks it as retrieved: it follows from the error above
            raise
        finally:
            exchange.response.close()
            if exchange.has_file:  # its `close` may be the app's and block, so it is called in a thread
                await asyncio.shield(loop.run_in_executor(self._pool, context.run, exchange.close_file))

    def _wait(self, _: object = None) -> None:
        self._waiting += 1
        self.on_free()


class FileWrapper:
    """A file as a body: `wsgi.file_wrapper`, PEP 3333, "Optional Platform-Specific File Handling"."""

    def __init__(self, file: Any, block_size: int = PART) -> None:
        self.file = file
        self._block_size = block_size
        if hasattr(file, "close"):
            self.close = file.close

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.file.read(self._block_size), b"")


class _Exchange:
    """One request and its response, between a thread and the event loop."""

    def __init__(self, app: WSGICallable, environ: Environ, spool: Spool, response: ResponseBody) -> None:
        self._app = app
        self._environ = environ
        self._spool = spool
        self._head: tuple[int, Headers] | None = None
        self._started = False
        self._file: tuple[int, int] | None = None  # descriptor and position
        self._close_file: Callable[[], object] | None = None
        self.response = response

    @property
    def has_file(self) -> bool:
        """Whether the app has returned a file, which must be closed after it was sent."""
        return self._file is not None

    # Called in the event loop.

    async def forward(self, send: Send) -> None:
        """Send the response while the thread writes it. The end is not sent if the app has raised."""
        started = False
        last = False
        while not last:
            body, last = await self.response.read()
            if not body and not last:
                return
            if not started:
                started = True
                assert self._head is not None
                status, headers = self._head
                await send({"type": "http.response.start", "status": status, "headers": headers})
            if self._file is not None:
                descriptor, position = self._file
                event = {"type": "http.response.zerocopysend", "file": descriptor, "offset": position}
                await send(event if (length := self._length()) is None else {**event, "count": length})
            else:
                await send({"type": "http.response.body", "body": body, "more_body": not last})

    # Called in the thread.

    def run(self) -> None:
        """Call the app and write the body that it returns."""
        complete = False
        try:
            self.response.raise_if_aborted()
            self._write_all(self._app(self._environ, self._start_response))
            complete = True
        except StopIteration as error:  # a future cannot hold a StopIteration
            raise RuntimeError("the WSGI app raised StopIteration") from error
        finally:
            self.response.end(complete=complete)

    def close_file(self) -> None:
        """Close the file that the app has returned."""
        self._spool.release_file()
        if self._close_file is not None:
            self._close_file()

    def _write_all(self, parts: Iterable[bytes]) -> None:
        close = getattr(parts, "close", None)
        try:
            if type(parts) is FileWrapper and not self._started and self._environ["REQUEST_METHOD"] != "HEAD":
                place = place_in_file(parts.file)
                if place is not None and self._spool.reserve_file():
                    self._fix_head()
                    self._file = place
                    self._close_file, close = close, None
                    return
            for part in parts:
                if part:
                    if not self._started and isinstance(parts, list | tuple) and len(parts) == 1:
                        self._add_length(len(part))
                    self._write(part)
                    if self._environ["REQUEST_METHOD"] == "HEAD":
                        break  # only the head is sent
            self._fix_head()
        finally:
            if close is not None:
                close()

    def _start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Write:
        """Store the head. Until the body begins, the app may replace it with that of an error."""
        if exc_info is not None:
            try:
                if self._started:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self._head is not None:
            raise RuntimeError("the WSGI app called start_response a second time, without exc_info")
        self._head = (int(status[:3]), [_header(name, value) for name, value in headers])
        return self._write

    def _write(self, data: bytes) -> None:
        if data:
            self._fix_head()
            if self._environ["REQUEST_METHOD"] != "HEAD":
                self.response.write(data)

    def _fix_head(self) -> None:
        """Fix the head, because the body begins."""
        if self._head is None:
            raise RuntimeError("the WSGI app did not call start_response")
        self._started = True

    def _add_length(self, length: int) -> None:
        """Add the length of a body with a single part, PEP 3333, "Handling the Content-Length Header"."""
        if self._head is not None and self._length() is None:
            self._head[1].append((b"content-length", b"%d" % length))

    def _length(self) -> int | None:
        """Return the content-length in the head."""
        assert self._head is not None
        return next((int(value) for name, value in self._head[1] if name == b"content-length"), None)


def _header(name: str, value: str) -> tuple[bytes, bytes]:
    return name.strip().lower().encode("latin-1"), value.strip().encode("latin-1")


async def _refuse(send: Send, status: HTTPStatus) -> None:
    """Answer a request that the app does not get."""
    body = f"{status.phrase}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status.value, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _environ(scope: Scope, body: IO[bytes], size: int) -> Environ:
    """Return the environ of a request, PEP 3333, "environ Variables".

    Args:
        scope: The scope of the request.
        body: The whole body.
        size: The bytes of the body.
    """
    root = scope["root_path"].encode()
    server, port = scope["server"] or ("localhost", 80)
    client, client_port = scope["client"] or ("", None)
    environ: Environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": root.decode("latin-1").rstrip("/"),
        # Not the decoded path, which has lost the bytes that are not UTF-8.
        "PATH_INFO": unquote_to_bytes(scope["raw_path"][len(root) :]).decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": server,
        "SERVER_PORT": str(port or 0),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "REMOTE_ADDR": client,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": body,
        "wsgi.file_wrapper": FileWrapper,
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "asgi.scope": scope,
    }
    if client_port is not None:
        environ["REMOTE_PORT"] = str(client_port)
    for name, value in scope["headers"]:
        if name == b"transfer-encoding":
            environ["CONTENT_LENGTH"] = str(size)  # the body is no longer chunked, and its length is known
        elif b"_" not in name:  # else it could be taken for a header with a dash, which a proxy may have checked
            key = name.decode("latin-1").upper().replace("-", "_")
            key = key if key in ("CONTENT_LENGTH", "CONTENT_TYPE") else f"HTTP_{key}"
            text = value.decode("latin-1")
            joint = "; " if name == b"cookie" else ","
            environ[key] = f"{environ[key]}{joint}{text}" if key in environ else text
    return environ
