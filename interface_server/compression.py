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
from websockets.headers import build_extension, parse_extension

from asgibus.interface_server.request import Request
from asgibus.interface_server.websocket_frames import encode_message

WINDOW_BITS = 12  # 4 KiB: messages end before a larger window pays, and this one costs a tenth of the time to set up
MEMORY_LEVEL = 5
MIN_BYTES = 128  # a shorter message hardly becomes shorter
MAX_BYTES = 256 * 1024  # a longer one would keep the other sockets waiting: 256 KiB take some milliseconds

_TEXT, _BYTES = b"\xc1", b"\xc2"  # the first byte of a compressed message: with the bit RSV1
_TAIL = 4  # bytes at the end of a flush that are always the same, and left out: RFC 7692 section 7.2.1


class Compression(NamedTuple):
    """What was agreed on with one client."""

    header: bytes
    """The value of the answer's Sec-WebSocket-Extensions."""
    reading: Extension
    """What decompresses the client's messages."""
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
            return Compression(build_extension([(name, list(agreed))]).encode(), reading, min(bits, WINDOW_BITS))
    return None


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
