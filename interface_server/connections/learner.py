"""Learn an id from an answer, or give the client one in it: its next requests have it, and go to the same worker."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from asgibus.interface_server.affinity import Ids, Learn
from asgibus.protocol.events import (
    ACCEPT,
    EVENT_STREAM,
    RESPONSE,
    RESPONSE_BODY,
    RESPONSE_END,
    RESPONSE_START,
    RESPONSE_START_TRAILERS,
    Event,
)

HEADS: Final = (RESPONSE, RESPONSE_START, RESPONSE_START_TRAILERS, EVENT_STREAM, ACCEPT)
_BODIES: Final = (RESPONSE, RESPONSE_BODY, RESPONSE_END)
_LAST: Final = (RESPONSE, RESPONSE_END, ACCEPT)

SEARCHED_BYTES: Final = 256 * 1024  # of a body, decompressed: a page with a script at its end
OVERLAP_BYTES: Final = 512  # of earlier parts that are searched again: an id may be in two parts

_ENCODING: Final = re.compile(rb"\ncontent-encoding: *([^\r]*)")
_TYPE: Final = re.compile(rb"\ncontent-type: *([^\r;]*)")
_GZIP_OR_ZLIB: Final = zlib.MAX_WBITS + 32


class Learner:
    """Searches one answer for an id, until it is found or there cannot be one. Implements `AnswerReader`.

    Args:
        learns: How to find ids.
        on_found: Called with the ids that are found first, before the client gets them.
    """

    def __init__(self, learns: Sequence[Learn], on_found: Callable[[Ids], None]) -> None:
        self._learns = learns
        self._on_found = on_found
        self._body = b""  # the end of what was searched
        self._left = SEARCHED_BYTES
        self._inflate: Any = None  # of a compressed body

    def read(self, event: Event) -> tuple[Event, bool]:
        """See `AnswerReader`."""
        code: int = event[0]
        done = code in HEADS and self._search_head(event[2])
        if not done and code in _BODIES:
            done = self._search_body(event[-1], last=code in _LAST)
        return event, done or code in _LAST

    def _search_head(self, lines: bytes) -> bool:
        """Search header lines. Return whether the search is over."""
        head = b"\n" + lines
        if self._search(head, [learn for learn in self._learns if learn.in_header is not None]):
            return True
        self._learns = [learn for learn in self._learns if learn.in_body is not None]
        self._body, self._left, self._inflate = b"", SEARCHED_BYTES, None
        content_type, encoding = _TYPE.search(head), _ENCODING.search(head)
        if content_type is not None and not content_type[1].startswith((b"text/", b"application/")):
            return True
        if encoding is not None:
            if encoding[1].strip() not in (b"gzip", b"deflate"):
                return True
            self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
        return not self._learns

    def _search_body(self, data: bytes, *, last: bool) -> bool:
        """Search a part of the body. Return whether the search is over."""
        if self._inflate is not None:
            try:
                data = self._inflate.decompress(data, self._left)
            except zlib.error:
                return True
        data = data[: self._left]
        self._left -= len(data)
        text = self._body + data + (b"\n" if last else b"")  # an id at the very end is whole
        self._body = text[-OVERLAP_BYTES:]
        return self._search(text, self._learns) or self._left <= 0

    def _search(self, text: bytes, learns: Sequence[Learn]) -> bool:
        for learn in learns:
            if (ids := learn.find(text)) is not None:
                self._on_found(ids)
                return True
        return False


class CookieSetter:
    """Adds a cookie to an answer. Implements `AnswerReader`.

    Args:
        line: The header line.
    """

    def __init__(self, line: bytes) -> None:
        self._line = line

    def read(self, event: Event) -> tuple[Event, bool]:
        """See `AnswerReader`."""
        if event[0] not in HEADS:
            return event, False
        return (*event[:2], event[2] + self._line, *event[3:]), True
