"""Runs that end before their connection: a further connect request, or the end of the connection."""

from typing import Any

import pytest

from asgibus.layers.codec import pack
from asgibus.layers.frames import ABANDONED, ACK, EVENT, EVENT_OFFSET, GROUP_MESSAGE, MESSAGE, RESET, SUPERSEDED
from asgibus.protocol.connect_request import HTTP, WEBSOCKET, is_taken_over, mark_taken_over
from asgibus.protocol.events import (
    CLOSE,
    GROUP_ADD,
    GROUP_DONE,
    HANDOVER,
    MESSAGE_RECEIVED,
    MESSAGE_SENT,
    REQUEST_BODY,
    REQUEST_END,
    RESPONSE_BODY,
    RESPONSE_END,
    RESPONSE_START,
    SAVE_STATE,
    WEBSOCKET_DISCONNECT,
    Event,
)
from asgibus.protocol.retry import CRASH_LIMIT
from asgibus.protocol.stream import PART
from support.recording import OTHER, Table, accept, claim_frame, close, message


@pytest.fixture
def table() -> Table:
    return Table()


def event(sequence: int, *event: Any, attempt: int = 1, acked: int = 0, number: int = 1) -> tuple[Any, ...]:
    return (EVENT, number, attempt, sequence, acked, *event)


def send_texts(connection: Any, *texts: str) -> None:
    for text in texts:
        connection.event((MESSAGE_RECEIVED, text))


def received(*texts: str) -> tuple[Event, ...]:
    return tuple((MESSAGE_RECEIVED, text) for text in texts)


# A WebSocket that goes on.


@pytest.mark.parametrize("ending", ["handed over", "killed", "forgotten"])
def test_another_run_resumes_a_websocket(table: Table, ending: str) -> None:
    connection, terminator = table.open_accepted()
    send_texts(connection, "a", "b", "c")
    table.frames(event(1, SAVE_STATE, pack({"a": 1}), acked=1), event(2, SAVE_STATE, pack({"a": 2}), acked=1))
    if ending == "handed over":
        table.frames(event(3, HANDOVER, acked=2))
    elif ending == "killed":
        table.frames((ACK, 1, 1, 2))
        table.dead()
    else:
        table.frames((ACK, 1, 1, 2), (RESET, 1, 1))
    opening = table.openings[-1]
    assert len(table.openings) == 2
    assert (opening.connection, opening.attempt, opening.resumed, opening.state) == (1, 2, True, pack({"a": 2}))
    assert opening.events == received("c"), "the events that no run has handled"
    assert opening.handled == 2
    assert is_taken_over(opening) is (ending == "killed"), "workers pace what follows a death"
    first = opening._replace(attempt=1, resumed=False, handled=0, events=(), state=b"")
    assert first._replace(extensions=mark_taken_over(first.extensions, False)).extensions.keys() <= {"asgibus"}
    assert first._replace(extensions=table.openings[0].extensions) == table.openings[0]
    assert table.connections.counts[ending] == 1
    # The second run accepts, and sends a message.
    table.frames(accept(1, attempt=2, resumable=True), message(1, 1, "again", attempt=2, acked=1), sender=OTHER)
    assert [written[0] for written in terminator.written].count(MESSAGE_SENT) == 1
    assert len(terminator.written) == 2, "the client was accepted once"
    assert terminator.messages == ["again"]
    assert connection.unacknowledged == []
    send_texts(connection, "d")
    assert table.posted(OTHER)[-1] == (EVENT, 1, 2, 1, 2, MESSAGE_RECEIVED, "d")
    assert terminator.failed == []


def test_the_last_event_of_a_run_is_acknowledged_at_once(table: Table) -> None:
    table.open_accepted()
    table.posted()
    table.frames(event(1, HANDOVER))
    assert table.posted() == [(ACK, 1, 1, 2)]
    table.frames(accept(1, attempt=2), close(1, 1, attempt=2), sender=OTHER)
    assert table.posted(OTHER) == [(ACK, 1, 2, 2)]


def test_events_between_two_runs_are_sent_to_the_next_owner(table: Table) -> None:
    connection, terminator = table.open_accepted()
    send_texts(connection, "a")
    table.dead()
    send_texts(connection, "b", "c")
    assert table.openings[-1].events == received("a")
    assert table.posted(OTHER) == []
    table.frames(claim_frame(1, 2), sender=OTHER)
    assert table.posted(OTHER) == [(EVENT, 1, 2, 1, 0, *received("b")[0]), (EVENT, 1, 2, 2, 0, *received("c")[0])]
    assert terminator.reading


def test_a_connect_request_carries_two_parts_and_the_rest_is_sent_to_the_owner(table: Table) -> None:
    connection, terminator = table.open_accepted()
    texts = [f"{index}".ljust(PART // 2) for index in range(10)]
    send_texts(connection, *texts)
    assert not terminator.reading
    table.dead()
    first = len(table.openings[-1].events)
    assert first == 3
    assert table.openings[-1].events == received(*texts[:first])
    assert not terminator.reading, "the window is still full"
    table.frames(claim_frame(1, 2), sender=OTHER)
    posted = table.posted(OTHER)
    assert [(frame[2], frame[3], frame[-1]) for frame in posted] == [
        (2, index, text) for index, text in enumerate(texts) if index >= first
    ]
    table.frames((ACK, 1, 2, first), sender=OTHER)
    assert terminator.reading


def test_a_message_too_large_for_a_connect_request_is_sent_to_the_owner(table: Table) -> None:
    connection, _ = table.open_accepted()
    send_texts(connection, "x" * 3 * PART, "small")
    table.dead()
    assert table.openings[-1].events == ()
    table.frames(claim_frame(1, 2), sender=OTHER)
    assert [(frame[3], len(frame[-1])) for frame in table.posted(OTHER)] == [(0, 3 * PART), (1, 5)]


def test_reading_resumes_when_the_window_of_the_next_run_has_room() -> None:
    table = Table(window=1000)
    connection, terminator = table.open_accepted()
    connection.event((GROUP_DONE, None, "g" * 900))
    send_texts(connection, "x" * 100)
    assert not terminator.reading
    table.dead()
    assert table.openings[-1].events == received("x" * 100), "a group answer belongs to its run"
    assert terminator.reading


def test_a_superseded_run_changes_neither_the_client_nor_the_state(table: Table) -> None:
    connection, terminator = table.open_accepted()
    send_texts(connection, "a")
    table.dead()
    table.posted()
    table.frames(
        message(1, 1, "late", acked=1), event(2, SAVE_STATE, pack({"a": 3}), acked=1), (RESET, 1, 1), (ACK, 1, 1, 1)
    )
    assert table.posted() == [(SUPERSEDED, 1, 1)] * 2
    assert terminator.messages == []
    assert connection.saved_state == b""
    assert connection.unacknowledged == [*received("a")]
    assert (connection.stream.attempt, len(table.openings)) == (2, 2)
    table.frames(claim_frame(1, 2), sender=OTHER)
    table.frames(claim_frame(1, 2))
    assert table.posted() == [(SUPERSEDED, 1, 2)]
    assert connection.peer == OTHER


def test_each_further_run_has_its_own_number(table: Table) -> None:
    connection, _ = table.open_accepted()
    for attempt in (2, 3, 4):
        table.frames(event(1, HANDOVER, attempt=attempt - 1))
        table.frames(accept(1, attempt=attempt, resumable=True))
        assert connection.stream.attempt == attempt
    assert [opening.attempt for opening in table.openings] == [1, 2, 3, 4]


# The first event of the next run.


def test_an_accept_with_another_subprotocol_closes_the_connection(
    table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    _, terminator = table.open_accepted(subprotocol="chat.1")
    table.dead()
    table.frames(accept(1, attempt=2, resumable=True, subprotocol="chat.2"), sender=OTHER)
    assert terminator.failed == [(500, 1011)]
    assert table.events(OTHER) == [(WEBSOCKET_DISCONNECT, 1011, "")], "its app gets the disconnect, too"
    assert "run 2 of the app accepted it with the subprotocol 'chat.2', where it was 'chat.1'" in caplog.text
    table.frames((ACK, 1, 2, 1), sender=OTHER)
    assert len(table.connections) == 0


def test_a_second_accept_with_the_same_subprotocol_is_not_written(table: Table) -> None:
    _, terminator = table.open_accepted(subprotocol="chat")
    table.dead()
    table.frames(accept(1, attempt=2, resumable=True, subprotocol="chat"), sender=OTHER)
    assert len(terminator.written) == 1
    assert terminator.failed == []


def test_a_denial_of_an_open_client_closes_it(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    _, terminator = table.open_accepted()
    table.dead()
    table.frames(event(0, RESPONSE_START, 403, b"", attempt=2), sender=OTHER)
    assert terminator.failed == [(500, 1011)]
    assert len(terminator.written) == 1
    assert "answered with an HTTP response" in caplog.text


def test_a_close_instead_of_a_second_accept_closes_the_client(table: Table) -> None:
    _, terminator = table.open_accepted()
    table.dead()
    table.frames(close(1, 0, 4000, attempt=2), sender=OTHER)
    assert terminator.written[1:] == [(CLOSE, 4000, "")]
    assert len(table.connections) == 0


def test_a_websocket_without_resume_has_no_further_run(table: Table) -> None:
    _, terminator = table.open_accepted(resumable=True)
    table.dead()
    table.frames(accept(1, attempt=2, resumable=False), sender=OTHER)
    table.dead(OTHER)
    assert terminator.failed == [(502, 1012)]


# Between two runs.


def test_plain_messages_and_broadcasts_reach_the_client_between_two_runs(table: Table) -> None:
    connection, terminator = table.open_accepted()
    table.frames(event(1, GROUP_ADD, "room"))
    table.dead()
    plain = {"type": "websocket.send", "text": "plain"}
    table.frames((MESSAGE, "1", plain), (GROUP_MESSAGE, "room", plain), sender="")
    table.frames(claim_frame(1, 2), sender=OTHER)
    table.frames((MESSAGE, "1", plain), sender="")
    assert terminator.messages == ["plain"] * 3
    assert table.bus.groups == ["room"], "the connection stays a member"
    table.frames(accept(1, attempt=2, resumable=True), sender=OTHER)
    assert len(terminator.written) == 4
    connection.client_gone()
    assert table.bus.groups == []


def test_a_plain_close_between_two_runs_ends_the_connection(table: Table) -> None:
    connection, terminator = table.open_accepted()
    table.dead()
    table.frames((MESSAGE, "1", {"type": "websocket.close", "code": 4001}), sender="")
    assert terminator.written[1:] == [(CLOSE, 4001, "")]
    assert table.bus.withdrawn == [], "no further run for the disconnect of an accepted client"
    table.frames(claim_frame(1, 2), sender=OTHER)
    assert table.events(OTHER) == [(WEBSOCKET_DISCONNECT, 4001, "")]
    table.frames((ACK, 1, 2, 1), sender=OTHER)
    assert connection.number not in table.connections._open


def test_no_plain_message_comes_before_the_first_accept(table: Table) -> None:
    _, terminator = table.open()
    table.dead()
    table.frames((MESSAGE, "1", {"type": "websocket.send", "text": "plain"}), sender="")
    assert terminator.written == []
    assert table.connections.counts["message out of place"] == 1


def test_a_group_answer_between_two_runs_is_dropped(table: Table) -> None:
    connection, _ = table.open_accepted()
    table.dead()
    connection.group_done("room", None)
    table.frames(claim_frame(1, 2), sender=OTHER)
    assert table.events(OTHER) == []


def test_a_disconnect_between_two_runs(table: Table) -> None:
    connection, _ = table.open_accepted()
    table.dead()
    connection.client_gone(1001)
    assert table.bus.withdrawn == [], "no further run for the disconnect of an accepted client"
    table.frames(claim_frame(1, 2), sender=OTHER)
    assert table.events(OTHER) == [(WEBSOCKET_DISCONNECT, 1001, "")]
    table.frames((ACK, 1, 2, 1), sender=OTHER)
    assert len(table.connections) == 0


def test_a_further_run_gets_the_disconnect_if_the_worker_dies_meanwhile(table: Table) -> None:
    connection, _ = table.open_accepted()
    send_texts(connection, "a")
    connection.client_gone(1001)
    table.dead()
    assert [each[0] for each in table.openings[-1].events] == [MESSAGE_RECEIVED, WEBSOCKET_DISCONNECT]
    table.frames((ABANDONED, 1, 2), sender=OTHER)
    table.pass_time()
    assert len(table.openings) == 3, "the claimant died before its first frame"
    table.frames(claim_frame(1, 3), sender=OTHER)
    table.frames((RESET, 1, 3), sender=OTHER)
    assert len(table.connections) == 0, "its app has got the disconnect, and has ended"


def test_the_next_run_gets_the_disconnect_of_a_client_during_a_handover(table: Table) -> None:
    connection, _ = table.open_accepted()
    connection.client_gone(1001)
    table.frames(event(1, HANDOVER))
    assert [each[0] for each in table.openings[-1].events] == [WEBSOCKET_DISCONNECT]


def test_no_run_gets_the_disconnect_if_the_app_cannot_resume(table: Table) -> None:
    connection, _ = table.open_accepted(resumable=False)
    connection.client_gone(1001)
    assert len(table.connections) == 0
    assert table.events() == [(WEBSOCKET_DISCONNECT, 1001, "")]


def test_a_lost_client_is_given_up_without_a_log_line(table: Table) -> None:
    connection, terminator = table.open_accepted()
    connection.client_gone(1001)
    table.dead()
    table.connections.tick(10_000.0)
    assert len(table.connections) == 0
    assert terminator.failed == []
    assert table.bus.withdrawn == table.bus.offered[1:]


def test_a_disconnect_is_given_up_at_the_crash_limit(table: Table) -> None:
    connection, _ = table.open_accepted()
    connection.client_gone(1001)
    for attempt in range(1, CRASH_LIMIT + 1):
        assert len(table.connections) == 1
        table.frames(claim_frame(1, attempt))
        table.dead()
        table.pass_time()
    assert len(table.connections) == 0
    assert len(table.openings) == CRASH_LIMIT


def test_an_open_websocket_waits_longer_for_a_worker_than_a_new_one() -> None:
    table = Table(connect_timeout=5.0, resume_timeout=50.0)
    _, new = table.open()
    _, terminator = table.open_accepted()
    table.connections.tick(100.0)
    assert new.failed == [(503, 1013)]
    table.dead()
    table.connections.tick(149.9)
    assert terminator.failed == []
    table.connections.tick(150.1)
    assert terminator.failed == [(503, 1013)]
    assert table.connections.counts["no worker"] == 2


# Connections that were not answered yet, and those that cannot be resumed.


def test_an_unaccepted_websocket_is_offered_as_new(table: Table) -> None:
    _, terminator = table.open()
    table.frames(claim_frame(1))
    table.frames(event(0, HANDOVER))
    assert table.openings[1] == table.openings[0]._replace(attempt=2)
    assert not table.openings[1].resumed
    table.frames(accept(1, attempt=2), sender=OTHER)
    assert len(terminator.written) == 1
    assert terminator.failed == []


def test_a_begun_denial_is_not_repeated(table: Table) -> None:
    _, terminator = table.open()
    table.frames(event(0, RESPONSE_START, 403, b""))
    table.dead()
    assert terminator.failed == [(502, 1012)]
    assert len(table.openings) == 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"])
def test_an_idempotent_request_without_an_answer_is_run_again(table: Table, method: str) -> None:
    connection, terminator = table.open(HTTP, ((REQUEST_BODY, b"a"),), method=method)
    table.frames(claim_frame(1))
    connection.event((REQUEST_BODY, b"b"))
    table.frames((ACK, 1, 1, 1))
    table.dead()
    assert table.openings[1].attempt == 2
    assert table.openings[1].events == ((REQUEST_BODY, b"a"), (REQUEST_BODY, b"b")), "the whole body"
    connection.event((REQUEST_END, b"c"))
    table.frames(claim_frame(1, 2), sender=OTHER)
    assert table.posted(OTHER) == [(EVENT, 1, 2, 2, 0, REQUEST_END, b"c")]
    table.frames(event(0, RESPONSE_START, 200, b"", attempt=2), event(1, RESPONSE_END, b"", attempt=2), sender=OTHER)
    assert len(terminator.written) == 2
    assert terminator.failed == []


def test_a_request_with_a_partly_consumed_body_is_not_run_again(table: Table) -> None:
    connection, terminator = table.open(HTTP, ((REQUEST_BODY, b"a"),), method="PUT")
    table.frames(claim_frame(1))
    connection.event((REQUEST_BODY, b"b"))
    table.frames((ACK, 1, 1, 2))
    table.dead()
    assert terminator.failed == [(502, 1012)]


@pytest.mark.parametrize("method", ["POST", "PATCH", "CONNECT", "get", ""])
def test_any_other_claimed_request_fails(table: Table, method: str) -> None:
    _, terminator = table.open(HTTP, ((REQUEST_END, b""),), method=method)
    table.frames(claim_frame(1))
    table.dead()
    assert terminator.failed == [(502, 1012)]
    assert len(table.openings) == 1
    assert len(table.connections) == 0


@pytest.mark.parametrize("events", [[(RESPONSE_START, 200, b"")], [(RESPONSE_START, 200, b""), (RESPONSE_BODY, b"a")]])
def test_a_request_with_a_begun_response_is_not_run_again(table: Table, events: list[Event]) -> None:
    _, terminator = table.open(HTTP, ((REQUEST_END, b""),))
    table.frames(*(event(sequence, *each) for sequence, each in enumerate(events)))
    table.dead()
    assert terminator.failed == [(502, 1012)], "the terminator then breaks off the response"
    assert len(table.openings) == 1


# Orphans and poison messages.


@pytest.mark.parametrize("kind", [HTTP, WEBSOCKET])
def test_an_orphan_is_offered_again(table: Table, kind: str) -> None:
    _, terminator = table.open(kind, ((REQUEST_END, b""),) if kind == HTTP else ())
    table.frames((ABANDONED, 1, 1), sender=OTHER)
    assert [opening.attempt for opening in table.openings] == [1, 2]
    table.frames((ABANDONED, 1, 1), sender=OTHER)
    assert len(table.openings) == 2, "that was the first attempt"
    table.frames(claim_frame(1))
    assert table.posted() == [(SUPERSEDED, 1, 1)], "a claimant that is alive after all is too late"
    table.frames(claim_frame(1, 2), (ABANDONED, 1, 2), sender=OTHER)
    assert len(table.openings) == 2, "a claimed connection is offered again"
    assert terminator.failed == []


def test_an_orphan_without_a_client_is_not_offered_again(table: Table) -> None:
    connection, _ = table.open()
    connection.client_gone()
    table.frames((ABANDONED, 1, 1), sender=OTHER)
    assert len(table.openings) == 1
    assert len(table.connections) == 0


def crash(table: Table, attempt: int, *frames: Any) -> None:
    """Let the next run of connection 1 accept and send frames, and then declare its worker dead."""
    table.frames(accept(1, attempt=attempt, resumable=True), *frames)
    table.dead()
    table.pass_time()


def test_an_event_at_the_crash_limit_ends_its_connection(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    connection, terminator = table.open_accepted()
    send_texts(connection, "harmless", "poison", "more")
    table.frames((ACK, 1, 1, 1))
    table.dead()
    for attempt in range(2, CRASH_LIMIT + 1):
        assert terminator.failed == []
        assert table.openings[-1].events == received("poison", "more")
        crash(table, attempt)
    assert terminator.failed == [(502, 1011)]
    assert table.connections.counts["poison"] == 1
    assert "connection 1 is ended: 5 workers in a row died while they handled it" in caplog.text
    assert len(table.connections) == 0


def test_progress_resets_the_count_of_crashes(table: Table) -> None:
    connection, terminator = table.open_accepted()
    send_texts(connection, *"abcdefgh")
    table.dead()
    for attempt in range(2, 7):
        crash(table, attempt, (ACK, 1, attempt, 1))
    assert terminator.failed == []
    assert table.openings[-1].events == received("f", "g", "h")
    assert table.openings[-1].handled == 5


def test_a_group_answer_is_no_progress(table: Table) -> None:
    connection, terminator = table.open_accepted()
    table.frames(event(1, GROUP_ADD, "room"), (ACK, 1, 1, 1))
    send_texts(connection, "poison")
    for attempt in range(2, CRASH_LIMIT + 2):
        assert terminator.failed == []
        table.dead()
        table.pass_time()
        table.frames(accept(1, attempt=attempt, resumable=True), event(1, GROUP_ADD, "room", attempt=attempt))
    assert terminator.failed == [(502, 1011)]
    assert {opening.handled for opening in table.openings} == {0}


def test_offers_are_delayed_from_the_second_crash_on(table: Table) -> None:
    connection, _ = table.open_accepted()
    send_texts(connection, "a")
    table.dead()
    assert len(table.openings) == 2, "the first crash may be a coincidence"
    table.frames(accept(1, attempt=2, resumable=True))
    table.dead()
    assert len(table.openings) == 2
    table.connections.tick(0.4)
    assert len(table.openings) == 2
    send_texts(connection, "b")
    table.connections.tick(1.1)
    assert table.openings[-1].attempt == 3
    table.posted()
    table.frames(claim_frame(1, 3))
    assert [each[-1] for each in (*table.openings[-1].events, *table.events())] == ["a", "b"]


def test_the_next_run_gets_the_disconnect_of_a_client_during_the_delay(table: Table) -> None:
    connection, _ = table.open_accepted()
    send_texts(connection, "a")
    table.dead()
    crash(table, 2)
    table.frames(accept(1, attempt=3, resumable=True))
    table.dead()
    connection.client_gone(1001)
    table.pass_time()
    table.posted()
    table.frames(claim_frame(1, 4))
    assert [each[0] for each in table.events()] == [WEBSOCKET_DISCONNECT]


def test_a_hand_over_is_no_crash(table: Table) -> None:
    connection, terminator = table.open_accepted()
    send_texts(connection, "a")
    for attempt in range(2, 3 * CRASH_LIMIT):
        table.frames(event(1, HANDOVER, attempt=attempt - 1))
        table.frames(accept(1, attempt=attempt, resumable=True))
    table.dead()
    assert terminator.failed == []


def test_crashes_before_the_accept_count_without_events(table: Table) -> None:
    _, terminator = table.open_accepted()
    table.dead()
    for attempt in range(2, CRASH_LIMIT + 2):
        assert terminator.failed == []
        table.frames(claim_frame(1, attempt))
        table.dead()
        table.pass_time()
    assert terminator.failed == [(502, 1011)]


def test_crashes_of_an_idle_connection_do_not_count(table: Table) -> None:
    _, terminator = table.open_accepted()
    for attempt in range(2, 3 * CRASH_LIMIT):
        table.dead()
        table.frames(accept(1, attempt=attempt, resumable=True))
    assert terminator.failed == []


@pytest.mark.parametrize("kind", [HTTP, WEBSOCKET])
def test_a_connect_request_is_given_up_at_the_crash_limit(table: Table, kind: str) -> None:
    _, terminator = table.open(kind, ((REQUEST_END, b""),) if kind == HTTP else ())
    for attempt in range(1, CRASH_LIMIT + 1):
        assert terminator.failed == []
        table.frames((ABANDONED, 1, attempt), sender=OTHER)
        table.pass_time()
    assert terminator.failed == [(502, 1011)]
    assert len(table.openings) == CRASH_LIMIT


def test_a_partly_handled_request_is_no_progress(table: Table) -> None:
    _, terminator = table.open(HTTP, ((REQUEST_END, b"body"),), method="PUT")
    for attempt in range(1, CRASH_LIMIT + 1):
        assert terminator.failed == []
        table.frames(claim_frame(1, attempt), (ACK, 1, attempt, 1))
        table.dead()
        table.pass_time()
    assert terminator.failed == [(502, 1011)]


def test_the_first_events_are_numbered_as_in_the_connect_request(table: Table) -> None:
    connection, _ = table.open_accepted()
    send_texts(connection, "a", "b")
    table.dead()
    assert [frame[EVENT_OFFSET:] for frame, _ in connection.stream.unacked_frames()] == [*table.openings[-1].events]
    assert [frame[2:4] for frame, _ in connection.stream.unacked_frames()] == [(2, 0), (2, 1)]
