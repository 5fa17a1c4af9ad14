"""Messages and frames as bytes: msgpack, bytes and str kept apart, integers of 64 bits, nothing that runs code.

Arrays come back as tuples: what crossed a process cannot be altered, and so behaves as it does within one.
"""

from __future__ import annotations

from typing import Any

import msgpack

from asgibus.layers.errors import MessageTooLarge

MESSAGE_BYTES = 16 * 1024 * 1024  # one packed message: a store may take more, but one entry must not stall all others


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


def pack_message(message: object) -> bytes:
    """A public message as bytes. Raises TypeError for what is none, MessageTooLarge over 16 MiB."""
    if not isinstance(message, dict):
        raise TypeError(f"a message is a dict, not {type(message).__name__}")
    packed = pack(message)
    if len(packed) > MESSAGE_BYTES:
        raise MessageTooLarge(len(packed), MESSAGE_BYTES)
    return packed


def unpack_message(data: bytes) -> dict[str, Any]:
    """The message in `data`, with lists for arrays, as apps expect them. Raises ValueError when it is none."""
    try:
        message = msgpack.unpackb(data, use_list=True, raw=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException):  # damaged, or with an array for a key: look closer
        message = listed(unpack(data))
    if not isinstance(message, dict):
        raise ValueError(f"not a message: {type(message).__name__}")
    return message


def listed(value: Any) -> Any:
    """A copy of `value` with lists for tuples. It walks without recursion: a message may be nested as deep as any."""
    top = [value]
    unwalked: list[list[Any] | dict[Any, Any]] = [top]
    while unwalked:
        inner = unwalked.pop()
        for key, item in enumerate(inner) if isinstance(inner, list) else inner.items():
            if isinstance(item, tuple):
                inner[key] = copy = list(item)
                unwalked.append(copy)
            elif isinstance(item, dict):
                inner[key] = items = dict(item)
                unwalked.append(items)
    return top[0]
