"""SIGHUP: for a daemon the wish that it read anew what it stands on, at a terminal the news that this is gone."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Awaitable, Callable

import anyio

from asgibus.cli.run import Life

logger = logging.getLogger("asgibus")


async def hang_ups(life: Life, heard: Callable[[], Awaitable[None]]) -> None:
    """Await `heard` at each SIGHUP; or set `life.stop`, if the process was started at a terminal that is gone now."""
    terminal = _has_terminal()
    with anyio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            if terminal and not _has_terminal():
                logger.info("The terminal is gone: stopping")
                life.stop.set()
                return
            await heard()


def _has_terminal() -> bool:
    """Whether somebody sees this process on a terminal, which may be closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
