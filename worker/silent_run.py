"""The silent hand-over: a run is cancelled and gets no disconnect, because another run continues with its client."""

from __future__ import annotations

import asyncio
from types import CoroutineType
from typing import Any

from asgibus.compatibility.callables import Application, Receive, Scope, Send


class SilentRun:
    """One run of the app, which a hand-over cancels.

    The *main task* of the run is the one that has called the app. It is the one to cancel, also where the app calls
    `receive` in another task: task groups and `asyncio.gather` then cancel the others. `asyncio.wait` leaves its tasks
    running, and so does an app that forgets them. Such tasks are ended here, before the next run begins.
    """

    __slots__ = ("_app_run", "_awaited", "_main", "_receivers", "_told", "cancelled")

    def __init__(self) -> None:
        self.cancelled = False
        """Whether the run was cancelled for its hand-over."""
        self._main: asyncio.Task[Any] | None = None
        self._app_run: object = None  # the coroutine of the app
        self._awaited: set[asyncio.Task[Any]] = set()  # the tasks that the main task waited for when it was cancelled
        self._receivers: set[asyncio.Task[Any]] = set()  # the tasks other than the main one that wait in `receive`
        self._told = asyncio.Event()

    async def call(self, app: Application, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app. After a cancellation, also wait until the tasks that the app has left have ended."""
        if self.cancelled:
            return
        self._main = asyncio.current_task()
        self._app_run = run = app(scope, receive, send)
        try:
            await run
        finally:
            self._app_run = None
            if self.cancelled:
                await self._end_orphans()

    def cancel(self) -> None:
        """Cancel the run. Further calls do nothing."""
        if self.cancelled:
            return
        self.cancelled = True
        if self._main is not None:  # otherwise the app is not called at all
            self._awaited = awaited_tasks(self._app_run)
            self._main.cancel()

    def tell(self) -> None:
        """Let `wait` return, because the app has not ended although it was cancelled."""
        self._told.set()

    async def wait(self) -> None:
        """Wait in `receive` of the cancelled run, to be cancelled.

        Return if the app goes on although it was cancelled, and so needs a disconnect.
        """
        task = asyncio.current_task()
        if task is self._main:
            await asyncio.sleep(0)  # raises the cancellation, unless the app has caught it before
            return
        if self._app_run is None:  # the main task has ended
            raise asyncio.CancelledError
        if task is not None:
            self._receivers.add(task)
        await self._told.wait()

    async def _end_orphans(self) -> None:
        """Cancel the tasks that nobody waits for any more, and wait until they have ended."""
        # A task that others wait for is not of this run alone. `Task` has no public way to ask.
        forgotten = {task for task in self._awaited if not getattr(task, "_callbacks", None)}
        orphans = {task for task in self._receivers | forgotten if not task.done()}
        for task in orphans:
            task.cancel()
        if orphans:
            await asyncio.wait(orphans)


def awaited_tasks(run: object) -> set[asyncio.Task[Any]]:
    """Return the tasks that a coroutine waits for with `asyncio.wait`.

    Args:
        run: A coroutine that is suspended. Of other objects nothing is known.
    """
    while isinstance(run, CoroutineType) and isinstance(run.cr_await, CoroutineType):
        run = run.cr_await
    if not isinstance(run, CoroutineType) or run.cr_code is not _WAIT or run.cr_frame is None:
        return set()
    return {future for future in run.cr_frame.f_locals.get("fs", ()) if isinstance(future, asyncio.Task)}


_WAIT = getattr(getattr(asyncio.tasks, "_wait", None), "__code__", None)
"""The code in which `asyncio.wait` waits."""
