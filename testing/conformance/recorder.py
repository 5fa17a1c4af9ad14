"""A mailbox handler that records its calls."""

from __future__ import annotations

from collections.abc import Sequence

from asgibus.layers.contract import Frame, Handler
from asgibus.layers.frames import DEAD
from asgibus.layers.offers import Claim


class Recorder(Handler):
    """A handler that records its calls."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[Frame]]] = []
        """Senders and their frames, without DEAD frames."""
        self.events: list[Frame | str] = []
        """Frames, and names of other calls, in order."""
        self.lost: list[str] = []
        """Mailboxes whose frames were not delivered."""
        self.interruptions = 0
        self.orphans: list[Claim] = []

    @property
    def frames(self) -> list[Frame]:
        """All frames but DEAD ones."""
        return [frame for _, frames in self.batches for frame in frames]

    @property
    def dead(self) -> list[str]:
        """The mailboxes of all DEAD frames, in order."""
        return [event[1] for event in self.events if isinstance(event, tuple) and event[0] == DEAD]

    def batch(self, sender: str, frames: Sequence[Frame]) -> None:
        """See `Handler`."""
        self.events += frames
        if others := [frame for frame in frames if frame[0] != DEAD]:
            self.batches.append((sender, others))

    def undelivered(self, mailbox: str) -> None:
        """See `Handler`."""
        self.events.append("undelivered")
        self.lost.append(mailbox)

    def interrupted(self) -> None:
        """See `Handler`."""
        self.events.append("interrupted")
        self.interruptions += 1

    def orphaned(self, claim: Claim) -> None:
        """See `Handler`."""
        self.events.append("orphaned")
        self.orphans.append(claim)
