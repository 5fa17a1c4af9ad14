"""The messages between an interface server and its successor."""

import socket
from collections.abc import Iterator

import anyio
import pytest

from asgibus.interface_server import move
from asgibus.interface_server.move import Decoder, MoveChannel, MoveError, encode
from asgibus.layers.codec import pack


def test_messages_arrive_in_any_pieces() -> None:
    data = encode("sockets", pack({"sockets": [b"1", "2", None]}), 2) + encode("end", pack({}), 0)
    decoder = Decoder()
    found = []
    for index in range(len(data)):
        decoder.feed(data[index : index + 1], [7, 8] if index == 0 else [])
        while (message := decoder.next()) is not None:
            found.append(message)
    assert found == [("sockets", {"sockets": (b"1", "2", None)}, [7, 8]), ("end", {}, [])]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\x00\x00\x01\xc1",
        b"\x00\x00\x00\x02\xa1a",
        encode("sockets", pack({}), 1),
        encode("sockets", None, 0),
        encode("sockets", pack([]), 0),
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    decoder = Decoder()
    decoder.feed(data, [])
    with pytest.raises(MoveError):
        decoder.next()


@pytest.fixture
def ends() -> Iterator[tuple[MoveChannel, MoveChannel]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield MoveChannel(ours), MoveChannel(theirs)


def test_sockets_pass_with_a_message_of_any_size(ends: tuple[MoveChannel, MoveChannel]) -> None:
    old, new = ends
    pairs = [socket.socketpair() for _ in range(move.DESCRIPTORS)]
    large = bytes(2_000_000)

    async def run() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(old.send, move.SOCKETS, {"large": large}, [theirs.fileno() for _, theirs in pairs])
            message = await new.receive(move.SOCKETS)
        assert message.body["large"] == large
        for (ours, _), descriptor in zip(pairs, message.descriptors, strict=True):
            with socket.socket(fileno=descriptor) as passed:
                ours.send(b"hello")
                assert passed.recv(5) == b"hello"

    anyio.run(run)
    for pair in pairs:
        for each in pair:
            each.close()


def test_a_refusal_and_the_end_are_told_apart(ends: tuple[MoveChannel, MoveChannel]) -> None:
    old, new = ends

    async def run() -> None:
        await new.send(move.REFUSED, {"reason": "not today"})
        with pytest.raises(MoveError, match="not today"):
            await old.receive(move.READY)
        await new.send(move.TAKEN)
        with pytest.raises(MoveError, match="'taken'"):
            await old.receive(move.READY)
        new.close()
        with pytest.raises(MoveError, match="ended"):
            await old.receive(move.READY)
        with pytest.raises(MoveError, match="ended"):
            await old.send(move.GO)

    anyio.run(run)
