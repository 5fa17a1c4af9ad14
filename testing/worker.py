"""A worker within the process of a test, which the test can kill, drain or delay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from typing import Any

import anyio

from asgibus.compatibility.callables import Receive, Scope, Send
from asgibus.layers.memory import InMemoryChannelLayer
from asgibus.testing.layer import WorkerLayer
from asgibus.testing.tasks import Tasks
from asgibus.worker.background import BackgroundWorker
from asgibus.worker.loader import adapt_app
from asgibus.worker.settings import WorkerSettings
from asgibus.worker.worker import Worker, is_disconnect


class VirtualWorker:
    """The code of `asgi-worker`, with its own mailbox, sessions and lifespan. `Bus.add_worker` makes it."""

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
        self._over = anyio.Event()  # the worker has stopped serving, or has to
        self._ended = anyio.Event()
        self._serving: dict[int, Scope] = {}
        self._start_failure: Exception | None = None

    @property
    def alive(self) -> bool:
        """Whether the worker has not ended yet. A worker that drains is alive until it has ended."""
        return not self._layer.is_cut

    @property
    def serving(self) -> list[Scope]:
        """The scopes that the app is running for, the oldest first, without the lifespan."""
        return [*self._serving.values()]

    def delay(self, seconds: float) -> None:
        """Deliver everything to this worker late, in order, as if the worker or its network were slow.

        Events of clients and their disconnects reach the app late. A new connection is claimed at once, so that no
        other worker gets it, but its app starts late, and until then this worker claims no others. Events that the app
        sends are not delayed, nor are its own calls of the layer.

        Args:
            seconds: The delay of what arrives from now on; 0 ends it.

        Raises:
            ValueError: The delay is below 0.
        """
        if seconds < 0:
            raise ValueError(f"a delay is 0 or more seconds, not {seconds}")
        self._layer.delay = seconds

    async def drain(self) -> None:
        """Stop the worker as SIGTERM does, and return when it has ended.

        The worker claims nothing new, hands over or closes its WebSockets, and finishes its requests within
        `graceful_timeout`. Then the shut-down of the app runs. Cancelling the call does not stop the drain.
        """
        self._stop.set()
        await self._ended.wait()

    async def kill(self) -> None:
        """End the worker as SIGKILL does: it sends nothing more, and the other processes know before this returns.

        All tasks that the app has started are cancelled until they end. `finally` blocks run, but nothing that they
        send goes out, and every wait in them is cancelled. Code in threads continues without effect. If the app itself
        calls this, the call does not return.
        """
        if not self._ended.is_set():
            self._layer.cut()
            self._over.set()
            await self._ended.wait()

    async def run(self) -> None:
        """Run the worker from its start to its end; for `Bus`. Never raises."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._serve)
                try:
                    await self._over.wait()
                finally:  # as with a process, all tasks of the app end
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
            self._app, settings = adapt_app(self._app, self._settings)
            kind = BackgroundWorker if settings.channels else Worker
            await kind(settings, self._run_app, self._layer).serve(self._stop, self._ready.set)
        except asyncio.CancelledError:
            if not self._layer.is_cut:
                raise
        except Exception as error:  # noqa: BLE001 - raised by `started`, or reported to the test
            if self._layer.is_cut:
                pass  # a killed process reports nothing
            elif self._ready.is_set():
                self._failed(error)
            else:
                self._start_failure = error
        finally:
            self._over.set()
            self._ready.set()

    async def started(self) -> None:
        """Wait for the end of the start-up; for `Bus`. Raise the error that ended it, such as LifespanError."""
        await self._ready.wait()
        if self._start_failure is not None:
            await self._ended.wait()
            raise self._start_failure

    async def _run_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app and record its exceptions."""
        is_lifespan = scope["type"] == "lifespan"
        started = not is_lifespan

        async def note_startup(event: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = started or event.get("type") == "lifespan.startup.complete"
            await send(event)

        if not is_lifespan:
            self._serving[id(scope)] = scope
        try:
            await self._app(scope, receive, note_startup if is_lifespan else send)
        except (Exception, BaseExceptionGroup) as error:
            if self._layer.is_cut:
                raise asyncio.CancelledError("this worker was killed") from None
            # Before its start-up is complete, an app says by raising that it does not know the lifespan.
            if started and not is_disconnect(error) and isinstance(error, Exception):
                self._failed(error)
            raise
        finally:
            self._serving.pop(id(scope), None)
