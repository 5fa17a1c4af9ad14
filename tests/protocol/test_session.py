"""The session over a wire that drops, repeats, delays, reorders and breaks: I10, I11 and I12 hold after every step."""

from collections import deque
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asgibus.protocol.events import MESSAGE_SENT, size
from asgibus.protocol.frames import ACK, EVENT, HEAD, OWN, RESEND, RESET
from asgibus.protocol.session import PART, WINDOW, Arrival, SessionEnd

NUMBER, ATTEMPT = 7, 2
Frame = tuple[Any, ...]


class End(SessionEnd):
    """An end as its owners use it: an app that sends while the window is open, and takes what arrived when it likes."""

    def __init__(self, window: int) -> None:
        super().__init__(NUMBER, ATTEMPT, window)
        self.out: list[Frame] = []
        """What is posted to the other end."""
        self.sent_events: list[Frame] = []
        self.inbox: deque[tuple[int, Frame]] = deque()
        self.received: list[Frame] = []

    def app_sends(self, length: int) -> None:
        event = (MESSAGE_SENT, f"{len(self.sent_events)}".ljust(length))
        frame, counted = self.sent(event)
        assert counted == size(event)
        self.sent_events.append(event)
        self.out.append(frame)

    def app_takes(self) -> None:
        _, event = self.inbox.popleft()
        self.received.append(event)
        self.took(size(event), self.inbox[0][0] if self.inbox else self.expected)
        if self.ack_due:
            self.out.append(self.ack())

    def deliver(self, frame: Frame) -> None:
        assert frame[1:3] == (NUMBER, ATTEMPT)
        if frame[0] == EVENT:
            self.acknowledged(frame[4])
            arrival = self.arrived(frame[3])
            if arrival is Arrival.NEW:
                self.inbox.append((frame[3], frame[HEAD:]))
            elif arrival is Arrival.GAP:
                self.out.append(self.resend())
        elif frame[0] == ACK:
            self.acknowledged(frame[3])
        else:
            assert frame[0] == RESEND
            self.repeat(frame[3])

    def repeat(self, number: int) -> None:
        self.out += [frame for frame, _ in self.kept() if frame[3] >= number]


class Wire(RuleBasedStateMachine):
    """Two ends and what is under way between them, each direction by itself."""

    @initialize(window=st.integers(1, 2000))
    def begin(self, window: int) -> None:
        self.window = window
        self.ends = [End(window), End(window)]
        self.under_way: list[list[Frame]] = [[], []]  # towards each end

    def posted(self) -> None:
        """What the ends have posted goes on the wire."""
        for index, end in enumerate(self.ends):
            self.under_way[1 - index] += end.out
            end.out.clear()

    @rule(index=st.integers(0, 1), length=st.integers(0, 900), count=st.integers(1, 4))
    def send(self, index: int, length: int, count: int) -> None:
        for _ in range(count):
            if self.ends[index].window_open:
                self.ends[index].app_sends(length)
        self.posted()

    @rule(index=st.integers(0, 1), count=st.integers(1, 5))
    def take(self, index: int, count: int) -> None:
        for _ in range(min(count, len(self.ends[index].inbox))):
            self.ends[index].app_takes()
        self.posted()

    @rule(index=st.integers(0, 1), count=st.integers(1, 5))
    def deliver_in_order(self, index: int, count: int) -> None:
        for _ in range(min(count, len(self.under_way[index]))):
            self.ends[index].deliver(self.under_way[index].pop(0))
        self.posted()

    @precondition(lambda self: any(self.under_way))
    @rule(data=st.data())
    def deliver_any(self, data: st.DataObject) -> None:
        """Delayed, reordered, and perhaps to come again."""
        index = data.draw(st.sampled_from([index for index in (0, 1) if self.under_way[index]]))
        position = data.draw(st.integers(0, len(self.under_way[index]) - 1))
        frame = self.under_way[index][position]
        if not data.draw(st.booleans()):
            del self.under_way[index][position]
        self.ends[index].deliver(frame)
        self.posted()

    @precondition(lambda self: any(self.under_way))
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from([index for index in (0, 1) if self.under_way[index]]))
        del self.under_way[index][data.draw(st.integers(0, len(self.under_way[index]) - 1))]

    @rule()
    def cut(self) -> None:
        """All that is under way is lost; the ends learn of it and send again what is not acknowledged."""
        self.under_way = [[], []]
        self.again()

    @rule(index=st.integers(0, 1), nonsense=st.sampled_from([-1, 0, 10**9, 2**63]))
    def acknowledge_nonsense(self, index: int, nonsense: int) -> None:
        """What was never sent cannot be acknowledged; what was acknowledged stays so."""
        end = self.ends[index]
        before = (end.acked, end.in_flight, len(end.kept()))
        assert end.acknowledged(nonsense) is False
        assert (end.acked, end.in_flight, len(end.kept())) == before

    def again(self) -> None:
        for end in self.ends:
            end.out.append(end.ack())
            end.repeat(0)
        self.posted()

    @invariant()
    def i10_in_order_without_gap_or_duplicate(self) -> None:
        for index, end in enumerate(self.ends):
            arrived = end.received + [event for _, event in end.inbox]
            assert arrived == self.ends[1 - index].sent_events[: len(arrived)]

    @invariant()
    def i11_no_more_than_a_window_and_one_event_is_under_way(self) -> None:
        for index, end in enumerate(self.ends):
            other = self.ends[1 - index]
            kept = [counted for _, counted in end.kept()]
            assert end.in_flight == sum(kept)
            assert sum(kept[:-1]) < self.window
            assert end.window_open == (end.in_flight < self.window)
            # What the other end holds and has not taken is part of it: its memory is bounded by the window, too.
            waiting = [size(event) for _, event in other.inbox]
            assert sum(waiting[:-1]) < self.window

    @invariant()
    def i12_what_is_not_acknowledged_can_be_sent_again_and_nothing_else_is_kept(self) -> None:
        for index, end in enumerate(self.ends):
            kept = [frame for frame, _ in end.kept()]
            assert [frame[3] for frame in kept] == list(range(end.acked, end.next_number))
            assert [frame[HEAD:] for frame in kept] == end.sent_events[end.acked :]
            assert end.acked <= len(self.ends[1 - index].received), "what was not taken is not acknowledged"

    def teardown(self) -> None:
        """Over a fair wire, everything arrives, and nothing is kept for ever."""
        if not hasattr(self, "ends"):
            return
        for _ in range(3):
            self.cut()
            while any(self.under_way) or any(end.inbox for end in self.ends):
                for index in (0, 1):
                    self.deliver_in_order(index, len(self.under_way[index]))
                    self.take(index, len(self.ends[index].inbox))
        for index, end in enumerate(self.ends):
            assert end.received == self.ends[1 - index].sent_events
            assert end.kept() == []
            assert end.in_flight == 0
            assert end.window_open


TestWire = Wire.TestCase
TestWire.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_window_shuts_and_opens() -> None:
    end = SessionEnd(NUMBER, ATTEMPT, 1000)
    sent = 0
    while end.window_open:
        end.sent((MESSAGE_SENT, b"x" * 236))  # 300 with its overhead
        sent += 1
    assert sent == 4
    assert end.acknowledged(0) is False
    assert end.acknowledged(1) is True
    assert end.window_open
    assert end.acknowledged(1) is False
    assert end.acknowledged(4) is False, "it was open already"
    assert end.in_flight == 0


def test_an_event_larger_than_the_window_goes_out_alone() -> None:
    end = SessionEnd(NUMBER, ATTEMPT, 10)
    assert end.window_open
    end.sent((MESSAGE_SENT, b"x" * 5000))
    assert not end.window_open


def test_an_event_carries_the_acknowledgement() -> None:
    end = SessionEnd(NUMBER, ATTEMPT, 1000)
    assert end.arrived(0) is Arrival.NEW
    assert not end.ack_due
    end.took(250, 1)
    assert end.ack_due
    frame, _ = end.sent((MESSAGE_SENT, "a"))
    assert frame == (EVENT, NUMBER, ATTEMPT, 0, 1, MESSAGE_SENT, "a")
    assert not end.ack_due
    assert end.ack() == (ACK, NUMBER, ATTEMPT, 1)


def test_a_sender_of_full_parts_is_told_before_its_window_shuts() -> None:
    end = SessionEnd(NUMBER, ATTEMPT, WINDOW)
    for number in range(2):
        end.arrived(number)
        end.took(size((MESSAGE_SENT, bytes(PART))), number + 1)
        if end.ack_due:
            break
    assert number == 0


def test_frames_without_an_event() -> None:
    end = SessionEnd(NUMBER, ATTEMPT, 1000)
    end.arrived(0)
    assert end.own() == (OWN, NUMBER, ATTEMPT)
    assert end.reset() == (RESET, NUMBER, ATTEMPT)
    assert end.resend() == (RESEND, NUMBER, ATTEMPT, 1)
    assert end.ack() == (ACK, NUMBER, ATTEMPT, 0), "arrived is not taken"


def test_an_arrival_is_judged_by_its_number() -> None:
    end = SessionEnd(NUMBER, ATTEMPT, 1000)
    assert [end.arrived(number) for number in (1, 0, 0, 2, 1, 2)] == [
        Arrival.GAP,
        Arrival.NEW,
        Arrival.DUPLICATE,
        Arrival.GAP,
        Arrival.NEW,
        Arrival.NEW,
    ]
