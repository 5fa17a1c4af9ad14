"""The number of connections that a worker claims at once: those that its app can begin soon. The rest is for others."""

from __future__ import annotations

import resource
from time import perf_counter
from typing import Final

BATCH_SECONDS: Final = 0.002  # for the connections of one claim: a claim costs all processes 0.15 ms, however large
MOST: Final = 32  # connections of one channel: the interface server then works on some while the worker has others
OWN_SECONDS: Final = 0.000_05  # of the worker for each connection, beside its app
USUAL_SECONDS: Final = 0.000_1  # for a connection, until it is measured
WEIGHT: Final = 0.75  # of earlier batches, at each new one

RUSAGE_THREAD: Final = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)  # macOS knows whole processes only


class ClaimLimit:
    """Measures how long apps take to begin, and bounds the next claim.

    An app begins when its task runs for the first time, until it waits for something or has answered. A worker can do
    nothing else meanwhile, and the answers of the batch leave when all its apps have begun. So a smaller batch lets
    answers leave sooner, and other workers take a part of the load.

    Processor time is measured, unless an app has blocked the thread. On a machine without a free core, real time would
    be that of other processes too, and smaller claims would make the lack worse.
    """

    __slots__ = ("_began", "_blocked", "_connections", "_processor", "_seconds")

    def __init__(self) -> None:
        # Of all batches so far, the latest ones with the most weight.
        self._connections = BATCH_SECONDS / USUAL_SECONDS
        self._seconds = BATCH_SECONDS
        # When the first app of the batch began: the time, the processor time, and how often this thread had blocked.
        self._began = self._processor = 0.0
        self._blocked = 0

    @property
    def connections(self) -> int:
        """The number of connections to claim from each channel: the last one may begin at the end of the time."""
        in_time = BATCH_SECONDS * self._connections / self._seconds
        return 1 + int(min(in_time, MOST - 1))

    def on_begin(self) -> None:
        """Note that the first app of a batch is about to begin."""
        usage = resource.getrusage(RUSAGE_THREAD)
        self._processor = usage.ru_utime + usage.ru_stime
        self._blocked = usage.ru_nvcsw
        self._began = perf_counter()

    def on_begun(self, connections: int) -> None:
        """Note that the apps of a batch have begun.

        Args:
            connections: Their number.
        """
        usage = resource.getrusage(RUSAGE_THREAD)
        if usage.ru_nvcsw == self._blocked:
            self.note(connections, usage.ru_utime + usage.ru_stime - self._processor)
        else:
            self.note(connections, perf_counter() - self._began)

    def note(self, connections: int, seconds: float) -> None:
        """Note how long the apps of a batch took to begin.

        Args:
            connections: Their number.
            seconds: The time for all of them.
        """
        self._connections = WEIGHT * self._connections + connections
        self._seconds = WEIGHT * self._seconds + seconds + connections * OWN_SECONDS
