"""The bus of a test: an interface server on a port of its own, workers, and clients, all in one event loop."""

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
from asgibus.layers.contract import ChannelLayer
from asgibus.layers.memory import InMemoryChannelLayer
from asgibus.testing.tasks import watching
from asgibus.testing.websocket import WebSocket
from asgibus.testing.worker import VirtualWorker
from asgibus.worker.settings import WorkerSettings

if TYPE_CHECKING:
    import httpx

TIMEOUT = 5.0  # for clients: what takes longer within a process does not come
GRACEFUL_TIMEOUT = 1.0  # for apps to end: a test whose app hangs should not take long to say so

_OURS = {  # what a test cannot choose
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
    """The servers of asgibus around `app`, over the memory layer, while `async with Bus(app) as bus` lasts.

    `app` is ASGI 3, ASGI 2 or WSGI; with `factory=True` each worker calls it for an app of its own. `workers` are
    started at once. `options` are those of `asgi-interface` and `asgi-worker`, with underscores, such as `resume=True`,
    `connect_timeout=0.2`, `lifespan="on"`. Clients wait for `timeout` seconds at most. Buses on one `layer` are several
    interface servers, and their workers serve them all.

    Raises TypeError for an unknown option. Entering raises LifespanError, ApplicationError for what is no app, and what
    a factory raises. Leaving raises an ExceptionGroup of what is left in `errors`; when the test fails by itself, they
    are notes of its exception instead.
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
        options = {"graceful_timeout": GRACEFUL_TIMEOUT, "access_log": False} | options
        _check(options, _WORKER | _INTERFACE)
        self.errors: list[Exception] = []
        """What the app raised, as it came; a test that expects an error takes it out."""
        self.workers: list[VirtualWorker] = []
        """All that were started, in this order; those that have ended, too."""
        self.url = ""
        """Where the server listens, such as http://127.0.0.1:49152, for any other client."""
        self._app = app
        self._count = workers
        self._layer = InMemoryChannelLayer() if layer is None else layer
        self._timeout = timeout
        self._options = options
        self._http: httpx.AsyncClient | None = None
        self._tasks: TaskGroup
        self._life: asyncio.Task[None] | None = None
        self._closing = anyio.Event()

    @property
    def layer(self) -> ChannelLayer:
        """The channel layer, as a program beside the servers has it."""
        return self._layer

    @property
    def http(self) -> httpx.AsyncClient:
        """An HTTP client of httpx for this server: `await bus.http.get("/")`. Raises ImportError without httpx."""
        if self._http is None:
            try:
                import httpx  # noqa: PLC0415  # only who uses it needs it
            except ImportError as error:
                raise ImportError("bus.http needs httpx: pip install 'asgibus[testing]'", name="httpx") from error
            # There is no TLS here, and to load the certificates that httpx trusts takes longer than most tests.
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._http = httpx.AsyncClient(base_url=self.url, timeout=self._timeout, trust_env=False, verify=tls)
        return self._http

    @asynccontextmanager
    async def websocket(self, path: str, **options: Any) -> AsyncIterator[WebSocket]:
        """An open WebSocket, closed at the end: `async with bus.websocket("/chat?room=1") as socket`.

        `options` are those of websockets' `connect`, such as `subprotocols`, `additional_headers`, `origin`. Raises
        websockets.exceptions.InvalidStatus when the app refuses, TimeoutError.
        """
        defaults = {"compression": None, "ping_interval": None, "proxy": None}
        timeouts = {"open_timeout": self._timeout, "close_timeout": self._timeout}
        url = self.url.replace("http", "ws", 1) + path
        async with connect(url, **(defaults | timeouts | options)) as client:
            yield WebSocket(client, self._timeout)

    def worker_of(self, socket: WebSocket) -> VirtualWorker:
        """The worker in which the app serves this socket.

        Raises LookupError when there is none: between two runs, until the next one has answered.
        """
        assert socket.client.request is not None
        key = socket.client.request.headers["Sec-WebSocket-Key"].encode()  # every handshake has one of its own
        for worker in self.workers:
            for scope in worker.serving if worker.alive else ():
                if (b"sec-websocket-key", key) in scope.get("headers", ()):
                    return worker
        raise LookupError("no worker serves this socket now: let the app answer something first")

    async def add_worker(self, **options: Any) -> VirtualWorker:
        """Start one more worker, and wait until it is ready.

        `options` are those of `asgi-worker`, over those of this bus: `pool="slow"`, or `channels=("mail",)` for
        background work. Raises TypeError, LifespanError, ApplicationError, and what a factory raises.
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
        if self._life is not None:
            raise RuntimeError("a Bus is entered once")
        opened = loop.create_future()
        # A task of its own: a test's fixtures may be entered in one task and left in another.
        self._life = loop.create_task(self._live(opened), context=_context())
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
        assert self._life is not None
        self._closing.set()
        try:
            await asyncio.wait([self._life])
        except asyncio.CancelledError:
            self._life.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([self._life])
            raise
        self._life.result()

    async def _live(self, listening: asyncio.Future[str]) -> None:
        """Hold all that runs here. First the sockets end, then the apps."""
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

        def listens(where: str) -> None:
            if not listening.done():  # else nobody waits for it any more
                listening.set_result(where)

        try:
            await Server(settings, self._layer).serve(stop, listens)
        except Exception as error:  # noqa: BLE001 - given to whoever enters, or to the test
            if listening.done():
                self.errors.append(error)
            else:
                listening.set_exception(error)
        finally:
            ended.set()


def _context() -> Context:
    """One in which anyio knows the event loop in callbacks, too: with sniffio installed, it looks there."""
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
