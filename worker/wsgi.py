"""WSGI apps (PEP 3333) in threads, through a2wsgi.

a2wsgi has the threads, the queue between them and the event loop, and most of the environ. What is done here is what
it leaves open: a thread is freed when its client is gone, headers wait for the first byte of the body, and the body of
the request and some of the environ are read otherwise.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes

from a2wsgi import WSGIMiddleware

from asgibus.compatibility.callables import Receive, Scope, Send
from asgibus.worker.sending import ClientDisconnected

Environ = dict[str, Any]
Write = Callable[[bytes], object]
StartResponse = Callable[..., Write]
WSGICallable = Callable[[Environ, StartResponse], Iterable[bytes]]

QUEUED = 1  # parts of a response between a thread and the event loop: large ones must not fill memory
READ_BUFFER = 64 * 1024  # bytes, as much as a part of a body that comes over the bus
_EXCHANGE = "asgibus.wsgi"


class WSGIApplication:
    """An ASGI 3 app that runs a WSGI app, each request in one of `threads` threads.

    A run that is cancelled ends when its thread is free again: the app's next read or write raises. WebSockets are
    refused with 403.
    """

    def __init__(self, app: WSGICallable, threads: int) -> None:
        self._app = app
        self._adapter = WSGIMiddleware(_run, workers=threads, send_queue_size=QUEUED)  # type: ignore[arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._adapter(scope, receive, send)  # type: ignore[arg-type]
            return
        exchange = _Exchange(self._app, scope, receive, send)
        run = asyncio.ensure_future(self._adapter(exchange.scope, receive, exchange.send))  # type: ignore[arg-type]
        try:
            await asyncio.shield(run)
        except asyncio.CancelledError:
            exchange.cut()
            await asyncio.wait([run])
            if not run.cancelled():
                run.exception()  # what the app made of it is of no interest any more
            raise
        if exchange.failure is not None:
            raise exchange.failure


def _run(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    exchange: _Exchange = environ["asgi.scope"][_EXCHANGE]
    return exchange.run(environ, start_response)


class _Exchange:
    """One request and its response, between a thread and the event loop."""

    def __init__(self, app: WSGICallable, scope: Scope, receive: Receive, send: Send) -> None:
        self._app = app
        self._scope = scope
        self._receive = receive
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._sending: asyncio.Task[Any] | None = None  # a2wsgi's, while it waits for the client
        self._body = _Body(self)
        self._head: tuple[str, list[tuple[str, str]]] | None = None
        self._begun = False
        self._start: StartResponse
        self.failure: Exception | None = None
        """Why nothing can be written any more."""
        self.scope = {
            **scope,
            "headers": list(_headers(scope["headers"])),
            "query_string": b"",  # it need not be ASCII, which a2wsgi expects
            _EXCHANGE: self,
        }

    # In the event loop.

    async def send(self, event: MutableMapping[str, Any]) -> None:
        """As ASGI's send, but what it would raise is kept for the thread.

        a2wsgi stops to take from the thread once this raises, and the thread would wait for ever.
        """
        if self.failure is not None:
            return
        self._sending = sender = asyncio.current_task()
        try:
            await self._send(event)
        except asyncio.CancelledError:
            if self.failure is None or sender is None or sender.uncancel() > 0:
                raise
            # Only `cut` has ended this wait: a2wsgi shall go on to take from the thread.
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised into the app
            self.failure = error
        finally:
            self._sending = None

    def cut(self) -> None:
        """Nothing is read or written from now on."""
        self.failure = ClientDisconnected("the request was cut off")
        if self._sending is not None:
            self._sending.cancel()
        self._body.cut()

    # In the thread.

    def run(self, environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        """What a2wsgi takes for the app."""
        self._start = start_response
        self._complete(environ)
        parts = self._app(environ, self._start_response)
        try:
            for part in parts:
                if part:
                    self._begin()
                    yield part
            self._begin()
        finally:
            if close := getattr(parts, "close", None):
                close()

    def message(self) -> concurrent.futures.Future[dict[str, Any]]:
        """The next event of the request."""

        async def receive() -> dict[str, Any]:
            return await self._receive()

        return asyncio.run_coroutine_threadsafe(receive(), self._loop)

    def _start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Write:
        """Note the head: until the body begins the app may call this again, with an error, and replace it.

        a2wsgi would have sent the first one, and would take an `exc_info` for an error that nobody has dealt with.
        """
        if exc_info is not None:
            try:
                if self._begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self._head is not None:
            raise RuntimeError("the WSGI app called start_response a second time, without exc_info")
        self._head = (status, [*headers])
        return self._write

    def _write(self, data: bytes) -> None:
        if data:
            self._begin()(data)

    def _begin(self) -> Write:
        """Send the head if it is still to be sent."""
        if self.failure is not None:
            raise self.failure
        if self._head is None:
            raise RuntimeError("the WSGI app did not call start_response")
        if not self._begun:
            self._begun = True
            status, headers = self._head
            self._writer = self._start(status if " " in status else f"{status} ", headers)
        return self._writer

    def _complete(self, environ: Environ) -> None:
        """What a2wsgi leaves out, or makes otherwise.

        It takes the path from the decoded one, where bytes that are not UTF-8 are lost, SCRIPT_NAME from the process's
        environment, and writes errors to standard output. Its `wsgi.input` ends early where a line is longer than the
        limit of `readline`, and when the client is gone.
        """
        scope = self._scope
        root = scope["root_path"]
        environ["SCRIPT_NAME"] = root.encode().decode("latin-1").rstrip("/")
        environ["PATH_INFO"] = unquote_to_bytes(scope["raw_path"][len(root.encode()) :]).decode("latin-1")
        environ["QUERY_STRING"] = scope["query_string"].decode("latin-1")
        environ.setdefault("REMOTE_ADDR", "")
        environ["wsgi.errors"] = sys.stderr
        environ["wsgi.input"] = io.BufferedReader(self._body, READ_BUFFER)
        environ["wsgi.input_terminated"] = True
        environ["asgi.scope"] = scope


class _Body(io.RawIOBase):
    """The body of a request, read in the thread. Raises ClientDisconnected if it does not come whole."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange
        self._left = memoryview(b"")
        self._more = True
        self._waiting: concurrent.futures.Future[dict[str, Any]] | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left and self._more:
            self._next()
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def cut(self) -> None:
        """End a wait for more. To be called when there is a failure."""
        if self._waiting is not None:
            self._waiting.cancel()

    def _next(self) -> None:
        self._waiting = waiting = self._exchange.message()
        if self._exchange.failure is not None:  # looked at after `_waiting` is set: else `cut` could miss both
            waiting.cancel()
        try:
            event = waiting.result()
        except concurrent.futures.CancelledError:
            raise ClientDisconnected("the request was cut off") from None
        finally:
            self._waiting = None
        if event["type"] != "http.request":
            raise ClientDisconnected("the client is gone before its request was whole")
        self._left = memoryview(event.get("body", b""))
        self._more = event.get("more_body", False)


def _headers(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """The headers as they can be in an environ.

    A name with an underscore would pass for another with a dash, which a proxy in front may have vouched for. Cookies
    that came in several headers are joined by a semicolon, the others (by a2wsgi) by a comma.
    """
    cookies = []
    for name, value in headers:
        if name == b"cookie":
            cookies.append(value)
        elif b"_" not in name:
            yield name, value
    if cookies:
        yield b"cookie", b"; ".join(cookies)
