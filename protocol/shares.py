"""Even shares: when a worker leaves connections that last to the other workers of its pool.

Workers claim from one queue, each at its own pace. Of WebSockets that are opened at once, one worker could get most,
and would keep them. So a worker that has more sessions than the others lets them claim first. It does not wait for a
worker that hangs or is full, since that worker's number does not change.

While a worker drains, which is likely to happen to all workers that are as old, younger workers claim first. A session
that an old worker claimed would soon be handed over again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

FEW: Final = 4  # sessions by which a worker may be ahead of the mean: fewer make small claims, which cost CPU
SHARE: Final = 1 / 16  # of the mean, by which it may be ahead in addition
PATIENCE_SECONDS: Final = 0.1  # for which a connection may be left to the workers that come first
UNLIMITED: Final = 1_000_000
EMPTY: Final = 1 / 2  # of the mean: a worker with fewer sessions is new, if it is young as well
FULL: Final = 2  # times the mean, up to which a new worker is preferred to old ones
LEVEL: Final = 1 / 8  # of the mean, by which a worker may stay ahead in addition to a few sessions: twice its share


class Other(NamedTuple):
    """Another worker of the pool."""

    sessions: int | None
    """The number of its sessions; None while it claims nothing, because it drains or is full."""
    younger_by: float
    """The time from the start of this worker to its start, in seconds; negative for one that started earlier."""


class Shares:
    """The numbers of sessions in a pool, as one worker knows them."""

    __slots__ = ("_drains", "_in_vain", "_moved", "_new_from", "_others")

    def __init__(self) -> None:
        self._others: list[Other] = []  # those that claim
        self._drains = False  # whether one does not
        self._new_from: float | None = None  # by how much new workers are younger at least, while others drain
        self._moved = True  # whether their numbers have changed since this worker has begun to wait for them
        self._in_vain = False  # whether they had not changed when it had waited for long, nor since then

    def note(self, own: int, others: Sequence[Other]) -> None:
        """Note the sessions of the pool.

        Args:
            own: The number of sessions of this worker.
            others: The other workers.
        """
        claiming = sorted(other for other in others if other.sessions is not None)
        if claiming != self._others:
            self._others = claiming
            self._moved, self._in_vain = True, False
        self._drains = len(claiming) < len(others)
        if not self._drains:
            self._new_from = None
        elif (found := self._find_new(own, others)) is not None:
            self._new_from = found

    def _find_new(self, own: int, others: Sequence[Other]) -> float | None:
        """Return by how much the youngest workers are younger at least; None if there are none that are new.

        The youngest are those that started after the longest time without a start. They are new if one of them has few
        sessions.
        """
        starts = sorted({0.0, *(other.younger_by for other in others)})
        gaps = [later - earlier for earlier, later in pairwise(starts)]
        if not gaps:
            return None
        first = starts[gaps.index(max(gaps)) + 1]
        numbers = [other.sessions or 0 for other in self._others if other.younger_by >= first]
        if first <= 0:
            numbers.append(own)
        return first if numbers and min(numbers) <= EMPTY * self._mean(own, self._others) else None

    def _new(self, own: int) -> list[Other]:
        """Return the new workers that come before this one, because it is old and they are not full."""
        new_from = self._new_from
        if new_from is None or new_from <= 0:
            return []
        most = FEW + FULL * self._mean(own, self._others)
        return [other for other in self._others if other.younger_by >= new_from and (other.sessions or 0) < most]

    @property
    def knows_others(self) -> bool:
        """Whether there are other workers that claim, as far as this one knows."""
        return bool(self._others)

    def leaves_to_new(self, own: int) -> bool:
        """Return whether new workers come before this one.

        Args:
            own: The number of sessions of this worker.
        """
        return not self._in_vain and bool(self._new(own))

    def room(self, own: int) -> int:
        """Return how many connections that last this worker may claim now; 0 if others come first.

        Args:
            own: The number of sessions of this worker.
        """
        if self._in_vain:
            return UNLIMITED
        if self._new(own):
            return 0
        others = self._others
        if self._new_from is not None and self._new_from <= 0:  # this worker is new: old ones get nothing anyway
            others = [other for other in others if other.younger_by >= self._new_from]
        if not others:
            return UNLIMITED
        mean = self._mean(own, others)
        return max(0, int(mean + FEW + SHARE * mean) - own)

    def wait(self) -> None:
        """Note that this worker begins to wait for those that come first."""
        self._moved = False

    def end_wait(self) -> None:
        """Note that it has waited for long. If nothing has changed meanwhile, it does not wait until something does."""
        self._in_vain = not self._moved

    def excess(self, own: int) -> int:
        """Return how many sessions this worker should hand over, because it has many more than others.

        Args:
            own: The number of sessions of this worker.
        """
        if self._drains or not self._others:
            return 0
        mean = self._mean(own, self._others)
        return int(own - mean) if own > mean + FEW + LEVEL * mean else 0

    @staticmethod
    def _mean(own: int, others: Sequence[Other]) -> float:
        return (own + sum([other.sessions or 0 for other in others])) / (len(others) + 1)
