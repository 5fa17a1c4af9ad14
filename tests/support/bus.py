"""Helpers for tests of layers and their users: a handler that records calls, and waiting in async code."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from asgibus.layers.channel_layer import ChannelLayer
from asgibus.testing.conformance.recorder import Recorder
from support.deadline import bound, over

__all__ = ["MakeLayer", "Recorder", "until"]

T = TypeVar("T")
MakeLayer = Callable[..., ChannelLayer]


async def until(condition: Callable[[], T], timeout: float | None = None, what: str = "the condition") -> T:
    """Wait like `support.deadline.wait_until`, in async code; check every 2 ms."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + bound(timeout)
    while not (answer := condition()):
        if clock() > deadline:
            raise over(timeout, what)
        await asyncio.sleep(0.002)
    return answer
