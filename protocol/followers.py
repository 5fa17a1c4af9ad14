"""The followers of one stream at an interface server: which of them gets which entries. No IO.

A follower is *behind* or *live*. One that is behind reads pages of what is kept, after an offset of its own, at the
pace of its client. One that is live gets what is appended, as it comes by broadcast. All live ones of a stream have got
the same: everything up to the *tail*, the newest offset that is known here. So a broadcast that continues the tail is
for all of them, and any other one puts them back behind, to read what they miss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import islice
from typing import Any, Final, Generic, NamedTuple, TypeVar

from asgibus.layers.streams.offsets import BEGINNING, Offset
from asgibus.layers.streams.page import Broadcast, Page, StreamState
from asgibus.protocol.states import transition


class FollowState(StrEnum):
    """The state of a follower."""

    BEHIND = "reading what is kept"
    LIVE = "getting what is appended"
    ENDED = "has got the end of the stream"


class FollowEvent(StrEnum):
    """An event in the life of a follower."""

    CAUGHT_UP = "has got all that is kept"
    FELL_BEHIND = "has missed a broadcast, or has no room for one"
    END = "has got the end"
    AGAIN = "is to read again"


FOLLOW_TABLE: Final[dict[tuple[FollowState, FollowEvent], FollowState]] = {
    (FollowState.BEHIND, FollowEvent.CAUGHT_UP): FollowState.LIVE,
    (FollowState.BEHIND, FollowEvent.END): FollowState.ENDED,
    (FollowState.LIVE, FollowEvent.FELL_BEHIND): FollowState.BEHIND,
    (FollowState.LIVE, FollowEvent.END): FollowState.ENDED,
    (FollowState.ENDED, FollowEvent.AGAIN): FollowState.BEHIND,  # the stream may have begun anew
}
_LIVE: Final = FollowState.LIVE  # up to Python 3.11 a lookup of a member on its enum takes 50 ns
_ENDED: Final = FollowState.ENDED


class Follower:
    """One that follows a stream.

    Args:
        after: The offset of the last entry that it has.
    """

    __slots__ = ("after", "ended_at", "state")

    def __init__(self, after: Offset = BEGINNING) -> None:
        self.after = after
        """The offset of the last entry that it has got; out of date while it is live: see `FollowedStream.offset`."""
        self.ended_at: Offset | None = None
        """Where it was told the end last. It is not told the same end twice."""
        self.state: FollowState = FollowState.BEHIND

    def change(self, event: FollowEvent) -> None:
        """Change the state."""
        self.state = transition(FOLLOW_TABLE, self.state, event)


_Follower = TypeVar("_Follower", bound=Follower)


class Delivery(NamedTuple, Generic[_Follower]):
    """A part of a stream for followers: the reset, then the entries, then the end."""

    followers: Sequence[_Follower]
    reset: Offset | None
    """The offset in front of what can be read, if entries that the followers lack are gone."""
    entries: Sequence[tuple[Offset, Any]]
    over: StreamState | None
    """ENDED or FAILED behind the last entry."""
    error: str
    """Why the stream has failed."""
    offset: Offset
    """The offset of the followers behind this."""


class FollowedStream(Generic[_Follower]):
    """The followers of one stream in this process.

    Args:
        name: The name of the stream.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.tail = BEGINNING
        """The newest offset that is known."""
        self.live: dict[_Follower, None] = {}
        self._readers: dict[Offset, dict[_Follower, None]] = {}  # those that can read a page, by their offsets
        self._full: dict[_Follower, None] = {}  # those whose clients have no room for a page
        self._parked: dict[_Follower, None] = {}  # those that wait for a broadcast, because the stream is absent
        self._ahead: dict[_Follower, None] = {}  # those that wait until the stream is where they are

    def __len__(self) -> int:
        waiting = len(self._full) + len(self._parked) + len(self._ahead)
        return len(self.live) + waiting + sum(map(len, self._readers.values()))

    def __iter__(self) -> Iterator[_Follower]:
        yield from (*self.live, *self._full, *self._parked, *self._ahead)
        for group in self._readers.values():
            yield from group

    def offset(self, follower: _Follower) -> Offset:
        """Return the offset of the last entry that a follower has got."""
        return self.tail if follower.state is _LIVE else follower.after

    # Followers.

    def add(self, follower: _Follower) -> None:
        """Add a follower, which reads what is kept first."""
        if follower.state is _ENDED:
            follower.change(FollowEvent.AGAIN)
        self._await_page(follower)

    def remove(self, follower: _Follower) -> None:
        """Remove a follower; do nothing if it is none, or has got the end."""
        if follower.state is _LIVE:
            self._fall_behind(follower)
            del self.live[follower]
        self._full.pop(follower, None)
        self._parked.pop(follower, None)
        self._ahead.pop(follower, None)
        group = self._readers.get(follower.after)
        if group is not None:
            group.pop(follower, None)
            if not group:
                del self._readers[follower.after]

    def hold(self, follower: _Follower) -> None:
        """Read no page for a follower until `release`, because its client has no room. A live one falls behind."""
        if follower.state is not _ENDED and follower not in self._parked and follower not in self._ahead:
            self.remove(follower)
            self._full[follower] = None

    def release(self, follower: _Follower) -> None:
        """Read the next page for a follower, because its client has room again."""
        if follower in self._full:
            del self._full[follower]
            self._await_page(follower)

    def all_read(self, end: Offset | None = None) -> None:
        """Have all followers read a page, because broadcasts may be lost, or the stream is another one.

        Args:
            end: Where the stream has ended. Live followers that were told of this end have nothing to read.
        """
        self._live_fall_behind(end)
        waiting = [*self._parked, *self._ahead]
        self._parked, self._ahead = {}, {}
        for follower in waiting:
            self._await_page(follower)

    def _live_fall_behind(self, end: Offset | None = None) -> None:
        live, self.live = self.live, {}
        for follower in live:
            if end is not None and follower.ended_at == end:
                self.live[follower] = None
            else:
                self._fall_behind(follower)
                self._await_page(follower)

    def _fall_behind(self, follower: _Follower) -> None:
        follower.change(FollowEvent.FELL_BEHIND)
        follower.after = self.tail

    def _await_page(self, follower: _Follower) -> None:
        self._readers.setdefault(follower.after, {})[follower] = None

    # Pages.

    @property
    def reads_due(self) -> bool:
        """Whether a page is to be read."""
        return bool(self._readers)

    @property
    def next_read(self) -> Offset:
        """The offset after which the next page is to be read: the one that has waited longest."""
        return next(iter(self._readers))

    def readers(self, after: Offset) -> list[_Follower]:
        """Return the followers for which a page behind an offset is to be read."""
        return [*self._readers.get(after, ())]

    def on_page(
        self, after: Offset, known: Offset, page: Page, *, most: int | None = None, gone: bool = False
    ) -> Delivery[_Follower] | None:
        """Handle a page.

        Args:
            after: The offset after which it was read.
            known: The tail when the read began.
            page: The page.
            most: The largest number of followers that get it; the others read it again. None for all.
            gone: Whether the stream has been absent for so long that its entries will not come back.

        Returns:
            What its readers get; None if that is nothing.
        """
        readers = self._take(after, most)
        if page.state is StreamState.ABSENT:
            return self._on_absent(readers, reset=after != BEGINNING and (page.reset or gone))
        whole = page.caught_up
        # A store that has lost entries may get them again from their writer. And clients name any offset.
        is_ahead = after > page.last and not page.reset
        offset = page.last if whole else page.next
        if page.last > self.tail or page.last < known:
            self.all_read()  # a broadcast is lost or still to come; or else the store has lost entries
            self.tail = page.last
        elif self._parked or page.state.is_over:
            self.all_read(page.last if page.state.is_over else None)
        if whole and page.state.is_over:
            for follower in readers:
                follower.after = offset
                follower.change(FollowEvent.END)
        elif is_ahead:
            self._ahead.update(dict.fromkeys(readers))
        elif whole and offset == self.tail:
            for follower in readers:
                follower.change(FollowEvent.CAUGHT_UP)
                self.live[follower] = None
        else:
            for follower in readers:
                follower.after = offset
                self._await_page(follower)
        reset = Offset(page.first.epoch, page.first.number - 1) if page.reset else None
        over = page.state if whole and page.state.is_over else None
        return self._delivery(readers, reset, page.items, over, page.error, offset)

    def _take(self, after: Offset, most: int | None) -> list[_Follower]:
        """Return the followers that get a page behind an offset, as many as `most`. They await a page no more."""
        group = self._readers.get(after, {})
        taken = [*islice(group, most)]
        if len(taken) == len(group):
            self._readers.pop(after, None)
        else:
            for follower in taken:
                del group[follower]
        return taken

    def _on_absent(self, readers: Sequence[_Follower], *, reset: bool) -> Delivery[_Follower] | None:
        """Have followers wait for the first broadcast of a stream."""
        self._live_fall_behind()
        for follower in readers:
            if reset:
                follower.after = BEGINNING
            self._parked[follower] = None
        return Delivery(readers, BEGINNING, (), None, "", BEGINNING) if reset and readers else None

    # Broadcasts.

    def on_broadcast(self, broadcast: Broadcast) -> Delivery[_Follower] | None:
        """Handle a broadcast.

        Returns:
            What all live followers get; None if that is nothing, or if they are to read a page instead.
        """
        tail, offset = self.tail, broadcast.next
        over = broadcast.state if broadcast.state.is_over else None
        if broadcast.state is not StreamState.ABSENT and not self._parked:
            if offset < tail or (offset == tail and over is None):
                return None  # known already; or its writer has been replaced by a later one
            if tail.epoch == broadcast.epoch and broadcast.first <= tail.number + 1:
                return self._append(broadcast, over)
        self.all_read()
        if broadcast.state is not StreamState.ABSENT and offset > tail:
            self.tail = offset
        return None

    def _append(self, broadcast: Broadcast, over: StreamState | None) -> Delivery[_Follower] | None:
        """Return what the live followers get of a broadcast that continues the tail, or overlaps with it."""
        tail, self.tail = self.tail, broadcast.next
        readers, items = [*self.live], broadcast.items
        if known := tail.number + 1 - broadcast.first:
            items = items[known:]
        entries = [(Offset(tail.epoch, number), item) for number, item in enumerate(items, tail.number + 1)]
        if over is not None:
            self.live = {}
            for follower in readers:
                follower.after = self.tail
                follower.change(FollowEvent.END)
        for follower in [each for each in self._ahead if over is not None or each.after <= self.tail]:
            del self._ahead[follower]
            self._await_page(follower)
        return self._delivery(readers, None, entries, over, broadcast.error, self.tail)

    def _delivery(
        self,
        readers: Sequence[_Follower],
        reset: Offset | None,
        entries: Sequence[tuple[Offset, Any]],
        over: StreamState | None,
        error: str,
        offset: Offset,
    ) -> Delivery[_Follower] | None:
        """Return what readers get; None if that is nothing.

        A follower that is told the end once more has followed again. It stays, for the stream may begin anew.
        """
        if over is not None:
            told, readers = readers, []
            for follower in told:
                if follower.ended_at != offset or entries or reset is not None:
                    follower.ended_at = offset
                    readers.append(follower)
                    continue
                follower.change(FollowEvent.AGAIN)
                if offset == self.tail:
                    follower.change(FollowEvent.CAUGHT_UP)
                    self.live[follower] = None
                else:
                    self._await_page(follower)
        if not readers or (reset is None and not entries and over is None):
            return None
        return Delivery(readers, reset, entries, over, error, offset)
