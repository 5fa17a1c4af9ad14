"""Compressed WebSocket messages: what is agreed on, what is sent, and what a small message may not become."""

import itertools
import uuid
import zlib
from collections.abc import Callable, Iterator
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Opcode

from asgibus.interface_server.http.request import Request
from asgibus.interface_server.websocket.compression import (
    MAX_BYTES,
    MIN_BYTES,
    PIECE_IN,
    PIECE_OUT,
    CompressedFrame,
    Inflation,
    encode_compressed,
    negotiate,
)
from asgibus.interface_server.websocket.frames import encode_message
from support.deadline import wait_until
from support.members import Member, obeyed, order
from support.processes import Process
from support.raw import RawClient
from support.servers import LAYERS, serving
from support.websocket import BINARY, CONT, PING, PONG, TEXT, RawWebSocket, close_frame, frame, seen, wait_seen, ws

APP = "interface_server.websocket_app:app"
Start = Callable[..., Process]
LIMIT = 50_000
OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
AGREED = "permessage-deflate; server_no_context_takeover; client_no_context_takeover; client_max_window_bits=12"
RSV1 = 4
TEXT_BODY = "".join(f'{{"number": {number}, "name": "visitor"}}' for number in range(500))


@pytest.fixture(scope="module", params=LAYERS)
def server(request: pytest.FixtureRequest) -> Iterator[Process]:
    options = ("--websocket-compression", "--websocket-max-message-size", LIMIT)
    with serving(request, APP, *options, layer=request.param) as servers:
        yield servers.interfaces[0]


def deflate(data: bytes, bits: int = 12) -> bytes:
    """What a client sends for a message."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -bits)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflate(data: bytes, bits: int = 15) -> bytes:
    return zlib.decompressobj(-bits).decompress(data + b"\0\0\xff\xff")


def noise(random: Random) -> bytes:
    """So much that hardly shrinks that it comes in several pieces."""
    return random.randbytes(3 * PIECE_IN)


def extension(client: RawWebSocket) -> str | None:
    return dict(client.headers).get("sec-websocket-extensions")


def read_compressed(client: RawWebSocket) -> tuple[int, bytes]:
    """The first byte and the payload of the next frame."""
    first, length = client.read_exactly(2)
    if length == 126:
        length = int.from_bytes(client.read_exactly(2), "big")
    return first, client.read_exactly(length)


# What is agreed on.


@pytest.mark.parametrize(
    ("offer", "answer", "bits"),
    [
        ("permessage-deflate", "permessage-deflate; server_no_context_takeover; client_no_context_takeover", 12),
        ("permessage-deflate; client_max_window_bits", AGREED, 12),
        ("permessage-deflate; client_max_window_bits=10", AGREED.replace("12", "10"), 12),
        (
            "permessage-deflate; server_max_window_bits=10",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=10",
            10,
        ),
        (
            "permessage-deflate; server_max_window_bits=15; server_no_context_takeover",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=15",
            12,
        ),
        ("x-webkit-deflate-frame, permessage-deflate; client_max_window_bits", AGREED, 12),
        ("permessage-deflate; unknown, permessage-deflate; client_max_window_bits", AGREED, 12),
        # zlib cannot do it, so the next offer counts; and without one there is no compression.
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate; client_max_window_bits", AGREED, 12),
        ("permessage-deflate; server_max_window_bits=8", None, 0),
        ("permessage-deflate; server_max_window_bits=16", None, 0),
        ("permessage-deflate; server_max_window_bits", None, 0),
        ("permessage-deflate; client_max_window_bits=7", None, 0),
        ("permessage-deflate; server_no_context_takeover=1", None, 0),
        ("permessage-deflate; server_no_context_takeover; server_no_context_takeover", None, 0),
        ("permessage-bzip2", None, 0),
        ("permessage-deflate;;;", None, 0),
        (",", None, 0),
        ("", None, 0),
    ],
)
def test_offers(offer: str, answer: str | None, bits: int) -> None:
    request = Request(None, None, "ws", {})
    request.headers = [(b"sec-websocket-extensions", offer.encode())]
    agreed = negotiate(request)
    assert (agreed.header.decode(), agreed.window_bits) == (answer, bits) if agreed else answer is None


def test_offers_in_two_headers() -> None:
    request = Request(None, None, "ws", {})
    request.headers = [(b"sec-websocket-extensions", b"x"), (b"sec-websocket-extensions", b"permessage-deflate")]
    assert negotiate(request) is not None


def test_nothing_is_compressed_unless_it_is_asked_for_on_both_sides(server: Process, start_interface: Start) -> None:
    with RawWebSocket(server, "/echo") as client:
        assert extension(client) is None
        client.send(frame(TEXT, b"a" * 1000))
        assert client.read_frame() == (TEXT, b"a" * 1000)
        client.send(frame(TEXT, deflate(b"a" * 1000), rsv=RSV1))
        assert client.read_close()[0] == 1002
    with RawWebSocket(start_interface(app=APP), "/echo", OFFER) as client:
        assert extension(client) is None


# Messages.


def test_messages_are_compressed_both_ways(server: Process) -> None:
    with RawWebSocket(server, "/echo", OFFER) as client:
        assert extension(client) == AGREED
        for opcode in (TEXT, BINARY):
            for _ in range(2):  # each by itself: the second is no shorter
                client.send(frame(opcode, deflate(TEXT_BODY.encode()), rsv=RSV1))
                first, payload = read_compressed(client)
                assert first == 0xC0 | opcode
                assert inflate(payload, 12) == TEXT_BODY.encode()
                assert len(payload) < len(TEXT_BODY) / 5


def test_what_does_not_become_shorter_is_sent_as_it_is(server: Process) -> None:
    with RawWebSocket(server, "/echo", OFFER) as client:
        noise = uuid.uuid4().bytes * 2 + bytes(range(256))
        for message in (b"", b"short" * 20, noise):
            client.send(frame(BINARY, message))
            assert client.read_frame() == (BINARY, message)


def test_empty_and_fragmented_messages(server: Process) -> None:
    with RawWebSocket(server, "/echo", OFFER) as client:
        for empty in (b"\x00", b""):
            client.send(frame(TEXT, empty, rsv=RSV1))
            assert client.read_frame() == (TEXT, b"")
        data = deflate(b"x" * 100)
        client.send(frame(TEXT, data[:3], fin=False, rsv=RSV1))
        client.send(frame(PING, b"between"))
        client.send(frame(CONT, data[3:5], fin=False) + frame(CONT, data[5:]))
        assert client.read_frame() == (PONG, b"between")
        assert client.read_frame() == (TEXT, b"x" * 100)
        client.send(frame(TEXT, b"y" * 60, fin=False) + frame(CONT, b"y" * 40))
        assert client.read_frame() == (TEXT, b"y" * 100)


def test_a_client_of_another_library(server: Process) -> None:
    name = uuid.uuid4().hex
    with ws(server, "/echo", compression="deflate", query={"name": name}) as client:
        for message in ("", "grüße", TEXT_BODY, b"\0" * 40_000):
            client.send(message)
            assert client.recv(timeout=30) == message
        client.send([TEXT_BODY[:1000], TEXT_BODY[1000:]])
        assert client.recv(timeout=30) == TEXT_BODY
    wait_seen(server, name, ["disconnect", 1000, ""])


def test_broadcasts_are_shared_uncompressed_frames(start_interface: Start) -> None:
    server = start_interface("--websocket-compression", app="interface_server.groups_app:app")
    text = "the same for all " * 100
    with RawWebSocket(server, "/", OFFER) as one, RawWebSocket(server, "/", OFFER) as other, Member(server) as third:
        for client in (one, other):
            order(client, "add", group="all")
            obeyed(client)
        third.do("add", group="all")
        order(one, "say", group="all", text=text)
        for client in (one, other):
            assert client.read_frame() == (TEXT, text.encode())  # which knows no compressed frames
        assert third.hear() == text


# Decompression in pieces.


def inflated(*frames: CompressedFrame) -> list[bytes]:
    inflation = Inflation(15)
    pieces = []
    for each in frames:
        inflation.add(each)
        while not inflation.done:
            pieces.append(inflation.piece())
    return pieces


def cut(data: bytes, places: set[int]) -> list[CompressedFrame]:
    """The frames of a message that is cut there."""
    bounds = [0, *sorted(places), len(data)]
    return [
        CompressedFrame(Opcode.CONT if start else Opcode.TEXT, data[start:end], fin=end == len(data))
        for start, end in itertools.pairwise(bounds)
    ]


@given(
    data=st.one_of(st.binary(), st.builds(bytes, st.integers(0, 3 * PIECE_OUT)), st.randoms().map(noise)),
    cuts=st.sets(st.floats(0.01, 0.99), max_size=5),
)
def test_any_frames_of_a_message_give_the_message(data: bytes, cuts: set[float]) -> None:
    compressed = deflate(data, 15)
    pieces = inflated(*cut(compressed, {int(share * len(compressed)) for share in cuts} - {0, len(compressed)}))
    assert b"".join(pieces) == data
    assert max(map(len, pieces), default=0) <= PIECE_OUT


def test_what_stands_behind_the_last_block_is_not_kept() -> None:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    ended = compressor.compress(b"all") + compressor.flush(zlib.Z_FINISH)
    frames = [CompressedFrame(Opcode.CONT, bytes(PIECE_IN), fin=False)] * 100
    assert b"".join(inflated(CompressedFrame(Opcode.TEXT, ended, fin=False), *frames)) == b"all"


def test_messages_that_waited_for_the_window_arrive_before_the_close(server: Process) -> None:
    name = uuid.uuid4().hex
    with RawWebSocket(server, "/deaf?name=" + name, OFFER) as client:
        client.send(frame(BINARY, deflate(bytes(LIMIT)), rsv=RSV1) * 50 + close_frame(4000))
        with RawClient(server) as other:
            other.request("GET", f"/open?name={name}")
        assert client.read_close()[0] == 4000
    wait_seen(server, name, ["total", 50 * LIMIT])


# Limits.


@pytest.mark.parametrize("size", [LIMIT + 1, 10 * LIMIT, 40_000_000])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_bomb_does_not_go_off(server: Process, size: int, parts: int) -> None:
    name = uuid.uuid4().hex
    data = deflate(bytes(size), 15)
    assert len(data) < LIMIT
    with RawWebSocket(server, "/listen?name=" + name, OFFER) as client:
        step = -(-len(data) // parts)
        for start in range(0, len(data), step):
            part = data[start : start + step]
            last = start + step >= len(data)
            client.send(frame(CONT if start else BINARY, part, fin=last, rsv=0 if start else RSV1))
        assert client.read_close()[0] == 1009
        client.send(close_frame(1009))
        assert client.read_until_close() == b""
    wait_until(lambda: ["disconnect", 1009] in [note[:2] for note in seen(server, name)])
    assert not [note for note in seen(server, name) if note[0] == "bytes"]


def test_a_message_as_large_as_may_be(server: Process) -> None:
    with RawWebSocket(server, "/echo", OFFER) as client:
        client.send(frame(BINARY, deflate(b"z" * LIMIT), rsv=RSV1))
        first, payload = read_compressed(client)
        assert (first, inflate(payload)) == (0xC0 | BINARY, b"z" * LIMIT)


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (frame(TEXT, b"\xff\xff\xff\xff", rsv=RSV1), 1002),
        (frame(TEXT, deflate(b"\xff"), rsv=RSV1), 1007),
        (frame(PING, b"", rsv=RSV1), 1002),
        (frame(TEXT, deflate(b"a")[:1], fin=False, rsv=RSV1) + frame(CONT, b"", rsv=RSV1), 1002),
        (frame(TEXT, b"a", rsv=2), 1002),
    ],
)
def test_what_is_no_compressed_message(server: Process, wire: bytes, code: int) -> None:
    with RawWebSocket(server, "/echo", OFFER) as client:
        client.send(wire)
        assert client.read_close()[0] == code


# Frames.


@given(st.text() | st.binary() | st.integers(0, 2000).map(lambda count: "ab" * count), st.integers(9, 15))
def test_frames(message: str | bytes, bits: int) -> None:
    wire = encode_compressed(message, bits)
    plain = encode_message(message)
    assert len(wire) <= len(plain)
    if wire[0] & 0x40:
        assert len(message) * (1 if isinstance(message, bytes) else 4) >= MIN_BYTES
        start = 2 if wire[1] < 126 else 4 if wire[1] == 126 else 10
        data = message.encode() if isinstance(message, str) else message
        assert (wire[0] & 0x0F, inflate(wire[start:], bits)) == (plain[0] & 0x0F, data)
    else:
        assert wire == plain


def test_very_large_messages_do_not_keep_the_others_waiting() -> None:
    assert encode_compressed(bytes(MAX_BYTES), 12)[0] == 0xC2
    assert encode_compressed(bytes(MAX_BYTES + 1), 12)[0] == 0x82
