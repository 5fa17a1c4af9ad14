"""Event streams: responses of the type text/event-stream, HTML standard section 9.2. No IO.

`EventStream` passes whole events on and remembers the last event id, so that a further run of the app can continue with
the client. A client that reconnects by itself does the same: it sends that id as the header Last-Event-ID.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from asgibus.protocol.connect_request import Headers
from asgibus.protocol.header_lines import find_content, is_encoded

LAST_EVENT_ID: Final = b"last-event-id"
LONGEST_EVENT: Final = 64 * 1024  # bytes of an unfinished event that are held; of a longer one all bytes are passed on
LONGEST_ID: Final = 4 * 1024  # bytes of an event id that can be sent as a header
RETRY_MS: Final = 3000  # until a client connects again, unless the app says otherwise; browsers wait for 3 to 5 s

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_COLON: Final = ord(":")
_LONGEST_LINE: Final = LONGEST_ID + 16  # of an unfinished line: enough to tell an id that is too long
_MOST_DIGITS: Final = 9  # of a reconnection time
_FIELDS: Final = (
    *("_after_cr", "_at_start", "_cut", "_has_data", "_held", "_id", "_in_event", "_line", "_restarted", "_sent_any"),
    *("awaits_head", "last_id", "progressed", "retry"),
)
"""All attributes of an `EventStream`. A compiled class has no `__slots__` to read."""


def is_event_stream(status: int, headers: bytes) -> bool:
    """Return whether a response is an event stream that can be read: 200, neither encoded nor of a known length.

    Args:
        status: The status of the response.
        headers: Its headers, as lines.
    """
    lengths, content_type = find_content(headers)
    streams = status == 200 and not lengths and content_type[:17].lower() == b"text/event-stream"
    return streams and not is_encoded(headers)


def retry_line(chance: float, milliseconds: int = RETRY_MS) -> bytes:
    """Return the line that has a client wait before it connects again, longer or shorter than others.

    Args:
        chance: A random number from 0 to 1.
        milliseconds: The mean time.
    """
    return b"retry: %d\n" % round(milliseconds * (0.5 + chance))


class EventStream:
    """The body of an event stream, from one run of the app after another.

    Args:
        last_id: The last event id that the client had before.
    """

    __slots__ = _FIELDS

    def __init__(self, last_id: bytes = b"") -> None:
        self.last_id = last_id
        """The id of the last whole event, with which the client would continue; empty if there is none."""
        self.retry = RETRY_MS
        """Milliseconds until the client connects again, as the app has set them."""
        self.progressed = False
        """Whether this run has sent a whole event."""
        self.awaits_head = False
        """Whether this run has not begun its response; false in the first run."""
        self._sent_any = False  # whether the client has got a whole event
        self._cut = False  # whether the client has got the beginning of an event, which was too long to be held
        self._held = b""  # the beginning of an event, which is not passed on yet
        self._restarted = False
        # Of the current run.
        self._at_start = True
        self._id = last_id  # of the event that is being read
        self._in_event = False
        self._has_data = False
        self._line = b""  # the beginning of a line
        self._after_cr = False  # whether the last line was ended by CR, and LF may follow

    @property
    def obstacle(self) -> str:
        """Why no further run can continue where this one has stopped; empty if one can."""
        if self._cut:
            return f"an event of more than {LONGEST_EVENT // 1024} KiB was cut off"
        return "its events have no id" if self._sent_any and not self.last_id else ""

    def feed(self, data: bytes) -> bytes:
        """Read the next part of the body, and return what can be passed on: all whole events, and comments.

        Args:
            data: Any number of bytes.
        """
        if self._at_start:
            return self._read_start(self._held + data)
        if not data:
            return b""
        text = self._line + data
        start = 0  # of the line that is being read
        whole = -1  # the end of the last whole event
        for line in text.splitlines(keepends=True):
            content = line.rstrip(b"\r\n")
            if len(content) == len(line):
                break  # its end is still to come
            start += len(line)
            if self._after_cr and line == b"\n":
                whole = -1 if self._in_event else start  # the rest of the end of the last line
            elif self._read_line(content):
                whole = start
            self._after_cr = False
        self._after_cr = start == len(text) and text.endswith(b"\r")
        self._line = text[start : start + _LONGEST_LINE]
        held = self._held + data
        passed = b""
        if whole >= 0:
            end = len(held) - len(text) + whole
            passed, held = held[:end], held[end:]
            self._cut = False
        if self._cut or len(held) > LONGEST_EVENT:
            self._cut = True
            passed, held = passed + held, b""
        self._held = held
        return passed

    def export(self) -> dict[str, Any]:
        """Return the state, of types that msgpack knows, for another process."""
        return {name: getattr(self, name) for name in _FIELDS}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where the stream of another process has stopped. `state` is the result of `export` there."""
        for name in _FIELDS:
            if name in state:
                setattr(self, name, state[name])

    def end(self) -> bytes:
        """Return what was held, because the app has ended the stream itself. Nothing may follow."""
        held, self._held = self._held, b""
        return held

    def restart(self) -> None:
        """Forget the unfinished event of the last run, because a further run is to continue."""
        self._held = self._line = b""
        self._id = self.last_id
        self._in_event = self._has_data = self._after_cr = False
        self._at_start = self._restarted = self.awaits_head = True
        self.progressed = False

    def add(self, others: EventStream) -> None:
        """Count whole events that reached the client between those of the run: a broadcast.

        Args:
            others: These events, read from their beginning.
        """
        self._sent_any = self._sent_any or others._sent_any
        if others.last_id:
            if self._id == self.last_id:  # else the unfinished event of the run has an id of its own
                self._id = others.last_id
            self.last_id = others.last_id

    def farewell(self, chance: float) -> bytes:
        """Return the last bytes of a body that the app has not ended: they have its client connect again.

        The client discards an unfinished event, so no blank line may follow it.

        Args:
            chance: A random number from 0 to 1, by which clients connect again at different times.
        """
        line = retry_line(chance, self.retry)
        if not self._cut:
            return line + b"\n"
        return b"\n" + line if self._line else line

    def headers(self, headers: Headers) -> Headers:
        """Return the headers of the request with which a client would continue.

        Args:
            headers: The headers of the last request.
        """
        rest = tuple([header for header in headers if header[0] != LAST_EVENT_ID])
        return (*rest, (LAST_EVENT_ID, self.last_id)) if self.last_id else rest

    def _read_start(self, data: bytes) -> bytes:
        """Read the first bytes of a run. A byte order mark is passed on at the beginning of the body alone."""
        if len(data) < len(_BYTE_ORDER_MARK) and _BYTE_ORDER_MARK.startswith(data):
            self._held = data
            return b""
        self._at_start, self._held = False, b""
        if not data.startswith(_BYTE_ORDER_MARK):
            return self.feed(data)
        rest = self.feed(data[len(_BYTE_ORDER_MARK) :])
        return rest if self._restarted else _BYTE_ORDER_MARK + rest

    def _read_line(self, line: bytes) -> bool:
        """Read a line, and return whether it is between two events, or ends one."""
        if not line:
            self.last_id = self._id
            if self._has_data:
                self._sent_any = self.progressed = True
            self._in_event = self._has_data = False
        elif line[0] != _COLON:  # else it is a comment
            self._in_event = True
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                self._has_data = True
            elif name == b"id" and b"\0" not in value:
                self._id = value if len(value) <= LONGEST_ID else b""
            elif name == b"retry" and value.isdigit() and len(value) <= _MOST_DIGITS:
                self.retry = int(value)
        return not self._in_event
