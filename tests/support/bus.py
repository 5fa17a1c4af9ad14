"""For tests of layers and of what stands on them: a handler that remembers, and waiting in async code."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from asgibus.layers.contract import DEAD, ChannelLayer, Claim, Frame, Offer

T = TypeVar("T")

MakeLayer = Callable[..., ChannelLayer]


class Recorder:
    """A mailbox's handler that keeps what it gets."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[Frame]]] = []  # without the deaths
        self.events: list[Frame | str] = []  # all that came, in order
        self.lost: list[str] = []  # mailboxes for which something was undelivered
        self.interruptions = 0
        self.lost_offers: list[Offer] = []
        self.orphans: list[Claim] = []

    @property
    def frames(self) -> list[Frame]:
        """All frames but those that tell of a death."""
        return [frame for _, frames in self.batches for frame in frames]

    @property
    def dead(self) -> list[str]:
        """The mailboxes that were said to be dead, in that order, as often as it was said."""
        return [event[1] for event in self.events if isinstance(event, tuple) and event[0] == DEAD]

    def batch(self, sender: str, frames: Sequence[Frame]) -> None:
        self.events += frames
        if others := [frame for frame in frames if frame[0] != DEAD]:
            self.batches.append((sender, others))

    def undelivered(self, mailbox: str) -> None:
        self.events.append("undelivered")
        self.lost.append(mailbox)

    def offer_lost(self, offer: Offer) -> None:
        self.lost_offers.append(offer)

    def interrupted(self) -> None:
        self.events.append("interrupted")
        self.interruptions += 1

    def orphaned(self, claim: Claim) -> None:
        self.events.append("orphaned")
        self.orphans.append(claim)


async def until(condition: Callable[[], T], seconds: float = 10.0, what: str = "the condition") -> T:
    """Ask every 2 ms until the answer is true, and return it. Fails with AssertionError after `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not (answer := condition()):
        assert asyncio.get_running_loop().time() < deadline, f"{what} did not come true within {seconds} s"
        await asyncio.sleep(0.002)
    return answer
