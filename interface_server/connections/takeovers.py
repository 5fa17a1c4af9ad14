"""The take-over of connections whose workers have died: a few at a time, in order.

Workers pace these connections (`--resume-rate`). Those that wait for their turn wait here, so that first connections
do not wait behind them, and no worker has more of them than it can begin soon.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from asgibus.interface_server.connections.connection import Connection

AT_ONCE: Final = 16  # connections of a pool that are offered and not begun: more than workers can begin in a moment


class Takeovers:
    """The connections that are taken over, by pool."""

    def __init__(self) -> None:
        self.waiting: dict[str, dict[int, Connection]] = {}
        """The take-overs that are not offered yet, in order; no entry for a pool without any."""
        self._offered: dict[int, str] = {}  # the pools of those that no worker has begun
        self._counts: Counter[str] = Counter()  # of these, by pool
        self._moved_at: dict[str, float] = {}  # when the last one was offered

    def begin(self, connection: Connection, pool: str, now: float) -> bool:
        """Return whether a connection may be offered now. If not, it waits.

        Args:
            connection: The connection.
            pool: Its pool.
            now: The time in seconds.
        """
        number = connection.number
        if number in self._offered:
            return True
        if self._counts[pool] >= AT_ONCE:
            self.waiting.setdefault(pool, {})[number] = connection
            return False
        self._offered[number] = pool
        self._counts[pool] += 1
        self._moved_at[pool] = now
        return True

    def next(self, now: float) -> Connection | None:
        """Remove and return a connection whose turn it is, or None.

        Args:
            now: The time in seconds.
        """
        for pool, waiting in self.waiting.items():
            if self._counts[pool] < AT_ONCE:
                number = next(iter(waiting))
                connection = waiting.pop(number)
                if not waiting:
                    del self.waiting[pool]
                self.begin(connection, pool, now)
                return connection
        return None

    def remove(self, number: int) -> None:
        """Forget a connection that a worker has begun, or that has ended."""
        pool = self._offered.pop(number, None)
        if pool is not None:
            self._counts[pool] -= 1
        elif (pool := self._pool_of(number)) is not None:
            waiting = self.waiting[pool]
            del waiting[number]
            if not waiting:
                del self.waiting[pool]

    def is_waiting(self, number: int) -> bool:
        """Return whether a connection waits for its turn."""
        return self._pool_of(number) is not None

    def moves(self, number: int, since: float) -> bool:
        """Return whether a connection waits, and those before it have been offered since that time."""
        pool = self._pool_of(number)
        return pool is not None and self._moved_at[pool] > since

    def _pool_of(self, number: int) -> str | None:
        for pool, waiting in self.waiting.items():
            if number in waiting:
                return pool
        return None
