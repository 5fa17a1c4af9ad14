"""An event loop of a layer's own, in a thread of its own: for callers whose loop is about to end.

`async_to_sync` makes a loop for each call. Connections that belonged to it would be made and ended with it.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

YOUNG_SECONDS = (
    1.0  # since a loop's first call: one that calls for longer gets connections of its own, which is quicker
)
STOP_SECONDS = 5.0  # for the thread to end


class OwnLoop:
    """Made at its first use, in each process; ended by `close`, or with the interpreter."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls = 0
        self._first: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, float] = weakref.WeakKeyDictionary()

    def serves(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether that loop's calls are to be made here, because it has only just begun to call."""
        now = time.monotonic()
        return loop is not self._loop and now - self._first.setdefault(loop, now) < YOUNG_SECONDS

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await this there. Cancelling the call cancels it there, too."""
        with self._lock:
            if self._loop is None or self._pid != os.getpid():  # a thread does not survive a fork
                self._start()
            assert self._loop is not None
            self._calls += 1
            future = asyncio.run_coroutine_threadsafe(work(), self._loop)
        try:
            return await asyncio.wrap_future(future)
        finally:
            with self._lock:
                self._calls -= 1

    def _start(self) -> None:
        self._pid = os.getpid()
        self._calls = 0
        self._loop = loop = asyncio.new_event_loop()
        thread = threading.Thread(target=_serve, args=(loop,), name="asgibus layer", daemon=True)
        self._end = weakref.finalize(self, _end_and_wait, loop, thread, self._pid)
        thread.start()

    async def close(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Await `close` there and end the thread, unless others use it; it can be used again afterwards."""
        loop = self._loop
        if loop is None or self._pid != os.getpid() or loop is asyncio.get_running_loop():
            return
        with self._lock:
            if self._calls or self._loop is not loop:
                return
            self._loop = None
            self._end.detach()
            future = asyncio.run_coroutine_threadsafe(close(), loop)
        try:
            await asyncio.wrap_future(future)
        finally:
            loop.call_soon_threadsafe(loop.stop)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """The life of the thread: end what still runs when the loop is stopped, silently."""
    loop.run_forever()
    for task in (tasks := asyncio.all_tasks(loop)):
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks))
    loop.run_until_complete(asyncio.sleep(0))  # in which their sockets are closed
    loop.close()


def _end_and_wait(loop: asyncio.AbstractEventLoop, thread: threading.Thread, pid: int) -> None:
    """The layer is gone, or the interpreter ends."""
    if pid == os.getpid() and thread.is_alive():
        loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():  # garbage is collected in whichever runs
            thread.join(STOP_SECONDS)
