"""The groups that a mailbox is in, and the set that names them, by which others clean up after a process that died."""

from __future__ import annotations

import asyncio
from typing import Any

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis import scripts
from asgibus.layers.redis.keys import Keys
from asgibus.layers.redis.writer import Writer

RENEWALS = 4  # how often in its lifetime a membership is renewed
AT_ONCE = 256  # groups that are joined again, or left by the dead, in one go


class Memberships:
    """Those of one mailbox. `lifetime` in seconds: that of a membership which nobody renews."""

    def __init__(self, writer: Writer, keys: Keys, mailbox: str, lifetime: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._writer = writer
        self._keys = keys
        self._mailbox = mailbox
        self._lifetime = lifetime
        self._due: dict[str, float] = {}  # when each membership is to be renewed, by the event loop's clock

    def __len__(self) -> int:
        """How many groups it is in."""
        return len(self._due)

    async def join(self, group: str, until: float) -> None:
        """Be a member from the return on. Raises LayerUnavailable, at the time `until` at the latest."""
        try:
            await self._add(group, until)
        except LayerUnavailable:
            self._due.pop(group, None)
            raise

    async def leave(self, group: str, until: float) -> None:
        """Be no member from the return on. Raises LayerUnavailable, at the time `until` at the latest."""
        key = self._keys.group(group)
        self._due.pop(group, None)
        await self._writer.call("ZREM", key, self._mailbox, until=until)
        self._writer.write(("SREM", self._keys.joined(self._mailbox), group), _ignore)

    async def renew(self, *, everything: bool, until: float) -> None:
        """Renew what is due, or everything, because Redis may have lost it. Raises LayerUnavailable."""
        now = self._loop.time()
        due = [group for group, due in self._due.items() if everything or due <= now]
        for start in range(0, len(due), AT_ONCE):
            # Some may have been left while those before were renewed.
            groups = [group for group in due[start : start + AT_ONCE] if group in self._due]
            await asyncio.gather(*(self._add(group, until) for group in groups))

    def close(self) -> None:
        """Leave all groups; written, not waited for."""
        for group in self._due:
            self._writer.write(("ZREM", self._keys.group(group), self._mailbox), _ignore)
        self._writer.write(("UNLINK", self._keys.joined(self._mailbox)), _ignore)

    async def bury(self, mailbox: str, died: int) -> None:
        """Take the mailbox of a dead process out of its groups; if it lives and joined again since `died`, it stays.

        `died` in ms by Redis's clock. Several may do so at once: each group is handled by one. Raises LayerUnavailable.
        """
        while groups := await self._writer.call("SPOP", self._keys.joined(mailbox), AT_ONCE):
            keys = [self._keys.group(group.decode()) for group in groups]
            arguments = (mailbox, self._lifetime, died)
            await asyncio.gather(
                *(self._writer.call("EVAL", scripts.GROUP_BURY, 1, key, *arguments) for key in keys),
            )

    async def _add(self, group: str, until: float) -> None:
        key = self._keys.group(group)
        self._due[group] = self._loop.time() + self._lifetime / RENEWALS
        await self._writer.call("EVAL", scripts.GROUP_ADD, 1, key, self._mailbox, self._lifetime, until=until)
        joined = self._keys.joined(self._mailbox)
        self._writer.write(("SADD", joined, group), _ignore)
        self._writer.write(("EXPIRE", joined, self._lifetime), _ignore)


def _ignore(reply: Any) -> None:
    """A group that is missing in the set is cleaned by the next who sends to it, or ends by itself."""
