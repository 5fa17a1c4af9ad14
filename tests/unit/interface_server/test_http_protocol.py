"""An HTTP socket without a network: the test is the client, the event loop and the worker."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from asgibus.interface_server.http.protocol import FIRST_REQUEST_SECONDS, HEAD_SLICE, HttpProtocol, HttpServer
from asgibus.interface_server.http.request import Request
from asgibus.interface_server.http.response import ResponseWriter, StandardHeaders
from asgibus.interface_server.lingering_close import LingeringClose
from asgibus.interface_server.read_scheduler import ReadScheduler
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.layers.frames import ACK, EVENT
from asgibus.protocol.connect_request import ConnectRequest
from asgibus.protocol.events import HTTP_DISCONNECT, REQUEST_BODY, REQUEST_END, RESPONSE, Event
from asgibus.protocol.stream import PART
from support.recording import WORKER, Table, own


class Loop:
    """An event loop, turned by the test."""

    def __init__(self) -> None:
        self._soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def turn(self) -> bool:
        """Run what is due, and return whether there was something."""
        soon, self._soon = self._soon, []
        for callback in soon:
            callback()
        return bool(soon)


class Transport:
    """Keeps what is written."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.written = b""
        self.reading = True
        self.closed = self.half_closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.half_closed = True

    def close(self) -> None:
        self.closed = True

    abort = close

    def get_write_buffer_size(self) -> int:
        return 0


class Socket:
    """One client's socket, and the server around it."""

    def __init__(self, **settings: Any) -> None:
        self.settings = InterfaceSettings(**settings)
        self.table = Table(**settings)
        self.connections = self.table.connections
        self.loop = Loop()
        self.scheduler = ReadScheduler(cast(asyncio.AbstractEventLoop, self.loop), self.connections.counts)
        self.standard_headers = StandardHeaders(server=False, date=False)
        self.now = 100.0
        self.upgraded: list[tuple[Request, bytes]] = []
        self.http = HttpProtocol(cast(HttpServer, self))
        self.transport = Transport(self.http)
        self.http.connection_made(cast(asyncio.Transport, self.transport))

    def admit(self, holder: Any) -> bool:
        return True

    def register(self, holder: Any) -> None:
        pass

    def forget(self, holder: Any) -> None:
        pass

    def peer_of(self, transport: Any, origin: Any) -> Any:
        return ("192.0.2.1", 1), ("192.0.2.2", 80), "http", {}

    def proxies_for(self, peer: Any) -> None:
        return None

    def upgrade(self, request: Request, transport: Any, writer: ResponseWriter, tail: bytes) -> None:
        self.upgraded.append((request, tail))

    # The client.

    def send(self, data: bytes, size: int | None = None) -> None:
        """Deliver what the client sends, in pieces of a size."""
        for start in range(0, len(data), size or len(data)):
            self.http.data_received(data[start : start + (size or len(data))])
        while self.loop.turn():
            pass

    def end(self) -> None:
        """Deliver the end of what the client sends."""
        if not self.http.eof_received():
            self.transport.close()
        self.loop.turn()

    def read(self) -> list[bytes]:
        """The status lines and the bodies that were written since the last call."""
        written, self.transport.written = self.transport.written, b""
        return [part for part in written.replace(b"HTTP/1.1 ", b"\r\n").split(b"\r\n") if part and b": " not in part]

    @property
    def lingers(self) -> bool:
        return isinstance(self.transport.protocol, LingeringClose)

    # The worker.

    @property
    def requests(self) -> list[ConnectRequest]:
        return self.table.openings

    def answer(self, body: bytes = b"hello", acked: int = 0) -> None:
        """Answer the request that was offered last."""
        self.table.frames((EVENT, self.requests[-1].connection, 1, 0, acked, RESPONSE, 200, (), body))
        self.loop.turn()

    def acknowledge(self, events: int) -> None:
        self.table.frames((ACK, self.requests[-1].connection, 1, events))
        self.loop.turn()

    def events(self) -> list[Event]:
        """The first events of the request that was offered last, and those that followed to its worker."""
        return [*self.requests[-1].events, *self.table.events(WORKER)]


def get(path: str = "/", more: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: test\r\n{more}\r\n".encode()


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
    socket = Socket(window=1024 * 1024)
    body = bytes(range(256)) * 500
    socket.send(post(len(body)) + body + get("/next"), size)
    socket.table.frames(own(socket.requests[-1].connection))
    events = socket.events()
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
    socket.http.pause_writing()
    socket.answer()
    assert paths(socket) == [b"/1"]
    socket.http.resume_writing()
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
    socket.table.frames(own(socket.requests[-1].connection))
    socket.acknowledge(1)
    assert not socket.transport.reading  # the second half takes the room
    socket.acknowledge(2)
    assert socket.transport.reading


# The client ends its side.


def test_eof_after_a_request_is_told_and_the_response_is_written() -> None:
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
    socket.loop.turn()
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
    socket.http.shut_down()
    assert socket.transport.closed


def test_a_stop_waits_for_the_running_request_alone() -> None:
    socket = Socket()
    socket.send(get("/1") + get("/2"))
    socket.http.shut_down()
    assert not socket.transport.closed
    socket.answer()
    assert b"connection: close" in socket.transport.written
    assert paths(socket) == [b"/1"]
    assert socket.lingers  # the client has sent more, and must not be reset


def test_a_stop_waits_a_moment_for_the_first_request() -> None:
    socket = Socket()
    socket.http.shut_down()
    assert not socket.transport.closed
    assert socket.http.deadline <= socket.now + FIRST_REQUEST_SECONDS
    socket.send(get())
    socket.answer()
    assert b"connection: close" in socket.transport.written
    assert socket.transport.closed


# Upgrades.


def test_a_handshake_takes_along_what_followed_it() -> None:
    socket = Socket()
    handshake = get("/ws", "Connection: Upgrade\r\nUpgrade: websocket\r\n")
    socket.send(handshake + b"\x81\x00" + bytes(HEAD_SLICE))
    ((request, tail),) = socket.upgraded
    assert (request.raw_path, request.kind) == (b"/ws", "websocket")
    assert tail == b"\x81\x00" + bytes(HEAD_SLICE)
    assert socket.requests == []
