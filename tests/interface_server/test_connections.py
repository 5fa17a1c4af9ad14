"""Faults between the two ends, as frames: what a lost, late or faulty frame does to a connection, and to the others."""

from typing import Any, cast

import pytest

from asgibus.interface_server.connections import Connections
from asgibus.interface_server.request import Request
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.layers.contract import Bus, Offer
from asgibus.protocol.events import (
    ACCEPT,
    HTTP_DISCONNECT,
    MESSAGE_RECEIVED,
    MESSAGE_SENT,
    REQUEST_BODY,
    REQUEST_END,
    RESPONSE,
    RESPONSE_START,
)
from asgibus.protocol.frames import ACK, EVENT, OWN, RESEND, RESET
from asgibus.protocol.opening import HTTP, WEBSOCKET

WORKER = "worker.1!"
OTHER = "worker.2!"


class RecordingBus:
    """Keeps what is posted and offered."""

    mailbox = "interface.1!"
    epoch = "e"

    def __init__(self) -> None:
        self.posted: list[tuple[str, tuple[Any, ...]]] = []
        self.withdrawn: list[Offer] = []

    def post(self, mailbox: str, frame: tuple[Any, ...], size: int = 0) -> None:
        self.posted.append((mailbox, frame))

    def offer(self, channel: str, entry: Any) -> Offer:
        return Offer(channel)

    def withdraw(self, offer: Offer) -> None:
        self.withdrawn.append(offer)


class RecordingTerminator:
    """A terminator without a socket."""

    def __init__(self) -> None:
        self.deadline = 0.0
        self.write_paused = False
        self.written: list[tuple[Any, ...]] = []
        self.failed: list[tuple[int, int]] = []
        self.reading = True
        self.aborted = False
        self.faulty = False

    def write_event(self, event: tuple[Any, ...]) -> None:
        if self.faulty:
            raise ZeroDivisionError
        self.written.append(event)

    def pause(self) -> None:
        self.reading = False

    def resume(self) -> None:
        self.reading = True

    def fail(self, status: int, close_code: int) -> None:
        self.failed.append((status, close_code))

    def abort(self) -> None:
        self.aborted = True


class Table:
    """A table of connections on a recording bus."""

    def __init__(self, **settings: Any) -> None:
        self.bus = RecordingBus()
        self.connections = Connections(InterfaceSettings(**settings))
        self.connections.on_bus(cast(Bus, self.bus), cast(Any, None))

    def open(self, kind: str = WEBSOCKET, events: tuple[Any, ...] = ()) -> tuple[Any, RecordingTerminator]:
        terminator = RecordingTerminator()
        request = Request(None, None, "http", {}, raw_path=b"/", kind=kind)
        return self.connections.open(request, cast(Any, terminator), events), terminator

    def frames(self, *frames: tuple[Any, ...], sender: str = WORKER) -> None:
        self.connections.batch(sender, "e", frames)


@pytest.fixture
def table() -> Table:
    return Table()


def accept(number: int) -> tuple[Any, ...]:
    return (EVENT, number, 1, 0, 0, ACCEPT, None, ())


def message(number: int, sequence: int, text: str) -> tuple[Any, ...]:
    return (EVENT, number, 1, sequence, 0, MESSAGE_SENT, text)


def test_a_gap_is_asked_for_and_nothing_behind_it_is_written(table: Table) -> None:
    connection, terminator = table.open()
    table.frames(accept(connection.number), message(connection.number, 2, "late"))
    assert [event[0] for event in terminator.written] == [ACCEPT]
    assert table.bus.posted == [(WORKER, (RESEND, connection.number, 1, 1))]
    table.frames(message(connection.number, 1, "one"), message(connection.number, 2, "late"))
    assert [event[1] for event in terminator.written[1:]] == ["one", "late"]


def test_what_comes_twice_is_written_once(table: Table) -> None:
    connection, terminator = table.open()
    table.frames(accept(connection.number), message(connection.number, 1, "one"), message(connection.number, 1, "one"))
    assert terminator.written[1:] == [(MESSAGE_SENT, "one")]


def test_what_the_worker_misses_is_sent_again(table: Table) -> None:
    connection, _ = table.open()
    table.frames(accept(connection.number))
    for text in ("a", "b", "c"):
        connection.event((MESSAGE_RECEIVED, text))
    table.frames((ACK, connection.number, 1, 1))
    del table.bus.posted[:]
    table.frames((RESEND, connection.number, 1, 2))
    assert [frame[-1] for _, frame in table.bus.posted] == ["c"]


@pytest.mark.parametrize("kind", [HTTP, WEBSOCKET])
def test_a_worker_that_does_not_know_a_connection_fails_it(table: Table, kind: str) -> None:
    connection, terminator = table.open(kind)
    table.frames((OWN, connection.number, 1), (RESET, connection.number, 1))
    assert terminator.failed == [(502, 1012)]
    assert len(table.connections) == 0


def test_a_worker_that_is_gone_fails_its_connections_and_no_others(table: Table) -> None:
    connection, terminator = table.open()
    other, other_terminator = table.open()
    table.frames((OWN, connection.number, 1))
    table.frames((OWN, other.number, 1), sender=OTHER)
    table.connections.unreachable(WORKER)
    assert (terminator.failed, other_terminator.failed) == ([(502, 1012)], [])
    assert len(table.connections) == 1


def test_a_second_worker_and_an_earlier_attempt_are_reset(table: Table) -> None:
    connection, terminator = table.open()
    table.frames(accept(connection.number))
    table.frames(message(connection.number, 1, "mine too"), sender=OTHER)
    table.frames((EVENT, connection.number, 0, 1, 0, MESSAGE_SENT, "from a former life"))
    assert table.bus.posted == [(OTHER, (RESET, connection.number, 1)), (WORKER, (RESET, connection.number, 0))]
    assert len(terminator.written) == 1


def test_a_fault_in_one_connection_does_not_reach_the_others(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    connection, terminator = table.open()
    other, other_terminator = table.open()
    terminator.faulty = True
    table.frames(accept(connection.number), accept(other.number))
    assert terminator.aborted
    assert [event[0] for event in other_terminator.written] == [ACCEPT]
    assert "ZeroDivisionError" in caplog.text


def test_an_event_out_of_place_is_refused(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    connection, terminator = table.open()
    table.frames(message(connection.number, 0, "before accept"))
    assert terminator.written == []
    assert "MESSAGE_SENT is not allowed in the state 'waiting for websocket.accept'" in caplog.text


def test_a_client_that_leaves_before_its_worker_is_known_is_told_to_that_worker(table: Table) -> None:
    connection, _ = table.open(HTTP, ((REQUEST_BODY, b"first"),))
    connection.event((REQUEST_END, b"rest"))
    connection.client_gone()
    assert len(table.bus.withdrawn) == 1
    assert table.bus.posted == []
    table.frames((OWN, connection.number, 1))
    assert [(mailbox, frame[5:]) for mailbox, frame in table.bus.posted] == [
        (WORKER, (REQUEST_END, b"rest")),
        (WORKER, (HTTP_DISCONNECT, True)),
    ]
    assert len(table.connections) == 0


def test_the_socket_is_read_by_the_window_alone() -> None:
    table = Table(window=1000)
    connection, terminator = table.open()
    table.frames(accept(connection.number))
    connection.event((MESSAGE_RECEIVED, "x" * 900))
    assert terminator.reading
    connection.event((MESSAGE_RECEIVED, "x" * 900))
    assert not terminator.reading
    table.frames((ACK, connection.number, 1, 2))
    assert terminator.reading


def test_a_client_that_does_not_read_keeps_its_senders_window_shut(table: Table) -> None:
    connection, terminator = table.open()
    table.frames(accept(connection.number))
    terminator.write_paused = True
    table.frames(message(connection.number, 1, "x" * 200_000))
    connection.event((MESSAGE_RECEIVED, "still talking"))
    assert table.bus.posted[-1][1][4] == 1, "only what was written before it stopped reading is acknowledged"
    terminator.write_paused = False
    connection.acknowledge()
    assert table.bus.posted[-1][1] == (ACK, connection.number, 1, 2)


def test_nothing_is_written_behind_a_complete_response(table: Table) -> None:
    connection, terminator = table.open(HTTP, ((REQUEST_END, b""),))
    whole = (EVENT, connection.number, 1, 0, 0, RESPONSE, 200, (), b"body")
    start = (EVENT, connection.number, 1, 1, 0, RESPONSE_START, 200, ())
    table.frames(whole, start)
    assert [event[0] for event in terminator.written] == [RESPONSE]
    assert table.bus.posted == [(WORKER, (RESET, connection.number, 1))]


def test_no_worker_in_time_is_told_once_for_all(caplog: pytest.LogCaptureFixture) -> None:
    table = Table(connect_timeout=5.0)
    terminators = [table.open()[1] for _ in range(3)]
    table.connections.tick(4.0)
    assert [terminator.failed for terminator in terminators] == [[], [], []]
    table.connections.tick(6.0)
    assert [terminator.failed for terminator in terminators] == [[(503, 1013)]] * 3
    assert caplog.text.count("no worker took 3 connections") == 1
    assert len(table.bus.withdrawn) == 3
