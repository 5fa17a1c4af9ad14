"""Learn an id that the app makes, from its answer: the next requests have it, and must go to the same worker."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from asgibus.interface_server.affinity import Ids, Learn
from asgibus.protocol.events import (
    ACCEPT,
    RESPONSE,
    RESPONSE_BODY,
    RESPONSE_END,
    RESPONSE_START,
    RESPONSE_START_TRAILERS,
    Event,
)

if TYPE_CHECKING:
    from asgibus.interface_server.connections.connection import Connection

_HEADS: Final = (RESPONSE, RESPONSE_START, RESPONSE_START_TRAILERS, ACCEPT)
_BODIES: Final = (RESPONSE, RESPONSE_BODY, RESPONSE_END)
_LAST: Final = (RESPONSE, RESPONSE_END, ACCEPT)

SEARCHED_BYTES: Final = 256 * 1024  # of a body, decompressed: a page with a script at its end
OVERLAP_BYTES: Final = 512  # of earlier parts that are searched again: an id may be in two parts

_ENCODING: Final = re.compile(rb"\ncontent-encoding: *([^\r]*)")
_TYPE: Final = re.compile(rb"\ncontent-type: *([^\r;]*)")
_GZIP_OR_ZLIB: Final = zlib.MAX_WBITS + 32


class Learner:
    """A terminator before that of a connection, until an id is found in the answer or there cannot be one.

    Args:
        connection: The connection. Its request has no key.
        learns: How to find ids.
        on_found: Called with the ids that are found first, before the client gets them.
    """

    def __init__(self, connection: Connection, learns: Sequence[Learn], on_found: Callable[[Ids], None]) -> None:
        self._connection = connection
        self._terminator = connection.terminator
        self._learns = learns
        self._on_found = on_found
        self._body = b""  # the end of what was searched
        self._left = SEARCHED_BYTES
        self._inflate: Any = None  # of a compressed body

    @property
    def write_paused(self) -> bool:
        """See `Terminator`."""
        return self._terminator.write_paused

    def write_event(self, event: Event) -> None:
        """See `Terminator`."""
        code: int = event[0]
        done = code in _HEADS and self._search_head(event[2])
        if not done and code in _BODIES:
            done = self._search_body(event[-1], last=code in _LAST)
        if done or code in _LAST:
            self._connection.terminator = self._terminator
        self._terminator.write_event(event)

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

    def broadcast(self, event: Event, shared: dict[str, Any]) -> None:
        """See `Terminator`."""
        self._terminator.broadcast(event, shared)

    def keeps_up(self) -> bool:
        """See `Terminator`."""
        return self._terminator.keeps_up()

    def pause(self) -> None:
        """See `Terminator`."""
        self._terminator.pause()

    def resume(self) -> None:
        """See `Terminator`."""
        self._terminator.resume()

    def fail(self, status: int, close_code: int) -> None:
        """See `Terminator`."""
        self._terminator.fail(status, close_code)

    def flush(self) -> None:
        """See `Flushable`."""
        self._terminator.flush()

    def abort(self) -> None:
        """See `Abortable`."""
        self._terminator.abort()
