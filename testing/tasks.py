"""Track the tasks that a virtual worker and its app have started, to end them with the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

RETRY_SECONDS = 0.001  # between two cancellations of a task: a killed process cleans nothing up
CANCEL_SECONDS = 5.0  # for all tasks to end


class Tasks:
    """The tasks that were started in one context and its copies, while `watching` is active."""

    def __init__(self) -> None:
        self._tasks: WeakSet[asyncio.Task[Any]] = WeakSet()

    def own_this_context(self) -> None:
        """Own the running task, and all tasks that are started in this context from now on."""
        _owner.set(self)
        if (task := asyncio.current_task()) is not None:
            self._tasks.add(task)

    def add(self, task: asyncio.Task[Any]) -> None:
        """Own another task."""
        self._tasks.add(task)

    async def cancel(self) -> None:
        """Cancel the tasks repeatedly until all have ended. The caller must not be one of them.

        Raises:
            RuntimeError: A task did not end within 5 s.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + CANCEL_SECONDS
        while running := [task for task in self._tasks if not task.done()]:
            if loop.time() > end:
                raise RuntimeError(f"a task of an ended worker goes on for {CANCEL_SECONDS:g} s: {running[0]!r}")
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=RETRY_SECONDS)


_owner: ContextVar[Tasks | None] = ContextVar("asgibus.testing.owner", default=None)


@contextmanager
def watching() -> Iterator[None]:
    """Add new tasks of the running event loop to their owners, and keep its task factory in use."""
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()

    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        task = asyncio.Task(coroutine, loop=loop, **options) if before is None else before(loop, coroutine, **options)
        context = options.get("context")
        owner = _owner.get() if context is None else context.get(_owner)
        if owner is not None and isinstance(task, asyncio.Task):
            owner.add(task)
        return task

    loop.set_task_factory(make)
    try:
        yield
    finally:
        if loop.get_task_factory() is make:  # else another factory wraps this one, and goes on using it
            loop.set_task_factory(before)
