"""What requests were answered just now: kept for a moment, as the store may lose an answer on its way.

An interface server does not acknowledge a whole answer, which would cost a frame for each request. It asks for it, or
is asked whether it has it, when the store has lost its data.
"""

from __future__ import annotations

from collections.abc import Iterator

from asgibus.worker.session import Session

# In each of two generations. The usual one has room for what comes while an answer is on its way: some milliseconds.
# More would cost each request a fifth of the worker's time, for memory that is not in the processor's caches.
USUAL_BYTES = 256 * 1024
MOST_BYTES = 8 * 1024 * 1024
SESSION_BYTES = 1024  # what a session takes beside its answer


class Answers:
    """The sessions of these requests, in two generations: the older one is forgotten as a whole."""

    def __init__(self) -> None:
        self._young: dict[tuple[str, int], Session] = {}
        self._old: dict[tuple[str, int], Session] = {}
        self._bytes = 0
        self._limit = USUAL_BYTES

    def __iter__(self) -> Iterator[Session]:
        return iter([*self._old.values(), *self._young.values()])

    def add(self, session: Session) -> None:
        """Keep one."""
        self._young[session.interface, session.number] = session
        self._bytes += session.in_flight + SESSION_BYTES
        if self._bytes > self._limit:
            self._turn()

    def keep_more(self) -> None:
        """Answers are being lost: keep more of them, until the next call of `age`."""
        self._limit = MOST_BYTES

    def age(self) -> None:
        """Forget those that have been here since before the last call."""
        self._turn()
        self._limit = USUAL_BYTES

    def _turn(self) -> None:
        self._old, self._young, self._bytes = self._young, {}, 0

    def find(self, interface: str, number: int) -> Session | None:
        """The one of a connection."""
        key = (interface, number)
        return self._young.get(key) or self._old.get(key)

    def forget(self, session: Session) -> None:
        """It has arrived, or need not arrive."""
        key = (session.interface, session.number)
        for sessions in (self._young, self._old):
            if sessions.get(key) is session:
                del sessions[key]
