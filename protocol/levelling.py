"""Level the sessions of a pool: after a crash and a restart, some workers have many, and the new one has none.

Nothing else would even that out soon: WebSockets live for hours. So a worker with many more sessions than the others
hands some over, slowly, while they are at rest.
"""

from __future__ import annotations

from typing import Final

STEADY_SECONDS: Final = 5.0  # for which there is an excess before anything moves: a take-over may be under way
STEP_SECONDS: Final = 1.0  # between two steps
PART: Final = 4  # a step moves one part of the excess in so many
FEWEST: Final = 4  # sessions of a step
VAIN_SECONDS: Final = 60.0  # without another step, if nobody has claimed what the last one handed over


class Levelling:
    """Decides how many sessions a worker hands over, and when.

    Args:
        rate: The largest number of sessions per second; 0 for no limit.
    """

    __slots__ = ("_after", "_next_at", "_rate", "_since")

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._since: float | None = None  # when there was an excess first
        self._next_at = 0.0
        self._after = -1  # sessions that this worker should have had after the last step; -1 before the first

    def step(self, own: int, excess: int, now: float) -> int:
        """Return how many sessions to hand over now.

        Args:
            own: The number of sessions of this worker.
            excess: The number of sessions that others should have instead.
            now: The time in seconds, by any clock that only goes forward.
        """
        if not excess:
            self._since, self._after = None, -1
            return 0
        if self._since is None:
            self._since = now
        if now < max(self._since + STEADY_SECONDS, self._next_at):
            return 0
        self._next_at = now + STEP_SECONDS
        if 0 <= self._after < own:  # they came back
            self._after = -1
            self._next_at = now + VAIN_SECONDS
            return 0
        count = max(FEWEST, excess // PART)
        return min(count, self._rate) if self._rate else count

    def moved(self, own: int, count: int) -> None:
        """Note a step.

        Args:
            own: The number of sessions of this worker before it.
            count: The number of those that it hands over.
        """
        self._after = own - (count + 1) // 2
