"""The names of the keys in Redis, all under one prefix.

The keys of a channel or a mailbox are in one hash slot: the part of a key in braces determines its slot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a layer."""

    prefix: str

    @property
    def processes(self) -> str:
        """Sorted set: leases, and the epoch. Scores are the ends of leases."""
        return f"{self.prefix}:processes"

    @property
    def apps(self) -> str:
        """Hash: the pool, the app, the number of lasting sessions and the start of each worker, by its mailbox."""
        return f"{self.prefix}:apps"

    @property
    def connections(self) -> str:
        """Hash: the connections to this store by which the death of a process is noticed, by its mailbox."""
        return f"{self.prefix}:connections"

    @property
    def releases(self) -> str:
        """Hash: the release of each process, and the formats that it reads, by its mailbox."""
        return f"{self.prefix}:releases"

    def shared(self, channel: str) -> str:
        """Stream with a consumer group: the work queue of a shared channel."""
        return f"{self.prefix}:shared:{channel}"

    def claimants(self, pool: str) -> str:
        """Sorted set: the mailboxes of the workers of a pool that claim by key. Scores are their numbers of keys."""
        return f"{self.prefix}:affinity:{pool}"

    def assigned(self, pool: str) -> str:
        """Hash: the mailbox of the worker that each key of a pool is assigned to."""
        return f"{self.prefix}:assigned:{{{self.claimants(pool)}}}"

    def expiring(self, pool: str) -> str:
        """Sorted set: the keys of a pool. Scores are when they expire."""
        return f"{self.prefix}:expiring:{{{self.claimants(pool)}}}"

    def group(self, group: str) -> str:
        """Sorted set: mailboxes and channels. Scores are the ends of memberships."""
        return f"{self.prefix}:group:{group}"

    def mailbox(self, mailbox: str) -> str:
        """Stream: frames for one process."""
        return f"{self.prefix}:mailbox:{mailbox}"

    def joined(self, mailbox: str) -> str:
        """Set: the groups of a process, so that others can clean up after it."""
        return f"{self.prefix}:joined:{mailbox}"

    def present(self, group: str) -> str:
        """Hash: the users in a group, each with its entry from each process that has connections of the user."""
        return f"{self.prefix}:present:{group}"

    def presence(self, mailbox: str) -> str:
        """Set: the groups in which a process has users, so that others can clean up after it."""
        return f"{self.prefix}:presence:{mailbox}"

    def wills(self, mailbox: str) -> str:
        """Hash: the wills of the connections of a process, by their numbers."""
        return f"{self.prefix}:wills:{mailbox}"

    def full(self, mailbox: str) -> str:
        """Set: the local parts of the process-local channels of a mailbox that are full."""
        return f"{self.prefix}:full:{{{self.mailbox(mailbox)}}}"

    def messages(self, channel: str) -> str:
        """List: the unread messages of an ordinary channel."""
        return f"{self.prefix}:channel:{channel}"

    def delayed(self, channel: str) -> str:
        """Sorted set: delayed messages. Scores are when they are due."""
        return f"{self.prefix}:delayed:{{{self.messages(channel)}}}"

    def taken(self, channel: str) -> str:
        """Hash: messages that were taken and not acknowledged."""
        return f"{self.prefix}:taken:{{{self.messages(channel)}}}"

    def counts(self, channel: str) -> str:
        """Hash: how many messages of a channel were sent, and refused because it was full."""
        return f"{self.prefix}:counts:{{{self.messages(channel)}}}"

    def stream(self, stream: str) -> str:
        """Stream: the batches of a stream. Their ids are offsets."""
        return f"{self.prefix}:stream:{stream}"

    def stream_state(self, stream: str) -> str:
        """Hash: the state of a stream."""
        return f"{self.prefix}:stream-state:{{{self.stream(stream)}}}"

    def stream_ids(self, stream: str) -> str:
        """Hash: the numbers of the kept messages of a group, by their ids."""
        return f"{self.prefix}:stream-ids:{{{self.stream(stream)}}}"

    def writing(self, mailbox: str) -> str:
        """Set: the streams that a process writes, each with the channel of its writer, so that others can end them."""
        return f"{self.prefix}:writing:{mailbox}"

    def counted(self, key: str) -> str:
        """Return the channel of a key that `counts` has returned."""
        begin = self.counts("").removesuffix("}")
        return key.removeprefix(begin).removesuffix("}")

    def patterns(self, *kinds: str) -> list[str]:
        """Return the patterns for SCAN that match all keys of these kinds."""
        prefix = re.sub(r"([*?\[\]\\^-])", r"\\\1", self.prefix)
        return [f"{prefix}:{kind}:*" for kind in kinds]
