"""Doing something to many clients one after another: who is closed comes back, and not all are to come back at once."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

import anyio

T = TypeVar("T")

LONGEST_PAUSE = 0.01  # seconds between two clients: a few go at once


async def spread(clients: Iterable[T], seconds: float) -> AsyncIterator[T]:
    """Each client, in any order, with even pauses between them, such that all of it takes `seconds` at most."""
    order = list(clients)
    random.shuffle(order)
    pause = min(LONGEST_PAUSE, seconds / len(order)) if order else 0.0
    start = anyio.current_time()
    for index, client in enumerate(order):
        await anyio.sleep(max(0.0, start + index * pause - anyio.current_time()))
        yield client
