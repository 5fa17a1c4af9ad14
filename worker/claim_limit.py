"""How many connections a worker claims at once: as many as its app can begin soon. The rest is for idle workers."""

from __future__ import annotations

from typing import Final

BATCH_SECONDS: Final = 0.002  # for the apps of one claim to begin: a claim costs all processes 0.15 ms, however large
MOST: Final = 32  # connections of one channel: the interface server then works on some while the worker has others
USUAL_SECONDS: Final = 0.000_1  # for an app to begin, until it is measured
SHORTEST: Final = 0.000_001  # seconds that are divided by: the measured ones may be 0
WEIGHT: Final = 0.75  # of earlier batches, at each new one


class ClaimLimit:
    """Measures how long apps take to begin, and bounds the next claim.

    An app begins when its task runs for the first time, until it waits for something or has answered. A worker can do
    nothing else meanwhile, and the answers of the batch leave when all its apps have begun. So a smaller batch lets
    answers leave sooner, and other workers take a part of the load.
    """

    __slots__ = ("_connections", "_seconds")

    def __init__(self) -> None:
        # Of all batches so far, the latest ones with the most weight.
        self._connections = BATCH_SECONDS / USUAL_SECONDS
        self._seconds = BATCH_SECONDS

    @property
    def connections(self) -> int:
        """The number of connections to claim from each channel: the last one may begin at the end of the time."""
        in_time = BATCH_SECONDS * self._connections / max(self._seconds, SHORTEST)
        return 1 + int(min(in_time, MOST - 1))

    def note(self, connections: int, seconds: float) -> None:
        """Note how long the apps of a claim took to begin.

        Args:
            connections: The size of the claim.
            seconds: The time for all of them.
        """
        self._connections = WEIGHT * self._connections + connections
        self._seconds = WEIGHT * self._seconds + seconds
