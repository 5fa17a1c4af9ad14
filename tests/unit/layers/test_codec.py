from collections import Counter
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgibus.layers.codec import MESSAGE_BYTES, pack, pack_message, unpack, unpack_message
from asgibus.layers.errors import MessageTooLarge
from asgibus.layers.redis.codec import EntryCodec

ENTRIES = EntryCodec(None, Counter())

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=300)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def types(value: Any) -> Any:
    if isinstance(value, list):
        return [types(item) for item in value]
    if isinstance(value, dict):
        return {key: types(item) for key, item in value.items()}
    return type(value)


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_messages_are_unchanged_by_packing(message: dict[str, Any]) -> None:
    copy = unpack_message(pack_message(message))
    assert copy == message
    assert types(copy) == types(message)


def test_a_frame_comes_back_as_tuples() -> None:
    assert unpack(pack((1, [2, (b"3", "4")], {"k": [5]}))) == (1, (2, (b"3", "4")), {"k": (5,)})


@pytest.mark.parametrize(
    "value",
    [2**64, -(2**63) - 1, object(), {1, 2}, 1j, "\ud800", lambda: None],
    ids=["too large", "too small", "object", "set", "complex", "lone surrogate", "function"],
)
def test_unsupported_values_are_a_type_error(value: object) -> None:
    with pytest.raises(TypeError):
        pack_message({"value": value})


def test_a_recursive_message_is_a_type_error() -> None:
    message: dict[str, Any] = {}
    message["self"] = message
    with pytest.raises(TypeError):
        pack_message(message)


@given(VALUES)
def test_entries_are_packed_as_messages_are(value: Any) -> None:
    assert ENTRIES.pack("", value) == pack(value)


class Text(str):
    __slots__ = ()


class Data(bytes):
    __slots__ = ()


class Number(int):
    __slots__ = ()


@pytest.mark.parametrize("value", [Text("é"), Data(b"x"), Number(3), HTTPStatus.OK, bytearray(b"x"), memoryview(b"x")])
def test_subclasses_in_entries_are_packed_as_their_base_class(value: object) -> None:
    assert ENTRIES.pack("", (1, [value])) == pack((1, [value]))


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, object(), 1j, "\ud800"])
def test_an_entry_that_cannot_be_packed_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError, match="cannot be put in a message"):
        ENTRIES.pack("", (1, [value]))
    with pytest.raises(TypeError, match="cannot be put in a message"):
        pack((1, [value]))


@pytest.mark.parametrize("message", [None, "text", [("a", 1)], 1])
def test_a_message_is_a_dict(message: object) -> None:
    with pytest.raises(TypeError, match="a message is a dict"):
        pack_message(message)


def test_a_message_is_bounded() -> None:
    assert len(pack_message({"b": b"x" * (MESSAGE_BYTES - 100)})) <= MESSAGE_BYTES
    with pytest.raises(MessageTooLarge, match=str(MESSAGE_BYTES)) as raised:
        pack_message({"b": b"x" * MESSAGE_BYTES})
    assert raised.value.size > raised.value.limit == MESSAGE_BYTES


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\x81", b"\x92\x01", b"\x01\x02", b"\xa1\xff", b"\x81\x80\x01", b"\x91" * 5000 + b"\x01"],
    ids=["empty", "reserved", "cut map", "cut array", "more behind", "not UTF-8", "map as key", "deep"],
)
def test_damaged_bytes_are_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a message"):
        unpack(data)


@pytest.mark.parametrize("data", [b"\x01", b"\x90", b"\xa1a", b"\xc0"])
def test_other_values_than_messages_are_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a message"):
        unpack_message(data)


def test_deep_messages_are_readable_if_packed() -> None:
    value: Any = 1
    for depth in range(1, 5000):
        value = [value]
        if depth % 100 == 0:
            try:
                packed = pack_message({"value": value})
            except TypeError:
                break
            unpacked, levels = unpack_message(packed)["value"], 0
            while isinstance(unpacked, list):
                unpacked, levels = unpacked[0], levels + 1
            assert levels == depth
    assert depth > 400


@given(st.binary(max_size=200))
def test_noise_is_a_value_or_a_value_error(data: bytes) -> None:
    with suppress(ValueError):
        unpack(data)


def test_an_array_may_be_a_key() -> None:
    message = {"by place": {(1, 2): [3, [4]]}, "list": [5]}
    assert unpack_message(pack_message(message)) == message
