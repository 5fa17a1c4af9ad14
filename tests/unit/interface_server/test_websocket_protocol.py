"""A WebSocket: handshake, messages in pieces, control frames, closing and flow control."""

import itertools
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Close, Frame, Opcode

from asgibus.interface_server.websocket.protocol import EARLY_BYTES, PONGS, SLICE
from asgibus.protocol.events import ACCEPT, CLOSE, MESSAGE_RECEIVED, MESSAGE_SENT, WEBSOCKET_DISCONNECT, Event
from support.recording import WORKER
from support.socket_harness import HANDSHAKE, Socket, get

TEXT = Frame(Opcode.TEXT, b"hello").serialize(mask=True)


def close(code: int, reason: str = "") -> Frame:
    return Frame(Opcode.CLOSE, Close(code, reason).serialize())


class WebSocket(Socket):
    """One client's WebSocket."""

    def __init__(self, early: bytes = b"", *, accepted: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.send(get("/ws", HANDSHAKE) + early)
        if accepted:
            self.accept()

    def accept(self) -> None:
        self.post(ACCEPT, None, b"", False)
        assert self.transport.written.startswith(b"HTTP/1.1 101 ")
        self.transport.written = b""

    def send_frame(self, *frames: Frame, size: int | None = None) -> None:
        self.send(b"".join(frame.serialize(mask=True) for frame in frames), size)

    def received(self) -> list[Event]:
        """Return the events that the app gets."""
        return self.table.events(WORKER)

    def frames(self) -> list[tuple[int, bytes]]:
        """Return opcode and payload of the written frames, all of which are short."""
        written, self.transport.written = self.transport.written, b""
        frames = []
        while written:
            first, size = struct.unpack_from("!BB", written)
            assert first & 0x80
            assert size < 126
            frames.append((first & 0xF, written[2 : 2 + size]))
            written = written[2 + size :]
        return frames


def test_messages_of_both_sides() -> None:
    socket = WebSocket()
    socket.send_frame(Frame(Opcode.TEXT, "grüße".encode()), Frame(Opcode.BINARY, b"\x00"))
    assert socket.received() == [(MESSAGE_RECEIVED, "grüße"), (MESSAGE_RECEIVED, b"\x00")]
    socket.post(MESSAGE_SENT, "back")
    assert socket.frames() == [(Opcode.TEXT, b"back")]


@pytest.mark.parametrize("size", [1, 3, 100, SLICE - 1, SLICE + 1, 100_000])
def test_pieces_change_nothing(size: int) -> None:
    socket = WebSocket()
    frames = [Frame(Opcode.TEXT, b"a", fin=False), Frame(Opcode.PING, b"p"), Frame(Opcode.CONT, b"b" * 3000)]
    socket.send_frame(*frames, *[Frame(Opcode.TEXT, b"c")] * 100, size=size)
    assert socket.received() == [(MESSAGE_RECEIVED, "a" + "b" * 3000), *[(MESSAGE_RECEIVED, "c")] * 100]
    assert socket.frames() == [(Opcode.PONG, b"p")]


def test_a_whole_frame_behind_a_part_of_another_one_is_not_taken_for_a_message() -> None:
    socket = WebSocket()
    outer = Frame(Opcode.BINARY, TEXT + TEXT).serialize(mask=True)
    outer = outer[:2] + bytes(4) + TEXT + TEXT  # unmasked by zeros, so that the payload is two frames on the wire
    for piece in (outer[:6], TEXT, TEXT, TEXT):
        socket.send(piece)
    assert socket.received() == [(MESSAGE_RECEIVED, TEXT + TEXT), (MESSAGE_RECEIVED, "hello")]


def test_a_whole_frame_between_fragments_is_an_error() -> None:
    socket = WebSocket()
    socket.send_frame(Frame(Opcode.TEXT, b"a", fin=False))
    socket.send(TEXT)
    assert socket.received()[-1][:2] == (WEBSOCKET_DISCONNECT, 1002)


@pytest.mark.parametrize("length", [0, 1, 125, 126, 200, SLICE - 8, SLICE, 65_535, 65_536])
@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.BINARY])
def test_messages_of_all_lengths(opcode: Opcode, length: int) -> None:
    socket = WebSocket()
    for _ in range(2):
        socket.send_frame(Frame(opcode, b"x" * length))
    message = "x" * length if opcode is Opcode.TEXT else b"x" * length
    assert socket.received() == [(MESSAGE_RECEIVED, message)] * 2


@given(cuts=st.sets(st.integers(1, 700)))
def test_frames_cut_anywhere_are_the_same_messages(cuts: set[int]) -> None:
    socket = WebSocket()
    wire = b"".join(
        frame.serialize(mask=True)
        for _ in range(3)
        for frame in (
            Frame(Opcode.TEXT, b"one"),
            Frame(Opcode.BINARY, b"2" * 130),
            Frame(Opcode.TEXT, b"th", fin=False),
            Frame(Opcode.PING, b"p"),
            Frame(Opcode.CONT, b"ree"),
            Frame(Opcode.TEXT, b""),
        )
    )
    places = [0, *sorted(cut for cut in cuts if cut < len(wire)), len(wire)]
    for start, end in itertools.pairwise(places):
        socket.send(wire[start:end])
    once = [
        (MESSAGE_RECEIVED, "one"),
        (MESSAGE_RECEIVED, b"2" * 130),
        (MESSAGE_RECEIVED, "three"),
        (MESSAGE_RECEIVED, ""),
    ]
    assert socket.received() == once * 3


def test_messages_before_the_accept_are_buffered() -> None:
    socket = WebSocket(TEXT, accepted=False)
    assert socket.received() == []
    socket.accept()
    assert socket.received() == [(MESSAGE_RECEIVED, "hello")]


def test_too_much_before_the_accept_pauses_the_socket() -> None:
    socket = WebSocket(accepted=False)
    socket.send_frame(Frame(Opcode.BINARY, bytes(EARLY_BYTES)))
    assert not socket.transport.reading
    socket.accept()
    assert socket.transport.reading
    assert socket.received() == [(MESSAGE_RECEIVED, bytes(EARLY_BYTES))]


def test_a_full_window_pauses_the_socket() -> None:
    socket = WebSocket(window=64 * 1024)
    message = Frame(Opcode.BINARY, bytes(30_000))
    socket.send_frame(message, message, message, message)
    assert not socket.transport.reading
    assert len(socket.received()) == 3
    socket.acknowledge(3)
    assert socket.transport.reading
    assert len(socket.received()) == 1


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (Frame(Opcode.TEXT, b"\xff"), 1007),
        (Frame(Opcode.CONT, b""), 1002),
        (Frame(Opcode.BINARY, bytes(101)), 1009),
    ],
)
def test_invalid_messages_close(frame: Frame, code: int) -> None:
    socket = WebSocket(websocket_max_message_size=100)
    socket.send_frame(frame)
    ((opcode, payload),) = socket.frames()
    assert (opcode, struct.unpack_from("!H", payload)[0]) == (Opcode.CLOSE, code)
    ((_, reported, _),) = socket.received()
    assert reported == code


def test_an_invalid_message_closes_while_the_window_is_almost_full() -> None:
    socket = WebSocket(window=64 * 1024)
    stream = socket.protocol._connection.stream
    socket.send_frame(Frame(Opcode.BINARY, b""))
    socket.send_frame(Frame(Opcode.BINARY, bytes(stream.window - 2 * stream.in_flight - 1)))
    assert stream.in_flight == stream.window - 1
    socket.send_frame(Frame(Opcode.TEXT, b"\xff"))
    assert socket.transport.half_closed
    assert socket.transport.reading  # else the server would not notice the end of the client
    socket.end()
    assert socket.transport.closed


def test_a_close_of_the_client_is_answered() -> None:
    socket = WebSocket()
    socket.send_frame(close(4000, "bye"), Frame(Opcode.TEXT, b"too late"))
    ((_, code, reason),) = socket.received()
    assert (code, reason) == (4000, "bye")
    assert socket.frames() == [(Opcode.CLOSE, close(4000, "bye").data)]
    assert socket.transport.closed


def test_a_close_of_the_app_waits_for_the_answer() -> None:
    socket = WebSocket()
    socket.post(CLOSE, 4001, "enough")
    assert socket.frames() == [(Opcode.CLOSE, close(4001, "enough").data)]
    assert not socket.transport.closed
    socket.send_frame(close(4001))
    assert socket.transport.closed


def test_the_app_gets_a_disconnect_if_the_client_is_lost() -> None:
    socket = WebSocket()
    socket.protocol.connection_lost(None)
    ((_, code, _),) = socket.received()
    assert code == 1006


def test_a_handshake_is_rejected_by_the_app() -> None:
    socket = WebSocket(accepted=False)
    socket.post(CLOSE, 1000, "")
    assert socket.transport.written.startswith(b"HTTP/1.1 403 ")
    assert socket.lingers


def test_only_some_of_many_pings_are_answered() -> None:
    socket = WebSocket()
    socket.send_frame(*[Frame(Opcode.PING, b"%d" % number) for number in range(3 * PONGS)])
    pongs = socket.frames()
    assert len(pongs) == PONGS
    assert pongs[-1] == (Opcode.PONG, b"%d" % (3 * PONGS - 1))


def test_a_silent_client_is_pinged_and_aborted() -> None:
    socket = WebSocket(ping_interval=20.0, ping_timeout=10.0)
    socket.now += 20
    socket.protocol.expire(socket.now)
    assert socket.frames() == [(Opcode.PING, b"")]
    socket.now += 10
    socket.protocol.expire(socket.now)
    assert socket.transport.closed
    ((_, code, reason),) = socket.received()
    assert (code, reason) == (1006, "no answer to a ping")


def test_a_stop_of_the_server() -> None:
    socket = WebSocket()
    socket.protocol.shut_down()
    assert socket.frames() == [(Opcode.CLOSE, close(1012).data)]
    ((_, code, _),) = socket.received()
    assert code == 1012
