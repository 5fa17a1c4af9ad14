"""The releases of the processes on the bus: what each publishes, and the check of a process that connects."""

from __future__ import annotations

import asyncio
from typing import Final

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis import scripts
from asgibus.layers.redis.client import ignore_reply
from asgibus.layers.redis.pipeline import Store
from asgibus.layers.versions import disagreement, published


async def check_releases(store: Store, until: float) -> None:
    """Check that this process and all that have a lease in a store understand each other.

    Raises LayerUnavailable, at the time `until` at the latest.
    """
    call, keys, entries = store.pipeline.call, store.keys, store.entries
    key = keys.releases
    dropped, (_, live), found = await asyncio.gather(
        call("EVAL", scripts.DROP_OTHER_TYPE, 1, key, "hash", until=until),
        call("EVAL", scripts.GROUP_MEMBERS, 1, keys.processes, until=until),
        call("HGETALL", key, until=until),
    )
    if dropped:
        entries.log_unexpected("wrong type", key, "it was no hash, and was removed")
    all_published = dict(zip(found[::2], found[1::2], strict=True))
    for process in entries.valid_names(keys.processes, (each for each in live if each[-1:] == b"!")):
        entry = all_published.pop(process.encode(), None)
        if entry is None:
            continue  # it has just taken its lease
        try:
            why = disagreement(process, entries.unpack(key, entry))
        except (ValueError, TypeError, AttributeError):
            continue  # it has another encryption key, which is reported where its entries are read
        if why is not None:
            raise LayerUnavailable(why)
    if all_published:  # of processes that were killed, with nobody there to clean up after them
        store.pipeline.write(("HDEL", key, *all_published), ignore_reply)


class Release:
    """The release and formats that a process with a lease publishes."""

    def __init__(self, store: Store, mailbox: str) -> None:
        """Prepare for the process of a mailbox."""
        self._pipeline: Final = store.pipeline
        self._entries: Final = store.entries
        self._key: Final = store.keys.releases
        self._mailbox: Final = mailbox

    def publish(self) -> None:
        """Publish the release of this process."""
        entry = self._entries.pack(self._key, published())
        self._pipeline.write(("HSET", self._key, self._mailbox, entry), ignore_reply)

    def withdraw(self) -> None:
        """Remove what was published."""
        self._pipeline.write(("HDEL", self._key, self._mailbox), ignore_reply)
