"""An HTTP socket: pipelining, pieces, EOF, invalid input, flow control and the stop of the server."""

import math

import pytest

from asgibus.interface_server import read_scheduler
from asgibus.interface_server.http.protocol import FIRST_REQUEST_SECONDS, HEAD_SLICE
from asgibus.layers.frames import MESSAGE
from asgibus.protocol.events import HTTP_DISCONNECT, REQUEST_BODY, REQUEST_END, RESPONSE_BODY, RESPONSE_START
from asgibus.protocol.header_lines import make_lines
from asgibus.protocol.stream import PART
from support.recording import WORKER, claim_frame
from support.socket_harness import HANDSHAKE, Socket, get


def post(length: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % length


def paths(socket: Socket) -> list[bytes]:
    return [request.raw_path for request in socket.requests]


def test_requests_of_one_socket() -> None:
    socket = Socket()
    for path in ("/1", "/2"):
        socket.send(get(path))
        assert socket.events() == [(REQUEST_END, b"")]
        socket.answer()
        assert socket.read() == [b"200 OK", b"hello"]
    assert paths(socket) == [b"/1", b"/2"]
    assert not socket.transport.closed


@pytest.mark.parametrize("size", [11, 1000, 3000, 100_000])
def test_pieces_change_nothing(size: int) -> None:
    socket = Socket()
    body = bytes(range(256)) * 500
    socket.send(post(len(body)) + body + get("/next"), size)
    socket.table.frames(claim_frame(socket.requests[-1].connection))
    events = socket.events()
    while events[-1][0] != REQUEST_END:  # the window was full
        socket.acknowledge(len(events))
        events += socket.table.events(WORKER)
    assert b"".join(event[1] for event in events) == body
    assert [event[0] for event in events[:-1]] == [REQUEST_BODY] * (len(events) - 1)
    assert events[-1][0] == REQUEST_END
    assert all(len(event[1]) <= PART for event in events)
    socket.answer()
    assert paths(socket) == [b"/", b"/next"]


def test_a_pipelined_request_waits_for_its_turn() -> None:
    socket = Socket()
    socket.send(get("/1") + get("/2") + get("/3")[:-5])
    assert paths(socket) == [b"/1"]
    socket.answer()
    assert paths(socket) == [b"/1", b"/2"]
    socket.answer()
    assert paths(socket) == [b"/1", b"/2"]
    socket.send(get("/3")[-5:])
    assert paths(socket) == [b"/1", b"/2", b"/3"]


def test_a_pipelined_request_waits_until_the_client_reads() -> None:
    socket = Socket()
    socket.send(get("/1") + get("/2"))
    socket.protocol.pause_writing()
    socket.answer()
    assert paths(socket) == [b"/1"]
    socket.protocol.resume_writing()
    assert paths(socket) == [b"/1", b"/2"]


def test_many_pipelined_requests_pause_the_socket() -> None:
    socket = Socket()
    request = get("/n", f"X-Padding: {1000 * 'x'}\r\n")
    count = 2 * PART // len(request)
    socket.send(request * count)
    assert not socket.transport.reading
    for _ in range(count):
        socket.answer()
    assert len(socket.requests) == count
    assert socket.transport.reading


def test_a_full_window_pauses_the_socket() -> None:
    socket = Socket(window=PART)
    socket.send(post(4 * PART) + bytes(2 * PART))
    assert not socket.transport.reading
    socket.table.frames(claim_frame(socket.requests[-1].connection))
    socket.acknowledge(1)
    assert not socket.transport.reading  # the second half takes the room
    socket.acknowledge(2)
    assert socket.transport.reading


def test_each_request_has_its_own_window() -> None:
    socket = Socket(window=300)
    socket.send(post(299) + bytes(299))
    socket.post(RESPONSE_START, 200, b"")
    number = socket.requests[-1].connection
    socket.table.frames((MESSAGE, str(number), {"type": "http.response.body", "body": b"end"}), sender="")
    assert (HTTP_DISCONNECT, True) in socket.table.events(WORKER)
    socket.send(get("/next"))
    assert paths(socket) == [b"/", b"/next"]


# The client ends its side.


def test_eof_after_a_request_sends_a_disconnect_and_the_response_is_written() -> None:
    socket = Socket()
    socket.send(get())
    socket.end()
    assert not socket.transport.closed
    socket.answer()
    assert socket.read() == [b"200 OK", b"hello"]
    assert socket.transport.closed
    assert not socket.lingers


def test_eof_before_the_rest_of_a_body_closes() -> None:
    socket = Socket()
    socket.send(post(10) + b"12345")
    socket.end()
    assert socket.transport.closed
    assert socket.table.bus.withdrawn


def test_eof_behind_pipelined_requests_closes_after_all_of_them() -> None:
    socket = Socket()
    socket.send(get("/1") + get("/2"))
    socket.end()
    for path in (b"/1", b"/2"):
        assert not socket.transport.closed
        assert socket.requests[-1].raw_path == path
        socket.answer()
    assert (HTTP_DISCONNECT, False) in socket.table.events(WORKER)
    assert socket.read() == [b"200 OK", b"hello"] * 2
    assert socket.transport.closed


def test_eof_behind_a_part_of_a_head_closes() -> None:
    socket = Socket()
    socket.send(get()[:10])
    socket.end()
    assert socket.transport.closed
    assert socket.requests == []


# Input that is not valid.


def test_invalid_input_is_answered_after_the_requests_before_it() -> None:
    socket = Socket()
    socket.send(get("/1") + b"nonsense\r\n\r\n" + get("/2"))
    assert socket.read() == []
    socket.answer()
    assert socket.read()[:2] == [b"200 OK", b"hello"]
    socket.turn()
    assert paths(socket) == [b"/1"]
    assert socket.lingers


def test_an_invalid_body_ends_its_request() -> None:
    socket = Socket()
    socket.send(b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n")
    assert socket.read()[0] == b"400 Bad Request"
    assert socket.lingers


# The server stops.


def test_a_stop_closes_an_idle_socket() -> None:
    socket = Socket()
    socket.send(get())
    socket.answer()
    socket.protocol.shut_down()
    assert socket.transport.closed


def test_a_stop_waits_for_the_running_request_alone() -> None:
    socket = Socket()
    socket.send(get("/1") + get("/2"))
    socket.protocol.shut_down()
    assert not socket.transport.closed
    socket.answer()
    assert b"connection: close" in socket.transport.written
    assert paths(socket) == [b"/1"]
    assert socket.lingers  # the client has sent more, and must not be reset


def test_a_stop_waits_a_moment_for_the_first_request() -> None:
    socket = Socket()
    socket.protocol.shut_down()
    assert not socket.transport.closed
    assert socket.protocol.deadline <= socket.now + FIRST_REQUEST_SECONDS
    socket.send(get())
    socket.answer()
    assert b"connection: close" in socket.transport.written
    assert socket.transport.closed


def test_a_stop_closes_a_half_closed_socket_after_its_request() -> None:
    socket = Socket()
    socket.send(get("/1") + get("/2"))
    socket.end()
    socket.protocol.shut_down()
    socket.answer()
    assert paths(socket) == [b"/1"]
    assert socket.transport.closed
    assert not socket.lingers  # there is nothing to wait for


@pytest.mark.parametrize("stop_first", [True, False])
def test_a_stop_does_not_wait_for_a_missing_body(stop_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    socket = Socket()
    with monkeypatch.context() as busy:
        assert socket.scheduler.try_slice(0.0), "the first slice of this turn"
        busy.setattr(read_scheduler, "perf_counter", lambda: math.inf)
        socket.protocol.data_received(post(10) + b"12345")
    if stop_first:
        socket.protocol.shut_down()
    socket.end()
    if not stop_first:
        socket.protocol.shut_down()
    socket.scheduler._next_turn()
    assert socket.transport.closed
    assert socket.requests == []


def test_a_body_beyond_its_content_length_is_cut_off_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    socket = Socket()
    socket.send(get())
    socket.post(RESPONSE_START, 200, make_lines([(b"content-length", b"3")], "the test"))
    for _ in range(10):
        socket.post(RESPONSE_BODY, b"ab")
    assert socket.transport.written.endswith(b"\r\n\r\naba")
    assert len(caplog.records) == 1


# Upgrades.


def test_bytes_after_a_handshake_are_passed_on() -> None:
    socket = Socket()
    handshake = get("/ws", HANDSHAKE)
    socket.send(handshake + b"\x81\x00" + bytes(HEAD_SLICE))
    assert (socket.requests[-1].raw_path, socket.requests[-1].kind) == (b"/ws", "websocket")
    assert socket.tail == b"\x81\x00" + bytes(HEAD_SLICE)
