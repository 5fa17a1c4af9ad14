"""Run a server until a signal: the first stops it gracefully, the second at once."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from importlib.util import find_spec

import anyio
from anyio.abc import TaskStatus

from asgibus.layers.errors import LayerError

logger = logging.getLogger("asgibus")

Serve = Callable[[anyio.Event], Awaitable[None]]
YOUNG_OBJECTS = 10_000  # between two garbage collections: 700, the default, are the objects of a dozen requests
LINGER_SECONDS = 2.0  # for what is left when the servers have ended: an app's threads and tasks that do not end
FORCED_SECONDS = 1.0  # the same, after a second signal
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(serve: Serve, *expected: type[Exception]) -> int:
    """Run `serve(stop)` on uvloop where it exists; `stop` is set by the first SIGINT or SIGTERM.

    Returns the exit code: 0; or 1 after a second signal, and after a LayerError or one of `expected`, which is told in
    one line on standard error.
    """
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)
    try:
        forced = anyio.run(_until_signal, serve, backend_options={"use_uvloop": find_spec("uvloop") is not None})
    except Exception as raised:
        error = _only(raised)
        if not isinstance(error, (LayerError, *expected)):
            raise
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 1 if forced else 0


def _exit_within(seconds: float, code: int) -> None:
    """End the process then, if it has not ended by itself."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()


def started() -> None:
    """The start-up is over: what is loaded now stays, and garbage collections need not look at it again."""
    gc.collect()
    gc.freeze()


async def _until_signal(serve: Serve) -> bool:
    """Whether a second signal ended it."""
    stop = anyio.Event()
    forced = False

    async def watch(*, task_status: TaskStatus[None]) -> None:
        nonlocal forced
        with anyio.open_signal_receiver(*SIGNALS) as signals:
            task_status.started()
            async for number in signals:
                if stop.is_set():
                    logger.warning("%s again: stopping at once", number.name)
                    forced = True
                    _exit_within(FORCED_SECONDS, 1)
                    tasks.cancel_scope.cancel()
                    return
                logger.info("%s: stopping; a second signal stops at once", number.name)
                stop.set()

    async with anyio.create_task_group() as tasks:
        await tasks.start(watch)
        await serve(stop)
        tasks.cancel_scope.cancel()
        _exit_within(LINGER_SECONDS, 0)
    return forced


def _only(error: Exception) -> Exception:
    """The one error in a group of one: task groups wrap what is raised in them."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
