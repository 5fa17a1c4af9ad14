"""Pages and broadcasts: how followers learn of the entries and the state of a stream.

A follower of a stream joins its group first, and then reads pages until it has caught up. From then on it takes the
entries from the broadcasts in the group, as long as each continues where the last one ended. At a gap it reads a page
again. So a broadcast that is lost costs a read, and never an entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum, unique
from typing import Any, Final

from asgibus.layers.streams.offsets import BEGINNING, Offset

BROADCAST_TYPE: Final = "asgibus.stream"
ABSENT_SECONDS = 10.0
"""The time for which a follower that has had entries of an absent stream waits for it. The store may have lost its
data, and the writer begins the stream again within seconds. Later, its history is gone."""


@unique
class StreamState(StrEnum):
    """The state of a stream, as followers see it."""

    ABSENT = "absent"
    """Nobody has written to it, it has expired, or it was deleted."""
    OPEN = "open"
    """There will be further entries, or an end."""
    ENDED = "ended"
    """The writer has ended it. There will be no further entries in this epoch."""
    FAILED = "failed"
    """The writer has left it with an error, or is gone. There will be no further entries in this epoch."""

    @property
    def is_over(self) -> bool:
        """Whether there will be no further entries in this epoch."""
        return self is StreamState.ENDED or self is StreamState.FAILED


@dataclass(frozen=True, slots=True)
class Page:
    """The entries of a stream after an offset, as many as one read returns, and the state of the stream."""

    items: Sequence[tuple[Offset, Any]]
    """The entries, in order and without a gap."""
    first: Offset
    """The offset of the first entry that is kept; one after `last` if none is kept."""
    last: Offset
    """The offset of the newest entry; its number is 0 if there was none. `BEGINNING` for an absent stream."""
    state: StreamState
    error: str = ""
    """Why the stream has failed."""
    cancelled: bool = False
    """Whether somebody has asked the writer to stop."""
    reset: bool = False
    """Whether entries after the given offset are gone, or the stream was begun anew: the page begins at `first`. With
    an absent stream: it was deleted."""
    next: Offset = BEGINNING
    """The offset to read on from."""
    left: float | None = None
    """Seconds after which an open stream fails unless its writer gives a sign of life, such as an entry: read again
    then, if there was no broadcast meanwhile. None if it does not fail so."""
    bytes: int = 0
    """The size of the entries that are kept, packed."""
    content_type: str = ""
    """The content type that the writer has given; empty if it has given none."""

    @property
    def begin(self) -> Offset:
        """The offset behind which this page begins. After a reset, reading is possible from there."""
        if not self.items:
            return self.next
        epoch, number = self.items[0][0]
        return Offset(epoch, number - 1)

    @property
    def caught_up(self) -> bool:
        """Whether there are no entries behind this page."""
        return self.next.epoch != self.last.epoch or self.next.number >= self.last.number

    @property
    def over(self) -> bool:
        """Whether this page is the last one of the epoch: the stream is over, and there are no entries behind it."""
        return self.state.is_over and self.caught_up


@dataclass(frozen=True, slots=True)
class Broadcast:
    """New entries or another state of a stream, as a message for the group of the stream."""

    stream: str
    epoch: int
    first: int
    """The number of the first of the items; the number after the newest entry if there are no items."""
    items: Sequence[Any] = field(default_factory=list)
    state: StreamState = StreamState.OPEN
    error: str = ""
    left: float | None = None
    """The value of a page; None if it is not known."""

    @property
    def next(self) -> Offset:
        """The offset of the last of the items, or of the newest entry if there are none."""
        return Offset(self.epoch, self.first + len(self.items) - 1)

    def continues(self, offset: Offset) -> bool:
        """Return whether a follower that has everything up to this offset has missed nothing before the items.

        A stream that was deleted continues nothing: its page says so.
        """
        return offset == (self.epoch, self.first - 1) and self.state is not StreamState.ABSENT

    def message(self) -> dict[str, Any]:
        """Return the message."""
        message: dict[str, Any] = {
            "type": BROADCAST_TYPE,
            "stream": self.stream,
            "epoch": self.epoch,
            "first": self.first,
            "items": self.items,
            "state": str(self.state),
        }
        if self.error:
            message["error"] = self.error
        if self.left is not None:
            message["left"] = self.left
        return message


def parse_broadcast(message: Mapping[str, Any]) -> Broadcast:
    """Return the broadcast in a message of a stream's group. Members that it does not know are ignored.

    Raises:
        ValueError: It is none.
    """
    stream, epoch, first = message.get("stream"), message.get("epoch"), message.get("first")
    items, error, left = message.get("items"), message.get("error", ""), message.get("left")
    if (
        message.get("type") != BROADCAST_TYPE
        or not isinstance(stream, str)
        or not (isinstance(epoch, int) and epoch > 0)
        or not (isinstance(first, int) and first > 0)
        or not isinstance(items, list | tuple)
        or not isinstance(error, str)
        or not (left is None or (isinstance(left, int | float) and left >= 0))
    ):
        raise ValueError(f"not a broadcast of a stream: {str(message)[:100]}")
    return Broadcast(stream, epoch, first, items, StreamState(str(message.get("state"))), error, left)
