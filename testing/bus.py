"""The bus of a test: an interface server on its own port, workers and clients, in one event loop."""

from __future__ import annotations

import asyncio
import ssl
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from contextvars import Context, copy_context
from dataclasses import fields
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio
from anyio.abc import TaskGroup
from websockets.asyncio.client import connect

from asgibus.interface_server.server import Server
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.memory import InMemoryChannelLayer
from asgibus.testing.tasks import watching
from asgibus.testing.websocket import WebSocket
from asgibus.testing.worker import VirtualWorker
from asgibus.worker.settings import WorkerSettings

if TYPE_CHECKING:
    import httpx

TIMEOUT = 5.0  # for clients: within one process, an answer that takes longer does not come
GRACEFUL_TIMEOUT = 1.0  # for apps to end: a test whose app hangs should fail soon

_OURS = {  # settings that a test cannot choose
    "app",
    "app_dir",
    "layer",
    "prefix",
    "encryption_keys",
    "host",
    "port",
    "uds",
    "fd",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_keyfile_password",
    "ssl_ca_certs",
}
_WORKER = {field.name for field in fields(WorkerSettings)} - _OURS
_INTERFACE = {field.name for field in fields(InterfaceSettings)} - _OURS


class Bus:
    """An interface server and workers that run an app over the memory layer: `async with Bus(app) as bus`.

    Entering starts the server and the workers. It raises LifespanError if a start-up fails, ApplicationError if `app`
    is not an app, and whatever a factory raises. Leaving raises an ExceptionGroup of the exceptions in `errors`. If the
    test itself fails, they become notes of its exception instead.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        *,
        workers: int = 1,
        layer: InMemoryChannelLayer | None = None,
        timeout: float = TIMEOUT,
        **options: Any,
    ) -> None:
        """Make a bus that is not running yet.

        Args:
            app: An ASGI 3, ASGI 2 or WSGI app. With `factory=True` each worker calls it for an app of its own.
            workers: How many workers are started at once.
            layer: The layer to use. Buses on one layer are several interface servers, and their workers serve all of
                them.
            timeout: Seconds that the clients wait at most.
            **options: Options of `asgi-interface` and `asgi-worker`, with underscores, such as `resume=True`,
                `connect_timeout=0.2` or `lifespan="on"`.

        Raises:
            TypeError: An option is not known.
        """
        options = {"graceful_timeout": GRACEFUL_TIMEOUT, "access_log": False} | options
        _check(options, _WORKER | _INTERFACE)
        self.errors: list[Exception] = []
        """The exceptions that the app raised. A test that expects one removes it."""
        self.workers: list[VirtualWorker] = []
        """All workers in the order of their starts, including those that have ended."""
        self.url = ""
        """The address of the server for any other client, such as http://127.0.0.1:49152."""
        self._app = app
        self._count = workers
        self._layer = InMemoryChannelLayer() if layer is None else layer
        self._timeout = timeout
        self._options = options
        self._http: httpx.AsyncClient | None = None
        self._tasks: TaskGroup
        self._task: asyncio.Task[None] | None = None
        self._closing = anyio.Event()

    @property
    def layer(self) -> ChannelLayer:
        """The channel layer, as a program outside the servers would have it."""
        return self._layer

    @property
    def http(self) -> httpx.AsyncClient:
        """An `httpx.AsyncClient` for this server: `await bus.http.get("/")`.

        Raises:
            ImportError: httpx is not installed.
        """
        if self._http is None:
            try:
                import httpx  # noqa: PLC0415  # an extra, needed for this alone
            except ImportError as error:
                raise ImportError("bus.http needs httpx: pip install 'asgibus[testing]'", name="httpx") from error
            # There is no TLS here, and to load the certificates that httpx trusts takes longer than most tests.
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._http = httpx.AsyncClient(base_url=self.url, timeout=self._timeout, trust_env=False, verify=tls)
        return self._http

    @asynccontextmanager
    async def websocket(self, path: str, **options: Any) -> AsyncIterator[WebSocket]:
        """Open a WebSocket, and close it at the end: `async with bus.websocket("/chat?room=1") as socket`.

        Args:
            path: The path, with the query string.
            **options: Options of `connect` of the websockets package, such as `subprotocols`, `additional_headers` or
                `origin`.

        Yields:
            The open WebSocket.

        Raises:
            websockets.exceptions.InvalidStatus: The app refused the WebSocket.
            TimeoutError: The handshake took longer than the timeout of the bus.
        """
        defaults = {"compression": None, "ping_interval": None, "proxy": None}
        timeouts = {"open_timeout": self._timeout, "close_timeout": self._timeout}
        url = self.url.replace("http", "ws", 1) + path
        async with connect(url, **(defaults | timeouts | options)) as client:
            yield WebSocket(client, self._timeout)

    def worker_of(self, socket: WebSocket) -> VirtualWorker:
        """Return the worker that serves a WebSocket.

        Raises:
            LookupError: No worker serves it: one run has ended, and the next one has not answered yet.
        """
        assert socket.client.request is not None
        key = socket.client.request.headers["Sec-WebSocket-Key"].encode()  # every handshake has one of its own
        for worker in self.workers:
            for scope in worker.serving if worker.alive else ():
                if (b"sec-websocket-key", key) in scope.get("headers", ()):
                    return worker
        raise LookupError("no worker serves this socket now: let the app answer something first")

    async def add_worker(self, **options: Any) -> VirtualWorker:
        """Start another worker, and wait until it is ready.

        Args:
            **options: Options of `asgi-worker`, which override those of the bus, such as `pool="slow"`, or
                `channels=("mail",)` for background work.

        Returns:
            The worker.

        Raises:
            TypeError: An option is not known.
            LifespanError: The start-up of the app failed.
            ApplicationError: `app` is not an app.
        """
        _check(options, _WORKER)
        settings = WorkerSettings(
            app=getattr(self._app, "__name__", type(self._app).__name__), **_named(_WORKER, self._options | options)
        )
        worker = VirtualWorker(self._app, settings, self._layer, self.errors.append)
        self.workers.append(worker)
        self._tasks.start_soon(worker.run)
        await worker.started()
        return worker

    async def __aenter__(self) -> Self:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError('asgibus.testing runs on asyncio: with anyio, choose the backend "asyncio"') from None
        if self._task is not None:
            raise RuntimeError("a Bus is entered once")
        opened = loop.create_future()
        # A separate task: fixtures of a test may be entered in one task and left in another.
        self._task = loop.create_task(self._run(opened), context=_context())
        try:
            self.url = await opened
            for _ in range(self._count):
                await self.add_worker()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._http is not None:
                await self._http.aclose()
        finally:
            await self._end()
        if error is not None:
            for raised in self.errors:
                error.add_note("Meanwhile the app raised:\n" + "".join(traceback.format_exception(raised)))
        elif self.errors:
            raise ExceptionGroup("the app raised", self.errors)

    async def _end(self) -> None:
        assert self._task is not None
        self._closing.set()
        try:
            await asyncio.wait([self._task])
        except asyncio.CancelledError:
            self._task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([self._task])
            raise
        self._task.result()

    async def _run(self, listening: asyncio.Future[str]) -> None:
        """Own all tasks of the bus. At the end the sockets are closed first, then the apps end."""
        stop, ended = anyio.Event(), anyio.Event()
        with watching():
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._serve, listening, stop, ended)
                await self._closing.wait()
                stop.set()
                await ended.wait()
                for worker in self.workers:
                    tasks.start_soon(worker.drain)

    async def _serve(self, listening: asyncio.Future[str], stop: anyio.Event, ended: anyio.Event) -> None:
        settings = InterfaceSettings(port=0, **_named(_INTERFACE, self._options))

        def listens(address: str) -> None:
            if not listening.done():  # else the test has been cancelled
                listening.set_result(address)

        try:
            await Server(settings, self._layer).serve(stop, listens)
        except Exception as error:  # noqa: BLE001 - raised by `__aenter__`, or reported to the test
            if listening.done():
                self.errors.append(error)
            else:
                listening.set_exception(error)
        finally:
            ended.set()


def _context() -> Context:
    """Return a context in which anyio finds the event loop in callbacks, where it asks sniffio if that is installed."""
    context = copy_context()
    with suppress(ImportError):
        import sniffio  # noqa: PLC0415  # other packages may bring it

        context.run(sniffio.current_async_library_cvar.set, "asyncio")
    return context


def _named(names: set[str], options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in names}


def _check(options: Mapping[str, Any], names: set[str]) -> None:
    if unknown := sorted(options.keys() - names):
        raise TypeError(f"unknown options: {', '.join(unknown)}; there are {', '.join(sorted(names))}")
