"""Headers as lines: what an app sends is one line for each header, or is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgibus.protocol import header_lines
from asgibus.protocol.header_lines import KNOWN_NAMES, are_lines, find_content, make_lines, split_lines, without

CONTROL_BYTES = {*range(9), *range(10, 32), 127}
VALUES = st.binary(max_size=20) | st.sampled_from(
    (b"a\r\nx-b: c", b"\r", b"\n", b"\r\n", b"a: b", b" a ", b"\t", b"\xff")
)


@given(st.lists(st.tuples(st.sampled_from((b"x-a", b"X-B")), VALUES), max_size=4))
def test_each_header_is_one_line_or_refused(headers: list[tuple[bytes, bytes]]) -> None:
    make_lines([(b"x-a", b""), (b"X-B", b"")], "the test")  # from the second time on, names take a shorter way
    if any(CONTROL_BYTES & {*value} for _, value in headers):
        with pytest.raises(ValueError, match="holds control bytes"):
            make_lines(headers, "the test")
    else:
        lines = make_lines(headers, "the test")
        assert are_lines(lines)
        assert split_lines(lines) == [(name.lower(), value) for name, value in headers]


@pytest.mark.parametrize("name", [b"", b"a b", b"a: b", b"a:", b"a\r\nb", b"\xe4", b"x-\0"])
def test_a_name_is_refused_each_time(name: bytes) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="is not a header name"):
            make_lines([(b"x-a", b"1"), (name, b"2")], "the test")


@pytest.mark.parametrize("pair", [("x-a", b"1"), (b"x-a", "1"), (b"x-a", 1), (None, b"1")])
def test_other_types_are_refused_for_names_that_are_known_too(pair: Any) -> None:
    make_lines([(b"x-a", b"1")], "the test")
    with pytest.raises(TypeError, match="in the test must be bytes") as raised:
        make_lines([pair], "the test")
    assert raised.value.__context__ is None, "the app's log would show the error of a lookup, too"


def test_views_and_arrays_are_bytes() -> None:
    for _ in range(2):
        made = make_lines(iter([(bytearray(b"X-V"), memoryview(b"1")), [b"x-v", bytearray(b"2")]]), "the test")
        assert made == b"x-v: 1\r\nx-v: 2\r\n"
        assert type(made) is bytes


def test_names_without_end_take_no_memory_without_end() -> None:
    for number in range(2 * KNOWN_NAMES):
        assert make_lines([(b"x-%d" % number, b"1")], "the test") == b"x-%d: 1\r\n" % number
    assert len(header_lines._beginnings) <= KNOWN_NAMES


@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
def test_content_headers_are_found_in_lines(long: bool) -> None:
    lines = b"content-type: a\r\nx-content-length: 1\r\ncontent-length: 2\r\ncontent-length: x\r\ncontent-type: b\r\n"
    lines += b"x: " + b"y" * 1000 * long + b"\r\n"
    assert find_content(lines) == ([b"2", b"x"], b"b")
    assert find_content(without(lines, (b"content-length", b"content-type"))) == ([], b"")
