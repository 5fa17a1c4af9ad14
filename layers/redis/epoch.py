"""The epoch of a store: a name, kept beside the leases, that changes when members of groups may be missing.

The first beat in an empty store begins an epoch. So does the first beat on another Redis server (another run id) that
took the data over: a replica after a failover, or a server that was started from a snapshot, has the data of an earlier
moment. When an epoch begins, the processes on the bus are not back in their groups yet. A broadcast waits until they
have had time for that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from asgibus.layers.redis.keys import Keys

REGROUP_SECONDS = 3.0  # for everybody to be back in a new epoch: a link comes back within 2 s, and then beats at once
LOOK_AGAIN_SECONDS = 0.1  # until it is looked again whether anybody has come back
# When the epoch began, by Redis's clock in ms; the run id of that Redis, if it may be asked for it; whether the data
# of an earlier epoch was there.
NAME = re.compile(rb"epoch:(?P<begun>[0-9]{1,15})(?::(?P<run_id>[0-9a-f]*)(?P<again>:again)?)?\Z")


class Begun(NamedTuple):
    """The name of an epoch, read."""

    at: int
    """When it began, by Redis's clock in ms."""
    run_id: str
    """Of the Redis server on which it began; empty if that is not known."""
    again: bool
    """Whether the data of an earlier epoch was there: then members may be missing until they are back."""


def find_epoch(members: Iterable[bytes]) -> bytes:
    """Return the name of the epoch among these members of the set of processes; empty if there is none."""
    return next((member for member in members if NAME.match(member)), b"")


def _read(epoch: bytes) -> Begun | None:
    found = NAME.match(epoch)
    if found is None:
        return None
    return Begun(int(found["begun"]), (found["run_id"] or b"").decode(), bool(found["again"]))


def epoch_range(keys: Keys) -> tuple[str, ...]:
    """Return the arguments of ZRANGE that name the epoch, if there is one."""
    return keys.processes, "+inf", "+inf", "BYSCORE"


class Epoch:
    """The last epoch that one event loop has used. Empty is one that nobody has begun.

    `on_lost` is called once for each that ended with what was in the store, as soon as that is noticed.
    """

    def __init__(self, on_lost: Callable[[], None], earlier: Epoch | None) -> None:
        """`earlier`: that of another loop of this process, which has used the store before."""
        self._on_lost = on_lost
        self.used: bytes = earlier.used if earlier is not None else b""
        self._seen = self.used
        # The epoch and the run id for which nobody is waited any more.
        self._settled: tuple[bytes, str] | None = earlier._settled if earlier is not None else None
        self._absent: int | None = None  # since when nobody has begun one here, by Redis's clock

    def seen(self, epoch: bytes) -> None:
        """A beat has found this one: if it is the first, nothing was there before that could be lost."""
        self._notice(epoch)
        if not self.used and (begun := _read(epoch)) is not None and not begun.again:
            self.used = epoch

    def forget(self, epoch: bytes = b"", run_id: str = "") -> None:
        """Wait for nobody: the last process has left, or none has come back. The next epoch is as the first."""
        self.used = self._seen = b""
        self._settled = (epoch, run_id)
        self._absent = None

    def is_gone(self, now: int) -> bool:
        """Return whether nobody has begun an epoch here, though everybody has had time for that. `now` as in Redis."""
        return self._absent is not None and now - self._absent >= REGROUP_SECONDS * 1000

    def _notice(self, epoch: bytes) -> None:
        if epoch and epoch != self._seen:
            lost, self._seen = self._seen, epoch
            if lost:
                self._on_lost()

    def use(self, epoch: bytes, run_id: str, now: int) -> float:
        """Return the seconds to wait until everybody has had time to be back in this epoch; if 0, it is used.

        Args:
            epoch: The epoch that was found; empty if there was none.
            run_id: That of the Redis server that has answered; empty if it is not known.
            now: The time by the clock of that server, in ms.
        """
        if self._settled == (epoch, run_id):
            return 0.0
        self._notice(epoch)
        begun = _read(epoch)
        if begun is None:
            if self.used:
                return self._wait_for_anybody(now)
        elif begun.run_id and run_id and begun.run_id != run_id:  # another server's data, and nobody has been here yet
            return self._wait_for_anybody(now)
        elif begun.again or (self.used and epoch != self.used):
            age = (now - begun.at) / 1000
            if 0 <= age < REGROUP_SECONDS:  # below 0 the clock was put back
                self._absent = None
                return REGROUP_SECONDS - age
        self.used = epoch
        self._settled = (epoch, run_id)
        self._absent = None
        return 0.0

    def _wait_for_anybody(self, now: int) -> float:
        if self._absent is None or self._absent > now:
            self._absent = now
        return LOOK_AGAIN_SECONDS
