"""Lost, late and faulty frames: their effect on the connection, and on the others."""

from typing import Any

import pytest

from asgibus.layers.frames import ABANDONED, ACK, CLAIMED, EVENT, MESSAGE, PROBE, RESEND, RESET, SUPERSEDED
from asgibus.protocol.connect_request import HTTP, WEBSOCKET
from asgibus.protocol.events import (
    ACCEPT,
    GROUP_ADD,
    GROUP_DONE,
    HTTP_DISCONNECT,
    MESSAGE_RECEIVED,
    MESSAGE_SENT,
    REQUEST_BODY,
    REQUEST_END,
    RESPONSE,
    RESPONSE_START,
    WEBSOCKET_DISCONNECT,
)
from support.recording import OTHER, WORKER, RecordingTerminator, Table, accept, claim_frame, close, message


@pytest.fixture
def table() -> Table:
    return Table()


def test_after_a_gap_nothing_is_written_before_the_missing_event(table: Table) -> None:
    connection, terminator = table.open()
    table.frames(accept(connection.number), message(connection.number, 2, "late"))
    assert [event[0] for event in terminator.written] == [ACCEPT]
    assert table.bus.posted == [(WORKER, (RESEND, connection.number, 1, 1))]
    table.frames(message(connection.number, 1, "one"), message(connection.number, 2, "late"))
    assert [event[1] for event in terminator.written[1:]] == ["one", "late"]


def test_a_repeated_event_is_written_once(table: Table) -> None:
    connection, terminator = table.open()
    table.frames(accept(connection.number), message(connection.number, 1, "one"), message(connection.number, 1, "one"))
    assert terminator.written[1:] == [(MESSAGE_SENT, "one")]


def test_events_are_sent_again_on_request(table: Table) -> None:
    connection, _ = table.open()
    table.frames(accept(connection.number))
    for text in ("a", "b", "c"):
        connection.event((MESSAGE_RECEIVED, text))
    table.frames((ACK, connection.number, 1, 1))
    del table.bus.posted[:]
    table.frames((RESEND, connection.number, 1, 2))
    assert [frame[-1] for _, frame in table.bus.posted] == ["c"]


def test_a_reset_fails_the_connection(table: Table) -> None:
    _, answer = table.open(HTTP, ((REQUEST_END, b""),), method="POST")
    _, terminator = table.open_accepted(resumable=False)
    table.frames(claim_frame(1), (RESET, 1, 1), (RESET, 2, 1))
    assert (answer.failed, terminator.failed) == ([(502, 1012)], [(502, 1012)])
    assert len(table.connections) == 0
    assert table.connections.counts["reset"] == 2


def test_a_killed_worker_fails_only_its_connections(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    _, terminator = table.open_accepted(resumable=False)
    other, other_terminator = table.open()
    table.frames(claim_frame(other.number), sender=OTHER)
    table.dead(WORKER)
    assert (terminator.failed, other_terminator.failed) == ([(502, 1012)], [])
    assert len(table.connections) == 1
    assert f"the worker {WORKER} is dead: of its 1 connections here, 0 were offered" in caplog.text
    table.dead("worker.3!")
    assert caplog.text.count("is dead") == 1, "a worker without connections here is not logged"


def test_a_second_worker_and_an_earlier_attempt_are_superseded(table: Table) -> None:
    connection, terminator = table.open()
    table.frames(accept(connection.number))
    table.frames(message(connection.number, 1, "mine too"), sender=OTHER)
    table.frames((EVENT, connection.number, 0, 1, 0, MESSAGE_SENT, "from an earlier run"))
    answers = [(OTHER, (SUPERSEDED, connection.number, 1)), (WORKER, (SUPERSEDED, connection.number, 0))]
    assert table.bus.posted == answers
    assert len(terminator.written) == 1


def test_a_fault_in_one_connection_affects_no_other(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    connection, terminator = table.open()
    other, other_terminator = table.open()
    terminator.faulty = True
    table.frames(accept(connection.number), accept(other.number))
    assert terminator.aborted
    assert [event[0] for event in other_terminator.written] == [ACCEPT]
    assert "ZeroDivisionError" in caplog.text


def test_a_message_cannot_choose_a_subprotocol_without_offer(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    connection, terminator = table.open()
    table.frames(claim_frame(connection.number))
    plain = {"type": "websocket.accept", "subprotocol": "chat"}
    table.frames((MESSAGE, str(connection.number), plain), sender="")
    assert terminator.written == []
    assert "a websocket.accept for connection 1 was dropped" in caplog.text
    table.frames((MESSAGE, str(connection.number), plain | {"subprotocol": None}), sender="")
    assert [event[0] for event in terminator.written] == [ACCEPT]


def test_an_illegal_event_is_dropped(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    connection, terminator = table.open()
    table.frames(message(connection.number, 0, "before accept"))
    assert terminator.written == []
    assert "MESSAGE_SENT is not allowed in the state 'waiting for websocket.accept'" in caplog.text


def test_illegal_events_are_logged_at_a_limited_rate(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    connection, terminator = table.open()
    table.frames(accept(connection.number), *[accept(connection.number, sequence=number) for number in range(1, 100)])
    assert [event[0] for event in terminator.written] == [ACCEPT]
    assert table.connections.counts["illegal event"] == 99
    assert len([text for text in caplog.messages if text.startswith("an event of")]) == 1


def test_the_first_worker_gets_the_disconnect_of_a_lost_client(table: Table) -> None:
    connection, _ = table.open(HTTP, ((REQUEST_BODY, b"first"),))
    connection.event((REQUEST_END, b"rest"))
    connection.client_gone()
    assert len(table.bus.withdrawn) == 1
    assert table.bus.posted == []
    table.frames((CLAIMED, connection.number, 1))
    assert [(mailbox, frame[5:]) for mailbox, frame in table.bus.posted] == [
        (WORKER, (REQUEST_END, b"rest")),
        (WORKER, (HTTP_DISCONNECT, True)),
    ]
    assert len(table.connections) == 0


@pytest.mark.parametrize("kind", [HTTP, WEBSOCKET])
def test_an_unclaimed_lost_client_is_forgotten(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """The offer is withdrawn. A worker that had claimed it has sent a frame long before `connect_timeout`."""
    table = Table(connect_timeout=60.0)
    table.connections.tick(100.0)
    connection, terminator = table.open(kind, ((REQUEST_END, b""),) if kind == HTTP else ())
    connection.client_gone()
    table.connections.tick(102.9)
    assert len(table.connections) == 1
    table.connections.tick(103.1)
    assert len(table.connections) == 0
    assert terminator.failed == []
    assert "no worker claimed" not in caplog.text
    table.frames(claim_frame(connection.number))
    assert table.bus.posted == [(WORKER, (RESET, connection.number, 1))]


def test_only_the_window_pauses_the_socket() -> None:
    table = Table(window=1000)
    connection, terminator = table.open()
    table.frames(accept(connection.number))
    connection.event((MESSAGE_RECEIVED, "x" * 700))
    assert terminator.reading
    connection.event((MESSAGE_RECEIVED, "x" * 700))
    assert not terminator.reading
    table.frames((ACK, connection.number, 1, 2))
    assert terminator.reading


def test_nothing_is_acknowledged_while_the_client_does_not_read(table: Table) -> None:
    connection, terminator = table.open()
    table.frames(accept(connection.number))
    terminator.write_paused = True
    table.frames(message(connection.number, 1, "x" * 200_000))
    connection.event((MESSAGE_RECEIVED, "more"))
    assert table.bus.posted[-1][1][4] == 1, "an unwritten event is acknowledged"
    terminator.write_paused = False
    connection.acknowledge()
    assert table.bus.posted[-1][1] == (ACK, connection.number, 1, 2)


def test_nothing_is_written_after_a_complete_response(table: Table) -> None:
    connection, terminator = table.open(HTTP, ((REQUEST_END, b""),))
    response = (EVENT, connection.number, 1, 0, 0, RESPONSE, 200, b"", b"body")
    start = (EVENT, connection.number, 1, 1, 0, RESPONSE_START, 200, b"")
    table.frames(response, start)
    assert [event[0] for event in terminator.written] == [RESPONSE]
    assert table.bus.posted == [(WORKER, (RESET, connection.number, 1))]


def test_unclaimed_connections_are_logged_together(caplog: pytest.LogCaptureFixture) -> None:
    table = Table(connect_timeout=5.0)
    terminators = [table.open()[1] for _ in range(3)]
    table.connections.tick(4.0)
    assert [terminator.failed for terminator in terminators] == [[], [], []]
    table.connections.tick(6.0)
    assert [terminator.failed for terminator in terminators] == [[(503, 1013)]] * 3
    assert caplog.text.count("no worker claimed 3 connections") == 1
    assert len(table.bus.withdrawn) == 3


# Probes.


def test_a_probe_is_answered_with_a_gap_or_an_acknowledgement(table: Table) -> None:
    connection, _ = table.open_accepted()
    table.posted()
    table.frames((PROBE, connection.number, 1, 3))
    assert table.posted() == [(RESEND, connection.number, 1, 1)]
    table.frames((PROBE, connection.number, 1, 1))
    assert table.posted() == [(ACK, connection.number, 1, 1)]


def test_a_probe_makes_its_sender_the_owner_if_the_first_frame_was_lost(table: Table) -> None:
    connection, terminator = table.open()
    table.frames((PROBE, connection.number, 1, 1))
    assert table.posted() == [(RESEND, connection.number, 1, 0)]
    table.frames((PROBE, connection.number, 1, 1), sender=OTHER)
    assert table.posted(OTHER) == [(SUPERSEDED, connection.number, 1)]
    table.frames(accept(connection.number))
    assert [event[0] for event in terminator.written] == [ACCEPT]


@pytest.mark.parametrize("more", [(EVENT, 0, 0, MESSAGE_SENT, "?"), (CLAIMED,), (PROBE, 0)])
def test_events_and_probes_of_an_unknown_connection_are_answered_with_a_reset(
    table: Table, more: tuple[Any, ...]
) -> None:
    table.frames((more[0], 77, 3, *more[1:]))
    assert table.posted() == [(RESET, 77, 3)]


@pytest.mark.parametrize("more", [(ACK, 0), (RESET,), (RESEND, 0), (ABANDONED,)])
def test_other_frames_of_an_unknown_connection_are_not_answered(table: Table, more: tuple[int, ...]) -> None:
    table.frames((more[0], 77, 3, *more[1:]))
    assert table.posted() == []


def test_the_owner_is_probed_if_its_mailbox_was_missing(table: Table) -> None:
    connection, _ = table.open_accepted()
    other, _ = table.open()
    table.frames(claim_frame(other.number), sender=OTHER)
    connection.event((MESSAGE_RECEIVED, "a"))
    table.connections.undelivered(WORKER)
    table.posted()
    table.pass_time(1.1)
    assert table.posted() == [(PROBE, connection.number, 1, 1)]
    assert table.posted(OTHER) == []
    table.pass_time(1.1)
    assert table.posted() == [], "there is no further probe unless this one found no mailbox, either"
    table.connections.undelivered(WORKER)
    table.pass_time(1.1)
    assert table.posted() == [(PROBE, connection.number, 1, 1)]


def test_the_owner_is_probed_after_events_without_acknowledgement(table: Table) -> None:
    connection, _ = table.open_accepted()
    idle, _ = table.open_accepted()
    connection.event((MESSAGE_RECEIVED, "a"))
    table.pass_time(5.1)
    table.posted()
    table.pass_time(1.1)
    assert table.posted() == []
    table.pass_time(5.1)
    assert table.posted() == [(PROBE, connection.number, 1, 1)]
    table.frames((ACK, connection.number, 1, 1))
    connection.event((MESSAGE_RECEIVED, "b"))
    table.posted()
    table.pass_time(5.1)
    assert table.posted() == [], "the owner has acknowledged an event meanwhile"
    assert idle.stream.in_flight == 0


def test_after_an_interruption_every_owner_is_probed(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    connection, _ = table.open_accepted()
    quiet, _ = table.open()
    table.frames(claim_frame(quiet.number), sender=OTHER)
    table.open()
    connection.event((MESSAGE_RECEIVED, "a"))
    table.posted()
    table.connections.interrupted()
    assert table.posted() == [(PROBE, connection.number, 1, 1)]
    assert table.posted(OTHER) == [(PROBE, quiet.number, 1, 0)]
    assert "2 connections are checked" in caplog.text
    table.connections.tick(table.connections.now + 3.1)
    assert table.posted() == [(PROBE, connection.number, 1, 1)], (
        "frames may be lost until all processes know of the interruption"
    )
    table.connections.tick(table.connections.now + 10.0)
    assert table.posted() == []


@pytest.mark.parametrize(("method", "once"), [("GET", False), ("PUT", False), ("POST", True), ("PATCH", True)])
def test_requests_are_offered_once_unless_idempotent(table: Table, method: str, once: bool) -> None:
    table.open(HTTP, ((REQUEST_END, b""),), method)
    assert table.bus.offered[0].once is once


def test_an_unclaimed_request_with_a_lost_offer_gets_a_502(table: Table) -> None:
    (claimed, served), (_, unserved) = (table.open(HTTP, ((REQUEST_END, b""),), "POST") for _ in range(2))
    table.connections.interrupted()
    table.connections.tick(3.1)
    assert table.bus.again == table.bus.offered
    table.frames((PROBE, claimed.number, 1, 1))
    for on_lost in table.bus.on_lost:
        on_lost()
    assert (served.failed, unserved.failed) == ([], [(502, 1012)])


@pytest.mark.parametrize(
    ("method", "in_sight", "status"), [("POST", True, 503), ("POST", False, 502), ("GET", False, 503)]
)
def test_a_possibly_run_request_gets_a_502(method: str, in_sight: bool, status: int) -> None:
    table = Table(connect_timeout=5.0)
    table.bus.in_sight = in_sight
    _, terminator = table.open(HTTP, ((REQUEST_END, b""),), method)
    table.connections.tick(5.1)
    assert [failed[0] for failed in terminator.failed] == [status]


def test_a_close_of_the_app_after_the_client_is_gone_ends_the_connection(table: Table) -> None:
    """No disconnect is sent to an app that may have returned."""
    connection, terminator = table.open_accepted()
    connection.client_gone()
    assert len(table.connections) == 1, "the app must get the disconnect"
    table.frames(close(connection.number, 1))
    assert len(table.connections) == 0
    assert [event[0] for event in terminator.written] == [ACCEPT]
    assert table.posted()[-1] == (ACK, connection.number, 1, 2), "the worker keeps the event until then"


def test_a_further_run_without_a_client_gets_its_events_acknowledged(table: Table) -> None:
    """Events of a run without a client are acknowledged, so that its window does not fill up."""
    connection, terminator = table.open_accepted()
    connection.client_gone()
    table.dead()
    number, part = connection.number, "x" * 65536
    table.frames(claim_frame(number, 2), accept(number, attempt=2, resumable=True), sender=OTHER)
    table.frames((EVENT, number, 2, 1, 0, GROUP_ADD, "news"), sender=OTHER)
    assert (GROUP_DONE, None, "news") in table.events(OTHER)
    table.frames(*[message(number, sequence, part, attempt=2) for sequence in range(2, 6)], sender=OTHER)
    assert (ACK, number, 2, 6) in table.posted(OTHER)
    assert [event[0] for event in terminator.written] == [ACCEPT], "an event is written after the disconnect"
    table.frames((ACK, number, 2, 2), sender=OTHER)
    assert len(table.connections) == 0


def test_after_an_interruption_unclaimed_connections_are_offered_again(table: Table) -> None:
    table.connections.tick(100.0)
    waiting, _ = table.open()
    claimed, _ = table.open()
    abandoned, _ = table.open()
    abandoned.client_gone()
    table.connections.interrupted()
    table.connections.tick(102.9)
    table.frames((PROBE, claimed.number, 1, 0))
    assert table.bus.again == []
    table.connections.tick(103.1)
    assert [offer.state.connection for offer in table.bus.again] == [waiting.number]
    assert [offer.taken for offer in table.bus.offered] == [False, True, False]
    table.connections.tick(110.0)
    assert len(table.bus.again) == 1
    assert len(table.bus.offered) == 3, "the same offer, not another one"


def test_a_long_outage_of_the_layer_ends_claimed_connections(caplog: pytest.LogCaptureFixture) -> None:
    table = Table(resume_timeout=20.0, connect_timeout=1000.0)
    _, terminator = table.open_accepted()
    _, waiting = table.open()
    table.connections.tick(100.0)
    table.bus.available = False
    table.connections.tick(101.0)
    table.connections.tick(110.0)
    table.bus.available = True
    table.connections.tick(115.0)
    table.bus.available = False
    table.connections.tick(116.0)
    table.connections.tick(135.9)
    assert terminator.failed == [], "the layer was back in between"
    table.connections.tick(136.1)
    assert (terminator.failed, waiting.failed) == ([(503, 1013)], [])
    assert table.events()[-1] == (WEBSOCKET_DISCONNECT, 1013, "")
    assert "away for 20 s: 1 connections were ended" in caplog.text
    table.connections.tick(1101.0)
    assert waiting.failed == [(503, 1013)]
    assert len(table.connections) == 1, "its app has not acknowledged the disconnect"
    table.frames((ACK, 1, 1, 1))
    assert len(table.connections) == 0


def test_a_message_for_an_unknown_connection_is_counted(table: Table) -> None:
    for local in ("77", "x", ""):
        table.frames((MESSAGE, local, {"type": "websocket.send", "text": "?"}), sender="")
    assert table.connections.counts["message to nobody"] == 3


def test_an_error_in_flush_ends_one_terminator(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    flushed: list[str] = []
    broken, good = (RecordingTerminator() for _ in range(2))
    broken.flush = lambda: 1 / 0  # type: ignore[assignment,method-assign,return-value]
    good.flush = lambda: flushed.append("good")  # type: ignore[method-assign]
    for terminator in (broken, good):
        table.connections.flush_later(terminator)  # type: ignore[arg-type]
    table.frames(claim_frame(1))
    assert flushed == ["good"]
    assert broken.aborted
    assert "ZeroDivisionError" in caplog.text
