"""Who is alive, as one process sees it: a transition table, fed with what the store says at each beat.

Every process on the bus holds a lease under the name of its mailbox and renews it with a beat. The store's clock alone
ends leases. A dead process is reported once, and again only after something was heard from it or sent to it in vain.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Life(Enum):
    """What is known of another process."""

    UNKNOWN = "unknown"
    WATCHED = "watched"  # we deal with it, and have not seen its lease yet
    ALIVE = "alive"
    DEAD = "dead"  # and reported


class Sign(Enum):
    """What a process learns of another one."""

    WATCH = "it sent something, or did not get something"
    LEASE = "its lease runs"
    ENDED = "its lease has ended"
    ABSENT = "it has no lease, and had time to take one"
    TOLD = "somebody says that it is dead"
    FORGET = "what was said of it may be lost"


class IllegalSign(RuntimeError):
    """A sign that cannot be of a process in this state."""

    def __init__(self, life: Life, sign: Sign) -> None:
        super().__init__(life, sign)
        self.life = life
        self.sign = sign

    def __str__(self) -> str:
        return f"a process that is {self.life.value}: {self.sign.value}"


# A process of which nothing is known has no entry, so it can be neither absent nor forgotten. One that has died is
# unknown again once the store does not list it any more. A change to DEAD is what is reported.
TABLE: dict[tuple[Life, Sign], Life] = {
    (Life.UNKNOWN, Sign.WATCH): Life.WATCHED,
    (Life.UNKNOWN, Sign.LEASE): Life.ALIVE,
    (Life.UNKNOWN, Sign.ENDED): Life.DEAD,
    (Life.UNKNOWN, Sign.TOLD): Life.DEAD,
    (Life.WATCHED, Sign.WATCH): Life.WATCHED,
    (Life.WATCHED, Sign.LEASE): Life.ALIVE,
    (Life.WATCHED, Sign.ENDED): Life.DEAD,
    (Life.WATCHED, Sign.ABSENT): Life.DEAD,
    (Life.WATCHED, Sign.TOLD): Life.DEAD,
    (Life.WATCHED, Sign.FORGET): Life.WATCHED,
    (Life.ALIVE, Sign.WATCH): Life.ALIVE,
    (Life.ALIVE, Sign.LEASE): Life.ALIVE,
    (Life.ALIVE, Sign.ENDED): Life.DEAD,
    (Life.ALIVE, Sign.ABSENT): Life.DEAD,
    (Life.ALIVE, Sign.TOLD): Life.DEAD,
    (Life.ALIVE, Sign.FORGET): Life.WATCHED,
    (Life.DEAD, Sign.WATCH): Life.WATCHED,
    (Life.DEAD, Sign.LEASE): Life.ALIVE,
    (Life.DEAD, Sign.ENDED): Life.DEAD,
    (Life.DEAD, Sign.ABSENT): Life.UNKNOWN,
    (Life.DEAD, Sign.TOLD): Life.DEAD,
    (Life.DEAD, Sign.FORGET): Life.WATCHED,
}


@dataclass(frozen=True, slots=True)
class Beat:
    """What the store answers to a beat. Mailboxes in `live` and `ended` are those of all processes, the own among them.

    `grace`: the store may have lost leases, and not everybody has had time to take his again, so who is absent may
    live. A lease that is listed as ended has ended, grace or not.
    """

    live: frozenset[str]
    ended: frozenset[str]
    grace: bool
    gone: frozenset[str] = frozenset()
    """Those in `ended` that have been dead for so long that they are not expected back."""


class Leases:
    """The other processes, by mailbox. `own` is not judged."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._lives: dict[str, Life] = {}

    def life(self, mailbox: str) -> Life:
        """What is known of a process."""
        return self._lives.get(mailbox, Life.UNKNOWN)

    def beat(self, beat: Beat) -> list[str]:
        """Take what the store says. Returns the mailboxes of those newly dead."""
        for mailbox in beat.live:
            self._take(mailbox, Sign.LEASE)
        dead = [mailbox for mailbox in beat.ended if self._take(mailbox, Sign.ENDED)]
        if not beat.grace:
            absent = self._lives.keys() - beat.live - beat.ended
            dead += [mailbox for mailbox in absent if self._take(mailbox, Sign.ABSENT)]
        return dead

    def watch(self, mailbox: str) -> None:
        """It sent something, or what was sent to it did not reach it: a later beat says if it is dead."""
        if self._lives.get(mailbox) is not Life.ALIVE:  # asked with every batch
            self._take(mailbox, Sign.WATCH)

    def told(self, mailbox: str) -> bool:
        """Somebody says that it is dead. True if that is news."""
        return self._take(mailbox, Sign.TOLD)

    def forget(self) -> None:
        """Begin anew after an interruption: whoever was known is watched, and whoever is dead is reported again."""
        for mailbox in self._lives:
            self._take(mailbox, Sign.FORGET)

    def _take(self, mailbox: str, sign: Sign) -> bool:
        """Whether this made it dead."""
        if mailbox == self._own:
            return False
        before = self._lives.get(mailbox, Life.UNKNOWN)
        after = TABLE.get((before, sign))
        if after is None:
            raise IllegalSign(before, sign)
        if after is Life.UNKNOWN:
            del self._lives[mailbox]
        else:
            self._lives[mailbox] = after
        return after is Life.DEAD and before is not Life.DEAD
