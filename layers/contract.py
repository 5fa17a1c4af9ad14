"""The contract of a channel layer: what an app may call (`ChannelLayer`), and what the servers need (`Bus`).

The public half is the channel-layer interface of Channels 4. The servers' half has two ideas: a *mailbox* that one
process reads in order (frames are posted to it), and *shared channels* whose entries are offered by one process and
claimed by exactly one other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

from asgibus.layers.errors import ChannelFull, LayerUnavailable, MessageTooLarge
from asgibus.layers.names import require_channel, require_group
from asgibus.layers.settings import LayerSettings

Message = dict[str, Any]
Frame = tuple[Any, ...]
Draft = list[Any]
"""A frame that was posted and may still be altered: see `Bus.packed`."""

# The first item of every frame in a mailbox is its kind. Kinds below 16 are the layer's own; the rest belong to the
# protocol between the servers, and the layer carries them without looking.
MESSAGE = 0  # (MESSAGE, local part, message): somebody called send() with a process-local name
GROUP_MESSAGE = 1  # (GROUP_MESSAGE, group, message): somebody called group_send(), and this mailbox is a member
# (DEAD, mailbox, declared): the process of that mailbox is gone; all that it posted here stands before this. Somebody
# has reaped and declared it; or its lease has ended.
DEAD = 2
FIRST_PROTOCOL_KIND = 16


class Handler(Protocol):
    """Who reads a mailbox. Called from the event loop, one call after another; must not block and must not raise."""

    def batch(self, sender: str, frames: Sequence[Frame]) -> None:
        """Frames of one sender, in the order in which it posted them. `sender` is "" for the layer's own."""

    def undelivered(self, mailbox: str) -> None:
        """Frames posted to `mailbox` found none there and are lost.

        Its process is gone, which a DEAD frame will say; or it is about to make its mailbox anew.
        """

    def interrupted(self) -> None:
        """Frames may be lost, to here and from here: what is under way has to be checked with the other end.

        The store has lost its data or was replaced, or the own lease had ended so that others gave this process up.
        The mailbox, the lease and the groups are in place again.
        """

    def offer_lost(self, offer: Offer) -> None:
        """An offer that is to be made once is not on its channel, and may have been claimed: it is gone."""

    def orphaned(self, claim: Claim) -> None:
        """A process died with this claim. It belongs to this process now, which has to deal with it and call `done`."""


@dataclass(slots=True, eq=False)
class Offer:
    """An entry on its way to a shared channel."""

    channel: str
    once: bool = False
    """Whoever claims it does what must not be done twice: it is made again only if nobody can have claimed it."""
    withdrawn: bool = False
    taken: bool = False
    """Set by whoever offered it once it is known who has claimed it: it is not offered again."""
    state: Any = None
    """The layer's own: what it needs to take the offer back, or to make it again."""
    size: int = 0
    """The bytes that it takes in the store; 0 in a layer that has none."""


@dataclass(slots=True, frozen=True)
class Claim:
    """An entry of a shared channel that this process has taken and nobody else gets."""

    channel: str
    id: bytes
    entry: Any
    stale: bool = False
    """It was there before this process, or before the store was replaced: it may have been dealt with already. Whoever
    offered it knows."""


@dataclass(slots=True, frozen=True)
class Delivery:
    """A message of an ordinary channel that this process has taken, and has to acknowledge when it is handled."""

    channel: str
    id: str
    message: Message
    attempt: int
    """1 at first; more after it was given back, or its process died."""


class Statistics(TypedDict):
    """What the statistics extension of 2016 tells of a channel, or of all."""

    messages_count: int
    """Messages sent, since there were none for a day; to a process-local channel, for a minute or two."""
    messages_pending: int
    """Unread messages, delayed ones among them."""
    messages_max_age: float
    """Seconds since the oldest unread one could be received; 0.0 if there is none."""
    channel_full_count: int
    """Messages that were refused or, in a group, dropped, because the channel was at its capacity."""


class Bus(ABC):
    """One process's place on the bus: its mailbox, and its claims. Made by `ChannelLayer.bus`."""

    mailbox: str
    """The own mailbox, ending in `!`. `mailbox + local part` is a channel name that anyone can send to."""

    @property
    @abstractmethod
    def available(self) -> bool:
        """Whether the store could be reached when it was last tried."""

    @property
    @abstractmethod
    def packed(self) -> int:
        """How often frames that were posted have been packed.

        A draft may be altered as long as this stays what it was when the draft was posted. Afterwards that has no
        effect.
        """

    @property
    def refusal(self) -> str | None:
        """Why the store takes nothing for now though it can be reached, such as for lack of memory; None if it does."""
        return None

    @abstractmethod
    def post(self, mailbox: str, frame: Frame | Draft, size: int = 0) -> None:
        """Write a frame to a mailbox: ordered per mailbox, buffered, at once.

        `size` is about how many bytes the frame carries. The caller bounds what it posts (the session's window); while
        the store is away the frames wait here. Frames are immutable and must not be altered afterwards. None is lost
        while the mailbox exists, but a broken connection may deliver some again: what must be taken once is numbered.
        """

    @abstractmethod
    async def posted(self) -> None:
        """Wait until everything posted so far is in the store. Raises LayerUnavailable."""

    @abstractmethod
    def offer(self, channel: str, entry: Any, *, once: bool = False) -> Offer:
        """Put an entry on a shared channel, where one process claims it. Raises TypeError for what cannot be packed.

        `once`: see `Offer`.
        """

    @abstractmethod
    def withdraw(self, offer: Offer) -> bool:
        """Take an offer back if nobody has claimed it yet; if somebody has, nothing happens.

        False if the layer has lost sight of the offer, or of the store: it may have been claimed, and dealt with.
        """

    @abstractmethod
    def offer_again(self, offer: Offer) -> None:
        """Make an offer again, unless it is still there or claimed: the store may have lost it.

        One that is to be made once is made again only if it cannot have been claimed; else `Handler.offer_lost` is
        called.
        """

    @abstractmethod
    async def shared_statistics(self, channel: str) -> Statistics:
        """What is known of a shared channel: its messages are offers, unread is who is not claimed.

        Raises LayerUnavailable soon when the store is away.
        """

    @abstractmethod
    async def claim(self, channels: Sequence[str], limit: int) -> list[Claim]:
        """Wait for entries of shared channels and take up to `limit` of them, oldest first per channel.

        Returns an empty list only after `stop_claiming`. Not to be cancelled while entries may be on their way: call
        `stop_claiming` and await what it still returns. One call at a time.
        """

    @abstractmethod
    def stop_claiming(self) -> None:
        """Make every running and later `claim` and `take` return: with what it has taken, then with nothing."""

    async def announce(self, pool: str, app: str) -> list[tuple[str, str]]:
        """Say which app this process runs for a pool.

        Returns:
            The mailboxes of living processes that run another app for that pool, and what they run.

        Raises:
            LayerUnavailable: The store cannot be reached.
        """
        return []

    @abstractmethod
    def done(self, claim: Claim) -> None:
        """Say that a claimed entry is dealt with; buffered, written behind the frames posted before."""

    @abstractmethod
    def release(self, claim: Claim, why: str) -> None:
        """Give a claimed entry back, as it is, because this process cannot read it; buffered.

        Another process may claim it at once. This one claims next to nothing as long as it can read nothing. An entry
        that was given back too often is dropped, counted and logged.

        Args:
            claim: What was claimed.
            why: Why it cannot be read, and what to do, for the log and for `unreadable`.
        """

    @property
    @abstractmethod
    def unreadable(self) -> str | None:
        """Why this process cannot read what it claims or takes, in a sentence; None while it can."""

    @abstractmethod
    async def take(self, channel: str, limit: int, *, once: bool = False) -> list[Delivery]:
        """Wait for messages of an ordinary channel and take up to `limit` of them, oldest first.

        Each stays under the name of this process until it is acknowledged or given back; if the process dies, another
        one that takes from this channel gets it. With `once` it is acknowledged from the beginning, and lost then.
        Returns an empty list only after `stop_claiming`. Not to be cancelled; one call at a time for a channel.
        """

    @abstractmethod
    def acknowledge(self, delivery: Delivery) -> None:
        """Say that a message is handled; buffered."""

    @abstractmethod
    def give_back(self, delivery: Delivery, *, delay: float = 0.0) -> None:
        """Let a message be taken again, by anyone, after `delay` seconds; buffered."""

    @abstractmethod
    async def join_group(self, group: str) -> None:
        """Make the own mailbox a member: from the return on, a group_send from anywhere reaches the handler.

        Raises LayerUnavailable.
        """

    @abstractmethod
    async def leave_group(self, group: str) -> None:
        """Take the own mailbox out of the group. Raises LayerUnavailable."""

    @abstractmethod
    async def drain(self) -> None:
        """Wait until everything posted, offered and done so far is in the store; given up when the store is away."""


async def statistics_of(bus: Bus, channels: Iterable[str]) -> dict[str, Statistics]:
    """Those of shared channels, by name; none of those that cannot be asked."""
    statistics = {}
    for channel in channels:
        with suppress(LayerUnavailable):
            statistics[channel] = await bus.shared_statistics(channel)
    return statistics


class ChannelLayer(ABC):
    """Named channels and groups between processes; the Channels 4 interface, plus `bus` for the servers.

    Delivery is at-most-once: a message goes to one reader, once. Messages are copies: altering a dict after `send`
    changes nothing.
    """

    ChannelFull = ChannelFull
    MessageTooLarge = MessageTooLarge
    extensions: Sequence[str] = ("groups", "flush", "statistics", "delay")

    settings: LayerSettings
    counts: Counter[str]
    """How often something was tried again, lost or dropped, by what it was; for the admin port."""

    @property
    def expiry(self) -> float:
        """Seconds after which an unread message is dropped."""
        return self.settings.expiry

    @property
    def group_expiry(self) -> float:
        """Seconds after which a membership ends that nobody renewed; a server on the bus renews its own."""
        return self.settings.group_expiry

    @property
    def capacity(self) -> int:
        """How many unread messages a channel holds before `send` raises ChannelFull, unless it has its own."""
        return self.settings.capacity

    @abstractmethod
    async def send(self, channel: str, message: Message, *, delay: float = 0.0) -> None:
        """Send a message to a channel, where it can be received after `delay` seconds.

        The delay runs by the store's clock, and outlives this process. What is delayed counts for the capacity.
        Raises TypeError, ValueError for a delay below 0, ChannelFull, MessageTooLarge, LayerUnavailable.
        """

    @abstractmethod
    async def receive(self, channel: str) -> Message:
        """Wait for the next message of a channel. A cancelled call loses no message.

        Raises TypeError, LayerUnavailable. A process-local name can be received only through the layer object that
        made it with `new_channel`, in any event loop; elsewhere ForeignChannel is raised, which is a TypeError and, as
        in channels_redis, an AssertionError.
        """

    @abstractmethod
    async def new_channel(self, prefix: str = "specific") -> str:
        """A new process-local channel name that nobody else has. Raises TypeError for a bad prefix."""

    @abstractmethod
    async def group_add(self, group: str, channel: str) -> None:
        """Add a channel to a group. Raises TypeError, LayerUnavailable."""

    @abstractmethod
    async def group_discard(self, group: str, channel: str) -> None:
        """Take a channel out of a group, if it is there. Raises TypeError, LayerUnavailable."""

    @abstractmethod
    async def group_send(self, group: str, message: Message) -> None:
        """Send a message to every member. A full member misses it: counted and logged, never raised.

        Raises TypeError, MessageTooLarge, LayerUnavailable.
        """

    @abstractmethod
    async def channel_statistics(self, channel: str) -> Statistics:
        """What is known of a channel, without touching its messages. Raises TypeError, LayerUnavailable."""

    @abstractmethod
    async def global_statistics(self) -> Statistics:
        """The same of all ordinary channels together. Raises LayerUnavailable."""

    @abstractmethod
    async def flush(self) -> None:
        """Delete every public message and every group of this layer; what the servers have under way stays.

        Raises LayerUnavailable.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close the connections of the running event loop; the layer can be used again afterwards."""

    # What projects find in the layers of Channels and of channels_redis, by the names that these have there.

    async def close_pools(self) -> None:
        """Close the connections of the running event loop, and leave the process-local channels of others alone."""
        await self.close()

    def get_capacity(self, channel: str) -> int:
        """Return how many unread messages this channel holds."""
        return self.settings.capacity_of(channel)

    def valid_channel_name(self, name: object, receive: bool = False) -> bool:  # as there
        """Return True for a channel name. Raises TypeError, saying the rule, for another.

        `receive` makes no difference: whoever may receive from a name is found out when it is tried.
        """
        require_channel(name, whole=True)
        return True

    def valid_group_name(self, name: object) -> bool:
        """Return True for a group name. Raises TypeError, saying the rule, for another."""
        require_group(name)
        return True

    @abstractmethod
    async def declare_dead(self, mailbox: str) -> None:
        """Tell every process on the bus at once that the process of this mailbox is gone; for whoever reaped it.

        Raises LayerUnavailable.
        """

    @abstractmethod
    def bus(self, role: str, handler: Handler) -> AbstractAsyncContextManager[Bus]:
        """A place on the bus for a server of this process: `async with layer.bus("interface", handler) as bus`.

        Entering raises LayerUnavailable when the store cannot be reached at all; later outages are waited out.
        """
