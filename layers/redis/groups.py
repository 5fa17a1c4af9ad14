"""The groups that a mailbox and its channels are in, and the set that names those of the mailbox, for who cleans up.

The membership of a mailbox is renewed, and ended by others when its process has died. That of a process-local channel
lasts for its time; it is noted here to be written again should the store lose it.

Each group lies on the store that has its name, and so do the memberships. On a store other than that of its mailbox a
process takes a lease, too: it finds out by it that the store has lost its data, and so does who sends to a group there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from itertools import islice
from typing import Any, Protocol

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.names import require_group
from asgibus.layers.redis import scripts
from asgibus.layers.redis.client import Outage
from asgibus.layers.redis.codec import Entries
from asgibus.layers.redis.config import Address
from asgibus.layers.redis.epoch import Epoch
from asgibus.layers.redis.keys import Keys
from asgibus.layers.redis.pipeline import Refused, Writer

logger = logging.getLogger("asgibus.layers")

RENEWALS = 4  # how often in its lifetime a membership is renewed
AT_ONCE = 256  # groups that are joined again, or left by the dead, in one go


class GroupStore(Protocol):
    """A store that has groups: see `store.Attachment`."""

    address: Address
    keys: Keys
    entries: Entries
    outage: Outage
    writer: Writer
    epoch: Epoch


class Memberships:
    """The memberships of one mailbox and of its channels. `lifetime`: seconds of one that nobody renews.

    `place` gives the store of a group, `places` all of them; `lease` the arguments of RENEW behind the mailbox.
    """

    def __init__(
        self,
        home: GroupStore,
        place: Callable[[str], Awaitable[GroupStore]],
        places: Callable[[], Iterable[Awaitable[GroupStore]]],
        mailbox: str,
        lifetime: float,
        lease: tuple[int, ...],
    ) -> None:
        self._home = home
        self._place = place
        self._places = places
        self._mailbox = mailbox
        self._lifetime = max(1, round(lifetime))
        self._channels_lifetime = lifetime
        self._lease = lease
        self._branches = {home: _Branch(home, mailbox, lifetime)}

    def __len__(self) -> int:
        """Return how many groups the mailbox is in."""
        return sum(len(branch.due) for branch in self._branches.values())

    async def join(self, group: str, until: float) -> None:
        """Be a member from the return on. Raises LayerUnavailable, at the time `until` at the latest."""
        branch = await self._branch(group)
        if branch.attachment is not self._home:
            await branch.look(self._lease, until)
        try:
            await branch.add(group, until)
        except LayerUnavailable:
            branch.due.pop(group, None)
            raise

    async def leave(self, group: str, until: float) -> None:
        """Be no member from the return on. Raises LayerUnavailable, at the time `until` at the latest."""
        await (await self._branch(group)).leave(group, until)

    async def add_channel(self, group: str, channel: str, until: float) -> None:
        """Make a channel of the mailbox a member, for its time. Raises LayerUnavailable, at `until` at the latest."""
        branch = await self._branch(group)
        if branch.attachment is not self._home:
            await branch.look(self._lease, until)
        await branch.add_channel(group, channel, until)

    async def discard_channel(self, group: str, channel: str, until: float) -> None:
        """Take a channel of the mailbox out. Raises LayerUnavailable, at the time `until` at the latest."""
        await (await self._branch(group)).discard_channel(group, channel, until)

    def forget_channels(self, parts: Collection[str] | None = None) -> None:
        """Note no more which groups these channels are in, named by their local parts, or all. They stay members."""
        for branch in self._branches.values():
            branch.forget_channels(parts)

    async def renew(self, *, everything: bool, until: float) -> None:
        """Renew what is due, or write everything again, because the home may have lost it. Raises LayerUnavailable.

        What another store has lost is seen and put right here; that it is away is no matter of the home.
        """
        for attachment, branch in list(self._branches.items()):
            if attachment is self._home:
                await branch.renew(until, everything=everything)
                continue
            try:
                lost = await branch.look(self._lease, until)
                await branch.renew(until, everything=everything or lost)
            except LayerUnavailable as error:
                logger.debug("the groups at %s cannot be renewed yet: %s", attachment.address, error)

    def close(self) -> None:
        """Leave all groups; written, not waited for."""
        for attachment, branch in self._branches.items():
            branch.close(leave=attachment is not self._home)

    async def has(self, mailbox: str) -> bool:
        """Whether a process is in a group, as far as that can be asked now. Raises LayerUnavailable."""
        for place in self._places():
            try:
                attachment = await place
                if await attachment.writer.call("EXISTS", attachment.keys.joined(mailbox)):
                    return True
            except LayerUnavailable:
                if not self._home.outage.available:
                    raise
        return False

    async def bury(self, mailbox: str, died: int) -> None:
        """Take the mailbox of a dead process out of its groups; if it lives and joined again since `died`, it stays.

        `died` in ms by the clock of the home. Several may do so at once: each group is handled by one. Raises
        LayerUnavailable; a store that is not the home may be away, and is tidied up by who sends to its groups.
        """
        for place in self._places():
            try:
                attachment = await place
                if attachment is self._home:
                    at = died
                else:
                    seconds, _ = await attachment.writer.call("TIME")
                    at = int(seconds) * 1000
                await _bury(attachment, mailbox, self._lifetime, at)
            except LayerUnavailable as error:
                logger.debug("the groups of %s cannot be tidied up everywhere: %s", mailbox, error)
                if not self._home.outage.available:
                    raise

    async def drop_other_types(self) -> None:
        """Remove the keys that hold something else than memberships. Raises LayerUnavailable."""
        for branch in list(self._branches.values()):
            await branch.drop_other_types()

    async def _branch(self, group: str) -> _Branch:
        attachment = await self._place(group)
        branch = self._branches.get(attachment)
        if branch is None:
            branch = self._branches[attachment] = _Branch(attachment, self._mailbox, self._channels_lifetime)
        return branch


class _Branch:
    """The memberships on one store. `due`: when each of the mailbox is to be renewed, by the event loop's clock.

    `channels`: when those of its channels end, by group and channel.
    """

    def __init__(self, attachment: GroupStore, mailbox: str, lifetime: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._writer = attachment.writer
        self._keys = attachment.keys
        self._mailbox = mailbox
        self._channels_lifetime = lifetime
        self._lifetime = max(1, round(lifetime))
        self._known = ("", b"")  # the run id and the epoch of the store
        self.attachment = attachment
        self.due: dict[str, float] = {}
        self.channels: dict[tuple[str, str], float] = {}
        self._lost: dict[tuple[str, str], None] = {}  # of these, what has to be written again
        self._lost_by = ("", b"")  # the run id and the epoch of the store that had lost it

    async def drop_other_types(self) -> None:
        """Drop keys of other types: see `Memberships.drop_other_types`."""
        keys = self._keys
        kinds = {keys.processes: "zset", keys.joined(self._mailbox): "set"}
        kinds |= {keys.group(group): "zset" for group in (*self.due, *(group for group, _ in self.channels))}
        await drop_other_types(self.attachment, kinds)

    async def look(self, lease: tuple[int, ...], until: float) -> bool:
        """Take or renew the lease there; whether the store has lost what was there before."""
        arguments: tuple[str | int, ...] = (self._keys.processes, self._mailbox, *lease)
        *_, epoch = await self._writer.call("EVAL", scripts.RENEW_LEASE, 1, *arguments, until=until)
        self.attachment.epoch.seen(epoch)
        known, self._known = self._known, (self._writer.run_id, epoch)
        return known != self._known

    async def add(self, group: str, until: float) -> None:
        key = self._keys.group(group)
        self.due[group] = self._loop.time() + self._lifetime / RENEWALS
        joined = self._keys.joined(self._mailbox)
        # First, in the same flush: there is no member whom nobody could tidy up after, should it die now.
        self._writer.write(("SADD", joined, group), _ignore)
        self._writer.write(("EXPIRE", joined, self._lifetime), _ignore)
        await self._writer.call("EVAL", scripts.GROUP_ADD, 1, key, self._mailbox, self._lifetime, until=until)

    async def leave(self, group: str, until: float) -> None:
        self.due.pop(group, None)
        await self._writer.call("ZREM", self._keys.group(group), self._mailbox, until=until)
        self._writer.write(("SREM", self._keys.joined(self._mailbox), group), _ignore)

    async def renew(self, until: float, *, everything: bool) -> None:
        now = self._loop.time()
        due = [group for group, due in self.due.items() if everything or due <= now]
        for start in range(0, len(due), AT_ONCE):
            # Some may have been left while those before were renewed.
            groups = [group for group in due[start : start + AT_ONCE] if group in self.due]
            await asyncio.gather(*(self.add(group, until) for group in groups))
        if everything:
            self._end_channels()
            # A try that was given up for lack of time goes on where it ended, unless the store is another one again.
            store = self._writer.run_id, self.attachment.epoch.used
            if not self._lost or self._lost_by != store:
                self._lost, self._lost_by = dict.fromkeys(self.channels), store
        while some := list(islice(self._lost, AT_ONCE)):
            await asyncio.gather(*(self._write_channel(each, until) for each in some))
            for each in some:
                self._lost.pop(each, None)

    async def add_channel(self, group: str, channel: str, until: float) -> None:
        known = self.channels.get((group, channel))
        self.channels[group, channel] = self._loop.time() + self._channels_lifetime
        try:
            await self._write_channel((group, channel), until)
        except LayerUnavailable:
            if known is None:
                self.channels.pop((group, channel), None)
            raise

    async def discard_channel(self, group: str, channel: str, until: float) -> None:
        self.channels.pop((group, channel), None)
        await self._writer.call("ZREM", self._keys.group(group), channel, until=until)

    def forget_channels(self, parts: Collection[str] | None) -> None:
        """See `Memberships`; those that have ended are forgotten, too."""
        if parts is None:
            self.channels.clear()
        self._end_channels()
        for key in [key for key in self.channels if key[1].partition("!")[2] in (parts or ())]:
            del self.channels[key]

    def _end_channels(self) -> None:
        now = self._loop.time()
        for key in [key for key, end in self.channels.items() if end <= now]:
            del self.channels[key]

    async def _write_channel(self, key: tuple[str, str], until: float) -> None:
        if (end := self.channels.get(key)) is None:
            return  # it was discarded meanwhile
        group, channel = key
        left = f"{max(0.001, end - self._loop.time()):f}"
        await self._writer.call("EVAL", scripts.GROUP_ADD, 1, self._keys.group(group), channel, left, until=until)

    def close(self, *, leave: bool) -> None:
        """`leave`: give the lease there back, too."""
        for group in self.due:
            self._writer.write(("ZREM", self._keys.group(group), self._mailbox), _ignore)
        for group, channel in self.channels:
            self._writer.write(("ZREM", self._keys.group(group), channel), _ignore)
        self._writer.write(("UNLINK", self._keys.joined(self._mailbox)), _ignore)
        if leave:
            self._writer.write(("EVAL", scripts.END_LEASE, 1, self._keys.processes, self._mailbox), _ignore)


async def _bury(attachment: GroupStore, mailbox: str, lifetime: int, died: int) -> None:
    writer, keys = attachment.writer, attachment.keys
    joined = keys.joined(mailbox)
    try:
        while groups := await writer.call("SPOP", joined, AT_ONCE):
            names = attachment.entries.names(joined, groups, require_group)
            arguments = (mailbox, lifetime, died)
            await asyncio.gather(
                *(writer.call("EVAL", scripts.GROUP_REMOVE_DEAD, 1, keys.group(name), *arguments) for name in names)
            )
    except Refused as error:  # a key of another type holds no membership
        attachment.entries.odd("wrong type", joined, str(error))
        await drop_other_types(attachment, {joined: "set"})


async def drop_other_types(attachment: GroupStore, kinds: Mapping[str, str]) -> None:
    """Remove those of these keys that are of another type than theirs, which are given: nothing of ours is in them.

    Raises LayerUnavailable.
    """
    for key, kind in kinds.items():
        if await attachment.writer.call("EVAL", scripts.DROP_OTHER_TYPE, 1, key, kind):
            attachment.entries.odd("wrong type", key, f"it was no {kind}, and was removed")


def _ignore(reply: Any) -> None:
    """A group that is missing in the set is cleaned by the next who sends to it, or ends by itself."""
