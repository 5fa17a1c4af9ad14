"""Groups: the memberships of a mailbox and of its channels, and sending to all members.

A membership is a member of the group's sorted set. Besides, a set names the groups of each mailbox, so that other
processes can clean up after a dead one. The membership of a mailbox is renewed by its process. That of a process-local
channel lasts for its lifetime; it is noted here, to be written again if the store loses it.

A group is on the store that has its name, and so are its memberships. At each store other than the home of its mailbox,
a process takes a lease, too: from it the process, and senders to groups there, learn that the store has lost its data.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

from asgibus.layers.codec import pack_message
from asgibus.layers.contract import Frame, Message
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.frames import GROUP_MESSAGE
from asgibus.layers.names import mailbox_of, require_any_group
from asgibus.layers.over_capacity import OverCapacity
from asgibus.layers.redis import scripts
from asgibus.layers.redis.client import ignore_reply
from asgibus.layers.redis.codec import EntryCodec
from asgibus.layers.redis.mailbox import MailboxSender
from asgibus.layers.redis.pipeline import Refused, Store, call_until
from asgibus.layers.redis.redelivery import Backlog, Epoch, epoch_range

logger = logging.getLogger("asgibus.layers")

RENEWALS = 4  # how often a membership is renewed within its lifetime
PLANNED_MEMBERS = 50_000  # whose names are kept between two messages to their groups
_Missed = tuple[list[str], int]  # members whose processes are gone, and the number of full ones

AT_ONCE = 256  # groups that are joined again, or left for a dead process, at the same time


class GroupStore(Store, Protocol):
    """A store, as memberships use it."""

    epoch: Epoch


class Presence(Protocol):
    """The data that a process has stored about its users: see `presence.own.RedisPresence`."""

    def renew(self, store: Any, *, everything: bool, lapsed: bool) -> None: ...

    def remove_dead_soon(self, mailbox: str, died: int) -> None: ...


class Regroup(Protocol):
    """Waits until members are back after Redis has lost its data: see `store.Regroup`."""

    async def wait(self, members: Sequence[bytes], now: int, until: float) -> bool: ...

    async def recreate_group(self, key: str, until: float) -> None: ...


class MemberStore(Store, Protocol):
    """A store, as sending to groups uses it."""

    backlog: Backlog
    mailboxes: MailboxSender

    @property
    def regroup(self) -> Regroup: ...

    async def send(self, channel: str, message: bytes, delay: float, until: float) -> bool:
        """Add a packed message to an ordinary channel. Return False if it is full. Raises LayerUnavailable."""


class _Channels(NamedTuple):
    """Members of a group that are process-local channels of one mailbox and have the same capacity."""

    mailbox: str
    capacity: int
    parts: tuple[str, ...]
    names: list[str]


class _Plan(NamedTuple):
    """The way of a message to the members of a group.

    A mailbox gets one entry for the group as a whole, or one for all of its channels that have the same capacity.
    """

    members: list[bytes]
    """The members as Redis names them: for others, another plan is made."""
    ordinary: list[str]
    mailboxes: list[str]
    channels: list[_Channels]


class GroupSender:
    """Sends to groups, in any event loop."""

    def __init__(
        self,
        store_of: Callable[[str, float], Awaitable[MemberStore]],
        entries: EntryCodec,
        over_capacity: OverCapacity,
        capacity_of: Callable[[str], int],
    ) -> None:
        """Prepare to send.

        Args:
            store_of: Returns the store of a group, a mailbox or an ordinary channel; raises LayerUnavailable at a time
                of the event loop's clock.
            entries: Checks names of members.
            over_capacity: Counts and logs the messages that full members miss.
            capacity_of: Returns the capacity of a channel.
        """
        self._store_of = store_of
        self._entries = entries
        self._over_capacity = over_capacity
        self._capacity_of = capacity_of
        self._plans: dict[str, _Plan] = {}
        self._planned = 0  # members in all plans that were made

    async def send(self, group: str, message: Message, until: float) -> None:
        """Send a message to all members. Raises LayerUnavailable, at the time `until` at the latest."""
        payload = pack_message(message)
        store = await self._store_of(group, until)
        with store.outage.counted():
            room = await store.backlog.enter(len(payload), until)
            try:
                await self._send(store, group, message, payload, until)
            finally:
                store.backlog.leave(room)

    async def _send(self, store: MemberStore, group: str, message: Message, payload: bytes, until: float) -> None:
        members, epoch = await self._members(store, group, until)
        plan = self._plan(store.keys.group(group), members)
        calls: list[Coroutine[Any, Any, _Missed]] = []
        calls += [self._to_ordinary(channel, payload, until) for channel in plan.ordinary]
        calls += [self._to_mailbox(mailbox, (GROUP_MESSAGE, group, message), until) for mailbox in plan.mailboxes]
        calls += [self._to_channels(each, payload, until) for each in plan.channels]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        missed = [each for each in outcomes if isinstance(each, tuple)]
        if gone := [member for each, _ in missed for member in each]:
            await self._remove(store, group, gone, epoch)
        for each in outcomes:
            if isinstance(each, BaseException):
                raise each  # the store of some members is away; the others have the message
        if full := sum(full for _, full in missed):
            self._over_capacity.missed(f"group {group}", full, len(members))

    async def _to_mailbox(self, mailbox: str, frame: Frame, until: float) -> _Missed:
        sent = await (await self._store_of(mailbox, until)).mailboxes.send_frame(mailbox, frame, until)
        return ([mailbox] if sent is None else []), int(sent is False)

    async def _to_channels(self, channels: _Channels, payload: bytes, until: float) -> _Missed:
        store = await self._store_of(channels.mailbox, until)
        sent = await store.mailboxes.send(channels.mailbox, channels.parts, payload, channels.capacity, until)
        return (channels.names if sent is None else []), len(channels.names) if sent is False else 0

    async def _to_ordinary(self, channel: str, payload: bytes, until: float) -> _Missed:
        return [], not await (await self._store_of(channel, until)).send(channel, payload, 0.0, until)

    async def _remove(self, store: MemberStore, group: str, gone: list[str], epoch: list[bytes]) -> None:
        """Remove members whose processes are gone from a group, unless another epoch has begun since."""
        call = store.pipeline.call
        if await call("ZRANGE", *epoch_range(store.keys), until=call_until()) != epoch:
            return
        await call("ZREM", store.keys.group(group), *gone, until=call_until())
        logger.info("group %r: %d members of processes that are gone were removed", group, len(gone))

    async def _members(self, store: MemberStore, group: str, until: float) -> tuple[list[bytes], list[bytes]]:
        """Return the members of a group and the epoch, once all processes had time to join in that epoch."""
        pipeline, key = store.pipeline, store.keys.group(group)
        while True:
            run_id = pipeline.run_id
            found: list[Any] = []
            reading = pipeline.write(("EVAL", scripts.GROUP_MEMBERS, 1, key), found.append)
            try:  # in one flush, and after the members, so that they were read in this epoch or an earlier one
                epoch = await pipeline.call("ZRANGE", *epoch_range(store.keys), until=until)
            finally:
                pipeline.cancel(reading)
            if found and isinstance(found[0], Exception) and str(found[0]).startswith("WRONGTYPE"):
                self._entries.log_unexpected("wrong type", key, "it was no zset, and was removed")
                await store.regroup.recreate_group(key, until)
                continue
            if not found or isinstance(found[0], Exception):
                raise LayerUnavailable(f"Redis refused to name the members of a group: {found}")
            if run_id != pipeline.run_id:
                continue  # the two replies may be from different servers
            now, members = found[0]
            if not await store.regroup.wait(epoch, now, until):
                return members, epoch

    def _plan(self, key: str, members: list[bytes]) -> _Plan:
        """Return how a message reaches these members. The members are mostly those of the last message."""
        plan = self._plans.get(key)
        if plan is None or plan.members != members:
            self._planned += 1 + len(members)  # a group without members has a plan, too
            if self._planned > PLANNED_MEMBERS:
                self._plans.clear()
                self._planned = 1 + len(members)
            plan = self._plans[key] = self._make_plan(key, members)
        return plan

    def _make_plan(self, key: str, members: list[bytes]) -> _Plan:
        try:
            names = [member.decode() for member in members]
        except UnicodeDecodeError:
            names = self._entries.valid_names(key, members)
        ordinary: list[str] = []
        mailboxes: list[str] = []
        channels: dict[tuple[str, int], dict[str, str]] = {}
        for name in names:
            owner, mark, part = name.partition("!")
            if not mark:
                ordinary.append(name)
            elif part:
                channels.setdefault((mailbox_of(owner), self._capacity_of(name)), {})[part] = name
            else:
                mailboxes.append(name)
        by_mailbox = [_Channels(*of, tuple(each), list(each.values())) for of, each in channels.items()]
        return _Plan(members, ordinary, mailboxes, by_mailbox)


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
        presence: Presence,
    ) -> None:
        """Begin without memberships.

        Args:
            home: The store of the mailbox.
            store_of: Returns the store of a group.
            stores: Returns all stores.
            mailbox: The mailbox.
            lifetime: Seconds for which a membership lasts that nobody renews.
            lease: The times of a lease: see `renew_lease.lua`.
            presence: The users in groups.
        """
        self.presence = presence
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

    async def renew(self, *, everything: bool, until: float, lapsed: bool = False) -> None:
        """Renew the memberships that are due, and have the presence of users renewed.

        Other stores than the home are checked for lost data here; if they are away, they are skipped.

        Args:
            everything: Write all memberships again, because the home may have lost them.
            until: When to give up.
            lapsed: Whether others may have taken this process for dead, and no data is lost.

        Raises:
            LayerUnavailable: The home cannot be reached.
        """
        for store, at in list(self._at.items()):
            if store is self._home:
                await at.renew(until, everything=everything)
                self.presence.renew(store, everything=everything, lapsed=lapsed)
                continue
            try:
                lost = await at.renew_lease(self._lease, until)
                await at.renew(until, everything=everything or lost)
                self.presence.renew(store, everything=everything or lost, lapsed=lapsed and not lost)
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

    def export(self) -> dict[str, float]:
        """Return the groups of the mailbox, and in how many seconds each membership is to be renewed."""
        now = asyncio.get_running_loop().time()
        return {group: due - now for at in self._at.values() for group, due in at.due.items()}

    async def restore(self, groups: Mapping[str, float]) -> None:
        """Renew memberships that another process has begun. Raises LayerUnavailable.

        Args:
            groups: The result of `export` there.
        """
        now = asyncio.get_running_loop().time()
        for group, left in groups.items():
            (await self._at_store_of(group)).due[group] = now + left

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
    wrong_type = False
    try:
        while groups := await pipeline.call("SPOP", joined, AT_ONCE):
            names = store.entries.valid_names(joined, groups, require_any_group)
            arguments = (mailbox, lifetime, died)
            await asyncio.gather(
                *(pipeline.call("EVAL", scripts.GROUP_REMOVE_DEAD, 1, keys.group(name), *arguments) for name in names)
            )
    except Refused as error:  # a key of another type holds no membership
        store.entries.log_unexpected("wrong type", joined, str(error))
        wrong_type = True
    if wrong_type:
        await _drop_other_types(store, {joined: "set"})


async def _drop_other_types(store: GroupStore, kinds: Mapping[str, str]) -> None:
    """Remove those keys that have another type than `kinds` says. Raises LayerUnavailable."""
    for key, kind in kinds.items():
        if await store.pipeline.call("EVAL", scripts.DROP_OTHER_TYPE, 1, key, kind):
            store.entries.log_unexpected("wrong type", key, f"it was no {kind}, and was removed")
