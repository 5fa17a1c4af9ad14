"""Test the entries that followers get: those that read pages, get broadcasts, and are slow."""

import random
from typing import Any

import pytest

from asgibus.layers.streams import BEGINNING, Broadcast, Offset, Page, StreamState
from asgibus.protocol.followers import Delivery, FollowedStream, Follower, FollowState

EPOCH = 1000
PAGE = 3  # entries


class Store:
    """A stream as it is stored, with as many entries as are kept."""

    def __init__(self) -> None:
        self.epoch = EPOCH
        self.first, self.last = 1, 0
        self.state = StreamState.OPEN

    def append(self, count: int = 1, *, over: bool = False) -> Broadcast:
        first = self.last + 1
        self.last += count
        if over:
            self.state = StreamState.ENDED
        return Broadcast("answer", self.epoch, first, [*range(first, self.last + 1)], self.state)

    def restart(self) -> Broadcast:
        self.epoch += 1
        self.first, self.last, self.state = 1, 0, StreamState.OPEN
        return Broadcast("answer", self.epoch, 1)

    def page(self, after: Offset) -> Page:
        first, last = Offset(self.epoch, self.first), Offset(self.epoch, self.last)
        if self.state is StreamState.ABSENT:
            return Page([], BEGINNING, BEGINNING, StreamState.ABSENT, next=after)
        if after == BEGINNING:
            after = Offset(self.epoch, 0)
        reset = after.epoch != self.epoch or after.number < self.first - 1
        if reset:
            after = Offset(self.epoch, self.first - 1)
        numbers = range(after.number + 1, self.last + 1)[:PAGE]
        items = [(Offset(self.epoch, number), number) for number in numbers]
        return Page(items, first, last, self.state, reset=reset, next=items[-1][0] if items else after)


class Process:
    """Followers of the stream in one process, and what each of them has got."""

    def __init__(self) -> None:
        self.store = Store()
        self.stream: FollowedStream[Follower] = FollowedStream("answer")
        self.got: dict[Follower, list[Any]] = {}

    def follow(self, after: Offset = BEGINNING) -> Follower:
        follower = Follower(after)
        self.got[follower] = []
        self.stream.add(follower)
        return follower

    def write(self, delivery: Delivery[Follower] | None) -> None:
        if delivery is None:
            return
        for follower in delivery.followers:
            got = self.got[follower]
            if delivery.reset is not None:
                got.append(("reset", delivery.reset))
            got += [item for _, item in delivery.entries]
            if delivery.over is not None:
                got.append("end")

    def read(self) -> None:
        """Read one page."""
        after, known = self.stream.next_read, self.stream.tail
        self.write(self.stream.on_page(after, known, self.store.page(after)))

    def read_all(self) -> None:
        """Read pages until none is due."""
        reads = 0
        while self.stream.reads_due:
            self.read()
            reads += 1
            assert reads < 1000, "reads without end"

    def hear(self, broadcast: Broadcast) -> None:
        self.write(self.stream.on_broadcast(broadcast))


@pytest.fixture
def process() -> Process:
    return Process()


def test_what_is_kept_and_what_comes_are_joined(process: Process) -> None:
    process.store.append(5)
    follower = process.follow()
    process.read_all()
    process.hear(process.store.append(2))
    process.hear(process.store.append(over=True))
    assert process.got[follower] == [1, 2, 3, 4, 5, 6, 7, 8, "end"]
    assert len(process.stream) == 0


def test_followers_at_one_offset_share_a_page(process: Process) -> None:
    process.store.append(2)
    followers = [process.follow() for _ in range(3)]
    process.read()
    assert not process.stream.reads_due
    assert all(process.got[each] == [1, 2] for each in followers)


def test_a_broadcast_during_the_first_read_is_not_lost(process: Process) -> None:
    process.store.append(2)
    follower = process.follow()
    page = process.store.page(BEGINNING)
    process.hear(process.store.append(2))
    process.write(process.stream.on_page(BEGINNING, BEGINNING, page))
    process.read_all()
    assert process.got[follower] == [1, 2, 3, 4]


def test_a_lost_broadcast_costs_a_page(process: Process) -> None:
    follower = process.follow()
    process.read_all()
    process.store.append()
    process.hear(process.store.append())
    assert process.got[follower] == []
    process.read_all()
    assert process.got[follower] == [1, 2]


def test_a_repeated_broadcast_is_ignored_and_an_overlapping_one_continued(process: Process) -> None:
    follower = process.follow()
    process.read_all()
    first = process.store.append(2)
    for _ in range(2):
        process.hear(first)
    process.hear(Broadcast("answer", EPOCH, 2, [2, 3], StreamState.OPEN))
    assert process.got[follower] == [1, 2, 3]


def test_a_slow_follower_reads_on_where_it_stopped_and_no_other_waits(process: Process) -> None:
    slow, quick = process.follow(), process.follow()
    process.read_all()
    process.hear(process.store.append())
    process.stream.hold(slow)
    process.hear(process.store.append(2))
    process.read_all()
    assert (process.got[slow], process.got[quick]) == ([1], [1, 2, 3])
    process.stream.release(slow)
    process.read_all()
    process.hear(process.store.append())
    assert process.got[slow] == process.got[quick] == [1, 2, 3, 4]


def test_entries_that_are_gone_are_said(process: Process) -> None:
    process.store.append(10)
    process.store.first = 6
    follower = process.follow(Offset(EPOCH, 2))
    process.read_all()
    assert process.got[follower] == [("reset", Offset(EPOCH, 5)), 6, 7, 8, 9, 10]


def test_a_stream_that_is_begun_anew(process: Process) -> None:
    follower = process.follow()
    process.read_all()
    process.hear(process.store.append(2))
    process.hear(process.store.restart())
    process.read_all()
    process.hear(process.store.append())
    assert process.got[follower] == [1, 2, ("reset", Offset(EPOCH + 1, 0)), 1]


def test_the_broadcasts_of_a_writer_that_was_replaced_are_ignored(process: Process) -> None:
    follower = process.follow()
    old = process.store.append(5)
    process.store.restart()
    process.read_all()
    process.hear(old)
    assert not process.stream.reads_due
    assert process.got[follower] == []


def test_an_absent_stream_is_waited_for(process: Process) -> None:
    process.store.state = StreamState.ABSENT
    followers = [process.follow(), process.follow(Offset(EPOCH, 3))]
    process.read_all()
    process.store.state = StreamState.OPEN
    process.store.last, process.store.first = 3, 4  # the store lost its data, and the writer goes on
    process.hear(process.store.append())
    process.read_all()
    assert process.got[followers[0]] == [("reset", Offset(EPOCH, 3)), 4]
    assert process.got[followers[1]] == [4]


def test_a_stream_that_is_gone_for_good_is_said(process: Process) -> None:
    process.store.state = StreamState.ABSENT
    had_some, had_none = process.follow(Offset(EPOCH, 3)), process.follow()
    for gone in (False, True):
        process.stream.all_read()
        while process.stream.reads_due:
            after = process.stream.next_read
            process.write(process.stream.on_page(after, BEGINNING, process.store.page(after), gone=gone))
    assert (process.got[had_some], process.got[had_none]) == ([("reset", BEGINNING)], [])


def test_a_store_that_has_lost_the_newest_entries(process: Process) -> None:
    follower = process.follow()
    process.read_all()
    process.hear(process.store.append(5))
    process.store.last = 3  # a replica that lagged behind took over
    process.stream.all_read()
    process.read_all()
    process.store.last, process.store.first = 5, 6
    process.hear(process.store.append())
    process.read_all()
    assert process.got[follower] == [1, 2, 3, 4, 5, 6]


def test_entries_that_their_writer_stores_again_are_not_doubled(process: Process) -> None:
    follower = process.follow()
    process.read_all()
    process.hear(process.store.append(5))
    process.store.last = 2
    process.stream.all_read()
    process.read_all()
    other = process.follow()
    process.read_all()
    process.hear(process.store.append(2))
    process.read_all()
    process.hear(process.store.append(2))
    process.read_all()
    process.hear(process.store.append())
    assert process.got[follower] == process.got[other] == [1, 2, 3, 4, 5, 6, 7]


def test_an_offset_that_does_not_exist_yet_harms_no_other(process: Process) -> None:
    process.store.append(2)
    ahead, honest = process.follow(Offset(EPOCH, 999)), process.follow()
    process.read_all()
    process.hear(process.store.append())
    assert not process.stream.reads_due
    assert (process.got[ahead], process.got[honest]) == ([], [1, 2, 3])
    process.hear(process.store.append(over=True))
    process.read_all()
    assert (process.got[ahead], process.got[honest]) == (["end"], [1, 2, 3, 4, "end"])
    assert len(process.stream) == 0


def test_the_same_end_is_told_once_and_the_next_stream_is_followed(process: Process) -> None:
    follower = process.follow()
    process.read_all()
    process.hear(process.store.append(over=True))
    assert follower.state is FollowState.ENDED
    process.stream.add(follower)
    other = process.follow()
    process.read_all()
    assert (process.got[follower], process.got[other]) == ([1, "end"], [1, "end"])
    process.hear(process.store.restart())
    process.read_all()
    process.hear(process.store.append(over=True))
    assert process.got[follower] == [1, "end", ("reset", Offset(EPOCH + 1, 0)), 1, "end"]


def test_followers_that_know_of_the_end_read_no_page_for_each_other(process: Process) -> None:
    process.store.append(2, over=True)
    followers = [process.follow() for _ in range(3)]
    process.read_all()
    for follower in followers:
        process.stream.add(follower)
        process.read_all()
    assert list(process.got.values()) == [[1, 2, "end"]] * 3
    process.stream.all_read()
    process.read_all()
    process.hear(process.store.restart())
    process.hear(process.store.append())
    process.read_all()
    assert list(process.got.values()) == [[1, 2, "end", ("reset", Offset(EPOCH + 1, 0)), 1]] * 3


def test_an_end_without_entries_and_its_loss(process: Process) -> None:
    first = process.follow()
    process.read_all()
    process.hear(process.store.append(0, over=True))
    second = process.follow(Offset(EPOCH, 0))
    process.read_all()
    assert process.got[first] == process.got[second] == ["end"]


@pytest.mark.parametrize("seed", range(100))
def test_whatever_happens_every_entry_is_got_once_and_in_order(seed: int) -> None:
    chance = random.Random(seed)
    process = Process()
    store, stream = process.store, process.stream
    page: tuple[Offset, Offset, Page] | None = None  # that is being read
    under_way: list[Broadcast] = []
    for _ in range(chance.randrange(10, 120)):
        action = chance.randrange(13)
        known = [*process.got]
        if action == 0:
            after = Offset(store.epoch, chance.randrange(store.last + 1))
            process.follow(chance.choice([BEGINNING, after, Offset(EPOCH - 1, 5)]))
        elif action <= 3 and store.state is StreamState.OPEN:
            under_way.append(store.append(chance.randrange(1, 5), over=chance.random() < 0.1))
        elif action == 4 and (store.state is not StreamState.OPEN or chance.random() < 0.1):
            under_way.append(store.restart())
        elif action <= 6 and under_way:
            broadcast = under_way.pop(chance.choice([0, 0, 0, -1]))
            if chance.random() < 0.8:  # else it is lost
                process.hear(broadcast)
        elif action == 7 and known:
            stream.hold(chance.choice(known))
        elif action == 8 and known:
            stream.release(chance.choice(known))
        elif action == 12 and (ended := [each for each in known if each.state is FollowState.ENDED]):
            stream.add(chance.choice(ended))
        elif action == 9 and chance.random() < 0.3:
            lost = min(store.last - store.first + 1, chance.randrange(4))
            if lost > 0 and store.state is StreamState.OPEN:  # and the writer stores them again
                store.last -= lost
                under_way.clear()
                stream.all_read()
                again = [*range(lost)]
                while again:
                    under_way.append(store.append(min(len(again), chance.randrange(1, 3))))
                    del again[: len(under_way[-1].items)]
                    if stream.reads_due and page is None and chance.random() < 0.5:
                        process.read()
        elif action == 9:
            store.first = max(store.first, store.last - chance.randrange(8))
        elif page is None and stream.reads_due:
            page = (stream.next_read, stream.tail, store.page(stream.next_read))
        elif page is not None:
            process.write(stream.on_page(*page))
            page = None
    if page is not None:
        process.write(stream.on_page(*page))
    for broadcast in under_way:
        process.hear(broadcast)
    for follower in process.got:
        stream.release(follower)
    stream.all_read()  # as after a minute without broadcasts
    process.read_all()
    if store.state is StreamState.OPEN:
        process.hear(store.append(over=True))
    process.read_all()
    assert all(each.ended_at == (store.epoch, store.last) for each in stream), "they have followed again"
    for follower, got in process.got.items():
        check(stream.offset(follower), got, store)


def check(offset: Offset, got: list[Any], store: Store) -> None:
    """Check that the numbers of entries are contiguous, but behind a reset, and that the end comes last."""
    number: int | None = None
    for item in got:
        if isinstance(item, tuple):
            number = item[1].number
        elif item != "end":
            assert number is None or item == number + 1, got
            number = item
    assert got[-1] == "end"
    assert "end" not in got[:-1] or any(isinstance(item, tuple) for item in got), got
    assert offset.epoch < store.epoch or offset.number == store.last  # else it has got an earlier end
