"""Messages and frames as bytes: msgpack, bytes and str kept apart, integers of 64 bits, nothing that runs code.

Arrays come back as tuples: what crossed a process cannot be altered, and so behaves as it does within one.
"""

from __future__ import annotations

from typing import Any

import msgpack


def pack(value: Any) -> bytes:
    """`value` as bytes. Raises TypeError for a type that a message may not hold, or an integer over 64 bits."""
    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True)
    except (OverflowError, ValueError) as error:
        raise TypeError(f"cannot be put in a message: {error}") from error
    return packed


def unpack(data: bytes) -> Any:
    """The value in `data`, with tuples for arrays. Raises ValueError when it is damaged."""
    try:
        return msgpack.unpackb(data, use_list=False, raw=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"not a message: {error}") from error


def copy(message: dict[str, Any]) -> dict[str, Any]:
    """A deep copy of a message as another process would get it. Raises TypeError as `pack` does."""
    copied: dict[str, Any] = listed(unpack(pack(message)))
    return copied


def listed(value: Any) -> Any:
    """`value` with lists for tuples, as an app expects the arrays in a message."""
    if isinstance(value, tuple):
        return [listed(item) for item in value]
    if isinstance(value, dict):
        return {key: listed(item) for key, item in value.items()}
    return value
