"""Tasks that callbacks of the event loop start.

A task group of anyio works in tasks only: in a callback, anyio does not know the event loop, unless the program was
started by anyio.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

logger = logging.getLogger("asgibus.interface")


class CallbackTasks:
    """A set of tasks that end with their owner."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start_soon(self, work: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        """Start a task that awaits `work(*args)`. An exception is logged."""
        task = asyncio.get_running_loop().create_task(work(*args))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of the interface server failed", exc_info=error)

    async def wait(self) -> None:
        """Wait until all tasks have ended, also those that start meanwhile."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def end(self, seconds: float) -> None:
        """Wait until all tasks have ended, but no longer than `seconds`, and cancel the rest."""
        try:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=seconds)
        finally:
            for task in self._tasks:
                task.cancel()
