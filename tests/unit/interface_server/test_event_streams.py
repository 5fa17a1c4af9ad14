"""Event streams that outlive their runs: one response for the client, whichever workers it comes from."""

from typing import Any

import pytest

from asgibus.interface_server.affinity import parse_rules
from asgibus.interface_server.connections.first_answer import FirstAnswer
from asgibus.interface_server.connections.learner import CookieSetter, Learner
from asgibus.layers.frames import ACK, EVENT, GROUP_MESSAGE, MESSAGE, RESET
from asgibus.protocol.connect_request import EVENT_STREAMS, STREAMS, mark_taken_over
from asgibus.protocol.event_stream import LONGEST_EVENT
from asgibus.protocol.events import (
    ABORT,
    EVENT_STREAM,
    GROUP_ADD,
    HANDOVER,
    HTTP_DISCONNECT,
    REQUEST_END,
    RESPONSE,
    RESPONSE_BODY,
    RESPONSE_END,
    RESPONSE_START,
    RESPONSE_START_TRAILERS,
    Event,
)
from asgibus.protocol.retry import CRASH_LIMIT
from support.event_source import interpret
from support.recording import WORKER
from support.socket_harness import Socket, get

HEAD = (EVENT_STREAM, 200, b"content-type: text/event-stream\r\n")


def entry(number: int) -> bytes:
    return b"id: %d\ndata: %d\n\n" % (number, number)


class Client(Socket):
    """A client of an event stream, and the workers that serve it one after another."""

    def __init__(self, *, more: str = "", method: str = "GET", version: str = "1.1", **settings: Any) -> None:
        super().__init__(**settings)
        self.send(
            get("/events", more).replace(b"GET", method.encode()).replace(b"HTTP/1.1", f"HTTP/{version}".encode())
        )
        self.sent = 0
        self.worker = WORKER

    @property
    def attempt(self) -> int:
        return self.requests[-1].attempt

    def run(self, *events: Event) -> None:
        """Have the current run send events."""
        self.frames(*[(EVENT, 1, self.attempt, self.sent + index, 0, *event) for index, event in enumerate(events)])
        self.sent += len(events)

    def frames(self, *frames: Any) -> None:
        self.table.frames(*frames, sender=self.worker)

    def stream(self, *bodies: bytes) -> None:
        """Have the current run send parts of the body."""
        self.run(*[(RESPONSE_BODY, body) for body in bodies])

    def end_run(self, how: str) -> None:
        """End the current run; a further one may begin."""
        if how == "handed over":
            self.run((HANDOVER,))
        elif how == "killed":
            self.table.dead(self.worker)
        else:
            self.frames((RESET, 1, self.attempt))
        self.sent = 0
        self.worker = f"worker.{self.attempt}!"

    @property
    def response(self) -> tuple[bytes, bytes, bool]:
        """Return the head and the body of what was written, and whether the body is complete."""
        head, _, rest = self.transport.written.partition(b"\r\n\r\n")
        body = b""
        while rest:
            length, _, rest = rest.partition(b"\r\n")
            size = int(length, 16)
            if not size:
                assert rest == b"\r\n"
                return head, body, True
            body += rest[:size]
            assert rest[size : size + 2] == b"\r\n"
            rest = rest[size + 2 :]
        return head, body, False

    @property
    def data(self) -> list[str]:
        return [event.data for event in interpret(self.response[1]).events]

    @property
    def ended_properly(self) -> bool:
        """Return whether the response was ended, and the client told to wait a while."""
        _, body, complete = self.response
        return complete and interpret(body).retry is not None

    def count(self, kind: str) -> int:
        return self.connections.counts[kind]


def header(client: Client) -> list[bytes]:
    return [value for name, value in client.requests[-1].headers if name == b"last-event-id"]


@pytest.mark.parametrize("how", ["handed over", "killed", "forgotten"])
def test_a_further_run_continues_with_the_same_response(how: str) -> None:
    client = Client(more="Last-Event-ID: 0\r\nAccept: text/event-stream\r\n")
    client.run(HEAD)
    client.stream(entry(1), entry(2), b"id: 3\nda")
    client.end_run(how)
    first, again = client.requests
    assert (again.attempt, again.resumed, again.events) == (2, True, ((REQUEST_END, b""),))
    assert header(client) == [b"2"]
    extensions = mark_taken_over(again.extensions, False)
    assert again._replace(attempt=1, resumed=False, headers=first.headers, extensions=extensions) == first
    assert client.count(how) == 1
    client.run(HEAD)
    client.stream(entry(3), entry(4))
    client.run((RESPONSE_END, b""))
    head, body, complete = client.response
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body == b"".join(map(entry, range(1, 5)))
    assert complete
    assert client.count("event stream ended") == 0
    # The socket serves the next request.
    client.send(get("/next"))
    assert client.requests[-1].raw_path == b"/next"
    assert header(client) == []


def test_only_whole_events_are_passed_on() -> None:
    client = Client()
    client.run(HEAD)
    client.stream(b"id: 1\r", b"\ndata: 1\r\n\r")
    assert client.response[1] == b"id: 1\r\ndata: 1\r\n\r"
    client.stream(b"\nid: 2\r\nda", b"ta: 2\r\n")
    assert client.response[1] == b"id: 1\r\ndata: 1\r\n\r\n"
    client.run((RESPONSE_END, b"\r\ndata: 3"))
    assert client.response[1:] == (b"id: 1\r\ndata: 1\r\n\r\nid: 2\r\ndata: 2\r\n\r\ndata: 3", True), (
        "as the app ended it"
    )


def test_a_run_that_is_taken_over_before_its_first_event() -> None:
    client = Client()
    client.run(HEAD)
    client.stream(b": hello\n\n", b"retry: 100\n\n")
    client.end_run("handed over")
    assert header(client) == []
    client.run(HEAD)
    client.stream(entry(1))
    assert client.data == ["1"]


def test_a_worker_of_the_last_release_continues_and_no_other_after_it() -> None:
    client = Client()
    client.run(HEAD)
    client.stream(entry(1))
    client.end_run("killed")
    client.run((RESPONSE_START, 200, b"content-type: text/event-stream; charset=utf-8\r\n"))
    client.stream(entry(2))
    assert client.data == ["1", "2"]
    client.end_run("killed")
    assert len(client.requests) == 2
    assert client.ended_properly
    assert client.count("event stream ended") == 1


# Proper ends.


@pytest.mark.parametrize("how", ["handed over", "killed", "forgotten"])
def test_a_stream_without_ids_is_ended(how: str, caplog: pytest.LogCaptureFixture) -> None:
    client = Client()
    client.run(HEAD)
    client.stream(b"data: 1\n\ndata: 2")
    client.end_run(how)
    assert client.data == ["1"]
    assert client.ended_properly
    assert len(client.requests) == 1
    assert not client.transport.closed
    assert (client.count("event stream ended"), client.count("worker lost")) == (1, int(how != "handed over"))
    assert "an event stream was ended, so that its client connects again: its events have no id" in caplog.text


def test_an_event_that_is_too_long_to_be_held_cannot_be_taken_back() -> None:
    client = Client()
    client.run(HEAD)
    client.stream(entry(1), b"id: 2\ndata: " + bytes(LONGEST_EVENT))
    client.end_run("killed")
    assert client.data == ["1"]
    assert client.ended_properly


@pytest.mark.parametrize(
    "answer",
    [
        [(RESPONSE_START, 500, b"content-type: text/event-stream\r\n")],
        [(EVENT_STREAM, 200, b"content-type: text/plain\r\n")],
        [(RESPONSE_START, 200, b"content-type: text/event-stream\r\ncontent-encoding: gzip\r\n")],
        [(RESPONSE_START, 200, b"content-type: text/event-stream\r\ncontent-length: 5\r\n"), (RESPONSE_END, b"12345")],
        [(RESPONSE_START_TRAILERS, 200, b"content-type: text/event-stream\r\n")],
        [(RESPONSE, 204, b"", b"")],
        [(RESPONSE, 200, b"", b"all")],
        [(ABORT,)],
    ],
)
def test_a_further_run_that_answers_in_another_way(answer: list[Event], caplog: pytest.LogCaptureFixture) -> None:
    client = Client()
    client.run(HEAD)
    client.stream(entry(1))
    client.end_run("killed")
    worker = client.worker
    client.run(*answer)
    client.stream(b"no event")
    assert client.data == ["1"]
    assert client.ended_properly
    assert client.count("event stream ended") == 1
    assert "the app answered with another" in caplog.text or "the app failed" in caplog.text
    disconnected = (HTTP_DISCONNECT, True) in client.table.events(worker)
    assert disconnected == (answer[0][0] not in (RESPONSE, ABORT))
    assert len(client.connections) == 0
    client.send(get("/next"))
    assert client.requests[-1].raw_path == b"/next"


def test_a_further_run_may_answer_with_the_whole_rest() -> None:
    client = Client()
    client.run(HEAD)
    client.stream(entry(1))
    client.end_run("killed")
    client.run((RESPONSE, 200, b"content-type: text/event-stream\r\n", entry(2)))
    assert client.response[1:] == (entry(1) + entry(2), True)


def test_no_worker_comes() -> None:
    client = Client(resume_timeout=30.0)
    client.run(HEAD)
    client.stream(entry(1))
    client.end_run("killed")
    client.table.pass_time(29)
    assert not client.response[2]
    client.table.pass_time(2)
    assert client.data == ["1"]
    assert client.ended_properly
    assert client.count("no worker") == 1


def test_the_interface_server_stops() -> None:
    client = Client()
    client.run(HEAD)
    client.stream(entry(1), b"id: 2\n")
    client.table.posted(WORKER)
    client.protocol.shut_down()
    assert client.data == ["1"]
    assert client.ended_properly
    assert client.transport.closed
    assert (HTTP_DISCONNECT, True) in client.table.events(WORKER)
    assert len(client.connections) == 0


def test_the_interface_server_stops_between_two_runs() -> None:
    client = Client()
    client.run(HEAD)
    client.stream(entry(1))
    client.end_run("killed")
    client.protocol.shut_down()
    assert client.ended_properly
    client.table.pass_time()
    assert len(client.connections) == 0


def test_workers_that_die_again_and_again() -> None:
    client = Client()
    client.run(HEAD)
    for number in range(1, CRASH_LIMIT + 3):  # with progress between
        client.stream(entry(number))
        client.end_run("killed")
        client.table.pass_time()
        client.run(HEAD)
    client.stream(b": ping\n\n")
    for _ in range(CRASH_LIMIT - 2):
        client.end_run("killed")
        client.table.pass_time()
        client.run(HEAD)
        assert not client.response[2]
    client.end_run("killed")
    assert client.ended_properly
    assert client.count("poison") == 1


def test_an_app_that_fails_cuts_its_response_off() -> None:
    client = Client()
    client.run(HEAD)
    client.stream(entry(1), b"id: 2\n")
    client.run((ABORT,))
    assert client.data == ["1"]
    assert not client.response[2]
    assert client.transport.closed


# The client.


def test_a_client_that_leaves_between_two_runs() -> None:
    client = Client()
    client.run(HEAD)
    client.stream(entry(1))
    client.end_run("killed")
    client.protocol.connection_lost(None)
    assert client.table.bus.withdrawn
    client.table.pass_time()
    assert len(client.connections) == 0


def test_a_client_that_leaves_gets_no_further_run() -> None:
    client = Client()
    client.run(HEAD)
    client.stream(entry(1))
    client.protocol.connection_lost(None)
    assert (HTTP_DISCONNECT, True) in client.table.events(WORKER)
    client.end_run("killed")
    assert len(client.requests) == 1
    assert len(client.connections) == 0


def test_a_slow_client_holds_up_the_run() -> None:
    client = Client(window=2000)
    client.run(HEAD)
    client.protocol.pause_writing()
    client.table.posted(WORKER)
    client.stream(*[entry(number) for number in range(20)])
    assert client.table.posted(WORKER) == []
    client.protocol.resume_writing()
    assert client.table.posted(WORKER) == [(ACK, 1, 1, 21)]


# Messages of other processes.


def test_broadcasts_reach_the_client_between_events_and_between_runs() -> None:
    client = Client()
    client.run(HEAD, (GROUP_ADD, "news"))
    client.stream(entry(1), b"id: 2\nda")

    def publish(number: int) -> None:
        message = {"type": "http.response.body", "body": entry(number), "more_body": True}
        client.table.frames((GROUP_MESSAGE, "news", message), sender="")

    publish(50)
    client.stream(b"ta: 2\n\n")
    assert client.data == ["1", "50", "2"]
    client.end_run("killed")
    publish(51)
    assert client.data == ["1", "50", "2", "51"]
    client.run(HEAD)
    publish(52)
    client.end_run("handed over")
    assert header(client) == [b"52"]
    assert client.count("broadcast out of place") == 0


def test_messages_to_the_reply_channel() -> None:
    client = Client()
    client.run(HEAD)
    client.stream(entry(1), b"id: 2\nda")

    def send(body: bytes, more: bool = True) -> None:
        message = {"type": "http.response.body", "body": body, "more_body": more}
        client.table.frames((MESSAGE, "1", message), sender="")

    send(entry(7))
    client.end_run("killed")
    assert header(client) == [b"7"]
    send(entry(8))
    assert client.data == ["1", "7", "8"]
    send(b"", more=False)
    assert client.response[2]
    client.table.pass_time()
    assert len(client.connections) == 0


# Affinity.


def test_an_answer_that_sets_a_cookie() -> None:
    client = Client()
    FirstAnswer(next(iter(client.connections)), CookieSetter(b"set-cookie: a=b\r\n"))
    client.run(HEAD)
    client.stream(entry(1), b"id: 2\n")
    client.end_run("killed")
    client.run(HEAD)
    client.stream(entry(2))
    head, body, _ = client.response
    assert head.count(b"set-cookie: a=b") == 1
    assert body == entry(1) + entry(2)


def test_an_id_is_learned_from_an_event() -> None:
    client = Client()
    found: list[Any] = []
    (rule,) = parse_rules(("learn:query:session_id",))
    assert rule.learn is not None
    FirstAnswer(next(iter(client.connections)), Learner([rule.learn], found.append))
    client.run(HEAD)
    client.stream(b"event: endpoint\ndata: /messages?session_id=c0", b"ffee\n\n", entry(1))
    assert found == [(b"session_id", b"c0ffee")]
    client.end_run("killed")
    client.run(HEAD)
    client.stream(entry(2))
    assert client.data == ["/messages?session_id=c0ffee", "1", "2"]


# What is offered.


@pytest.mark.parametrize(
    ("method", "version", "offered"), [("GET", "1.1", True), ("HEAD", "1.1", False), ("GET", "1.0", False)]
)
def test_requests_whose_event_streams_can_continue(method: str, version: str, offered: bool) -> None:
    client = Client(method=method, version=version)
    assert (EVENT_STREAMS in client.requests[0].extensions["asgibus"]) is offered
    assert STREAMS in client.requests[0].extensions["asgibus"]


def test_other_responses_are_as_before() -> None:
    client = Client()
    client.run((RESPONSE_START, 200, b"content-type: text/event-stream\r\n"))
    client.stream(b"id: 1\n")
    assert client.response[1] == b"id: 1\n"
    client.end_run("killed")
    assert client.transport.closed
    assert not client.response[2]
    assert client.count("worker lost") == 1


def test_an_event_stream_of_known_length_does_not_continue() -> None:
    client = Client()
    client.run((EVENT_STREAM, 200, b"content-type: text/event-stream\r\ncontent-length: 30\r\n"))
    client.stream(entry(1))
    client.end_run("killed")
    assert len(client.requests) == 1
    assert client.transport.closed
