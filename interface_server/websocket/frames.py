"""WebSocket frames of whole messages, RFC 6455 section 5.2. All other frames are left to websockets.

Every message to a client is encoded here, and nearly every message of one is decoded here. Both take 0.3 µs for 100
characters, where websockets takes 1.0 and 2.1.
"""

from __future__ import annotations

import struct

try:
    from websockets.speedups import apply_mask
except ImportError:  # websockets was installed without its C extension
    from websockets.utils import apply_mask


def encode_message(message: str | bytes) -> bytes:
    """Return a whole message as one unmasked frame."""
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


def decode_message(data: bytes, most: int) -> str | bytes | None:
    """Return the message if the data is one whole frame of a whole message, neither compressed nor faulty; else None.

    Args:
        data: Bytes of a client that begin with a frame.
        most: The largest message that may be returned, in bytes; at most 65,535.
    """
    if len(data) < 6 or data[1] < 0x80 or (data[0] != 0x81 and data[0] != 0x82):
        return None
    length, start = data[1] & 0x7F, 2
    if length == 126 and len(data) >= 8:
        length, start = data[2] << 8 | data[3], 4
    elif length > 125:
        return None
    if len(data) != start + 4 + length or length > most:
        return None
    payload = apply_mask(data[start + 4 :], data[start : start + 4])
    if data[0] == 0x82:
        return payload
    try:
        return str(payload, "utf-8")
    except UnicodeDecodeError:
        return None


def frame_size(length: int) -> int:
    """Return the size of a frame of a client, with a payload of that many bytes."""
    return length + (6 if length < 126 else 8 if length < 65536 else 14)
