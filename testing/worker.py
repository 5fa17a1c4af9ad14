"""A worker within the process of a test, as the test sees it: what it serves, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from typing import Any

import anyio

from asgibus.compatibility.callables import Receive, Scope, Send
from asgibus.layers.memory import InMemoryChannelLayer
from asgibus.testing.layer import WorkerLayer
from asgibus.testing.tasks import Tasks
from asgibus.worker.application import adapted
from asgibus.worker.background import BackgroundWorker
from asgibus.worker.server import Worker, is_disconnect
from asgibus.worker.settings import WorkerSettings


class VirtualWorker:
    """What `asgi-worker` runs, with a mailbox, sessions and a lifespan of its own. `Bus.add_worker` makes them.

    `failed` is told what the app raised.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        settings: WorkerSettings,
        layer: InMemoryChannelLayer,
        failed: Callable[[Exception], None],
    ) -> None:
        self._app = app
        self._settings = settings
        self._layer = WorkerLayer(layer)
        self._failed = failed
        self._tasks = Tasks()
        self._stop = anyio.Event()
        self._ready = anyio.Event()
        self._over = anyio.Event()  # it has stopped serving, or is to
        self._ended = anyio.Event()
        self._serving: dict[int, Scope] = {}
        self._start_failure: Exception | None = None

    @property
    def alive(self) -> bool:
        """Whether it has neither been killed nor ended; one that drains is alive until it has."""
        return not self._layer.is_cut

    @property
    def serving(self) -> list[Scope]:
        """The scopes for which its app is running, the oldest first; without the lifespan."""
        return [*self._serving.values()]

    def delay(self, seconds: float) -> None:
        """From now on it gets everything that much later, in order, as if it, or its way to the bus, were slow.

        A new connection is taken as ever, so that nobody else gets it, and its app begins so much later; until then
        this worker takes no others. What a client sends, and that it leaves, reaches the app so much later. What the
        app sends is not delayed, nor are its own calls of the layer. 0 ends it, and what is under way keeps its time.
        Raises ValueError below 0.
        """
        if seconds < 0:
            raise ValueError(f"a delay is 0 or more seconds, not {seconds}")
        self._layer.delay = seconds

    async def drain(self) -> None:
        """As SIGTERM: take nothing new, hand over or close the WebSockets, finish the requests; returns at the end.

        That takes at most `graceful_timeout` and the app's shut-down. Cancelling the call does not stop it.
        """
        self._stop.set()
        await self._ended.wait()

    async def kill(self) -> None:
        """As SIGKILL: nothing more is said, and the others learn it before this returns.

        Everything that the app has started is cancelled, until it ends: `finally` blocks run, but nothing that they
        send goes out, and what they wait for is cancelled. Code in threads goes on, unheard. Called by the app itself,
        it does not return.
        """
        if not self._ended.is_set():
            self._layer.cut()
            self._over.set()
            await self._ended.wait()

    async def run(self) -> None:
        """Its whole life; for `Bus`. Raises nothing."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._serve)
                try:
                    await self._over.wait()
                finally:  # as with a process, whatever the app has left running goes
                    with anyio.CancelScope(shield=True):
                        await self._cancel()
        finally:
            self._layer.cut()
            self._ended.set()

    async def _cancel(self) -> None:
        try:
            await self._tasks.cancel()
        except RuntimeError as error:
            self._failed(error)

    async def _serve(self) -> None:
        self._tasks.own_this_context()
        try:
            if self._settings.factory:
                self._app = self._app()
            self._app, settings = adapted(self._app, self._settings)
            kind = BackgroundWorker if settings.channels else Worker
            await kind(settings, self._run_app, self._layer).serve(self._stop, self._ready.set)
        except asyncio.CancelledError:
            if not self._layer.is_cut:
                raise
        except Exception as error:  # noqa: BLE001 - given to whoever started it, or to the test
            if self._layer.is_cut:
                pass  # its last words
            elif self._ready.is_set():
                self._failed(error)
            else:
                self._start_failure = error
        finally:
            self._over.set()
            self._ready.set()

    async def started(self) -> None:
        """Wait for the end of its start-up; for `Bus`. Raises what ended it, such as LifespanError."""
        await self._ready.wait()
        if self._start_failure is not None:
            await self._ended.wait()
            raise self._start_failure

    async def _run_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app, and keep what it raises."""
        is_lifespan = scope["type"] == "lifespan"
        started = not is_lifespan

        async def heed(event: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = started or event.get("type") == "lifespan.startup.complete"
            await send(event)

        if not is_lifespan:
            self._serving[id(scope)] = scope
        try:
            await self._app(scope, receive, heed if is_lifespan else send)
        except (Exception, BaseExceptionGroup) as error:
            if self._layer.is_cut:
                raise asyncio.CancelledError("this worker was killed") from None
            # Before its start-up is complete, an app says by raising that it does not know the lifespan.
            if started and not is_disconnect(error) and isinstance(error, Exception):
                self._failed(error)
            raise
        finally:
            self._serving.pop(id(scope), None)
