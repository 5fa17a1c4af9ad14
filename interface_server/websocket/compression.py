"""Compression of WebSocket messages, RFC 7692 ("permessage-deflate"): negotiation, decompression and compressed frames.

Each message is compressed by itself, in both directions. So an open socket keeps no compressor, and the length of a
message reveals nothing of another message.
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

WINDOW_BITS = 12  # 4 KiB: few messages profit from a larger window, which takes ten times as long to set up
MEMORY_LEVEL = 5
MIN_BYTES = 128  # a shorter message gains next to nothing
MAX_BYTES = 256 * 1024  # a longer one would hold up the other sockets: 256 KiB take some milliseconds

_TEXT, _BYTES = b"\xc1", b"\xc2"  # the first byte of a compressed message: with the bit RSV1
_END = b"\x00\x00\xff\xff"  # left out at the end of a message: RFC 7692 section 7.2.1
PIECE_IN = 16 * 1024  # bytes that are decompressed at once
PIECE_OUT = 128 * 1024  # bytes that a piece yields, at most


class Compression(NamedTuple):
    """The parameters negotiated with one client."""

    header: bytes
    """The value of Sec-WebSocket-Extensions in the response."""
    reading_bits: int
    """The window of messages from the client, as a power of two."""
    window_bits: int
    """The window of messages to the client, as a power of two."""


def negotiate(request: Request) -> Compression | None:
    """Accept the first offer of the client that can be met. A malformed offer is ignored."""
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
    """A frame of a compressed message, whose payload is still compressed."""


class CompressionMarks(Extension):
    """Marks the frames of compressed messages for the parser of websockets, which then leaves them compressed."""

    name = ExtensionName("permessage-deflate")

    def __init__(self) -> None:
        self.in_message = False
        """Whether further frames of a compressed message are to come."""

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        """Return a frame of a compressed message as a `CompressedFrame`, and any other frame as it is."""
        if frame.opcode in CTRL_OPCODES:
            return frame
        compressed = self.in_message if frame.opcode is Opcode.CONT else frame.rsv1
        self.in_message = compressed and not frame.fin
        if not compressed:
            return frame
        rsv1 = frame.opcode is Opcode.CONT and frame.rsv1  # the bit belongs to the first frame alone
        return CompressedFrame(frame.opcode, frame.data, frame.fin, rsv1, frame.rsv2, frame.rsv3)

    def encode(self, frame: Frame) -> Frame:
        """Return a frame as it is: the parser sends only control frames, which are never compressed."""
        return frame


class Inflation:
    """Decompresses one message in pieces, each of which takes less than a millisecond.

    The window is given as a power of two.
    """

    __slots__ = ("_at", "_data", "_decoder", "_tail", "done")

    def __init__(self, bits: int) -> None:
        self._decoder = zlib.decompressobj(wbits=-bits)
        self._data = b""
        self._at = 0
        self._tail = b""
        self.done = True
        """Whether everything that was added is decompressed."""

    def add(self, frame: CompressedFrame) -> None:
        """Add the next frame of the message."""
        self._data = bytes(frame.data) + (_END if frame.fin else b"")
        self._at = 0
        self.done = False

    def piece(self) -> bytes:
        """Return the next piece of the message.

        Raises:
            zlib.error: The data is not compressed in this way.
        """
        if self._decoder.eof:  # bytes after the last block are ignored, and not kept
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
    """Return a whole message as one frame, compressed if that makes it shorter."""
    data = message.encode() if isinstance(message, str) else message
    if MIN_BYTES <= len(data) <= MAX_BYTES:
        compressor = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -window_bits, MEMORY_LEVEL)
        compressed = compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)
        if len(compressed) - len(_END) < len(data):
            first = _TEXT if isinstance(message, str) else _BYTES
            return first + encode_message(compressed[: -len(_END)])[1:]
    return encode_message(message)
