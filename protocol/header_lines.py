"""The headers of a response as lines, from the event of a worker to the head that the client gets, and its body.

A line is `name: value` with the name in lower case, ended by CRLF: RFC 9112 section 5. A worker checks the headers of
the app and makes the lines. An interface server checks them again, as anyone may have written them to the store, and
copies them to the head.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache, wraps
from typing import Any, Final, TypeVar

_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")  # a token, RFC 9110 section 5.6.2
_BAD_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # control bytes, which would split the response
_CONTROL_BYTES: Final = bytes([*range(9), *range(10, 32), 127])  # the same
_LINES: Final = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9a-z]+: [\t -~\x80-\xff]*\r\n)*\Z")
_CONTENT: Final = re.compile(rb"\ncontent-(length|type): ([^\r]*)")

MAX_LENGTH_DIGITS: Final = 18  # of a Content-Length: larger than any body, and within 64 bits
KNOWN_NAMES: Final = 1000  # whose checked form is kept; apps use few, and may make up others without end

CACHED_RESULTS: Final = 512  # of each function: apps answer with few sets of headers, or with others each time
CACHED_BYTES: Final = 512  # of lines whose results are cached

T = TypeVar("T")


def cache_short(work: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """Cache the latest results of a function of header lines, or of one value, unless they are long."""
    cached = lru_cache(CACHED_RESULTS)(work)

    @wraps(work)
    def look_up(lines: bytes) -> T:
        return cached(lines) if len(lines) <= CACHED_BYTES else work(lines)

    return look_up


_beginnings: dict[Any, bytes] = {}
"""The beginnings of lines, by the names as apps write them."""


def make_lines(headers: Iterable[Iterable[Any]], what: str) -> bytes:
    """Return headers of an app as lines.

    Args:
        headers: Pairs of a name and a value.
        what: What the headers belong to, for errors.

    Raises:
        ValueError: A name is not a token, a value holds control bytes, or an item is no pair.
        TypeError: A name or a value is not bytes.
    """
    pairs: Collection[Any] = headers if isinstance(headers, (list, tuple)) else [*headers]
    lines: bytes | None
    try:
        lines = b"".join([_beginnings[name] + value + b"\r\n" for name, value in pairs])
    except (KeyError, TypeError):  # a new name, or something that is not bytes
        lines = None  # and no call here: its error would have this one in the app's traceback
    # Without its control bytes, the text is shorter by the CRLF of each line, or there are some in the values.
    if lines is None or len(lines) - len(lines.translate(None, _CONTROL_BYTES)) != 2 * len(pairs):
        return _make_lines_checked(pairs, what)
    return lines


def _make_lines_checked(pairs: Iterable[Any], what: str) -> bytes:
    """Return headers as lines, and check each of them."""
    lines = []
    for given_name, given_value in pairs:
        name, value = as_bytes(given_name, f"a name in {what}"), as_bytes(given_value, f"a value in {what}")
        if not _NAME.match(name):
            raise ValueError(f"{name!r} in {what} is not a header name")
        if _BAD_VALUE.search(value):
            raise ValueError(f"the value of {name!r} in {what} holds control bytes")
        beginning = name.lower() + b": "
        if len(_beginnings) < KNOWN_NAMES:
            _beginnings[name] = beginning
        lines.append(beginning + value + b"\r\n")
    return b"".join(lines)


def as_bytes(value: Any, what: str) -> bytes:
    """Return a value of an app as bytes. Raises TypeError, which says what the value is."""
    if type(value) is bytes:
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise TypeError(f"{what} must be bytes, not {type(value).__name__}")


@cache_short
def are_lines(data: bytes) -> bool:
    """Return whether these bytes are lines, so that nothing but headers gets into a head with them."""
    return _LINES.match(data) is not None


def split_lines(lines: bytes) -> list[tuple[bytes, bytes]]:
    """Return the names and values of lines."""
    return [(name, value) for name, _, value in [line.partition(b": ") for line in lines.split(b"\r\n")[:-1]]]


def without(lines: bytes, unfit: Collection[bytes]) -> bytes:
    """Return the lines without those of the given names."""
    return b"".join([b"%b: %b\r\n" % (name, value) for name, value in split_lines(lines) if name not in unfit])


@cache_short
def find_content(lines: bytes) -> tuple[list[bytes], bytes]:
    """Return the values of Content-Length in lines, and the last one of Content-Type; empty if there is none."""
    lengths, content_type = [], b""
    for name, value in _CONTENT.findall(b"\n" + lines):
        if name == b"length":
            lengths.append(value)
        else:
            content_type = value
    return lengths, content_type


def is_encoded(lines: bytes) -> bool:
    """Return whether a body is compressed, or encoded in another way, and so cannot be read."""
    return any(name == b"content-encoding" and value.lower() != b"identity" for name, value in split_lines(lines))


def is_length(value: bytes) -> bool:
    """Return whether a value is valid for a Content-Length header: digits, and no more than a body can have."""
    return value.isdigit() and len(value) <= MAX_LENGTH_DIGITS


class AnnouncedBody:
    """The body of a response, as its head announces it.

    Args:
        status: The status of the response.
        lines: The headers.
        head_only: Whether the request was a HEAD.
        may_stream: Whether the body may be an event stream: it has no trailers, and is not the refusal of a WebSocket.
    """

    __slots__ = ("is_encoded", "is_event_stream", "remaining")

    def __init__(self, status: int, lines: bytes, *, head_only: bool, may_stream: bool) -> None:
        self.remaining: int | None = None
        """The bytes that are left of the content-length; None if there is none, or no body."""
        self.is_event_stream = False
        """Whether this is an event stream, which lasts until either side ends it."""
        self.is_encoded = False
        """Whether this event stream is compressed."""
        if head_only or status in (204, 304):
            return
        lengths, content_type = find_content(lines)
        if lengths:
            self.remaining = int(lengths[0])
        elif may_stream:
            self.is_event_stream = content_type[:17].lower() == b"text/event-stream"
            self.is_encoded = self.is_event_stream and is_encoded(lines)

    def count(self, length: int, *, last: bool) -> None:
        """Count a part of the body.

        Args:
            length: The bytes of the part.
            last: Whether it is the last part.

        Raises:
            RuntimeError: The body is longer or shorter than its content-length.
        """
        if self.remaining is None:
            return
        if length > self.remaining:
            raise RuntimeError("the response's body is longer than its content-length")
        self.remaining -= length
        if last and self.remaining:
            raise RuntimeError(f"the response's body is {self.remaining} bytes shorter than its content-length")
