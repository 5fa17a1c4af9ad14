"""The router: each frame reaches its endpoint, and lost frames are requested again."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import pytest

from asgibus.layers.contract import Bus, Frame
from asgibus.layers.frames import (
    ABANDONED,
    ACK,
    CLAIMED,
    DEAD,
    EVENT,
    PROBE,
    RESEND,
    RESET,
    SUPERSEDED,
)
from asgibus.protocol.checks import FROM_CLIENT
from asgibus.protocol.counted_log import CountedLog
from asgibus.protocol.events import MESSAGE_RECEIVED, Event
from asgibus.protocol.router import StreamRouter
from asgibus.protocol.stream import ReliableStream
from support.recording import RecordingBus

PEER, OTHER = "peer!", "other!"
NUMBER, ATTEMPT = 5, 1


class End:
    """An endpoint that consumes every event at once."""

    def __init__(self, number: int, peer: str = PEER) -> None:
        self.stream = ReliableStream(number, ATTEMPT, 1000)
        self.peer = peer
        self.expects_ack = self.may_probe = True
        self.calls: list[Any] = []
        self.faulty = False

    def on_event(self, event: Event) -> None:
        if self.faulty:
            raise ZeroDivisionError
        self.calls.append(event)
        self.stream.consume(10, self.stream.expected)

    def on_ack(self, number: int) -> None:
        self.stream.acknowledge(number)

    def on_reset(self) -> None:
        self.calls.append("reset")

    def on_superseded(self) -> None:
        self.calls.append("superseded")

    def answer_probe(self, number: int) -> Frame:
        return self.stream.answer_probe(number)

    def acknowledge(self) -> None:
        self.calls.append("acknowledge")
        self.stream.ack_frame()


class Table:
    """Two endpoints of one peer, and one of another."""

    def __init__(self) -> None:
        self.ends = [End(NUMBER), End(NUMBER + 1), End(NUMBER + 2, OTHER)]
        self.others: list[Frame] = []
        self.faults: list[Frame] = []
        self.superseded: set[int] = set()
        self.counts: Counter[str] = Counter()
        self.bus = RecordingBus()
        self.router = StreamRouter(
            self, FROM_CLIENT, CountedLog(self.counts, logging.getLogger("asgibus.test"), lambda: 0.0)
        )
        self.router.bus = cast(Bus, self.bus)

    def __iter__(self) -> Iterator[End]:
        return iter(self.ends)

    def accept(self, sender: str, number: int, attempt: int) -> End | None:
        return next(
            (end for end in self.ends if (end.peer, end.stream.number, ATTEMPT) == (sender, number, attempt)), None
        )

    def is_superseded(self, sender: str, number: int) -> bool:
        return number in self.superseded

    def on_other_frame(self, sender: str, frame: Frame) -> None:
        self.others.append(frame)

    def on_fault(self, frame: Frame) -> None:
        self.faults.append(frame)

    def posted(self) -> list[tuple[str, Frame]]:
        """Return the frames posted since the last call."""
        posted = [(mailbox, frame) for mailbox, frame in self.bus.posted]
        self.bus.posted.clear()
        return posted


@pytest.fixture
def table() -> Table:
    return Table()


def event(sequence: int, text: str = "a", *, acknowledged: int = 0, number: int = NUMBER) -> Frame:
    return (EVENT, number, ATTEMPT, sequence, acknowledged, MESSAGE_RECEIVED, text)


def test_events_arrive_in_order_and_once(table: Table) -> None:
    table.router.batch(PEER, [event(0, "a"), event(1, "b"), event(0, "a")])
    assert table.ends[0].calls == [(MESSAGE_RECEIVED, "a"), (MESSAGE_RECEIVED, "b")]
    assert table.posted() == []


def test_an_event_acknowledges_the_other_direction(table: Table) -> None:
    table.ends[0].stream.send((MESSAGE_RECEIVED, "b"))
    table.router.batch(PEER, [event(0, acknowledged=1)])
    assert table.ends[0].stream.in_flight == 0


def test_missing_events_are_requested_once(table: Table) -> None:
    table.router.batch(PEER, [event(1), event(2)])
    assert table.posted() == [(PEER, (RESEND, NUMBER, ATTEMPT, 0))]
    assert table.counts == {"gap": 1}
    assert table.ends[0].calls == []


def test_requested_events_are_sent_again(table: Table) -> None:
    for text in "abc":
        table.ends[0].stream.send((MESSAGE_RECEIVED, text))
    table.router.batch(PEER, [(RESEND, NUMBER, ATTEMPT, 1)])
    assert [frame[3] for _, frame in table.posted()] == [1, 2]
    assert table.counts == {"repeated": 1}


@pytest.mark.parametrize("attempt", [ATTEMPT, ATTEMPT + 1])
def test_an_unknown_run_is_reset(table: Table, attempt: int) -> None:
    number = NUMBER if attempt > ATTEMPT else 99
    frames: list[Frame] = [
        (EVENT, number, attempt, 0, 0, MESSAGE_RECEIVED, "a"),
        (PROBE, number, attempt, 0),
        (CLAIMED, number, attempt),
        (ACK, number, attempt, 0),
        (RESET, number, attempt),
    ]
    table.router.batch(PEER, frames)
    assert table.posted() == [(PEER, (RESET, number, attempt))] * 3, "an acknowledgement and a reset need no reply"


def test_a_replaced_run_is_answered_superseded(table: Table) -> None:
    table.superseded.add(99)
    table.router.batch(PEER, [(PROBE, 99, ATTEMPT, 0)])
    assert table.posted() == [(PEER, (SUPERSEDED, 99, ATTEMPT))]


def test_frames_without_an_event_reach_their_endpoint(table: Table) -> None:
    table.ends[0].stream.send((MESSAGE_RECEIVED, "a"))
    frames: list[Frame] = [
        (ACK, NUMBER, ATTEMPT, 1),
        (PROBE, NUMBER, ATTEMPT, 1),
        (RESET, NUMBER, ATTEMPT),
        (SUPERSEDED, NUMBER, ATTEMPT),
        (CLAIMED, NUMBER, ATTEMPT),
    ]
    table.router.batch(PEER, frames)
    assert table.ends[0].stream.in_flight == 0
    assert table.ends[0].calls == ["reset", "superseded"]
    assert table.posted() == [(PEER, (RESEND, NUMBER, ATTEMPT, 0))]
    assert table.counts == {"reset": 1, "superseded": 1}


def test_frames_of_other_kinds_are_passed_on(table: Table) -> None:
    table.router.batch("", [(DEAD, PEER, True)])
    table.router.batch(PEER, [(ABANDONED, NUMBER, ATTEMPT)])
    assert table.others == [(DEAD, PEER, True), (ABANDONED, NUMBER, ATTEMPT)]


@pytest.mark.parametrize("sender", ["", "peer"])
def test_a_frame_of_the_protocol_must_come_from_a_mailbox(table: Table, sender: str) -> None:
    table.ends[0].peer = sender  # an unclaimed connection has no peer
    table.router.batch(sender, [event(0), (RESET, NUMBER, ATTEMPT), (PROBE, 99, ATTEMPT, 0)])
    assert table.counts == {"bad frame": 3}
    assert table.ends[0].calls == []
    assert table.posted() == [], "nothing can be posted to a process without a mailbox"


def test_an_invalid_frame_is_dropped_and_logged_once_as_an_error(
    table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    table.router.batch(PEER, [("x",), (EVENT, NUMBER), event(0)])
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert table.counts == {"bad frame": 2}
    assert table.ends[0].calls == [(MESSAGE_RECEIVED, "a")]


def test_a_fault_of_one_endpoint_affects_no_other_frame(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    table.ends[0].faulty = True
    table.router.batch(PEER, [event(0), event(0, number=NUMBER + 1)])
    assert table.ends[1].calls == [(MESSAGE_RECEIVED, "a")]
    assert table.faults == [event(0)]
    assert "ZeroDivisionError" in caplog.text


def probes(table: Table) -> list[int]:
    return [frame[1] for _, frame in table.posted() if frame[0] == PROBE]


def test_a_peer_without_a_mailbox_is_probed_at_the_next_check(table: Table) -> None:
    table.router.tick(0.0)
    table.router.mailbox_missing(PEER)
    table.router.mailbox_missing(OTHER)
    table.router.peer_dead(OTHER)
    table.router.tick(1.0)
    assert probes(table) == [NUMBER, NUMBER + 1]
    table.router.tick(2.0)
    assert probes(table) == []


def test_a_stalled_endpoint_is_probed(table: Table) -> None:
    table.ends[0].stream.send((MESSAGE_RECEIVED, "a"))
    table.ends[1].stream.send((MESSAGE_RECEIVED, "a"))
    table.ends[1].expects_ack = False
    for second in range(1, 10):
        table.router.tick(float(second))
    assert probes(table) == []
    table.router.tick(10.0)
    assert probes(table) == [NUMBER]


def test_after_an_interruption_all_are_probed_twice(table: Table) -> None:
    table.ends[1].may_probe = False
    table.router.tick(100.0)
    assert table.router.interrupted() == 2
    assert probes(table) == [NUMBER, NUMBER + 2]
    table.router.tick(102.9)
    assert probes(table) == []
    table.router.tick(103.0)
    assert probes(table) == [NUMBER, NUMBER + 2]
    table.router.tick(110.0)
    assert probes(table) == []


def test_consumed_events_are_acknowledged_each_second(table: Table) -> None:
    table.router.tick(0.0)
    table.router.batch(PEER, [event(0)])
    table.router.tick(0.9)
    assert "acknowledge" not in table.ends[0].calls
    table.router.tick(1.0)
    table.router.tick(2.0)
    assert table.ends[0].calls.count("acknowledge") == 1
    assert table.ends[1].calls == []
