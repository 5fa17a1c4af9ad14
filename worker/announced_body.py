"""The body of a response, checked against the content-length that the app has sent."""

from __future__ import annotations

from asgibus.protocol.event_stream import is_encoded
from asgibus.protocol.events import RESPONSE_START, Event
from asgibus.protocol.header_lines import find_content


class AnnouncedBody:
    """The body of a response, as its head announces it.

    Args:
        start: The event of the head.
        head_only: Whether the request was a HEAD.
        is_http: Whether this is a response of an HTTP connection, and not the refusal of a WebSocket.
    """

    __slots__ = ("is_encoded", "is_event_stream", "remaining")

    def __init__(self, start: Event, *, head_only: bool, is_http: bool) -> None:
        self.remaining: int | None = None
        """The bytes that are left of the content-length; None if there is none, or no body."""
        self.is_event_stream = False
        """Whether this is an event stream, which lasts until either side ends it."""
        self.is_encoded = False
        """Whether this event stream is compressed."""
        if head_only or start[1] in (204, 304):
            return
        lengths, content_type = find_content(start[2])
        if lengths:
            self.remaining = int(lengths[0])
        elif start[0] == RESPONSE_START and is_http:
            self.is_event_stream = content_type[:17].lower() == b"text/event-stream"
            self.is_encoded = self.is_event_stream and is_encoded(start[2])

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
