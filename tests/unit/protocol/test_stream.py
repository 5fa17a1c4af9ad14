"""The session over a wire that drops, repeats, delays, reorders and breaks: I10, I11 and I12 hold after every step."""

from collections import deque
from inspect import isdatadescriptor
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asgibus.layers.frames import ACK, CLAIMED, EVENT, EVENT_OFFSET, PROBE, RESEND, RESET
from asgibus.protocol.events import EVENT_OVERHEAD, MESSAGE_RECEIVED, MESSAGE_SENT, size
from asgibus.protocol.stream import PART, WINDOW, Arrival, ReliableStream

NUMBER, ATTEMPT = 7, 2
Frame = tuple[Any, ...]


class End:
    """One end and its app, which sends while the window is open and consumes events at any time.

    All attributes of its stream are attributes of the end, too. It has a stream and does not inherit from it, because a
    compiled class has no interpreted subclasses.
    """

    def __init__(self, window: int) -> None:
        self._stream = ReliableStream(NUMBER, ATTEMPT, window)
        self.out: list[Frame] = []
        """Frames that are posted to the other end."""
        self.sent_events: list[Frame] = []
        self.inbox: deque[tuple[int, Frame]] = deque()
        self.received: list[Frame] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def app_sends(self, length: int) -> None:
        event = (MESSAGE_SENT, f"{len(self.sent_events)}".ljust(length))
        frame, counted = self.send(event)
        assert counted == size(event)
        self.sent_events.append(event)
        self.out.append(frame)

    def app_takes(self) -> None:
        _, event = self.inbox.popleft()
        self.received.append(event)
        if self.consume(size(event), self.inbox[0][0] if self.inbox else self.expected):
            self.out.append(self.ack_frame())

    def deliver(self, frame: Frame) -> None:
        assert frame[1:3] == (NUMBER, ATTEMPT)
        if frame[0] == EVENT:
            self.acknowledge(frame[4])
            arrival = self.receive(frame[3])
            if arrival is Arrival.NEW:
                self.inbox.append((frame[3], frame[EVENT_OFFSET:]))
            elif arrival is Arrival.GAP:
                self.out.append(self.resend_frame())
        elif frame[0] == ACK:
            self.acknowledge(frame[3])
        elif frame[0] == RESEND:
            self.repeat(frame[3])
        else:
            assert frame[0] == PROBE
            self.out.append(self.answer_probe(frame[3]))

    def repeat(self, number: int) -> None:
        self.out += [frame for frame, _ in self.unacked_frames(number)]


class Wire(RuleBasedStateMachine):
    """Two ends and the frames under way between them, separately for each direction."""

    @initialize(window=st.integers(1, 2000))
    def begin(self, window: int) -> None:
        self.window = window
        self.ends = [End(window), End(window)]
        self.under_way: list[list[Frame]] = [[], []]  # towards each end

    def posted(self) -> None:
        """Move the frames that both ends have posted to the wire."""
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
        """Deliver any frame of the wire, and keep or remove the frame."""
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
        """Lose all frames on the wire, after which the ends probe each other."""
        self.under_way = [[], []]
        self.again()

    @rule(index=st.integers(0, 1), nonsense=st.sampled_from([-1, 0, 10**9, 2**63]))
    def acknowledge_nonsense(self, index: int, nonsense: int) -> None:
        """Acknowledge a number that is not in flight, and assert that the end is unchanged."""
        end = self.ends[index]
        before = (end.acked, end.in_flight, len(end.unacked_frames()))
        assert end.acknowledge(nonsense) is False
        assert (end.acked, end.in_flight, len(end.unacked_frames())) == before

    @rule(index=st.integers(0, 1))
    def probe(self, index: int) -> None:
        self.ends[index].out.append(self.ends[index].probe_frame())
        self.posted()

    def again(self) -> None:
        for end in self.ends:
            end.out.append(end.probe_frame())
        self.posted()

    @invariant()
    def i10_in_order_without_gap_or_duplicate(self) -> None:
        for index, end in enumerate(self.ends):
            arrived = end.received + [event for _, event in end.inbox]
            assert arrived == self.ends[1 - index].sent_events[: len(arrived)]

    @invariant()
    def i11_at_most_a_window_and_one_event_are_in_flight(self) -> None:
        for index, end in enumerate(self.ends):
            other = self.ends[1 - index]
            sizes = [counted for _, counted in end.unacked_frames()]
            assert end.in_flight == sum(sizes)
            assert sum(sizes[:-1]) < self.window
            assert end.window_open == (end.in_flight < self.window)
            # Events that the other end has not consumed are included: the window bounds the memory of that end, too.
            waiting = [size(event) for _, event in other.inbox]
            assert sum(waiting[:-1]) < self.window

    @invariant()
    def i12_exactly_the_unacknowledged_events_are_kept(self) -> None:
        for index, end in enumerate(self.ends):
            frames = [frame for frame, _ in end.unacked_frames()]
            assert [frame[3] for frame in frames] == list(range(end.acked, end.next_number))
            assert [frame[EVENT_OFFSET:] for frame in frames] == end.sent_events[end.acked :]
            assert end.acked <= len(self.ends[1 - index].received), "an event is acknowledged before its consumption"

    def teardown(self) -> None:
        """Check that over a fair wire all frames arrive and none stays unacknowledged."""
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
            assert end.unacked_frames() == []
            assert end.in_flight == 0
            assert end.window_open


TestWire = Wire.TestCase
TestWire.settings = settings(max_examples=2 * settings.default.max_examples, stateful_step_count=40)


def test_a_window_shuts_and_opens() -> None:
    end = ReliableStream(NUMBER, ATTEMPT, 1000)
    sent = 0
    while end.window_open:
        end.send((MESSAGE_SENT, b"x" * (300 - EVENT_OVERHEAD)))
        sent += 1
    assert sent == 4
    assert end.acknowledge(0) is False
    assert end.acknowledge(1) is True
    assert end.window_open
    assert end.acknowledge(1) is False
    assert end.acknowledge(4) is False, "an open window opens again"
    assert end.in_flight == 0


def test_an_event_larger_than_the_window_goes_out_alone() -> None:
    end = ReliableStream(NUMBER, ATTEMPT, 10)
    assert end.window_open
    end.send((MESSAGE_SENT, b"x" * 5000))
    assert not end.window_open


def test_an_event_carries_the_acknowledgement() -> None:
    end = ReliableStream(NUMBER, ATTEMPT, 1000)
    assert end.receive(0) is Arrival.NEW
    assert end.consume(250, 1)
    frame, _ = end.send((MESSAGE_SENT, "a"))
    assert frame == (EVENT, NUMBER, ATTEMPT, 0, 1, MESSAGE_SENT, "a")
    assert end.ack_frame() == (ACK, NUMBER, ATTEMPT, 1)


def test_full_parts_are_acknowledged_before_the_window_shuts() -> None:
    end = ReliableStream(NUMBER, ATTEMPT, WINDOW)
    for number in range(2):
        end.receive(number)
        if end.consume(size((MESSAGE_SENT, bytes(PART))), number + 1):
            break
    assert number == 0


def test_frames_without_an_event() -> None:
    end = ReliableStream(NUMBER, ATTEMPT, 1000)
    end.receive(0)
    assert end.claimed_frame() == (CLAIMED, NUMBER, ATTEMPT)
    assert end.reset_frame() == (RESET, NUMBER, ATTEMPT)
    assert end.resend_frame() == (RESEND, NUMBER, ATTEMPT, 1)
    assert end.ack_frame() == (ACK, NUMBER, ATTEMPT, 0), "an arrived event counts as consumed"


def test_arrivals_are_classified_by_number() -> None:
    end = ReliableStream(NUMBER, ATTEMPT, 1000)
    assert [end.receive(number) for number in (1, 0, 0, 2, 1, 2)] == [
        Arrival.GAP,
        Arrival.NEW,
        Arrival.DUPLICATE,
        Arrival.GAP,
        Arrival.NEW,
        Arrival.NEW,
    ]


def test_missing_events_are_requested_once() -> None:
    end = ReliableStream(NUMBER, ATTEMPT, 1000)
    assert end.receive(1) is Arrival.GAP
    end.resend_frame()
    assert [end.receive(number) for number in (2, 3)] == [Arrival.AHEAD] * 2
    assert end.receive(0) is Arrival.NEW
    assert end.receive(2) is Arrival.GAP, "a second gap is not reported"
    end.resend_frame()
    end.restart(2, [])
    assert end.receive(1) is Arrival.GAP


def message(text: str) -> Frame:
    return (MESSAGE_RECEIVED, text)


def test_a_probe_has_the_number_of_sent_events() -> None:
    end = ReliableStream(NUMBER, ATTEMPT, 1000)
    assert end.probe_frame() == (PROBE, NUMBER, ATTEMPT, 0)
    end.send(message("a"))
    end.send(message("b"))
    end.acknowledge(1)
    assert end.probe_frame() == (PROBE, NUMBER, ATTEMPT, 2)


def test_a_probe_is_answered_with_missing_frames_or_an_acknowledgement() -> None:
    end = ReliableStream(NUMBER, ATTEMPT, 1000)
    assert end.answer_probe(1) == (RESEND, NUMBER, ATTEMPT, 0)
    assert end.answer_probe(0) == (ACK, NUMBER, ATTEMPT, 0)
    end.receive(0)
    end.receive(1)
    end.consume(100, 1)
    assert end.answer_probe(3) == (RESEND, NUMBER, ATTEMPT, 2), "not from the first missing event"
    assert end.unreported == 100
    assert end.answer_probe(2) == (ACK, NUMBER, ATTEMPT, 1), "an arrived event counts as consumed"
    assert end.unreported == 0


def test_a_stream_is_stalled_without_progress_between_two_checks() -> None:
    end = ReliableStream(NUMBER, ATTEMPT, 1000)
    assert not end.check_stalled()
    assert not end.check_stalled(), "an idle stream is stalled"
    end.send(message("a"))
    end.send(message("b"))
    assert end.check_stalled(), "no progress since the last check"
    end.acknowledge(1)
    assert not end.check_stalled()
    assert end.check_stalled()
    end.acknowledge(2)
    assert not end.check_stalled()
    assert not end.check_stalled()


def test_unacknowledged_events_are_available() -> None:
    end = ReliableStream(NUMBER, ATTEMPT, 1000)
    events = [message(text) for text in "abc"]
    for event in events:
        end.send(event)
    end.acknowledge(1)
    assert end.unacked_events == events[1:]
    assert all(one is other for one, other in zip(end.unacked_events, events[1:], strict=True)), "events are copied"


def test_restart_numbers_the_given_events_from_zero() -> None:
    end = ReliableStream(NUMBER, ATTEMPT, 2000)
    events = [message(text * 600) for text in "abc"]
    for event in events:
        end.send(event)
    for number in range(3):
        end.receive(number)
        end.consume(200, number + 1)
    end.acknowledge(1)
    end.check_stalled()
    end.restart(ATTEMPT + 1, end.unacked_events)
    assert (end.attempt, end.number) == (ATTEMPT + 1, NUMBER)
    assert end.unacked_frames() == [
        ((EVENT, NUMBER, ATTEMPT + 1, number, 0, *event), size(event)) for number, event in enumerate(events[1:])
    ]
    assert end.in_flight == sum(size(event) for event in events[1:])
    assert (end.next_number, end.acked, end.expected, end.consumed, end.unreported) == (2, 0, 0, 0, 0)
    assert not end.check_stalled(), "the first check of a new run"
    assert end.receive(0) is Arrival.NEW
    assert end.send(message("d"))[0][2:4] == (ATTEMPT + 1, 2)
    assert end.acknowledge(3) is False
    assert end.in_flight == 0


def test_restart_without_events_equals_a_new_stream() -> None:
    end = ReliableStream(NUMBER, ATTEMPT, 1000)
    end.send(message("a"))
    end.receive(0)
    end.restart(ATTEMPT + 1, [])
    new = ReliableStream(NUMBER, ATTEMPT + 1, 1000)
    attributes = [name for name, value in vars(ReliableStream).items() if isdatadescriptor(value)]
    assert "next_number" in attributes
    assert {name: getattr(end, name) for name in attributes} == {name: getattr(new, name) for name in attributes}


def test_restart_with_a_full_window_stays_shut() -> None:
    end = ReliableStream(NUMBER, ATTEMPT, 100)
    end.send(message("x" * 500))
    end.restart(ATTEMPT + 1, end.unacked_events)
    assert not end.window_open
    assert end.acknowledge(1) is True
