"""Offers and claims of shared channels: the two ends of an entry. Every connection is one entry."""

from __future__ import annotations

from typing import Any, NamedTuple


class AffinityKey(NamedTuple):
    """A key by which entries are offered: all with the same key go to one process of a pool."""

    pool: str
    digest: bytes


class Offer:
    """An entry that was offered on a shared channel.

    Args:
        channel: The shared channel.
        once: Whether the entry must not be handled twice. If so, it is offered again only if that is certain.
        state: Private to the layer: what the layer needs to withdraw the offer or to repeat it.
        size: The size of the entry in the store, in bytes; 0 in a layer without a store.
    """

    __slots__ = ("channel", "claimant", "once", "size", "state", "taken", "withdrawn")

    def __init__(self, channel: str, once: bool = False, state: Any = None, size: int = 0) -> None:
        self.channel = channel
        self.once = once
        self.state = state
        self.size = size
        self.claimant = ""
        """The mailbox of the only process that may claim the entry; empty if all may that read the channel."""
        self.withdrawn = False
        self.taken = False
        """Set by the process that made the offer, once the claimant is known: the entry is not offered again."""


class Claim:
    """An entry of a shared channel that this process has claimed, and no other process gets.

    Args:
        channel: The shared channel.
        id: The id of the entry.
        entry: The entry.
        stale: Whether the entry may have been handled before: it is older than this process or this store, or it was
            offered again. The process that offered it knows: ask it before handling the entry.
    """

    __slots__ = ("channel", "entry", "id", "stale")

    def __init__(self, channel: str, id: bytes, entry: Any, stale: bool = False) -> None:  # noqa: A002 # its name in Redis
        self.channel = channel
        self.id = id
        self.entry = entry
        self.stale = stale
