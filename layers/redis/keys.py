"""The names of the keys in Redis, all under one prefix.

What belongs to a channel or a mailbox lies in one hash slot with it: a slot is made of what stands between braces.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a layer with that prefix."""

    prefix: str

    @property
    def processes(self) -> str:
        """Sorted set: the leases, and the epoch."""
        return f"{self.prefix}:processes"

    @property
    def apps(self) -> str:
        """Hash: which app a worker runs for which pool, by its mailbox."""
        return f"{self.prefix}:apps"

    def shared(self, channel: str) -> str:
        """Stream with a consumer group: what is offered to the workers."""
        return f"{self.prefix}:shared:{channel}"

    def group(self, group: str) -> str:
        """Sorted set: mailboxes and channels; scores are when a membership ends."""
        return f"{self.prefix}:group:{group}"

    def mailbox(self, mailbox: str) -> str:
        """Stream: frames for one process."""
        return f"{self.prefix}:mailbox:{mailbox}"

    def joined(self, mailbox: str) -> str:
        """Set: the groups of a process, so that others can tidy up after it."""
        return f"{self.prefix}:joined:{mailbox}"

    def full(self, mailbox: str) -> str:
        """Set: the local parts of the process-local channels of a mailbox that are full."""
        return f"{self.prefix}:full:{{{self.mailbox(mailbox)}}}"

    def messages(self, channel: str) -> str:
        """List: the unread messages of an ordinary channel."""
        return f"{self.prefix}:channel:{channel}"

    def delayed(self, channel: str) -> str:
        """Sorted set: those that nobody may read yet; scores are when they are due."""
        return f"{self.prefix}:delayed:{{{self.messages(channel)}}}"

    def taken(self, channel: str) -> str:
        """Hash: the messages that somebody has taken and not acknowledged."""
        return f"{self.prefix}:taken:{{{self.messages(channel)}}}"

    def counts(self, channel: str) -> str:
        """Hash: what went through a channel."""
        return f"{self.prefix}:counts:{{{self.messages(channel)}}}"

    def counted(self, key: str) -> str:
        """The channel whose `counts` that key is."""
        begin = self.counts("").removesuffix("}")
        return key.removeprefix(begin).removesuffix("}")

    def patterns(self, *kinds: str) -> list[str]:
        """What SCAN has to match to find all keys of these kinds."""
        prefix = re.sub(r"([*?\[\]\\^-])", r"\\\1", self.prefix)
        return [f"{prefix}:{kind}:*" for kind in kinds]
