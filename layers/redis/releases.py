"""The releases of the processes on the bus: what each publishes, and the check of a process that starts."""

from __future__ import annotations

import asyncio
from typing import Any

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis import scripts
from asgibus.layers.redis.client import ignore_reply
from asgibus.layers.redis.pipeline import Store
from asgibus.layers.versions import disagreement, published


class Releases:
    """What the processes of one store have published of their releases, in a hash."""

    def __init__(self, store: Store, mailbox: str) -> None:
        """Prepare for the process of a mailbox."""
        self._pipeline = store.pipeline
        self._keys = store.keys
        self._entries = store.entries
        self._mailbox = mailbox

    async def check(self, until: float) -> None:
        """Check that this process and all others understand each other; to be called before the lease is taken.

        Raises LayerUnavailable, at the time `until` at the latest.
        """
        key = self._keys.releases
        call = self._pipeline.call
        dropped, (_, live), found = await asyncio.gather(
            call("EVAL", scripts.DROP_OTHER_TYPE, 1, key, "hash", until=until),
            call("EVAL", scripts.GROUP_MEMBERS, 1, self._keys.processes, until=until),
            call("HGETALL", key, until=until),
        )
        if dropped:
            self._entries.log_unexpected("wrong type", key, "it was no hash, and was removed")
        all_published = dict(zip(found[::2], found[1::2], strict=True))
        for process in self._entries.valid_names(self._keys.processes, (each for each in live if each[-1:] == b"!")):
            entry = all_published.pop(process.encode(), None)
            try:
                its: Any = None if entry is None else self._entries.unpack(key, entry)
                why = disagreement(process, its)
            except (ValueError, TypeError, AttributeError):
                continue  # it has another encryption key, which is reported where its entries are read
            if why is not None:
                raise LayerUnavailable(why)
        if all_published:  # of processes that were killed, with nobody there to clean up after them
            self._pipeline.write(("HDEL", key, *all_published), ignore_reply)

    def publish(self) -> None:
        """Publish the release of this process, which has its lease."""
        key = self._keys.releases
        self._pipeline.write(("HSET", key, self._mailbox, self._entries.pack(key, published())), ignore_reply)

    def withdraw(self) -> None:
        """Remove what was published."""
        self._pipeline.write(("HDEL", self._keys.releases, self._mailbox), ignore_reply)
