"""Announce to the other workers of a pool which app this one runs and how many sessions it has, and read theirs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter

from asgibus.layers.contract import Announced, Bus
from asgibus.layers.errors import LayerUnavailable
from asgibus.protocol.shares import PATIENCE_SECONDS, Other, Shares

logger = logging.getLogger("asgibus.worker")

ANNOUNCE_SECONDS = 1.0  # between two announcements, unless something has changed that the others should know
ENOUGH = 2  # sessions more or less, with which the number is announced again in a burst
FRESH_SECONDS = 0.05  # for which the numbers of the others are good enough: a burst of connections is longer


class Announcer:
    """Keeps the numbers of sessions in the pool up to date, on both sides.

    Args:
        pool: The pool.
        app: The app that this worker runs.
        sessions: Returns the number of sessions of this worker; None while it claims nothing.
        on_noted: Called when the numbers of the others were noted.
    """

    def __init__(
        self, pool: str, app: str, sessions: Callable[[], int | None], on_noted: Callable[[], None] = lambda: None
    ) -> None:
        self._pool = pool
        self._app = app
        self._sessions = sessions
        self._on_noted = on_noted
        # An event of asyncio, because it is set and cleared again for every announcement; anyio's is set once.
        self._due = asyncio.Event()
        self._noted = asyncio.Event()  # set and cleared again, too
        self._noted_at = 0.0
        self._announced = 0  # the number that was announced last
        self.shares = Shares()

    def announce_soon(self) -> None:
        """Announce the number of sessions now."""
        self._due.set()

    async def refresh(self, *, wait: bool = True) -> None:
        """Announce the number of sessions, and wait for the numbers of the others, as far as the known ones are old.

        A pool that was idle does not know of workers that have come since the last announcement.

        Args:
            wait: Whether to wait. If not, the numbers are those of the last second until the reply.
        """
        if perf_counter() - self._noted_at >= FRESH_SECONDS:
            if wait:
                await self.renew()
            else:
                self.announce_soon()
        elif abs((self._sessions() or 0) - self._announced) >= ENOUGH:
            self.announce_soon()

    async def renew(self) -> None:
        """Announce the number of sessions, and wait for the numbers of the others."""
        self.announce_soon()
        self._noted.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._noted.wait()

    async def run(self, bus: Bus) -> None:
        """Announce now and then, until it is cancelled."""
        first = True
        while True:
            self._due.clear()
            sessions = self._sessions()
            self._announced = sessions or 0
            try:
                others = await bus.announce(self._pool, self._app, sessions)
            except LayerUnavailable as error:
                logger.debug("the sessions could not be announced: %s", error)
                others = []
            else:
                if first:
                    self._warn(others)
                first = False
            self.shares.note(self._sessions() or 0, [Other(other.sessions, other.younger_by) for other in others])
            self._on_noted()
            self._noted_at = perf_counter()
            self._noted.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(ANNOUNCE_SECONDS):
                    await self._due.wait()

    def _warn(self, others: list[Announced]) -> None:
        """Log a warning if another worker runs another app for the pool: each claims connections of the other."""
        for other in others:
            if other.app != self._app:
                logger.warning(
                    "%s runs another app for the pool %r: %s, where this worker runs %s. Each serves connections that "
                    "are meant for the other: give each deployment its own --prefix, or its own --pool",
                    other.mailbox,
                    self._pool,
                    other.app,
                    self._app,
                )
                return
