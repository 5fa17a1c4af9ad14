"""Pace the take-over of WebSockets and event streams whose workers have died.

Each further run may ask the app's database for a session and a user. So after a crash, they do not all begin at once.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from asgibus.protocol.pacing import Pace


class ResumePace:
    """Lets runs begin one after another.

    Args:
        rate: The number of runs that begin per second; 0 for no limit.
    """

    def __init__(self, rate: float) -> None:
        self._pace = Pace(rate)
        # An event of asyncio, because a run waits for it or for its turn, in a task of the event loop.
        self._released = asyncio.Event()

    def release(self) -> None:
        """End all waits, because the worker stops."""
        self._released.set()

    async def wait_for_turn(self) -> None:
        """Wait until the next run may begin. Runs begin in the order of these calls."""
        delay = self._pace.delay(asyncio.get_running_loop().time())
        if delay:
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._released.wait()
