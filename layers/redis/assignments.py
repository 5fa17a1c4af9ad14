"""Assign keys to processes, so that everything that is offered by one key is claimed by one process.

Each *claimant* has a stream of its own, which nobody else reads. The script that offers an entry finds the process of
its key and appends to that stream, in one step: a process that stops claiming or dies gets nothing more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from asgibus.layers.names import claimant_channel
from asgibus.layers.offers import AffinityKey
from asgibus.layers.redis import scripts
from asgibus.layers.redis.client import Argument, OnReply, RedisError, ignore_reply
from asgibus.layers.redis.pipeline import Command, Store

logger = logging.getLogger("asgibus.layers")

LOG_SECONDS: Final = 60.0  # between two lines about one kind of problem
MOST_KEYS: Final = 100_000  # of a pool, 250 bytes each: the ones that were used least recently are forgotten
ONLY_KNOWN: Final = "?"  # as the process to assign a key to: a key without one is not assigned
CLAIMANTS_SECONDS = 86_400  # for how long the claimants of a pool are kept that no process renews
RENEWED_AT_ONCE = 1000  # keys in one command: it holds up Redis for less than a millisecond


class Assignments:
    """The keys of all pools, as one process uses them."""

    def __init__(self, store: Store, mailbox: str, silent_ms: int, on_wrong_type: Callable[[], None]) -> None:
        """Prepare to assign; nothing is written before the first call.

        Args:
            store: The store of the bus.
            mailbox: The mailbox of this process.
            silent_ms: After how long without any process leases count that ran when one was last here, in ms.
            on_wrong_type: Called when a key of `key_types` has another type.
        """
        self._on_wrong_type = on_wrong_type
        self._pipeline = store.pipeline
        self._keys = store.keys
        self._entries = store.entries
        self._counts = store.outage.counts
        self._mailbox = mailbox
        self._silent_ms = silent_ms
        self._streams = store.keys.shared(claimant_channel("!"))
        self._own_stream = store.keys.shared(claimant_channel(mailbox))
        self._log_at: dict[str, float] = {}  # when a problem is logged again, by kind
        self._pools: dict[str, None] = {}  # whose keys this process uses

    def place(self, pool: str) -> str:
        """Return the place of all entries that are offered by the keys of a pool: see `EntryCodec`."""
        return self._keys.claimants(pool)

    @property
    def key_types(self) -> dict[str, str]:
        """The types of the Redis keys that this process uses, by key."""
        types = {}
        for pool in self._pools:
            types[self._keys.claimants(pool)] = "zset"
            types[self._keys.expiring(pool)] = "zset"
            types[self._keys.assigned(pool)] = "hash"
        return types

    def offer(
        self,
        key: AffinityKey,
        lifetime: float,
        on_reply: OnReply,
        *,
        payload: bytes = b"",
        prefer: str = "",
        repeatable: bool = True,
    ) -> Command:
        """Offer an entry, or find or assign the process of a key.

        Args:
            key: The key.
            lifetime: Seconds after which the key expires unless it is used again.
            on_reply: Called with the reply of Redis, for `read`.
            payload: The packed entry; empty for none.
            prefer: The process that a key without one is assigned to; empty for the one with the fewest keys;
                `ONLY_KNOWN` not to assign it.
            repeatable: Whether the command may be written again if the connection breaks.

        Returns:
            The command, for `Pipeline.cancel`.
        """
        keys, pool = self._keys, key.pool
        self._pools[pool] = None
        names = keys.processes, keys.claimants(pool), keys.assigned(pool), keys.expiring(pool)
        limits = round(lifetime * 1000), MOST_KEYS, self._silent_ms
        arguments: tuple[Argument, ...] = (key.digest, *limits, self._streams, payload, prefer)
        return self._pipeline.write(
            ("EVAL", scripts.OFFER_BY_KEY, 4, *names, *arguments), on_reply, repeatable=repeatable
        )

    def read(self, key: AffinityKey, reply: Any) -> tuple[str, bytes] | None:
        """Return the process of a key and the id of the entry, each empty if there is none; None for another reply."""
        if isinstance(reply, RedisError):
            if "WRONGTYPE" in str(reply):
                self._on_wrong_type()
            self._count("keys refused", 1, f"Redis assigns no key of the pool {key.pool}: {reply}")
        if not isinstance(reply, list):
            return None
        worker, entry_id, forgotten = reply
        if forgotten:
            what = f"the pool {key.pool} has more than {MOST_KEYS} keys of --affinity: those used least recently go"
            self._count("affinity key forgotten", forgotten, f"{what} to other workers when they are used again")
        found = self._entries.valid_names(self._keys.claimants(key.pool), [worker]) if worker else []
        return (found[0] if found else "", entry_id)

    def _count(self, kind: str, number: int, problem: str) -> None:
        """Count a problem by its kind, and log it once in a while."""
        self._counts[kind] += number
        if (now := time.monotonic()) >= self._log_at.get(kind, now):
            self._log_at[kind] = now + LOG_SECONDS
            logger.warning("%s (further ones are counted)", problem)

    def assign(self, key: AffinityKey, lifetime: float, mailbox: str) -> None:
        """Assign a key: see `Bus.assign`."""
        self.offer(key, lifetime, partial(self._on_assigned, key), prefer=mailbox)

    def _on_assigned(self, key: AffinityKey, reply: Any) -> None:
        self.read(key, reply)

    def renew(self, keys: Sequence[AffinityKey], lifetime: float, now: float) -> None:
        """Let keys expire later: see `Bus.renew_keys`. `now` is the time by Redis's clock, in seconds.

        To be called several times in a lifetime, also without keys: else all keys of a pool end that has no new ones.
        """
        until = round((now + lifetime) * 1000)
        by_pool: dict[str, list[bytes]] = {pool: [] for pool in self._pools}
        for key in keys:
            by_pool.setdefault(key.pool, []).append(key.digest)
        for pool, digests in by_pool.items():
            names = self._keys.expiring(pool), self._keys.assigned(pool)
            for start in range(0, len(digests), RENEWED_AT_ONCE):
                pairs = [item for digest in digests[start : start + RENEWED_AT_ONCE] for item in (until, digest)]
                self._pipeline.write(("ZADD", names[0], "XX", *pairs), ignore_reply)
            for name in names:
                self._pipeline.write(("PEXPIRE", name, round(2 * lifetime * 1000)), ignore_reply)

    def join(self, pool: str) -> None:
        """Make this process a claimant of a pool, unless it is one."""
        self._pools[pool] = None
        key = self._keys.claimants(pool)
        self._pipeline.write(("ZADD", key, "NX", 0, self._mailbox), ignore_reply)
        self._pipeline.write(("EXPIRE", key, CLAIMANTS_SECONDS), ignore_reply)
        self._pipeline.write(("EXPIRE", self._own_stream, CLAIMANTS_SECONDS), ignore_reply)

    def leave(self, pool: str, on_reply: OnReply) -> None:
        """Take this process off the claimants of a pool. `on_reply` gets what it has not claimed, as payloads."""
        names = self._keys.claimants(pool), self._own_stream
        self._pipeline.write(("EVAL", scripts.STOP_CLAIMING, 2, *names, self._mailbox), on_reply)
