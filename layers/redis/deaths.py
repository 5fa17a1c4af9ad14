"""Find processes that have died before their leases end, and announce deaths to the others.

The kernel closes the connections of a process that dies at once. So each process names its connections to Redis beside
its lease. When a process has given no sign of life for a while, another one asks Redis for these connections. If none
is left, and the process does not come back with others soon, it has died.

A process that only loses its connections is back within a tenth of a second, unless something between it and Redis is
away. So no process names a connection behind a proxy, which Redis shows with another address. A connection may also
outlive its process, such as one that a forked child has inherited, or whose host has lost its power. In all of these
cases the lease decides alone.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.frames import DEAD
from asgibus.layers.redis import scripts
from asgibus.layers.redis.pipeline import PAYLOAD_VERSION, Refused, Store, call_until

logger = logging.getLogger("asgibus.layers")

# A process gives a sign of life every 0.6 s at least, and a busy machine may delay that.
SUSPECT_SECONDS = 0.9  # without a sign of life, after which its connections are looked for
ASK_SECONDS = 0.4  # between two searches by any process: one that hangs stays a suspect until its lease ends
RECONNECT_SECONDS = 0.4  # for a process without connections to come back; it needs a tenth of a second
REPLY_SECONDS = 1.0  # for Redis to list connections

_ID = re.compile(rb"^id=([0-9]+) ", re.MULTILINE)
_NAMED = re.compile(rb"[1-9][0-9]{0,17}(?:,[1-9][0-9]{0,17}){0,9}")  # what `connection_names` writes after the run id


class _Lost(NamedTuple):
    """A process whose connections are closed."""

    mailbox: str
    lease_end: int
    """The end of its lease, in ms by Redis's clock: a sign of life moves it."""


class ConnectionWatch:
    """Notice processes that have died, by their connections to Redis.

    Args:
        store: The home of the bus.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self.withholds = False
        """Whether this process names no connection, because another one goes on under its mailbox."""
        self._permitted = True  # until Redis refuses to list connections
        self._lost: list[_Lost] = []  # processes that have until `_decide_at` to come back
        self._decide_at = 0.0

    def names(self, lease_id: int) -> str:
        """Return what this process writes about its connections, and log once why that is nothing.

        Args:
            lease_id: The id of the connection that extends the lease; 0 if there is none.

        Returns:
            A text for the scripts; empty if the end of the connections would not say that the process has ended.
        """
        pipeline = self._store.pipeline
        if self.withholds or not pipeline.connected:
            return ""
        if not pipeline.run_id:
            self._log_once("this user of Redis may not call INFO, which tells one server from another")
        elif not pipeline.direct_id:
            self._log_once("Redis does not see the address of this process, so a proxy may be between")
        return connection_names(pipeline.run_id, pipeline.direct_id, lease_id)

    @property
    def times(self) -> tuple[int, int]:
        """The times that the scripts take after the connections, in ms; the first is 0 if this process cannot look."""
        return round(SUSPECT_SECONDS * 1000) if self._permitted else 0, round(ASK_SECONDS * 1000)

    @property
    def wait(self) -> float | None:
        """Seconds until a decision is due; None if there is none to make."""
        return max(0.0, self._decide_at - self._loop.time()) if self._lost else None

    async def look_for(self, suspects: Sequence[bytes], run_id: str) -> None:
        """Look for the connections of processes that have given no sign of life.

        Args:
            suspects: What `renew_lease.lua` has returned.
            run_id: The run id of the Redis server that has returned it.
        """
        entries, key = self._store.entries, self._store.keys.connections
        found = {}
        for name, end, ids in zip(suspects[::3], suspects[1::3], suspects[2::3], strict=True):
            if not _NAMED.fullmatch(ids):  # Redis would refuse the search for all of them
                entries.log_unexpected("connections unreadable", key, "a process has named no ids of connections")
                continue
            for mailbox in entries.valid_names(self._store.keys.processes, [name]):
                found[mailbox] = round(float(end)), ids.split(b",")
        if not found:
            return
        asked = sorted({each for _, ids in found.values() for each in ids})
        until = self._loop.time() + REPLY_SECONDS
        call = self._store.pipeline.call
        try:
            reply: bytes = await call("CLIENT", "LIST", "ID", *asked, repeatable=False, until=until)
        except Refused as error:
            self._permitted = False
            self._log_once(str(error))
            return
        except LayerUnavailable:
            return
        if self._store.pipeline.run_id != run_id:
            return  # another server has other ids
        open_ids = set(_ID.findall(reply))
        lost = [_Lost(mailbox, end) for mailbox, (end, ids) in found.items() if open_ids.isdisjoint(ids)]
        if lost and not self._lost:
            self._decide_at = self._loop.time() + RECONNECT_SECONDS
            self._lost = lost

    async def decide(self, live: Iterable[str]) -> None:
        """Declare the processes dead that have not come back in time.

        Args:
            live: The mailboxes of all processes with a lease. This process learns of a death from its own mailbox, too.

        Raises:
            LayerUnavailable: Redis cannot be reached.
        """
        if self._lost and self._loop.time() >= self._decide_at:
            lost, self._lost = self._lost, []
            for each in lost:
                await declare_dead(self._store, each.mailbox, live, each.lease_end)

    def _log_once(self, reason: str) -> None:
        if self._store.entries.mark_logged("connections"):
            logger.info(
                "deaths of processes that no supervisor reports are noticed when their leases end, and no sooner: %s",
                reason,
            )


def connection_names(run_id: str, *ids: int) -> str:
    """Return connections as the scripts know them.

    Args:
        run_id: The run id of the Redis server; empty if it is not known.
        ids: The ids of the connections there; 0 for none, or for one behind a proxy.

    Returns:
        The run id and the ids; an empty text if one of them is not known.
    """
    known = [str(each) for each in ids if each]
    return f"{run_id}:{','.join(known)}" if run_id and ids[0] else ""


async def declare_dead(store: Store, mailbox: str, live: Iterable[str], lease_end: int | None = None) -> None:
    """End the lease of a process, and announce its death.

    Args:
        store: The home of the bus.
        mailbox: The mailbox of the process.
        live: The mailboxes of all processes with a lease.
        lease_end: When its lease ends, in ms by Redis's clock. If that has changed, the process has given a sign of
            life, and is not declared dead. None if that does not matter, because the process was reaped.

    Raises:
        LayerUnavailable: Redis cannot be reached.
    """
    told = [store.keys.mailbox(each) for each in live]
    frame = DEAD, mailbox, lease_end is None  # a process that was reaped does not return
    entries = [store.entries.pack(key, (PAYLOAD_VERSION, "", [frame])) for key in told]
    names = store.keys.processes, *told
    arguments = mailbox, "" if lease_end is None else lease_end, *entries
    call = store.pipeline.call
    await call("EVAL", scripts.DECLARE_DEAD, len(names), *names, *arguments, repeatable=False, until=call_until())
