"""Spread work on many clients over time: clients that are closed come back, and should not all come back at once."""

from __future__ import annotations

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
