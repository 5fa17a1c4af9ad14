"""For tests of layers and of what stands on them: a handler that remembers, and waiting in async code."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from asgibus.layers.contract import ChannelLayer, Frame

T = TypeVar("T")

MakeLayer = Callable[..., ChannelLayer]


class Recorder:
    """A mailbox's handler that keeps what it gets."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, str, list[Frame]]] = []
        self.gone: list[str] = []

    @property
    def frames(self) -> list[Frame]:
        return [frame for _, _, frames in self.batches for frame in frames]

    def batch(self, sender: str, epoch: str, frames: Sequence[Frame]) -> None:
        if frames:
            self.batches.append((sender, epoch, list(frames)))

    def unreachable(self, mailbox: str) -> None:
        self.gone.append(mailbox)


async def until(condition: Callable[[], T], seconds: float = 10.0, what: str = "the condition") -> T:
    """Ask every 2 ms until the answer is true, and return it. Fails with AssertionError after `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not (answer := condition()):
        assert asyncio.get_running_loop().time() < deadline, f"{what} did not come true within {seconds} s"
        await asyncio.sleep(0.002)
    return answer
