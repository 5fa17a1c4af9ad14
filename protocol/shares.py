"""Even shares: when a worker leaves connections that last to the other workers of its pool.

Workers claim from one queue, each at its own pace. Of WebSockets that are opened at once, one worker could get most,
and would keep them. So a worker that has more sessions than the others lets them claim first, for a short time. It does
not wait for a worker that hangs or is full, since that worker's number does not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

FEW: Final = 4  # sessions by which a worker may be ahead of the mean: fewer make small claims, which cost CPU
SHARE: Final = 1 / 16  # of the mean, by which it may be ahead in addition
PATIENCE_SECONDS: Final = 0.1  # for which a worker that is ahead lets others claim first
UNLIMITED: Final = 1_000_000


class Shares:
    """The numbers of sessions in a pool, as one worker knows them."""

    __slots__ = ("_others", "_others_move", "_waits", "_waits_since")

    def __init__(self) -> None:
        self._others: list[int] = []
        self._waits = False  # whether this worker lets others claim first
        self._waits_since = 0.0
        self._others_move = True  # whether their numbers have changed since that, or since it was in vain

    def note(self, others: Sequence[int]) -> None:
        """Note the sessions of the other workers that claim.

        Args:
            others: The number of sessions of each.
        """
        noted = sorted(others)
        if noted != self._others:
            self._others = noted
            self._others_move = True

    def room(self, own: int, now: float) -> int:
        """Return how many connections that last this worker may claim now; 0 if others come first.

        Args:
            own: The number of sessions of this worker.
            now: The time in seconds, by any clock that only goes forward.
        """
        if not self._others or not (self._waits or self._others_move):
            return UNLIMITED
        mean = (own + sum(self._others)) / (len(self._others) + 1)
        room = int(mean + FEW + SHARE * mean) - own
        if room > 0:
            self._waits = False
            return room
        if not self._waits:
            self._waits, self._waits_since = True, now
            self._others_move = False
        elif now - self._waits_since >= PATIENCE_SECONDS:
            self._waits = False
            return FEW if self._others_move else UNLIMITED
        return 0
