"""An event loop of a layer's own, in a thread of its own: for callers whose loop is about to end.

`async_to_sync` makes a loop for each call. Connections that belonged to it would be made and ended with it. The
mailbox of the process-local channels is read here too, so that a name outlives the loop in which it was made.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
Close = Callable[[], Coroutine[Any, Any, None]]

YOUNG_SECONDS = (
    1.0  # since a loop's first call: one that calls for longer gets connections of its own, which is quicker
)
STOP_SECONDS = 5.0  # for the thread to end
GOODBYE_SECONDS = 1.0  # for the lease to be given back when the interpreter ends without a `close`


class OwnLoop:
    """Start the thread at the first use, in each process; end it by `close`, or with the interpreter."""

    def __init__(self, end: Close) -> None:
        """`end` is awaited in the loop before it ends; it must not refer to this object."""
        self._end = end
        self._lock = threading.Lock()
        self._pid = 0
        self._thread: _Thread | None = None
        self._calls: Counter[asyncio.AbstractEventLoop] = Counter()
        self._held: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
        self._first: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, float] = weakref.WeakKeyDictionary()

    def serves(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Return whether that loop's calls are to be made here, because it has only just begun to call."""
        if self._thread is not None and loop is self._thread.loop:
            return False
        now = time.monotonic()
        return now - self._first.setdefault(loop, now) < YOUNG_SECONDS

    def hold(self) -> None:
        """Keep the thread until the running loop has ended, or calls `close`."""
        loop = asyncio.get_running_loop()
        if loop not in self._held:
            with self._lock:
                self._held.add(loop)

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await `work()` in this loop. To cancel the call cancels the work, too."""
        caller = asyncio.get_running_loop()
        with self._lock:
            if self._thread is None or self._pid != os.getpid():  # a thread does not survive a fork
                self._start()
            assert self._thread is not None
            here = caller is self._thread.loop
            if not here:
                self._calls[caller] += 1
                future = asyncio.run_coroutine_threadsafe(work(), self._thread.loop)
        if here:
            return await work()
        try:
            return await asyncio.wrap_future(future)
        finally:
            with self._lock:
                self._calls[caller] -= 1
                if not self._calls[caller]:
                    del self._calls[caller]

    def _start(self) -> None:
        self._pid = os.getpid()
        self._calls.clear()
        self._held.clear()
        self._thread = _Thread(self._end)
        self._finalizer = weakref.finalize(self, self._thread.end_and_wait, self._pid)
        self._thread.start()

    async def close(self) -> None:
        """End the thread, unless other loops use it; it can be used again afterwards.

        Return when all is closed there. When this is cancelled, the closing goes on by itself.
        """
        caller = asyncio.get_running_loop()
        with self._lock:
            self._held.discard(caller)
            thread = self._thread
            if thread is None or self._pid != os.getpid() or thread.loop is caller:
                return
            others = {*self._calls, *self._held} - {caller}
            if any(not loop.is_closed() for loop in others):
                return
            self._thread = None
            self._calls.clear()
            self._finalizer.detach()
        thread.stop()
        await asyncio.wrap_future(thread.ended)


class _Thread(threading.Thread):
    """The thread of one `OwnLoop`."""

    def __init__(self, end: Close) -> None:
        super().__init__(name="asgibus layer", daemon=True)
        # The clock of this loop is read in other threads; that of uvloop stands still while it waits.
        self.loop: asyncio.AbstractEventLoop = asyncio.SelectorEventLoop()
        self.ended: Future[None] = Future()
        self.ended.set_running_or_notify_cancel()  # who waits for it may give up, and cannot cancel it
        self._end = end
        self._seconds: float | None = None

    def run(self) -> None:
        """Serve until `stop`, then close what is there and cancel the rest, silently."""
        loop = self.loop
        loop.run_forever()
        try:
            loop.run_until_complete(self._close())
            for task in (tasks := asyncio.all_tasks(loop)):
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks))
            loop.run_until_complete(asyncio.sleep(0))  # in which their sockets are closed
            loop.close()
        finally:
            self.ended.set_result(None)

    async def _close(self) -> None:
        closing = asyncio.create_task(self._end())
        await asyncio.wait([closing], timeout=self._seconds)

    def stop(self, seconds: float | None = None) -> None:
        """Let the thread come to its end, within this time if one is given."""
        self._seconds = seconds
        self.loop.call_soon_threadsafe(self.loop.stop)

    def end_and_wait(self, pid: int) -> None:
        """End the thread because its layer is gone, or the interpreter ends."""
        if pid == os.getpid() and self.is_alive():
            self.stop(GOODBYE_SECONDS)
            if self is not threading.current_thread():  # garbage is collected in whichever runs
                self.join(STOP_SECONDS)
