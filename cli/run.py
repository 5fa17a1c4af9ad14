"""Run a server until a signal: the first stops it gracefully, the second at once."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import NoReturn

import anyio
from anyio.abc import TaskStatus

from asgibus.cli.descriptors import raise_limit
from asgibus.cli.lifeline import Lifeline
from asgibus.layers.errors import LayerError, LayerUnavailable

logger = logging.getLogger("asgibus")

YOUNG_OBJECTS = 10_000  # between two garbage collections: 700, the default, are the objects of a dozen requests
START_SECONDS = 2.0  # for a start-up to end once it is no longer wanted
LINGER_SECONDS = 2.0  # for what is left when the servers have ended: an app's threads and tasks that do not end
FORCED_SECONDS = 1.0  # the same, after a second signal
END_MARGIN = 8.0  # beyond the graceful timeout: for the app's shut-down, and for the last words to the bus
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Life:
    """The life of this process: told by what is served how far it is, and telling it when to stop.

    What is told goes to the supervisor, or to the service manager of a process that has no supervisor.
    """

    def __init__(self, lifeline: Lifeline) -> None:
        self.stop = anyio.Event()
        """Set when the process shall end gracefully."""
        self.has_started = False
        self.status = "starting"
        """Say what the process does before it is ready."""
        self._lifeline = lifeline
        self._is_ready = False

    def tell(self, status: str) -> None:
        """Say what the process does, in one line for people to read."""
        self.status = status
        self._lifeline.doing(status)

    def started(self) -> None:
        """Say that the start-up is over: from now on the process stops gracefully, however long that takes."""
        self.has_started = True
        # What is loaded now stays, and garbage collections need not look at it again.
        gc.collect()
        gc.freeze()

    def ready(self, status: str, *mailboxes: str) -> None:
        """Say that the process serves, and reads these mailboxes. Call `started` before."""
        self._is_ready = True
        self._lifeline.ready(*mailboxes)
        self._lifeline.manager.ready(status)

    def reloading(self, status: str) -> None:
        """Say that a reload has begun, which a SIGHUP asked for."""
        if self._is_ready:
            self._lifeline.manager.reloading(status)

    def reloaded(self, status: str) -> None:
        """Say how the reload has ended. The process serves, with the new or with the old."""
        if self._is_ready:
            self._lifeline.manager.ready(status)

    def retiring(self) -> None:
        """Say that nothing new is taken from now on: a supervisor may start another process."""
        self._is_ready = False
        self._lifeline.manager.stopping()
        self._lifeline.retiring()


Serve = Callable[[Life], Awaitable[None]]


def run(
    serve: Serve, *expected: type[Exception], lifeline: Lifeline, graceful_timeout: float, layer_hint: str = ""
) -> int:
    """Run `serve(life)` on uvloop where it exists, until it returns; the first SIGINT or SIGTERM sets `life.stop`.

    A start-up that is not over 2 s after that is cancelled. A supervisor at the other end of the lifeline sets
    `life.stop` as well; then the process is ended hard if it takes much longer than `graceful_timeout` seconds.

    Returns the exit code: 0; or 1 after a second signal, and after a LayerError or one of `expected`, which is told in
    one line on standard error, or to the supervisor. `layer_hint` is what can be done about a layer that cannot be
    reached.
    """
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)
    raise_limit()
    try:
        forced = anyio.run(
            _until_signal,
            serve,
            lifeline,
            graceful_timeout + END_MARGIN,
            backend_options={"use_uvloop": find_spec("uvloop") is not None},
        )
    except Exception as raised:
        error = _only(raised)
        if not isinstance(error, (LayerError, *expected)):
            raise
        hint = f" ({layer_hint})" if isinstance(error, LayerUnavailable) and layer_hint and not lifeline.held else ""
        lifeline.failed(f"{error}{hint}", getattr(error, "trace", ""))
        return 1
    return 1 if forced else 0


def _exit_within(seconds: float, code: int) -> None:
    """End the process then, if it has not ended by itself."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()


def end_check(found: str) -> NoReturn:
    """Print what `--check` has found to be in order, and end the process with 0, whatever threads the app has."""
    print(f"OK: {found}")
    _exit_within(LINGER_SECONDS, 0)
    raise SystemExit(0)


async def _until_signal(serve: Serve, lifeline: Lifeline, limit: float) -> bool:
    """Whether a second signal ended it."""
    life = Life(lifeline)
    forced = False

    def stop(why: str) -> None:
        if not life.stop.is_set():
            logger.info("%s: stopping%s", why, "" if lifeline.held else "; a second signal stops at once")
            life.stop.set()
            life.retiring()
            tasks.start_soon(give_up_start)

    async def give_up_start() -> None:
        await anyio.sleep(START_SECONDS)
        if not life.has_started:
            tasks.cancel_scope.cancel()

    async def watch(*, task_status: TaskStatus[None]) -> None:
        nonlocal forced
        signalled = False  # it may be stopping for another reason, and a first signal then says nothing new
        with anyio.open_signal_receiver(*SIGNALS) as signals:
            task_status.started()
            async for number in signals:
                if not signalled:
                    signalled = True
                    stop(number.name)
                    continue
                logger.warning("%s again: stopping at once", number.name)
                forced = True
                _exit_within(FORCED_SECONDS, 1)
                tasks.cancel_scope.cancel()
                return

    async with anyio.create_task_group() as tasks:
        await tasks.start(watch)
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()
        lifeline.on_stop(lambda why: _in(loop, context, stop, why), within=limit)
        await serve(life)
        tasks.cancel_scope.cancel()
    _exit_within(LINGER_SECONDS, 1 if forced else 0)
    return forced


def _in(loop: asyncio.AbstractEventLoop, context: contextvars.Context, call: Callable[[str], None], why: str) -> None:
    """Call it in the loop. With sniffio installed, anyio knows which loop runs by the context alone."""
    with suppress(RuntimeError):  # the loop has ended, and the process ends
        loop.call_soon_threadsafe(call, why, context=context)


def _only(error: Exception) -> Exception:
    """The one error in a group of one: task groups wrap what is raised in them."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
