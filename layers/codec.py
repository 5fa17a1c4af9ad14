"""Pack messages as msgpack: bytes and str stay apart, integers have 64 bits, nothing runs code.

The package msgspec packs faster than msgpack, but it accepts more types, and turns a set into an array, for example. So
values of apps are packed by msgpack, which refuses these types. `layers.redis.codec` packs the other values.

Arrays are unpacked as tuples: frames must not be altered, whether they crossed a process or not.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

from asgibus.layers.errors import MessageTooLarge

MESSAGE_BYTES: Final = 16 * 1024 * 1024  # of one packed message: larger ones would stall all others

DEEP_BYTES: Final = 1000  # of a packed value, of which one that is nested so deep has more


def pack(value: Any) -> bytes:
    """Pack a value. Raises TypeError for a type that msgpack does not know, and for an integer over 64 bits."""
    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True)
    except (OverflowError, TypeError, ValueError) as error:
        raise TypeError(f"cannot be put in a message: {error}") from error
    return packed


def pack_item(item: Any) -> bytes:
    """Pack a value that is put in arrays, messages and frames later. Raises TypeError as `pack`, and for deep nesting.

    The package msgpack reads as many levels as it writes, 1,024: a value at that limit could be read nowhere.
    """
    packed = pack(item)
    if len(packed) >= DEEP_BYTES:
        pack([[[[[[[[item]]]]]]]])
    return packed


def unpack(data: bytes) -> Any:
    """Unpack a value, with tuples for arrays. Raises ValueError for damaged data."""
    try:
        return msgpack.unpackb(data, use_list=False, raw=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"not a message: {error}") from error


def pack_message(message: object) -> bytes:
    """Pack a message of an app. Raises TypeError if it is not a valid message, MessageTooLarge over 16 MiB."""
    if not isinstance(message, dict):
        raise TypeError(f"a message is a dict, not {type(message).__name__}")
    packed = pack(message)
    if len(packed) > MESSAGE_BYTES:
        raise MessageTooLarge(len(packed), MESSAGE_BYTES)
    return packed


def unpack_message(data: bytes) -> dict[str, Any]:
    """Unpack a message, with lists for arrays, as apps expect. Raises ValueError if `data` is not a message."""
    try:
        message = msgpack.unpackb(data, use_list=True, raw=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException):  # damaged, or an array is a key, which a list cannot be
        message = listed(unpack(data))
    if not isinstance(message, dict):
        raise ValueError(f"not a message: {type(message).__name__}")
    return message


def unpack_items(data: bytes) -> list[Any]:
    """Unpack an array, with lists for arrays in it. Raises ValueError if `data` is not an array."""
    try:
        items = msgpack.unpackb(data, use_list=True, raw=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException):  # as in `unpack_message`
        items = listed(unpack(data))
    if not isinstance(items, list):
        raise ValueError(f"not an array: {type(items).__name__}")
    return items


def listed(value: Any) -> Any:
    """Copy a value, with lists for tuples. There is no recursion, as messages may be nested to any depth."""
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
