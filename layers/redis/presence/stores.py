"""The parts of the layer that this folder uses: its stores, and the sending to groups."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgpack

from asgibus.layers.contract import Message
from asgibus.layers.presence import Announcements, Present
from asgibus.layers.redis import scripts
from asgibus.layers.redis.client import ignore_reply
from asgibus.layers.redis.pipeline import Refused, Store, call_until

TELL_SECONDS = 30.0  # for an event of a join, a leave or a will: its group may have to be joined again, after a loss
LIVE_SECONDS = 5.0  # for which a process counts as alive that was alive a moment ago

SendToGroup = Callable[[str, Message, float], Awaitable[None]]
"""Sends a message to a group; raises LayerUnavailable, at a time of the event loop's clock at the latest."""


class Stores(NamedTuple):
    """The stores of a layer, from the running event loop."""

    home: Callable[[], Awaitable[Store]]
    """Returns the store with the leases and the mailboxes."""
    of: Callable[[str], Awaitable[Store]]
    """Returns the store of a group."""
    every: Callable[[], Iterable[Awaitable[Store]]]
    """Returns all stores."""


class LeaseReader:
    """Ask the home which processes are alive, for keys that were left by processes nobody has cleaned up after."""

    def __init__(self, stores: Stores, silent_ms: int) -> None:
        """Take from `silent_ms` after how long without any process the leases are not those that run now."""
        self._stores = stores
        self._silent_ms = silent_ms
        self._alive: dict[str, float] = {}

    async def is_dead(self, mailbox: str) -> bool:
        """Return whether a process is dead. If that is not certain, it is not. Raises LayerUnavailable."""
        now = time.monotonic()
        if self._alive.get(mailbox, -LIVE_SECONDS) > now - LIVE_SECONDS:
            return False
        store = await self._stores.home()
        key, call, until = store.keys.processes, store.pipeline.call, call_until()
        (ms, runs, silent, epochs), grace = await asyncio.gather(
            call("EVAL", scripts.LEASE_RUNS, 1, key, mailbox, self._silent_ms, until=until),
            call("ZSCORE", key, "grace", until=until),
        )
        # Within the grace, the process may have had no time to take its lease again.
        if not runs and not silent and epochs and float(grace or 0) <= ms:
            return True
        self._alive = {each: at for each, at in self._alive.items() if at > now - LIVE_SECONDS}
        self._alive[mailbox] = now
        return False


def tell_until() -> float:
    """Return when an event is given up, by the event loop's clock."""
    return asyncio.get_running_loop().time() + TELL_SECONDS


def pack_present(store: Store, group: str, present: Present) -> bytes:
    """Return the entry of a user."""
    return store.entries.pack(store.keys.present(group), present._asdict())


def unpack_present(store: Store, group: str, entry: bytes) -> Present:
    """Return a user from an entry. Raises ValueError, which `EntryCodec.log_rejected` takes."""
    return present_of(store.entries.unpack_message(store.keys.present(group), entry))


def present_of(fields: Mapping[str, Any]) -> Present:
    """Return a user from fields of the bus, if they are those of one. Raises ValueError."""
    user, since, connections = fields.get("user"), fields.get("since"), fields.get("connections")
    if isinstance(user, str) and isinstance(since, int | float) and isinstance(connections, int):
        return Present(user, fields.get("info"), float(since), connections)
    raise ValueError("an entry is not that of a user")


def unpack_entries(packed: bytes) -> dict[bytes, bytes]:
    """Return the entries of a user by mailbox. Raises ValueError, which `EntryCodec.log_rejected` takes."""
    values = _unpack_list(packed)
    if len(values) % 2 or not all(isinstance(each, bytes) for each in values):
        raise ValueError("it is no list of the entries of a user")
    return dict(zip(values[::2], values[1::2], strict=True))


def unpack_servers(packed: bytes) -> dict[bytes, tuple[int, int]]:
    """Return the processes with users in a group: by mailbox, the number of connections, and that of entries of events.

    Raises:
        ValueError: It is something else; `EntryCodec.log_rejected` takes the error.
    """
    values = _unpack_list(packed)
    if len(values) % 4 or not all(isinstance(each, int if n % 4 else bytes) for n, each in enumerate(values)):
        raise ValueError("it is no list of processes")
    return {values[n]: (values[n + 1], values[n + 3]) for n in range(0, len(values), 4)}


def _unpack_list(packed: bytes) -> list[Any]:
    try:
        values = msgpack.unpackb(packed, raw=True)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"it is no list: {error}") from error
    if not isinstance(values, list):
        raise ValueError(f"it is no list: {type(values).__name__}")
    return values


def pack_announcements(store: Store, group: str, told: Announcements | None) -> bytes:
    """Return the entry of the events of a group; empty if there are none."""
    return b"" if told is None else store.entries.pack(store.keys.present(group), told._asdict())


def unpack_announcements(store: Store, group: str, entry: bytes) -> Announcements | None:
    """Return the events of a group. Raises ValueError, which `EntryCodec.log_rejected` takes."""
    return announcements_of(store.entries.unpack_message(store.keys.present(group), entry)) if entry else None


def announcements_of(fields: Mapping[str, Any]) -> Announcements:
    """Return the events of a group from fields of the bus, if they are such. Raises ValueError."""
    join, leave, most = fields.get("join"), fields.get("leave"), fields.get("most")
    if isinstance(join, dict | None) and isinstance(leave, dict | None) and isinstance(most, int):
        return Announcements(join, leave, most)
    raise ValueError("an entry is not that of the events of a group")


async def forget_group(error: Refused, store: Store, group: str) -> None:
    """Let all processes write the users of a group again, if its key has another type.

    Args:
        error: The refusal of a script.
        store: The store of the group.
        group: The group.

    Raises:
        LayerUnavailable: The store cannot be reached.
    """
    if error.wrong_type:
        await remove_other_types(error, store, store.keys.present(group))
        begin_epoch(store)


def begin_epoch(store: Store) -> None:
    """Let all processes write everything again: without an epoch, the next heartbeat begins one."""
    store.pipeline.write(("ZREMRANGEBYSCORE", store.keys.processes, "+inf", "+inf"), ignore_reply)


async def remove_other_types(error: Refused, store: Store, *keys: str, kind: str = "hash") -> None:
    """Remove keys that have another type than `kind`, if that was the reason of a refusal. Raises LayerUnavailable."""
    if error.wrong_type:
        for key in keys:
            if await store.pipeline.call("EVAL", scripts.DROP_OTHER_TYPE, 1, key, kind, until=call_until()):
                store.entries.log_unexpected("wrong type", key, f"it was no {kind}, and was removed")
