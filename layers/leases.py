"""The processes on the bus that are alive, as one process sees it: a transition table, fed by each heartbeat.

Every process on the bus holds a lease under the name of its mailbox and renews it with a heartbeat. Only the store's
clock ends leases. A dead process is reported once, and again only after a sign of life or a failed post to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum

from asgibus.layers.compiling import mypyc_attr


class PeerState(Enum):
    """The state of another process."""

    UNKNOWN = "unknown"
    WATCHED = "watched"  # it has sessions with this process, and its lease was not seen yet
    ALIVE = "alive"
    DEAD = "dead"  # and reported


class PeerEvent(Enum):
    """News that this process has of another one."""

    WATCH = "it posted a frame, or a post to it failed"
    LEASE = "it has a lease"
    ENDED = "its lease has ended"
    ABSENT = "it has no lease, and had time to take one"
    DECLARED = "another process has declared it dead"
    RESET = "what was said about it may be lost"


@mypyc_attr(native_class=False)
class IllegalPeerEvent(RuntimeError):
    """An event that cannot happen to a process in this state."""

    def __init__(self, state: PeerState, event: PeerEvent) -> None:
        super().__init__(state, event)
        self.state = state
        self.event = event

    def __str__(self) -> str:
        return f"a process that is {self.state.value}: {self.event.value}"


# A process whose state is unknown has no entry, so it can be neither absent nor reset. A dead process is unknown again
# once the store does not list it any more. A change to DEAD is what is reported.
TABLE: dict[tuple[PeerState, PeerEvent], PeerState] = {
    (PeerState.UNKNOWN, PeerEvent.WATCH): PeerState.WATCHED,
    (PeerState.UNKNOWN, PeerEvent.LEASE): PeerState.ALIVE,
    (PeerState.UNKNOWN, PeerEvent.ENDED): PeerState.DEAD,
    (PeerState.UNKNOWN, PeerEvent.DECLARED): PeerState.DEAD,
    (PeerState.WATCHED, PeerEvent.WATCH): PeerState.WATCHED,
    (PeerState.WATCHED, PeerEvent.LEASE): PeerState.ALIVE,
    (PeerState.WATCHED, PeerEvent.ENDED): PeerState.DEAD,
    (PeerState.WATCHED, PeerEvent.ABSENT): PeerState.DEAD,
    (PeerState.WATCHED, PeerEvent.DECLARED): PeerState.DEAD,
    (PeerState.WATCHED, PeerEvent.RESET): PeerState.WATCHED,
    (PeerState.ALIVE, PeerEvent.WATCH): PeerState.ALIVE,
    (PeerState.ALIVE, PeerEvent.LEASE): PeerState.ALIVE,
    (PeerState.ALIVE, PeerEvent.ENDED): PeerState.DEAD,
    (PeerState.ALIVE, PeerEvent.ABSENT): PeerState.DEAD,
    (PeerState.ALIVE, PeerEvent.DECLARED): PeerState.DEAD,
    (PeerState.ALIVE, PeerEvent.RESET): PeerState.WATCHED,
    (PeerState.DEAD, PeerEvent.WATCH): PeerState.WATCHED,
    (PeerState.DEAD, PeerEvent.LEASE): PeerState.ALIVE,
    (PeerState.DEAD, PeerEvent.ENDED): PeerState.DEAD,
    (PeerState.DEAD, PeerEvent.ABSENT): PeerState.UNKNOWN,
    (PeerState.DEAD, PeerEvent.DECLARED): PeerState.DEAD,
    (PeerState.DEAD, PeerEvent.RESET): PeerState.WATCHED,
}


@dataclass(frozen=True, slots=True)
class Beat:
    """The store's reply to a heartbeat. `live` and `ended` hold the mailboxes of all processes, this one included.

    During `grace` the store may have lost leases, and not every process has had time to take its lease again, so a
    process that is absent may be alive. A lease that is listed as ended has ended, with grace or without.
    """

    live: frozenset[str]
    ended: frozenset[str]
    grace: bool
    gone: frozenset[str] = frozenset()
    """Mailboxes in `ended` whose processes have been dead for so long that they are not expected back."""

    def is_dead(self, mailbox: str) -> bool:
        """Return whether the process of that mailbox is dead, for one that was seen before this heartbeat."""
        return mailbox in self.ended or not (self.grace or mailbox in self.live)

    def after(self, declared: AbstractSet[str]) -> Beat:
        """Return the reply without the leases that have ended since the store wrote it.

        Args:
            declared: The mailboxes of processes that were declared dead meanwhile.
        """
        stale = self.live & declared
        return Beat(self.live - stale, self.ended | stale, self.grace, self.gone) if stale else self


class PeerTable:
    """The states of the other processes, by mailbox. `own` is the mailbox of this process, which is left out."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._states: dict[str, PeerState] = {}
        self.alive: set[str] = set()
        """The mailboxes of the processes that are alive: for these, `watch` does nothing."""

    def state(self, mailbox: str) -> PeerState:
        """Return the state of a process."""
        return self._states.get(mailbox, PeerState.UNKNOWN)

    def apply(self, beat: Beat) -> list[str]:
        """Apply the store's reply to a heartbeat. Return the mailboxes of the processes that have died."""
        for mailbox in beat.live:
            self._apply(mailbox, PeerEvent.LEASE)
        dead = [mailbox for mailbox in beat.ended if self._apply(mailbox, PeerEvent.ENDED)]
        if not beat.grace:
            absent = self._states.keys() - beat.live - beat.ended
            dead += [mailbox for mailbox in absent if self._apply(mailbox, PeerEvent.ABSENT)]
        return dead

    def export(self) -> dict[str, str]:
        """Return the states by mailbox, as `restore` takes them."""
        return {mailbox: state.name for mailbox, state in self._states.items()}

    def restore(self, states: Mapping[str, str]) -> None:
        """Start with the states that another process has seen. Those of unknown names are watched.

        Args:
            states: The result of `export` there.
        """
        for mailbox, name in states.items():
            self._states[mailbox] = PeerState.DEAD if name == PeerState.DEAD.name else PeerState.WATCHED

    def watch(self, mailbox: str) -> None:
        """Note that a process posted a frame, or that a post to it failed: a later heartbeat tells whether it died."""
        self._apply(mailbox, PeerEvent.WATCH)

    def declare_dead(self, mailbox: str) -> bool:
        """Note that another process has declared a process dead. Return whether it was not known to be dead."""
        return self._apply(mailbox, PeerEvent.DECLARED)

    def reset(self) -> None:
        """Start again after an interruption: known processes are watched, and dead ones are reported again."""
        for mailbox in self._states:
            self._apply(mailbox, PeerEvent.RESET)

    def _apply(self, mailbox: str, event: PeerEvent) -> bool:
        """Apply an event. Return whether the process is dead since then."""
        if mailbox == self._own:
            return False
        before = self._states.get(mailbox, PeerState.UNKNOWN)
        after = TABLE.get((before, event))
        if after is None:
            raise IllegalPeerEvent(before, event)
        if after is PeerState.ALIVE:
            self.alive.add(mailbox)
        else:
            self.alive.discard(mailbox)
        if after is PeerState.UNKNOWN:
            del self._states[mailbox]
        else:
            self._states[mailbox] = after
        return after is PeerState.DEAD and before is not PeerState.DEAD
