"""WebSocket frames to clients. All else about frames is left to websockets."""

from __future__ import annotations

import struct


def encode_message(message: str | bytes) -> bytes:
    """A whole message as one unmasked frame, RFC 6455 section 5.2.

    Here and not the library's, because every message passes through it: 0.2 µs instead of 1.0 for 100 characters.
    """
    if isinstance(message, str):
        data, opcode = message.encode(), 0x81
    else:
        data, opcode = message, 0x82
    length = len(data)
    if length < 126:
        return struct.pack("!BB", opcode, length) + data
    if length < 65536:
        return struct.pack("!BBH", opcode, 126, length) + data
    return struct.pack("!BBQ", opcode, 127, length) + data
