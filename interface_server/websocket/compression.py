"""Compression of WebSocket messages, RFC 7692 ("permessage-deflate"): agreeing on it, and compressed frames to clients.

Each message is compressed by itself, in both directions, whatever the client has asked for: so an open socket keeps no
compressor, and none of another message can be guessed from the length of a later one.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

from websockets.exceptions import InvalidHeader, NegotiationError
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import CTRL_OPCODES, Frame, Opcode
from websockets.headers import build_extension, parse_extension
from websockets.typing import ExtensionName

from asgibus.interface_server.http.request import Request
from asgibus.interface_server.websocket.frames import encode_message

WINDOW_BITS = 12  # 4 KiB: messages end before a larger window pays, and this one costs a tenth of the time to set up
MEMORY_LEVEL = 5
MIN_BYTES = 128  # a shorter message hardly becomes shorter
MAX_BYTES = 256 * 1024  # a longer one would keep the other sockets waiting: 256 KiB take some milliseconds

_TEXT, _BYTES = b"\xc1", b"\xc2"  # the first byte of a compressed message: with the bit RSV1
_END = b"\x00\x00\xff\xff"  # what a client leaves out at the end of a message
PIECE_IN = 16 * 1024  # bytes that are decompressed at once
PIECE_OUT = 128 * 1024  # bytes that come of them, at most
_TAIL = 4  # bytes at the end of a flush that are always the same, and left out: RFC 7692 section 7.2.1


class Compression(NamedTuple):
    """What was agreed on with one client."""

    header: bytes
    """The value of the answer's Sec-WebSocket-Extensions."""
    reading_bits: int
    """How far back the client's messages may refer."""
    window_bits: int
    """How far back our own compressed messages may refer."""


def agree(request: Request) -> Compression | None:
    """The first offer of the client that can be met, if there is one. What is malformed is no offer."""
    factory = ServerPerMessageDeflateFactory(
        server_no_context_takeover=True, client_no_context_takeover=True, client_max_window_bits=WINDOW_BITS
    )
    offers = b", ".join([value for name, value in request.headers if name == b"sec-websocket-extensions"])
    if not offers:
        return None
    try:
        extensions = parse_extension(offers.decode("latin-1"))
    except InvalidHeader:
        return None
    for name, parameters in extensions:
        if name == factory.name:
            try:
                agreed, reading = factory.process_request_params(parameters, [])
            except NegotiationError:
                continue
            bits = next((int(value) for key, value in agreed if key == "server_max_window_bits" and value), WINDOW_BITS)
            header = build_extension([(name, list(agreed))]).encode()
            return Compression(header, reading.remote_max_window_bits, min(bits, WINDOW_BITS))
    return None


class CompressedFrame(Frame):
    """A frame of a compressed message, its payload as it came."""


class CompressionMarks(Extension):
    """Marks the frames of compressed messages for websockets' protocol, and leaves them to `Inflation`."""

    name = ExtensionName("permessage-deflate")

    def __init__(self) -> None:
        self._in_message = False

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        """Return a frame of a compressed message as a `CompressedFrame`, any other as it is."""
        if frame.opcode in CTRL_OPCODES:
            return frame
        compressed = self._in_message if frame.opcode is Opcode.CONT else frame.rsv1
        self._in_message = compressed and not frame.fin
        if not compressed:
            return frame
        rsv1 = frame.opcode is Opcode.CONT and frame.rsv1  # the bit belongs to the first frame alone
        return CompressedFrame(frame.opcode, frame.data, frame.fin, rsv1, frame.rsv2, frame.rsv3)

    def encode(self, frame: Frame) -> Frame:
        """Return a frame as it is: only control frames are sent through the protocol, which are never compressed."""
        return frame


class Inflation:
    """Decompresses one message in pieces, each of which takes less than a millisecond."""

    __slots__ = ("_at", "_data", "_decoder", "_tail", "done")

    def __init__(self, bits: int) -> None:
        self._decoder = zlib.decompressobj(wbits=-bits)
        self._data = b""
        self._at = 0
        self._tail = b""
        self.done = True
        """Whether all that was added is decompressed."""

    def add(self, frame: CompressedFrame) -> None:
        """Add the next frame of the message."""
        self._data = bytes(frame.data) + (_END if frame.fin else b"")
        self._at = 0
        self.done = False

    def piece(self) -> bytes:
        """Return the next piece of what was added. Raises zlib.error."""
        if self._decoder.eof:  # what comes behind the last block is ignored, and not kept
            self.done = True
            return b""
        decoder, data = self._decoder, self._tail
        if not data:
            data = self._data[self._at : self._at + PIECE_IN]
            self._at += PIECE_IN
        piece = decoder.decompress(data, PIECE_OUT)
        self._tail = decoder.unconsumed_tail
        # A full piece may have left more in the decoder.
        self.done = decoder.eof or (len(piece) < PIECE_OUT and not self._tail and self._at >= len(self._data))
        if self.done:
            self._data = b""
        return piece


def encode_compressed(message: str | bytes, window_bits: int) -> bytes:
    """A whole message as one frame, compressed where that makes it shorter."""
    data = message.encode() if isinstance(message, str) else message
    if MIN_BYTES <= len(data) <= MAX_BYTES:
        compressor = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -window_bits, MEMORY_LEVEL)
        compressed = compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)
        if len(compressed) - _TAIL < len(data):
            first = _TEXT if isinstance(message, str) else _BYTES
            return first + encode_message(compressed[:-_TAIL])[1:]
    return encode_message(message)
