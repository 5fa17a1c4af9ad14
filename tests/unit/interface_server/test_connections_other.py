"""Connections of protocols that are neither HTTP nor WebSocket, as frames: open from the start, with one run."""

from typing import Any, cast

import pytest

from asgibus.interface_server.terminator import ABORT, OTHER_CLOSE, OTHER_RECEIVED, OTHER_SENT, Event, other
from asgibus.layers.frames import ABANDONED, ACK, EVENT, MESSAGE, RESET
from asgibus.protocol.events import OTHER_DISCONNECT, decode, size
from support.recording import WORKER, RecordingTerminator, Table, claim_frame

SAY = other(OTHER_RECEIVED, {"type": "line.receive", "line": b"x"})
ANSWER = other(OTHER_SENT, {"type": "line.send", "line": b"y"})
END = other(OTHER_CLOSE, {"type": "line.close"})


@pytest.fixture
def table() -> Table:
    return Table(connect_timeout=10)


def open_line(table: Table, *events: Event, **options: Any) -> tuple[Any, RecordingTerminator]:
    terminator = RecordingTerminator()
    scope = {"client": ("::1", 1)}
    return table.connections.open_other("line", scope, cast(Any, terminator), events, **options), terminator


def frame(sequence: int, event: Event, acked: int = 0) -> tuple[Any, ...]:
    return (EVENT, 1, 1, sequence, acked, *event)


def test_a_connection_is_offered_on_the_channel_of_its_protocol(table: Table) -> None:
    open_line(table, SAY)
    (offer,) = table.bus.offered
    assert offer.channel == "line.connect.default"
    assert (offer.state.kind, offer.state.scope, offer.state.events) == ("line", {"client": ("::1", 1)}, (SAY,))


def test_a_scope_that_no_message_can_hold_is_refused(table: Table) -> None:
    with pytest.raises(TypeError, match="set"):
        table.connections.open_other("line", {"extensions": {"seen": {1, 2}}}, cast(Any, RecordingTerminator()))
    assert len(table.connections) == 0
    assert not table.bus.offered


def test_events_are_relayed_and_the_last_one_is_acknowledged(table: Table) -> None:
    connection, terminator = open_line(table, SAY)
    connection.event(SAY)
    table.frames(claim_frame(1))
    assert table.events() == [SAY], "the event that arrived while the connection was offered"
    table.frames(frame(0, ANSWER), frame(1, END, acked=1))
    assert terminator.written == [ANSWER, END]
    assert connection.unacknowledged == [SAY]
    assert table.posted() == [(ACK, 1, 1, 2)], "or its worker would wait for this"
    assert len(table.connections) == 0


def test_a_full_window_pauses_the_terminator(table: Table) -> None:
    connection, terminator = open_line(table, window=2 * size(SAY) + 1)
    table.frames(claim_frame(1))
    while terminator.reading:
        connection.event(SAY)
    assert connection.stream.next_number == 3
    table.frames((ACK, 1, 1, 1))
    assert terminator.reading


@pytest.mark.parametrize("claimed", [True, False])
def test_a_connection_ends_with_its_run(table: Table, claimed: bool) -> None:
    _, terminator = open_line(table, SAY)
    if claimed:
        table.frames(claim_frame(1))
        table.dead(WORKER)
    else:
        table.frames((ABANDONED, 1, 1))
    assert terminator.failed == [(502, 1012)]
    assert len(table.bus.offered) == 1
    assert len(table.connections) == 0


def test_a_reset_of_the_worker_ends_the_connection(table: Table) -> None:
    _, terminator = open_line(table)
    table.frames(claim_frame(1), (RESET, 1, 1))
    assert terminator.failed == [(502, 1012)]


def test_an_unclaimed_connection_fails(table: Table) -> None:
    _, terminator = open_line(table, SAY)
    table.connections.tick(11)
    assert terminator.failed == [(503, 1013)]


def test_the_app_gets_a_disconnect_if_the_client_is_gone(table: Table) -> None:
    connection, terminator = open_line(table)
    table.frames(claim_frame(1))
    connection.client_gone(reason="bored")
    (event,) = table.events()
    assert event[0] == OTHER_DISCONNECT
    assert decode(event) == {"type": "line.disconnect", "reason": "bored"}
    table.frames(frame(0, ANSWER))
    assert terminator.written == []
    assert len(table.connections) == 0


def test_an_abort_of_the_app_ends_the_connection(table: Table) -> None:
    _, terminator = open_line(table)
    table.frames(claim_frame(1), frame(0, (ABORT,)))
    assert terminator.written == [(ABORT,)]
    assert len(table.connections) == 0


def test_only_messages_of_its_protocol_reach_a_connection(table: Table) -> None:
    _, terminator = open_line(table)
    table.frames(claim_frame(1))
    for kind in ("line.send", "lines.send", "udp.close", "websocket.close", "http.response.body"):
        table.frames((MESSAGE, "1", {"type": kind, "line": b"y"}), sender="")
    assert terminator.written == [ANSWER]
    assert table.connections.counts["message out of place"] == 4
    table.frames((MESSAGE, "1", {"type": "line.close"}), sender="")
    assert terminator.written == [ANSWER, END]
    assert [event[0] for event in table.events()] == [OTHER_DISCONNECT], "the app gets no disconnect"
