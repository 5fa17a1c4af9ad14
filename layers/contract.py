"""The contract of a channel layer with the servers: `Bus` and `Handler`. `channel_layer` is its contract with apps.

`Bus` adds two concepts to channels and groups. A *mailbox* is an ordered queue of frames that one process reads and
every process may post to. A *shared channel* holds entries that one process offers and one other process claims.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypedDict

from asgibus.layers.codec import unpack
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.offers import AffinityKey, Claim, Offer
from asgibus.layers.presence import BusPresence

Message = dict[str, Any]
Frame = tuple[Any, ...]
Draft = list[Any]
"""A frame that was posted and may still be altered: see `Bus.packed`."""


class Handler:
    """The reader of a mailbox. Its methods do nothing here; a subclass overrides those that it needs.

    The layer calls them from the event loop, one after another. They must not block and must not raise.
    """

    def batch(self, sender: str, frames: Sequence[Frame]) -> None:
        """Handle frames of one sender, in the order in which they were posted.

        Args:
            sender: The mailbox of the sender, or "" for frames of the layer itself.
            frames: The frames.
        """

    def undelivered(self, mailbox: str) -> None:
        """Handle that frames were lost because the mailbox they were posted to does not exist.

        Either its process is gone, and a DEAD frame will follow, or that process is about to create its mailbox again.

        Args:
            mailbox: The mailbox that is missing.
        """

    def interrupted(self) -> None:
        """Handle that frames in both directions may be lost: probe the other end of every session.

        The store lost its data or was replaced, or the lease of this process had expired. The mailbox, the lease and
        the group memberships have been restored already.
        """

    def orphaned(self, claim: Claim) -> None:
        """Handle the claim of a process that has died. It belongs to this process now, which has to call `Bus.done`."""

    def unpack_entry(self, packed: bytes) -> Any:
        """Return the entry of a claim, as this reader gets it. Raises ValueError for damaged data."""
        return unpack(packed)

    def declined(self, entry: Any) -> None:
        """Handle an entry that was offered to this process alone, and that it has not claimed before it stopped."""


@dataclass(slots=True, frozen=True)
class Delivery:
    """A message of an ordinary channel that this process has taken and must acknowledge once it is handled."""

    channel: str
    id: str
    message: Message
    attempt: int
    """The number of this delivery, from 1. It grows when a message is given back, or its process dies."""


@dataclass(slots=True, frozen=True)
class Announced:
    """Describes another process of the pool, as `Bus.announce` of that process registered it."""

    mailbox: str
    app: str
    sessions: int | None
    """The number of its sessions; None if it claims nothing."""
    younger_by: float
    """The time from the start of this process to its start, in seconds by the clock of the store; negative for one that
    started earlier."""


class Statistics(TypedDict):
    """Statistics of one channel, or of all channels."""

    messages_count: int
    """Messages that were sent. The count is forgotten after a day without messages; of a process-local channel after
    a minute or two."""
    messages_pending: int
    """Unread messages, including delayed ones."""
    messages_max_age: float
    """Seconds since the oldest unread message could be received; 0.0 if there is none."""
    channel_full_count: int
    """Messages that were refused, or dropped for a member of a group, because the channel was full."""


class Bus(ABC):
    """The mailbox and the claims of one server process. `ChannelLayer.bus` makes it."""

    mailbox: str
    """The name of this process's mailbox, which ends in `!`. With a local part appended it is a channel name."""

    @property
    @abstractmethod
    def available(self) -> bool:
        """Whether the last attempt to reach the store succeeded."""

    @property
    @abstractmethod
    def packed(self) -> int:
        """The number of times that posted frames were packed.

        A draft may be altered while this number is the one at which it was posted. Later changes have no effect.
        """

    @property
    def refusal(self) -> str | None:
        """The reason why the store refuses writes though it can be reached, such as a lack of memory, or None."""
        return None

    @abstractmethod
    def post(self, mailbox: str, frame: Frame | Draft, size: int = 0) -> None:
        """Append a frame to a mailbox. The call buffers the frame and returns at once.

        Frames for one mailbox keep their order. While the store is away they wait in this process, so the caller must
        bound what it posts. No frame is lost while the mailbox exists, but a broken connection may repeat some: frames
        that must be handled once carry a number.

        Args:
            mailbox: The mailbox of the receiving process.
            frame: The frame, which must not be altered afterwards unless it is a draft.
            size: The approximate size of the frame in bytes.
        """

    @abstractmethod
    def write_soon(self) -> None:
        """Write what is posted until then behind the callbacks that are scheduled now, and not one iteration later."""

    @abstractmethod
    async def posted(self) -> None:
        """Wait until everything posted so far is in the store.

        Raises:
            LayerUnavailable: The store could not be reached in time.
        """

    @abstractmethod
    def offer(self, channel: str, entry: Any, *, once: bool = False) -> Offer:
        """Add an entry to a shared channel, where one process claims it. The call buffers it and returns at once.

        Args:
            channel: The shared channel.
            entry: The entry, of types that msgpack knows.
            once: Whether the entry must not be handled twice; see `Offer.once`.

        Returns:
            The offer, for `withdraw` and `offer_again`.

        Raises:
            TypeError: The entry cannot be packed.
        """

    @abstractmethod
    def withdraw(self, offer: Offer) -> bool:
        """Remove an offer from its channel unless it has been claimed.

        Returns:
            False if the state of the offer is not known: it may have been claimed and handled.
        """

    @abstractmethod
    def offer_again(self, offer: Offer, on_lost: Callable[[], None]) -> None:
        """Offer an entry again if the store has lost it, and do nothing if it is still there or claimed.

        Args:
            offer: The offer.
            on_lost: Called if the entry is lost and not offered again, since it must not be handled twice and may have
                been claimed.
        """

    @abstractmethod
    def offer_by_key(
        self,
        key: AffinityKey,
        lifetime: float,
        entry: Any,
        on_assigned: Callable[[Offer], None],
        *,
        once: bool = False,
        known: bool = False,
    ) -> Offer:
        """Offer an entry to the one process that a key is assigned to. The call buffers it and returns at once.

        A key without a process is assigned to the one with the fewest keys, of those of the pool that claim by key. It
        stays with that process until the process dies or stops claiming, or until the key expires.

        Args:
            key: The key.
            lifetime: Seconds after which the key expires unless it is used again.
            entry: The entry, of types that msgpack knows.
            on_assigned: Called with the offer once its `claimant` is known. If that is empty, there is no such process,
                and nothing was offered.
            once: Whether the entry must not be handled twice; see `Offer.once`.
            known: Whether not to assign the key if it has not been assigned before.

        Returns:
            The offer, for `withdraw`, `offer_again` and `take_back`.

        Raises:
            TypeError: The entry cannot be packed.
        """

    @abstractmethod
    def take_back(self, offer: Offer, on_result: Callable[[bool], None]) -> None:
        """Remove an offer whose claimant is dead.

        Args:
            offer: The offer.
            on_result: Called with True if the entry was not claimed, so that nobody can have begun to handle it.
        """

    @abstractmethod
    def assign(self, key: AffinityKey, lifetime: float, mailbox: str) -> None:
        """Assign a key to a process that claims by key, unless it is assigned to another one. The call buffers it."""

    @abstractmethod
    def renew_keys(self, keys: Sequence[AffinityKey], lifetime: float) -> None:
        """Let keys expire later, since they are in use. The call buffers and returns at once."""

    @abstractmethod
    def announce_keys(self, pools: Sequence[str]) -> None:
        """Let the processes of these pools know that there are offers by key. The call buffers and returns at once.

        They begin to claim these offers when they call `announce` next.
        """

    @property
    def own_channel(self) -> str:
        """The shared channel of the entries that are offered to this process alone; empty unless it claims by key."""
        return ""

    @abstractmethod
    async def shared_statistics(self, channel: str) -> Statistics:
        """Return the statistics of a shared channel. Its messages are offers, and those not yet claimed are unread.

        Raises:
            LayerUnavailable: The store could not be reached within a short time.
        """

    @abstractmethod
    async def claim(self, channels: Sequence[str], limit: int, *, wait: float | None = None) -> list[Claim]:
        """Wait for entries of shared channels and claim up to `limit` of them, oldest first per channel.

        Make one call at a time, and do not cancel it: entries may be on their way. Call `stop_claiming` and await the
        result instead.

        Args:
            channels: The shared channels.
            limit: The largest number of entries to claim.
            wait: Seconds to wait for an entry, at most about 2; None for as long as it takes.

        Returns:
            At least one claim, or an empty list after `stop_claiming`, or if there was none in time.
        """

    @abstractmethod
    def stop_claiming(self) -> None:
        """Make every running `claim` and `take` return what it has, and every later one return an empty list.

        No key stays assigned to this process. The handler's `declined` gets what was offered to it and is not claimed.
        """

    async def announce(self, pool: str, app: str, sessions: int | None) -> list[Announced]:
        """Register what this process does for a pool, and learn what the others do.

        If there are offers by key for this pool, the process begins to claim them, whatever channels `claim` names.

        Args:
            pool: The pool.
            app: The app that this process runs.
            sessions: The number of its sessions; None while it claims nothing.

        Returns:
            What the other living processes of this pool have registered.

        Raises:
            LayerUnavailable: The store cannot be reached.
        """
        return []

    @abstractmethod
    def done(self, claim: Claim) -> None:
        """Acknowledge a claimed entry. The acknowledgement is written after the frames that were posted before."""

    @abstractmethod
    def requeue(self, claim: Claim) -> None:
        """Return a claimed entry to its channel because other processes should have it. It goes to the end."""

    @abstractmethod
    def release(self, claim: Claim, why: str) -> None:
        """Return a claimed entry to its channel because this process cannot read it.

        Another process may claim it at once. This process claims at a very low rate until it can read an entry again.
        An entry that was returned too often is dropped, counted and logged.

        Args:
            claim: The claim.
            why: Why the entry cannot be read and what to do, for the log and for `unreadable`.
        """

    @property
    @abstractmethod
    def unreadable(self) -> str | None:
        """The reason why this process cannot read the entries it claims or takes, in one sentence, or None."""

    @abstractmethod
    async def take(self, channel: str, limit: int, *, once: bool = False) -> list[Delivery]:
        """Wait for messages of an ordinary channel and take up to `limit` of them, oldest first.

        A message belongs to this process until it is acknowledged or given back. If the process dies, another process
        that takes from this channel gets the message. Make one call at a time for a channel, and do not cancel it.

        Args:
            channel: The ordinary channel.
            limit: The largest number of messages to take.
            once: Whether a message is acknowledged when it is taken, so that it is lost if the process dies.

        Returns:
            At least one delivery, or an empty list after `stop_claiming`.
        """

    @abstractmethod
    def acknowledge(self, delivery: Delivery) -> None:
        """Acknowledge a message that is handled. The call buffers and returns at once."""

    @abstractmethod
    def give_back(self, delivery: Delivery, *, delay: float = 0.0) -> None:
        """Return a message to its channel, where any process may take it after `delay` seconds."""

    @abstractmethod
    async def join_group(self, group: str) -> None:
        """Add this process's mailbox to a group, of an app or an internal one.

        Once this returns, every `group_send` from any process reaches the handler.

        Raises:
            LayerUnavailable: The store could not be reached in time.
        """

    @abstractmethod
    async def leave_group(self, group: str) -> None:
        """Remove this process's mailbox from a group.

        Raises:
            LayerUnavailable: The store could not be reached in time.
        """

    @property
    def presence(self) -> BusPresence:
        """The users of this process in groups, and the wills of its connections.

        Raises:
            NotImplementedError: The layer keeps none. Those that do name "presence" in `extensions`.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no presence")

    # The move of an interface server to another process: see `ChannelLayer.moved_bus`.

    async def freeze(self) -> dict[str, Any] | None:
        """Stop reading the mailbox, and wait until everything posted so far is in the store. The lease is kept.

        Returns:
            The identity of this process, with which another one goes on where this one stops. None if the layer cannot
            be used by another process.

        Raises:
            LayerUnavailable: The store could not be reached in time. Call `thaw`.
        """
        return None

    def thaw(self) -> None:  # noqa: B027  # a layer that has nothing to freeze
        """Read the mailbox again: this process goes on, or goes on in the place of the one that was frozen."""

    def give_away(self) -> None:  # noqa: B027
        """Note that another process goes on: this one gives neither mailbox nor lease back at the end."""

    def export_offer(self, offer: Offer) -> dict[str, Any] | None:
        """Return what another process needs to withdraw or repeat an offer of this one; None if it need not."""
        return None

    def restore_offer(self, values: Mapping[str, Any]) -> Offer:
        """Return an offer of another process: the result of `export_offer` there."""
        raise LayerUnavailable("this layer cannot be used by another process")

    @abstractmethod
    async def drain(self) -> None:
        """Wait until all buffered writes are in the store. Return early if the store is away."""


async def statistics_of(bus: Bus, channels: Iterable[str]) -> dict[str, Statistics]:
    """Return the statistics of shared channels by name, without those that cannot be queried."""
    statistics = {}
    for channel in channels:
        with suppress(LayerUnavailable):
            statistics[channel] = await bus.shared_statistics(channel)
    return statistics
