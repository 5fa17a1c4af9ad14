"""The silent hand-over: a run gets no disconnect, because another run continues with its client.

The run is cancelled, or suspended for the rest of the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from types import CoroutineType
from typing import Any

from asgibus.compatibility.callables import Application, Receive, Scope, Send


class SilentRun:
    """One run of the app, which a hand-over cancels or suspends.

    The *main task* of the run is the one that has called the app. It is the one to cancel, also where the app calls
    `receive` in another task: task groups and `asyncio.gather` then cancel the others. `asyncio.wait` leaves its tasks
    running, and so does an app that forgets them. Such tasks are ended here, before the next run begins.

    A run that may be suspended has a main task of its own. It waits for ever, in `receive` for most apps, and keeps
    what it holds.

    Args:
        suspended: Gets the main task of the run if it is suspended. None if the run is to be cancelled.
    """

    __slots__ = (
        "_app_run",
        "_awaited",
        "_receivers",
        "_suspended",
        "_suspension",
        "_told",
        "is_suspended",
        "main",
        "over",
    )

    def __init__(self, suspended: list[asyncio.Task[Any]] | None = None) -> None:
        self.over = False
        """Whether the run was ended for its hand-over."""
        self.is_suspended = False
        """Whether it was ended by being suspended."""
        self.main: asyncio.Task[Any] | None = None
        """The main task, once the app was called."""
        self._app_run: object = None  # the coroutine of the app
        self._awaited: set[asyncio.Task[Any]] = set()  # the tasks that the main task waited for when it was cancelled
        self._receivers: set[asyncio.Task[Any]] = set()  # the tasks other than the main one that wait in `receive`
        self._told = asyncio.Event()
        self._suspended = suspended
        self._suspension: asyncio.Future[None] | None = None  # done when the run is suspended

    async def call(self, app: Application, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app. After a cancellation, also wait until the tasks that the app has left have ended."""
        if self.over:
            return
        self.main = asyncio.current_task()
        self._app_run = run = app(scope, receive, send)
        try:
            if self._suspended is None:
                await run
            else:
                await self._await_or_suspend(run, self._suspended)
        finally:
            self._app_run = None
            if self.over and not self.is_suspended:
                await self._end_orphans()

    async def _await_or_suspend(self, run: Awaitable[None], suspended: list[asyncio.Task[Any]]) -> None:
        """Await the run in a task of its own.

        Raises:
            asyncio.CancelledError: The run was suspended.
        """
        self.main = main = asyncio.create_task(_finish(run))
        self._suspension = suspension = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait([main, suspension], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            main.cancel()
            await asyncio.wait([main])
            raise
        if not main.done():
            suspended.append(main)
            raise asyncio.CancelledError
        main.result()

    def end(self) -> None:
        """End the run for its hand-over. Further calls do nothing."""
        if self._suspended is None:
            self.cancel()
        elif not self.over:
            self.over = self.is_suspended = True
            if self._suspension is not None:  # otherwise the app is not called at all
                self._suspension.set_result(None)

    def cancel(self) -> None:
        """Cancel the run, also one that could be suspended, because the process lives on. Further calls do nothing."""
        if self.over:
            return
        self.over = True
        if self.main is not None:  # otherwise the app is not called at all
            self._awaited = awaited_tasks(self._app_run)
            self.main.cancel()

    def tell(self) -> None:
        """Let `wait` return, because the app has not ended although it was cancelled."""
        self._told.set()

    async def wait(self) -> None:
        """Wait in `receive` of the ended run, to be cancelled; for ever if the run is suspended.

        Return if the app goes on although it was cancelled, and so needs a disconnect.
        """
        task = asyncio.current_task()
        if self.is_suspended:
            if task is not None:
                self._receivers.add(task)  # a task that nobody refers to would be ended by the garbage collector
            await asyncio.get_running_loop().create_future()
        if task is self.main:
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


async def _finish(run: Awaitable[None]) -> None:
    """Await a run: a task takes nothing but a coroutine."""
    await run


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
