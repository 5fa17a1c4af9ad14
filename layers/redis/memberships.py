"""The groups that a mailbox is in, and the set that names them, by which others clean up after a process that died.

Each group lies on the store that has its name, and so do the memberships. On a store other than that of its mailbox a
process takes a lease, too: it finds out by it that the store has lost its data, and so does who sends to a group there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.names import require_group
from asgibus.layers.redis import scripts
from asgibus.layers.redis.writer import Refused

if TYPE_CHECKING:
    from asgibus.layers.redis.attachment import Attachment

logger = logging.getLogger("asgibus.layers")

RENEWALS = 4  # how often in its lifetime a membership is renewed
AT_ONCE = 256  # groups that are joined again, or left by the dead, in one go


class Memberships:
    """Those of one mailbox. `lifetime` in seconds: that of a membership which nobody renews.

    `place` gives the store of a group, `places` all of them; `lease` the arguments of RENEW behind the mailbox.
    """

    def __init__(
        self,
        home: Attachment,
        place: Callable[[str], Awaitable[Attachment]],
        places: Callable[[], Iterable[Awaitable[Attachment]]],
        mailbox: str,
        lifetime: int,
        lease: tuple[int, ...],
    ) -> None:
        self._home = home
        self._place = place
        self._places = places
        self._mailbox = mailbox
        self._lifetime = lifetime
        self._lease = lease
        self._branches = {home: _Branch(home, mailbox, lifetime)}

    def __len__(self) -> int:
        """How many groups it is in."""
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

    async def renew(self, *, everything: bool, until: float) -> None:
        """Renew what is due, or everything, because the home may have lost it. Raises LayerUnavailable.

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
            branch = self._branches[attachment] = _Branch(attachment, self._mailbox, self._lifetime)
        return branch


class _Branch:
    """The memberships on one store. `due`: when each is to be renewed, by the event loop's clock."""

    def __init__(self, attachment: Attachment, mailbox: str, lifetime: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._writer = attachment.writer
        self._keys = attachment.keys
        self._mailbox = mailbox
        self._lifetime = lifetime
        self._known = ("", b"")  # the run id and the epoch of the store
        self.attachment = attachment
        self.due: dict[str, float] = {}

    async def drop_other_types(self) -> None:
        """As `Memberships.drop_other_types`."""
        keys = self._keys
        kinds = {keys.processes: "zset", keys.joined(self._mailbox): "set"}
        kinds |= {keys.group(group): "zset" for group in self.due}
        await drop_other_types(self.attachment, kinds)

    async def look(self, lease: tuple[int, ...], until: float) -> bool:
        """Take or renew the lease there; whether the store has lost what was there before."""
        arguments: tuple[str | int, ...] = (self._keys.processes, self._mailbox, *lease)
        *_, epoch = await self._writer.call("EVAL", scripts.RENEW, 1, *arguments, until=until)
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

    def close(self, *, leave: bool) -> None:
        """`leave`: give the lease there back, too."""
        for group in self.due:
            self._writer.write(("ZREM", self._keys.group(group), self._mailbox), _ignore)
        self._writer.write(("UNLINK", self._keys.joined(self._mailbox)), _ignore)
        if leave:
            self._writer.write(("EVAL", scripts.END_LEASE, 1, self._keys.processes, self._mailbox), _ignore)


async def _bury(attachment: Attachment, mailbox: str, lifetime: int, died: int) -> None:
    writer, keys = attachment.writer, attachment.keys
    joined = keys.joined(mailbox)
    try:
        while groups := await writer.call("SPOP", joined, AT_ONCE):
            names = attachment.entries.names(joined, groups, require_group)
            arguments = (mailbox, lifetime, died)
            await asyncio.gather(
                *(writer.call("EVAL", scripts.GROUP_BURY, 1, keys.group(name), *arguments) for name in names)
            )
    except Refused as error:  # a key of another type holds no membership
        attachment.entries.odd("wrong type", joined, str(error))
        await drop_other_types(attachment, {joined: "set"})


async def drop_other_types(attachment: Attachment, kinds: Mapping[str, str]) -> None:
    """Remove those of these keys that are of another type than theirs, which are given: nothing of ours is in them.

    Raises LayerUnavailable.
    """
    for key, kind in kinds.items():
        if await attachment.writer.call("EVAL", scripts.DROP_OTHER_TYPE, 1, key, kind):
            attachment.entries.odd("wrong type", key, f"it was no {kind}, and was removed")


def _ignore(reply: Any) -> None:
    """A group that is missing in the set is cleaned by the next who sends to it, or ends by itself."""
