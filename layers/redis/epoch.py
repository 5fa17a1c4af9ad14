"""The epoch of a store: a name beside the leases that changes when members of groups may be missing.

The first heartbeat in an empty store begins an epoch. So does the first heartbeat on another Redis server (with another
run id) that took over the data: a replica after a failover, or a server that was started from a snapshot, has the data
of an earlier moment. When an epoch begins, the processes on the bus have not joined their groups again yet, so a
broadcast waits until they have had time to do so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from asgibus.layers.redis.keys import Keys

REGROUP_SECONDS = 3.0  # for all processes to join again: a link comes back within 2 s, then the lease is renewed
LOOK_AGAIN_SECONDS = 0.1  # until the store is checked again for a heartbeat
NAME = re.compile(rb"epoch:(?P<begun>[0-9]{1,15})(?::(?P<run_id>[0-9a-f]*)(?P<again>:again)?)?\Z")


class Begun(NamedTuple):
    """The parts of an epoch's name."""

    at: int
    """When it began, by Redis's clock in ms."""
    run_id: str
    """Run id of the Redis server on which it began; empty if that is not known."""
    again: bool
    """Whether data of an earlier epoch was there, so that members may be missing for a while."""


def find_epoch(members: Iterable[bytes]) -> bytes:
    """Return the name of the epoch from members of the set of processes; empty if there is none."""
    return next((member for member in members if NAME.match(member)), b"")


def _read(epoch: bytes) -> Begun | None:
    found = NAME.match(epoch)
    if found is None:
        return None
    return Begun(int(found["begun"]), (found["run_id"] or b"").decode(), bool(found["again"]))


def epoch_range(keys: Keys) -> tuple[str, ...]:
    """Return the arguments of ZRANGE that find the epoch."""
    return keys.processes, "+inf", "+inf", "BYSCORE"


class Epoch:
    """The last epoch that one event loop has used; empty if no process had begun one."""

    def __init__(self, on_lost: Callable[[], None], earlier: Epoch | None) -> None:
        """Begin with the epoch of another event loop that has used the store, if there is one.

        Args:
            on_lost: Called once for each epoch that ended with the data of the store.
            earlier: The epoch of the other event loop.
        """
        self._on_lost = on_lost
        self.used: bytes = earlier.used if earlier is not None else b""
        self._seen = self.used
        # The epoch and the run id in which there is nothing to wait for.
        self._settled: tuple[bytes, str] | None = earlier._settled if earlier is not None else None
        self._absent_since: int | None = None  # when no process had begun an epoch here, by Redis's clock

    def seen(self, epoch: bytes) -> None:
        """Note the epoch that a heartbeat has found. Nothing can have been lost before the first one."""
        self._notice(epoch)
        if not self.used and (begun := _read(epoch)) is not None and not begun.again:
            self.used = epoch

    def forget(self, epoch: bytes = b"", run_id: str = "") -> None:
        """Take the next epoch for the first one: the last process has left, or none has come back."""
        self.used = self._seen = b""
        self._settled = (epoch, run_id)
        self._absent_since = None

    def is_gone(self, now: int) -> bool:
        """Return whether no process has begun an epoch, though all had time. `now` is in ms by Redis's clock."""
        return self._absent_since is not None and now - self._absent_since >= REGROUP_SECONDS * 1000

    def _notice(self, epoch: bytes) -> None:
        if epoch and epoch != self._seen:
            lost, self._seen = self._seen, epoch
            if lost:
                self._on_lost()

    def use(self, epoch: bytes, run_id: str, now: int) -> float:
        """Return the seconds to wait until all processes have had time to join again; if 0, the epoch is used.

        Args:
            epoch: The epoch in the store; empty if there is none.
            run_id: The run id of the Redis server; empty if it is not known.
            now: The time by Redis's clock, in ms.
        """
        if self._settled == (epoch, run_id):
            return 0.0
        self._notice(epoch)
        begun = _read(epoch)
        if begun is None:
            if self.used:
                return self._wait_for_heartbeat(now)
        elif begun.run_id and run_id and begun.run_id != run_id:  # the data of another server
            return self._wait_for_heartbeat(now)
        elif begun.again or (self.used and epoch != self.used):
            age = (now - begun.at) / 1000
            if 0 <= age < REGROUP_SECONDS:  # below 0 the clock was put back
                self._absent_since = None
                return REGROUP_SECONDS - age
        self.used = epoch
        self._settled = (epoch, run_id)
        self._absent_since = None
        return 0.0

    def _wait_for_heartbeat(self, now: int) -> float:
        if self._absent_since is None or self._absent_since > now:
            self._absent_since = now
        return LOOK_AGAIN_SECONDS
