"""The groups of a mailbox and of its channels.

A membership is a member of the group's sorted set. Besides, a set names the groups of each mailbox, so that other
processes can clean up after a dead one. The membership of a mailbox is renewed by its process. That of a process-local
channel lasts for its lifetime; it is noted here, to be written again if the store loses it.

A group is on the store that has its name, and so are its memberships. At each store other than the home of its mailbox,
a process takes a lease, too: from it the process, and senders to groups there, learn that the store has lost its data.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from itertools import islice
from typing import Protocol

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.names import require_group
from asgibus.layers.redis import scripts
from asgibus.layers.redis.client import ignore_reply
from asgibus.layers.redis.pipeline import Refused, Store
from asgibus.layers.redis.redelivery import Epoch

logger = logging.getLogger("asgibus.layers")

RENEWALS = 4  # how often a membership is renewed within its lifetime
AT_ONCE = 256  # groups that are joined again, or left for a dead process, at the same time


class GroupStore(Store, Protocol):
    """A store, as memberships use it."""

    epoch: Epoch


class Memberships:
    """The memberships of one mailbox and of its process-local channels, on all stores."""

    def __init__(
        self,
        home: GroupStore,
        store_of: Callable[[str], Awaitable[GroupStore]],
        stores: Callable[[], Iterable[Awaitable[GroupStore]]],
        mailbox: str,
        lifetime: float,
        lease: tuple[int, ...],
    ) -> None:
        """Begin without memberships.

        Args:
            home: The store of the mailbox.
            store_of: Returns the store of a group.
            stores: Returns all stores.
            mailbox: The mailbox.
            lifetime: Seconds for which a membership lasts that nobody renews.
            lease: The times of a lease: see `renew_lease.lua`.
        """
        self._home = home
        self._store_of = store_of
        self._stores = stores
        self._mailbox = mailbox
        self._lifetime = lifetime
        self._lease = lease
        self._at = {home: _StoreMemberships(home, mailbox, lifetime)}

    def __len__(self) -> int:
        """Return how many groups the mailbox is in."""
        return sum(len(at.due) for at in self._at.values())

    async def join(self, group: str, until: float) -> None:
        """Make the mailbox a member. Raises LayerUnavailable, at the time `until` at the latest."""
        at = await self._at_store_of(group)
        if at.store is not self._home:
            await at.renew_lease(self._lease, until)
        try:
            await at.join(group, until)
        except LayerUnavailable:
            at.due.pop(group, None)
            raise

    async def leave(self, group: str, until: float) -> None:
        """Take the mailbox out. Raises LayerUnavailable, at the time `until` at the latest."""
        await (await self._at_store_of(group)).leave(group, until)

    async def add_channel(self, group: str, channel: str, until: float) -> None:
        """Make a channel of the mailbox a member. Raises LayerUnavailable, at the time `until` at the latest."""
        at = await self._at_store_of(group)
        if at.store is not self._home:
            await at.renew_lease(self._lease, until)
        await at.add_channel(group, channel, until)

    async def discard_channel(self, group: str, channel: str, until: float) -> None:
        """Take a channel of the mailbox out. Raises LayerUnavailable, at the time `until` at the latest."""
        await (await self._at_store_of(group)).discard_channel(group, channel, until)

    def forget_channels(self, parts: Collection[str] | None = None) -> None:
        """Forget the groups of these channels, by local name, or of all. In the store they stay members."""
        for at in self._at.values():
            at.forget_channels(parts)

    async def renew(self, *, everything: bool, until: float) -> None:
        """Renew the memberships that are due.

        Other stores than the home are checked for lost data here; if they are away, they are skipped.

        Args:
            everything: Write all memberships again, because the home may have lost them.
            until: When to give up.

        Raises:
            LayerUnavailable: The home cannot be reached.
        """
        for store, at in list(self._at.items()):
            if store is self._home:
                await at.renew(until, everything=everything)
                continue
            try:
                lost = await at.renew_lease(self._lease, until)
                await at.renew(until, everything=everything or lost)
            except LayerUnavailable as error:
                logger.debug("the groups at %s cannot be renewed yet: %s", store.address, error)

    def close(self) -> None:
        """Leave all groups. Do not wait for it."""
        for store, at in self._at.items():
            at.close(end_lease=store is not self._home)

    async def has(self, mailbox: str) -> bool:
        """Return whether a process is in a group on any store that can be reached. Raises LayerUnavailable."""
        for getting in self._stores():
            try:
                store = await getting
                if await store.pipeline.call("EXISTS", store.keys.joined(mailbox)):
                    return True
            except LayerUnavailable:
                if not self._home.outage.available:
                    raise
        return False

    async def remove_dead(self, mailbox: str, died: int) -> None:
        """Take the mailbox of a dead process out of its groups, but not if it has joined again since its death.

        Several processes may do so at once: each group is handled by one. A store that is away is skipped; there,
        senders to the groups remove the mailbox.

        Args:
            mailbox: The mailbox.
            died: When its process died, in ms by the clock of the home.

        Raises:
            LayerUnavailable: The home cannot be reached.
        """
        for getting in self._stores():
            try:
                store = await getting
                if store is self._home:
                    at = died
                else:
                    seconds, _ = await store.pipeline.call("TIME")
                    at = int(seconds) * 1000
                await _remove_dead(store, mailbox, max(1, round(self._lifetime)), at)
            except LayerUnavailable as error:
                logger.debug("the groups of %s cannot be cleaned up everywhere: %s", mailbox, error)
                if not self._home.outage.available:
                    raise

    async def drop_other_types(self) -> None:
        """Remove keys of memberships that have another type. Raises LayerUnavailable."""
        for at in list(self._at.values()):
            await at.drop_other_types()

    async def _at_store_of(self, group: str) -> _StoreMemberships:
        store = await self._store_of(group)
        at = self._at.get(store)
        if at is None:
            at = self._at[store] = _StoreMemberships(store, self._mailbox, self._lifetime)
        return at


class _StoreMemberships:
    """The memberships of one mailbox and its channels on one store."""

    def __init__(self, store: GroupStore, mailbox: str, lifetime: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._pipeline = store.pipeline
        self._keys = store.keys
        self._mailbox = mailbox
        self._channels_lifetime = lifetime
        self._lifetime = max(1, round(lifetime))
        self._known = ("", b"")  # run id and epoch of the store
        self.store = store
        self.due: dict[str, float] = {}
        """When each membership of the mailbox is to be renewed, by the event loop's clock."""
        self._channels: dict[tuple[str, str], float] = {}  # when the membership of (group, channel) ends
        self._lost: dict[tuple[str, str], None] = {}  # of these, those that have to be written again
        self._lost_by = ("", b"")  # run id and epoch of the store that has lost them

    async def drop_other_types(self) -> None:
        keys = self._keys
        kinds = {keys.processes: "zset", keys.joined(self._mailbox): "set"}
        kinds |= {keys.group(group): "zset" for group in (*self.due, *(group for group, _ in self._channels))}
        await _drop_other_types(self.store, kinds)

    async def renew_lease(self, lease: tuple[int, ...], until: float) -> bool:
        """Take or renew the lease at this store. Return whether the store has lost its data since the last time."""
        arguments: tuple[str | int, ...] = (self._keys.processes, self._mailbox, *lease)
        *_, epoch = await self._pipeline.call("EVAL", scripts.RENEW_LEASE, 1, *arguments, until=until)
        self.store.epoch.note(epoch)
        known, self._known = self._known, (self._pipeline.run_id, epoch)
        return known != self._known

    async def join(self, group: str, until: float) -> None:
        key = self._keys.group(group)
        self.due[group] = self._loop.time() + self._lifetime / RENEWALS
        joined = self._keys.joined(self._mailbox)
        # Written first, in the same flush: should this process die now, others can clean up after it.
        self._pipeline.write(("SADD", joined, group), ignore_reply)
        self._pipeline.write(("EXPIRE", joined, self._lifetime), ignore_reply)
        await self._pipeline.call("EVAL", scripts.GROUP_ADD, 1, key, self._mailbox, self._lifetime, until=until)

    async def leave(self, group: str, until: float) -> None:
        self.due.pop(group, None)
        await self._pipeline.call("ZREM", self._keys.group(group), self._mailbox, until=until)
        self._pipeline.write(("SREM", self._keys.joined(self._mailbox), group), ignore_reply)

    async def renew(self, until: float, *, everything: bool) -> None:
        now = self._loop.time()
        due = [group for group, due in self.due.items() if everything or due <= now]
        for start in range(0, len(due), AT_ONCE):
            # Some may have been left while those before were renewed.
            groups = [group for group in due[start : start + AT_ONCE] if group in self.due]
            await asyncio.gather(*(self.join(group, until) for group in groups))
        if everything:
            self._drop_ended_channels()
            # An attempt that ran out of time is continued, unless the store has lost its data again.
            store = self._pipeline.run_id, self.store.epoch.used
            if not self._lost or self._lost_by != store:
                self._lost, self._lost_by = dict.fromkeys(self._channels), store
        while some := list(islice(self._lost, AT_ONCE)):
            await asyncio.gather(*(self._write_channel(each, until) for each in some))
            for each in some:
                self._lost.pop(each, None)

    async def add_channel(self, group: str, channel: str, until: float) -> None:
        known = self._channels.get((group, channel))
        self._channels[group, channel] = self._loop.time() + self._channels_lifetime
        try:
            await self._write_channel((group, channel), until)
        except LayerUnavailable:
            if known is None:
                self._channels.pop((group, channel), None)
            raise

    async def discard_channel(self, group: str, channel: str, until: float) -> None:
        self._channels.pop((group, channel), None)
        await self._pipeline.call("ZREM", self._keys.group(group), channel, until=until)

    def forget_channels(self, parts: Collection[str] | None) -> None:
        if parts is None:
            self._channels.clear()
        self._drop_ended_channels()
        for key in [key for key in self._channels if key[1].partition("!")[2] in (parts or ())]:
            del self._channels[key]

    def _drop_ended_channels(self) -> None:
        now = self._loop.time()
        for key in [key for key, end in self._channels.items() if end <= now]:
            del self._channels[key]

    async def _write_channel(self, key: tuple[str, str], until: float) -> None:
        if (end := self._channels.get(key)) is None:
            return  # it was discarded meanwhile
        group, channel = key
        seconds = f"{max(0.001, end - self._loop.time()):f}"
        await self._pipeline.call("EVAL", scripts.GROUP_ADD, 1, self._keys.group(group), channel, seconds, until=until)

    def close(self, *, end_lease: bool) -> None:
        for group in self.due:
            self._pipeline.write(("ZREM", self._keys.group(group), self._mailbox), ignore_reply)
        for group, channel in self._channels:
            self._pipeline.write(("ZREM", self._keys.group(group), channel), ignore_reply)
        self._pipeline.write(("UNLINK", self._keys.joined(self._mailbox)), ignore_reply)
        if end_lease:
            self._pipeline.write(("EVAL", scripts.END_LEASE, 1, self._keys.processes, self._mailbox), ignore_reply)


async def _remove_dead(store: GroupStore, mailbox: str, lifetime: int, died: int) -> None:
    pipeline, keys = store.pipeline, store.keys
    joined = keys.joined(mailbox)
    try:
        while groups := await pipeline.call("SPOP", joined, AT_ONCE):
            names = store.entries.valid_names(joined, groups, require_group)
            arguments = (mailbox, lifetime, died)
            await asyncio.gather(
                *(pipeline.call("EVAL", scripts.GROUP_REMOVE_DEAD, 1, keys.group(name), *arguments) for name in names)
            )
    except Refused as error:  # a key of another type holds no membership
        store.entries.log_unexpected("wrong type", joined, str(error))
        await _drop_other_types(store, {joined: "set"})


async def _drop_other_types(store: GroupStore, kinds: Mapping[str, str]) -> None:
    """Remove those keys that have another type than `kinds` says. Raises LayerUnavailable."""
    for key, kind in kinds.items():
        if await store.pipeline.call("EVAL", scripts.DROP_OTHER_TYPE, 1, key, kind):
            store.entries.log_unexpected("wrong type", key, f"it was no {kind}, and was removed")
