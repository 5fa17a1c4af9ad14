"""Assign keys to the processes that claim by key, within one process: the model of `redis/scripts/offer_by_key.lua`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

from asgibus.layers.offers import AffinityKey

MOST_KEYS: Final = 100_000  # of all pools: the ones that were used least recently are forgotten


class Assignments:
    """The keys of all pools. The caller holds a lock.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._claimants: dict[str, dict[str, int]] = {}  # their numbers of keys, by pool and mailbox
        self._keys: OrderedDict[AffinityKey, tuple[str, float]] = OrderedDict()  # the least recently used first

    def join(self, pool: str, mailbox: str) -> None:
        """Make a process a claimant of a pool, unless it is one."""
        self._claimants.setdefault(pool, {}).setdefault(mailbox, 0)

    def leave(self, mailbox: str) -> None:
        """Take a process off the claimants."""
        for claimants in self._claimants.values():
            claimants.pop(mailbox, None)

    def use(self, key: AffinityKey, lifetime: float, *, prefer: str = "", known: bool = False) -> str:
        """Return the process of a key, which is assigned to one if it has none.

        Args:
            key: The key.
            lifetime: Seconds after which it expires unless it is used again.
            prefer: The process that a key without one is assigned to; empty for the one with the fewest keys.
            known: Whether not to assign the key if it has not been assigned before.

        Returns:
            The mailbox of the process; empty if none claims by key for this pool.
        """
        claimants = self._claimants.get(key.pool, {})
        now = self._clock()
        mailbox, end = self._keys.get(key, ("", 0.0))
        if end <= now or mailbox not in claimants:
            self._forget(key)
            if not claimants or (known and end <= now):
                return ""
            mailbox = prefer if prefer in claimants else min(claimants, key=claimants.__getitem__)
            claimants[mailbox] += 1
            while len(self._keys) >= MOST_KEYS:
                self._forget(next(iter(self._keys)))
        self._keys[key] = mailbox, now + lifetime
        self._keys.move_to_end(key)
        return mailbox

    def renew(self, keys: Iterable[AffinityKey], lifetime: float) -> None:
        """Let keys expire later, since they are in use."""
        for key in keys:
            if key in self._keys:
                self._keys[key] = self._keys[key][0], self._clock() + lifetime
                self._keys.move_to_end(key)

    def _forget(self, key: AffinityKey) -> None:
        mailbox, _ = self._keys.pop(key, ("", 0.0))
        claimants = self._claimants.get(key.pool, {})
        if mailbox in claimants:
            claimants[mailbox] -= 1
