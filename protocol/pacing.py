"""Spread work on many clients over time: not all are to come back at once, and not all to be taken over at once."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

LONGEST_PAUSE = 0.01  # seconds between two clients: a few go at once


def staggered(clients: Iterable[T], seconds: float) -> Iterator[tuple[float, T]]:
    """Yield the clients in random order, each with the offset at which its turn comes.

    Args:
        clients: All clients.
        seconds: The longest time that all of them may take together.

    Yields:
        Seconds since the start, evenly spaced and less than `seconds`, and the client.

    """
    order = list(clients)
    random.shuffle(order)
    pause = min(LONGEST_PAUSE, seconds / len(order)) if order else 0.0
    for index, client in enumerate(order):
        yield index * pause, client


class Pace:
    """The times of things that happen at most so many times per second, in order.

    Args:
        rate: The number per second; 0 for no limit.
    """

    __slots__ = ("_interval", "_next_at")

    def __init__(self, rate: float) -> None:
        self._interval = 1 / rate if rate else 0.0
        self._next_at = -math.inf

    def delay(self, now: float) -> float:
        """Return the seconds until the next thing may happen, after all those that were asked for before.

        Args:
            now: The time in seconds, by any clock that only goes forward.
        """
        at = max(now, self._next_at)
        self._next_at = at + self._interval
        return at - now
