"""Sockets that move to another process in any state: neither client nor app notices."""

import inspect
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from asgibus.cli.version import FORM
from asgibus.interface_server.connections.connection import Connection
from asgibus.interface_server.http.protocol import HttpProtocol
from asgibus.interface_server.http.request import _FIELDS, Request
from asgibus.interface_server.http.response import ResponseWriter
from asgibus.interface_server.websocket.protocol import WebSocketProtocol
from asgibus.interface_server.websocket.reader import MessageReader
from asgibus.layers.frames import ACK
from asgibus.protocol.connect_request import RequestHead
from asgibus.protocol.events import (
    ACCEPT,
    EVENT_STREAM,
    MESSAGE_RECEIVED,
    MESSAGE_SENT,
    REQUEST_BODY,
    REQUEST_END,
    RESPONSE_BODY,
    RESPONSE_END,
    RESPONSE_START,
    Event,
)
from asgibus.protocol.stream import ReliableStream
from support.moving import Moved
from support.recording import WORKER
from support.socket_harness import HANDSHAKE, Socket, get

HELLO = Frame(Opcode.TEXT, b"hello").serialize(mask=True)


def open_websocket(**settings: Any) -> Socket:
    socket = Socket(**settings)
    socket.send(get("/ws", HANDSHAKE))
    socket.post(ACCEPT, None, b"", True)
    socket.transport.written = b""
    return socket


def upload(length: int) -> bytes:
    return f"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n".encode()


def messages(*sockets: Socket) -> list[Any]:
    """Return the messages that the app got through these sockets."""
    events: list[Event] = [event for socket in sockets for event in socket.table.events(WORKER)]
    return [event[1] for event in events if event[0] == MESSAGE_RECEIVED]


# The acknowledgements.


def acks(socket: Socket) -> list[Any]:
    """Return the acknowledgements since the last call."""
    return [frame for frame in socket.table.posted(WORKER) if frame[0] == ACK]


def open_slow_websocket() -> Socket:
    """Return a WebSocket with a client that has not read everything, and an app that has sent as much as it may."""
    socket = open_websocket(window=1000)
    socket.transport.unwritten = 1
    assert socket.protocol.hold_back()
    assert not socket.protocol.hold_back()
    acks(socket)
    for _ in range(5):
        socket.post(MESSAGE_SENT, "x" * 190)
    assert not acks(socket)
    return socket


def test_what_was_held_back_is_acknowledged_by_the_next_process() -> None:
    old = open_slow_websocket()
    old.transport.unwritten, old.transport.written = 0, b""
    assert len(acks(Moved(old))) == 1


def test_a_move_that_fails_lets_the_app_send_again() -> None:
    socket = open_slow_websocket()
    socket.protocol.go_on()
    assert len(acks(socket)) == 1


# WebSockets.


def test_an_open_websocket() -> None:
    old = open_websocket()
    old.send(HELLO)
    new = Moved(old)
    new.send(HELLO)
    new.post(MESSAGE_SENT, "hi")
    assert messages(old, new) == ["hello", "hello"]
    assert new.transport.written == b"\x81\x02hi"
    assert new.transport.reading


@given(data=st.data(), sizes=st.lists(st.sampled_from([0, 1, 125, 126, 300, 70_000]), min_size=1, max_size=4))
def test_a_websocket_moves_between_any_two_bytes(data: st.DataObject, sizes: list[int]) -> None:
    sent = [bytes([number]) * size for number, size in enumerate(sizes)]
    stream = b""
    for message in sent:  # each in two fragments, with a ping between them
        half = len(message) // 2
        for frame in (
            Frame(Opcode.BINARY, message[:half], fin=False),
            Frame(Opcode.PING, b"x"),
            Frame(Opcode.CONT, message[half:]),
        ):
            stream += frame.serialize(mask=True)
    cut = data.draw(st.integers(0, len(stream)))
    old = open_websocket()
    for start in range(0, cut, 1500):
        old.send(stream[start : min(start + 1500, cut)])
    old.transport.written = b""
    new = Moved(old)
    if cut < len(stream):
        new.send(stream[cut:])
    assert messages(old, new) == sent


def test_frames_that_wait_for_a_slow_app() -> None:
    old = open_websocket(window=2000)
    frames = [Frame(Opcode.BINARY, bytes([number]) * 900).serialize(mask=True) for number in range(6)]
    old.send(b"".join(frames)[:4000])
    assert not old.transport.reading
    new = Moved(old, window=2000)
    assert not new.transport.reading
    new.acknowledge(2)
    new.send(b"".join(frames)[4000:])
    for done in (3, 4, 5):
        new.acknowledge(done)
    assert [message[0] for message in messages(old, new)] == [0, 1, 2, 3, 4, 5]


def test_lengths_in_too_many_bytes_are_not_moved_wrongly() -> None:
    old = open_websocket()
    old.send(b"\x82\xfe\x00\x01\x00\x00\x00\x00a" + HELLO[:3])  # RFC 6455 section 5.2 demands the shortest form
    assert not old.protocol.may_move or messages(old, Moved(old)) == [b"a"]


def test_a_websocket_that_waits_for_a_worker() -> None:
    old = Socket()
    old.send(get("/ws", HANDSHAKE) + HELLO)
    new = Moved(old)
    new.post(ACCEPT, None, b"", False)
    assert new.transport.written.startswith(b"HTTP/1.1 101 ")
    assert messages(new) == ["hello"]


def test_a_websocket_that_is_closing_stays() -> None:
    socket = open_websocket()
    socket.protocol.shut_down()
    assert socket.protocol.stays
    assert not socket.protocol.may_move


# HTTP.


def test_an_idle_connection() -> None:
    old = Socket()
    old.send(get("/first"))
    old.answer()
    assert old.read()
    new = Moved(old)
    new.send(get("/second"))
    assert new.requests[-1].raw_path == b"/second"
    new.answer(b"second")
    assert new.read()[0] == b"200 OK"


def test_a_request_under_way() -> None:
    old = Socket()
    old.send(get("/slow"))
    new = Moved(old)
    new.answer(b"done")
    assert new.read() == [b"200 OK", b"done"]
    new.send(get("/next"))
    assert new.requests[-1].raw_path == b"/next"


def test_pipelined_requests() -> None:
    old = Socket()
    old.send(get("/1") + get("/2") + get("/3"))
    new = Moved(old)
    for number in (1, 2, 3):
        assert new.requests[-1].raw_path == b"/%d" % number
        new.answer(b"%d" % number)
        assert new.read() == [b"200 OK", b"%d" % number]


@pytest.mark.parametrize("arrived", [1, 1000, 100_000])
def test_an_upload(arrived: int) -> None:
    body = bytes(itertools.islice(itertools.cycle(range(256)), 150_000))
    old = Socket()
    old.send(upload(len(body)))
    old.send(body[:arrived], 1400)
    new = Moved(old)
    new.send(body[arrived:], 1400)
    got = [*old.requests[-1].events, *old.table.events(WORKER), *new.table.events(WORKER)]
    unsent = new.connections._open[new.requests[-1].connection].stream.unacked_events
    assert b"".join(event[1] for event in unsent if event[0] in (REQUEST_BODY, REQUEST_END)) == body
    assert got
    new.answer(b"thanks")
    assert new.read() == [b"200 OK", b"thanks"]
    new.send(get("/next"))
    assert new.requests[-1].raw_path == b"/next"


def test_a_streamed_response() -> None:
    old = Socket()
    old.send(get())
    old.post(RESPONSE_START, 200, b"")
    old.post(RESPONSE_BODY, b"one")
    assert old.read()[-1] == b"one"
    new = Moved(old)
    new.post(RESPONSE_BODY, b"two")
    new.post(RESPONSE_END, b"")
    assert new.transport.written == b"3\r\ntwo\r\n0\r\n\r\n"


def test_an_event_stream_in_the_middle_of_an_event() -> None:
    old = Socket()
    old.send(get())
    old.post(EVENT_STREAM, 200, b"content-type: text/event-stream\r\n")
    old.post(RESPONSE_BODY, b"id: 1\ndata: one\n\nid: 2\nda")
    assert b"data: one" in old.transport.written
    old.transport.written = b""
    new = Moved(old)
    new.post(RESPONSE_BODY, b"ta: two\n\n")
    assert b"id: 2\ndata: two\n\n" in new.transport.written
    new.table.dead()
    new.table.pass_time()
    assert (b"last-event-id", b"2") in new.requests[-1].headers


@pytest.mark.parametrize("arrived", [b"GET / HT", b"GET / HTTP/1.1\r\nHost: te"])
def test_a_head_that_has_arrived_in_part_is_waited_for(arrived: bytes) -> None:
    socket = Socket()
    socket.send(arrived)
    assert not socket.protocol.may_move
    assert not socket.protocol.stays
    socket.send(get()[len(arrived) :] if get().startswith(arrived) else b"st\r\n\r\n")
    assert socket.protocol.may_move


def test_a_head_that_never_arrives_is_answered() -> None:
    socket = Socket()
    socket.send(b"GET / HTTP/1.1\r\n")
    socket.protocol.refuse_move()
    socket.turn()
    assert socket.read()[0] == b"503 Service Unavailable"


def test_all_attributes_of_a_request_move() -> None:
    if FORM != "compiled":  # mypyc drops slots
        assert {*RequestHead.__slots__, *Request.__slots__} - {"error"} == {*_FIELDS}


@pytest.mark.parametrize(
    ("owner", "made_anew"),
    [
        (
            Connection,
            # The registry restores all but `events`, which the terminator of the socket does.
            "_host events follows held kind number offer offered_at queue table terminator unclaimed",
        ),
        (ReliableStream, "_checked attempt in_flight number"),
        (WebSocketProtocol, "_guard _scheduler write_paused"),
        (MessageReader, "_bits _inflation _largest _partial_head decoded_here"),
        (HttpProtocol, "_rejected _scheduler _transport write_paused"),
        (ResponseWriter, "_standard _transport"),
    ],
)
def test_all_attributes_move(owner: Any, made_anew: str) -> None:
    """Fail for an attribute that is new: `export` and `restore` have to move it, or it is made anew."""
    try:
        source = inspect.getsource(owner.restore)
    except TypeError:
        pytest.skip("compiled code has no source")
    assert {name for name in owner.__slots__ if f"self.{name}" not in source} == {*made_anew.split()}
