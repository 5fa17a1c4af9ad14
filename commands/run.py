"""Run a server until a signal: the first stops it gracefully, the second at once."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from asgibus.layers.errors import LayerError

new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
with suppress(ImportError):  # a platform without it: the loop of the standard library serves as well
    from uvloop import new_event_loop

logger = logging.getLogger("asgibus")

Serve = Callable[[asyncio.Event], Coroutine[Any, Any, None]]
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(serve: Serve, *expected: type[Exception]) -> int:
    """Run `serve(stop)` on uvloop where it exists; `stop` is set by the first SIGINT or SIGTERM.

    Returns the exit code: 0, or 1 with one line on standard error after a LayerError or one of
    `expected`.
    """
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(_until_signal(serve))
    except _Forced:
        return 1
    except Exception as error:
        if not isinstance(error, (LayerError, *expected)):
            raise
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


class _Forced(Exception):
    """A second signal came."""


async def _until_signal(serve: Serve) -> None:
    stop = asyncio.Event()
    forced = asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set():
            logger.warning("%s again: stopping at once", signal.Signals(number).name)
            forced.set()
        else:
            logger.info("%s: stopping; a second signal stops at once", signal.Signals(number).name)
            stop.set()

    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    serving = asyncio.create_task(serve(stop), name="serve")
    forcing = asyncio.create_task(forced.wait(), name="force")
    await asyncio.wait([serving, forcing], return_when=asyncio.FIRST_COMPLETED)
    forcing.cancel()
    if serving.done():
        serving.result()
        return
    serving.cancel()
    await asyncio.wait([serving])
    raise _Forced
