"""Compressed WebSocket messages: negotiation, frames, and the limit of a decompressed message."""

import uuid
import zlib
from collections.abc import Callable, Iterator
from random import Random

import pytest

from asgibus.interface_server.websocket.compression import (
    PIECE_IN,
)
from support.deadline import wait_until
from support.members import Member, expect_done, send_order
from support.processes import Process
from support.raw import RawClient
from support.servers import LAYERS, serving
from support.websocket import (
    BINARY,
    CONT,
    PING,
    PONG,
    TEXT,
    RawWebSocket,
    close_frame,
    frame,
    read_notes,
    wait_for_note,
    ws,
)

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
    """Return the compressed payload that a client sends for a message."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -bits)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflate(data: bytes, bits: int = 15) -> bytes:
    return zlib.decompressobj(-bits).decompress(data + b"\0\0\xff\xff")


def noise(random: Random) -> bytes:
    """Return bytes that hardly shrink, so many that their compressed form arrives in several pieces."""
    return random.randbytes(3 * PIECE_IN)


def extension(client: RawWebSocket) -> str | None:
    return dict(client.headers).get("sec-websocket-extensions")


def read_compressed(client: RawWebSocket) -> tuple[int, bytes]:
    """Return the first byte and the payload of the next frame."""
    first, length = client.read_exactly(2)
    if length == 126:
        length = int.from_bytes(client.read_exactly(2), "big")
    return first, client.read_exactly(length)


# Negotiation.


def test_compression_needs_the_option_and_the_offer(server: Process, start_interface: Start) -> None:
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


def test_incompressible_messages_are_sent_uncompressed(server: Process) -> None:
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
    wait_for_note(server, name, ["disconnect", 1000, ""])


def test_broadcasts_are_shared_uncompressed_frames(start_interface: Start) -> None:
    server = start_interface("--websocket-compression", app="interface_server.groups_app:app")
    text = "the same for all " * 100
    with RawWebSocket(server, "/", OFFER) as first, RawWebSocket(server, "/", OFFER) as second, Member(server) as third:
        for client in (first, second):
            send_order(client, "add", group="all")
            expect_done(client)
        third.do("add", group="all")
        send_order(first, "broadcast", group="all", text=text)
        for client in (first, second):
            assert client.read_frame() == (TEXT, text.encode())  # a reader that does not decompress
        assert third.receive() == text


# Decompression in pieces.


def test_delayed_messages_arrive_before_the_close(server: Process) -> None:
    name = uuid.uuid4().hex
    with RawWebSocket(server, "/deaf?name=" + name, OFFER) as client:
        client.send(frame(BINARY, deflate(bytes(LIMIT)), rsv=RSV1) * 50 + close_frame(4000))
        with RawClient(server) as other:
            other.request("GET", f"/open?name={name}")
        assert client.read_close()[0] == 4000
    wait_for_note(server, name, ["total", 50 * LIMIT])


# Limits.


@pytest.mark.parametrize("size", [LIMIT + 1, 10 * LIMIT, 40_000_000])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_decompression_bomb_is_rejected(server: Process, size: int, parts: int) -> None:
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
    wait_until(lambda: ["disconnect", 1009] in [note[:2] for note in read_notes(server, name)])
    assert not [note for note in read_notes(server, name) if note[0] == "bytes"]


def test_a_message_of_the_maximum_size(server: Process) -> None:
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
def test_invalid_compressed_messages(server: Process, wire: bytes, code: int) -> None:
    with RawWebSocket(server, "/echo", OFFER) as client:
        client.send(wire)
        assert client.read_close()[0] == code


# Frames.
