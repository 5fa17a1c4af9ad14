"""The start-up and shut-down of the app, once per worker process: ASGI "Lifespan Protocol" 2.0."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio

from asgibus.compatibility.callables import Application
from asgibus.worker.app_error import AppError, line_of, trace_of

logger = logging.getLogger("asgibus.worker")

Mode = Literal["auto", "on", "off"]

NOTICE = "lifespan.shutdown.notice"  # both an event and the extension that announces it

SHUTDOWN_SECONDS = 30.0  # for the app's shut-down: supervisors wait about as long before they kill the process
END_SECONDS = 5.0  # for the app to return after its shut-down, and again after it was cancelled


class LifespanError(AppError):
    """The app reported that its start-up failed; or it raised, and the mode counts that as a failure."""


@asynccontextmanager
async def lifespan(app: Application, mode: Mode, stop: anyio.Event, *, notice: bool = False) -> AsyncIterator[Lifespan]:
    """Run the app's start-up, and its shut-down at the end.

    Args:
        app: The application.
        mode: With "auto" an app that raises on the lifespan scope is served without a lifespan, as the specification
            demands. With "on" that is a failure. With "off" the app is not called.
        stop: Cancels the start-up when it is set. The caller must check it before it serves.
        notice: Whether the app gets `lifespan.shutdown.notice` when `Lifespan.notify` is called.

    Yields:
        The lifespan.

    Raises:
        LifespanError: The start-up failed.
    """
    runner = Lifespan(app, mode, notice=notice)
    if mode == "off":
        yield runner
        return
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runner.cancel_start, stop)
        failure = await runner.start()
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise _failed(failure, runner.raised)
    try:
        yield runner
    finally:
        await runner.stop()


def _failed(message: str, raised: BaseException | None) -> LifespanError:
    """Return the error of a start-up. Some frameworks send a traceback as the message; its last line is the error."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    trace = message if len(lines) > 1 else trace_of(raised) if raised is not None else ""
    why = lines[-1] if lines else ""
    return LifespanError(f"the app's start-up failed: {why}" if why else "the app's start-up failed", trace)


class Lifespan:
    """One call of the app with the lifespan scope.

    The call is a task of its own, because it lasts as long as the worker, and the start-up and the shut-down are waited
    for in different places.
    """

    def __init__(self, app: Application, mode: Mode, *, notice: bool) -> None:
        self._app = app
        self._mode = mode
        self._notice = notice
        self.state: dict[str, Any] = {}
        """The state of the lifespan scope."""
        self.raised: BaseException | None = None
        """The exception of the app, if the start-up failed."""
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=3)  # start-up, notice and shut-down
        self._started: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._stopped: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._received = False
        self._stopping = False  # whether the app was sent the shut-down
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> str | None:
        """Run the app's start-up. Return None, or the reason why it failed."""
        self._task = asyncio.create_task(self._run(), name="lifespan")
        self._events.put_nowait({"type": "lifespan.startup"})
        failure = await self._started
        if failure is not None:
            await self._end()
        return failure

    async def cancel_start(self, stop: anyio.Event) -> None:
        """Cancel the app when `stop` is set."""
        await stop.wait()
        if self._task is not None:
            logger.info("the app's start-up is cancelled")
            self._task.cancel()

    def notify(self) -> None:
        """Tell an app that wants to know that the worker stops: its connections still last for a while.

        The event is the one of the proposal https://github.com/django/asgiref/issues/588.
        """
        if self._notice and self._task is not None and not self._task.done():
            self._events.put_nowait({"type": NOTICE})

    async def stop(self) -> None:
        """Run the app's shut-down, and wait until the app has returned."""
        assert self._task is not None
        self._stopping = True
        if self._task.done():
            return
        self._events.put_nowait({"type": "lifespan.shutdown"})
        await asyncio.wait([self._stopped], timeout=SHUTDOWN_SECONDS)
        if not self._stopped.done():
            logger.error("the app's shut-down did not end within %g s and is cancelled", SHUTDOWN_SECONDS)
            self._task.cancel()
        await self._end()

    async def _end(self) -> None:
        """Wait until the app has returned, and cancel it if it does not."""
        assert self._task is not None
        await asyncio.wait([self._task], timeout=END_SECONDS)
        if not self._task.done():
            logger.error("the app did not return from its lifespan within %g s and is cancelled", END_SECONDS)
            self._task.cancel()
            await asyncio.wait([self._task], timeout=END_SECONDS)

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
            "extensions": {NOTICE: {}} if self._notice else {},
        }
        try:
            await self._app(scope, self._receive, self._send)
        except Exception as error:  # any exception of the app is an answer
            if self._started.done() and self._started.result() is not None:
                self.raised = error  # the app has reported that its start-up failed
            elif self._started.done():
                logger.error("the app raised in its lifespan", exc_info=error)
            elif self._mode == "auto" and self._received:
                # An app without a lifespan rejects the scope. This one has received the start-up, and then failed.
                logger.warning(
                    "the app raised in its start-up and is served anyway; --lifespan on prevents that",
                    exc_info=error,
                )
            elif self._mode == "auto":
                logger.debug("the app has no lifespan: %s: %s", type(error).__name__, error)
            else:
                self.raised = error
                self._resolve(self._started, line_of(error))
        finally:
            self._resolve(self._started, None)
            self._resolve(self._stopped, None)

    async def _receive(self) -> dict[str, Any]:
        event = await self._events.get()
        self._received = True
        return event

    async def _send(self, event: MutableMapping[str, Any]) -> None:
        kind = event.get("type")
        if kind == "lifespan.startup.complete":
            self._resolve(self._started, None)
        elif kind == "lifespan.startup.failed":
            self._resolve(self._started, str(event.get("message", "")))
        elif kind == "lifespan.shutdown.complete":
            if self._notice and not self._stopping:
                logger.warning(
                    "the app took the notice before its shut-down for the shut-down itself, and serves on without what "
                    "it has closed: it needs to ignore %s, or --shutdown-notice must be left out",
                    NOTICE,
                )
            self._resolve(self._stopped, None)
        elif kind == "lifespan.shutdown.failed":
            # At any time: an app may report a failure while it serves.
            logger.error("the app's shut-down failed: %s", event.get("message", ""))
            self._resolve(self._stopped, None)
        else:
            self._received = False  # the app takes this for another scope
            raise ValueError(f"unknown lifespan event {kind!r}")

    @staticmethod
    def _resolve(future: asyncio.Future[str | None], value: str | None) -> None:
        if not future.done():
            future.set_result(value)
