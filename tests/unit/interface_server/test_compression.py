"""permessage-deflate without a network: offers, frames, and pieces of messages."""

import itertools
import zlib
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

AGREED = "permessage-deflate; server_no_context_takeover; client_no_context_takeover; client_max_window_bits=12"


def deflate(data: bytes, bits: int = 12) -> bytes:
    """Return the compressed payload that a client sends for a message."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -bits)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflate(data: bytes, bits: int = 15) -> bytes:
    return zlib.decompressobj(-bits).decompress(data + b"\0\0\xff\xff")


# Negotiation.


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
        # zlib does not support this offer, so the next one counts; without another there is no compression.
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


# Messages.


# Decompression in pieces.


def noise(random: Random) -> bytes:
    """Return bytes that hardly shrink, so many that their compressed form arrives in several pieces."""
    return random.randbytes(3 * PIECE_IN)


def inflated(*frames: CompressedFrame) -> list[bytes]:
    inflation = Inflation(15)
    pieces = []
    for data in frames:
        inflation.add(data)
        while not inflation.done:
            pieces.append(inflation.piece())
    return pieces


def cut(data: bytes, places: set[int]) -> list[CompressedFrame]:
    """Return the frames of a message that is cut at these places."""
    bounds = [0, *sorted(places), len(data)]
    return [
        CompressedFrame(Opcode.CONT if start else Opcode.TEXT, data[start:end], fin=end == len(data))
        for start, end in itertools.pairwise(bounds)
    ]


@given(
    data=st.one_of(st.binary(), st.builds(bytes, st.integers(0, 3 * PIECE_OUT)), st.randoms().map(noise)),
    cuts=st.sets(st.floats(0.01, 0.99), max_size=5),
)
def test_any_fragmentation_gives_the_message(data: bytes, cuts: set[float]) -> None:
    compressed = deflate(data, 15)
    pieces = inflated(*cut(compressed, {int(share * len(compressed)) for share in cuts} - {0, len(compressed)}))
    assert b"".join(pieces) == data
    assert max(map(len, pieces), default=0) <= PIECE_OUT


def test_data_after_the_final_block_is_dropped() -> None:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    ended = compressor.compress(b"all") + compressor.flush(zlib.Z_FINISH)
    frames = [CompressedFrame(Opcode.CONT, bytes(PIECE_IN), fin=False)] * 100
    assert b"".join(inflated(CompressedFrame(Opcode.TEXT, ended, fin=False), *frames)) == b"all"


# Limits.


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


def test_very_large_messages_do_not_delay_others() -> None:
    assert encode_compressed(bytes(MAX_BYTES), 12)[0] == 0xC2
    assert encode_compressed(bytes(MAX_BYTES + 1), 12)[0] == 0x82
