"""The body of a response, checked against the content-length that the app has sent."""

from __future__ import annotations

from asgibus.protocol.events import RESPONSE_START, Event


class AnnouncedBody:
    """The body of a response, as its head announces it.

    Args:
        start: The event of the head.
        head_only: Whether the request was a HEAD.
        is_http: Whether this is a response of an HTTP connection, and not the refusal of a WebSocket.
    """

    __slots__ = ("is_event_stream", "remaining")

    def __init__(self, start: Event, *, head_only: bool, is_http: bool) -> None:
        self.remaining: int | None = None
        """The bytes that are left of the content-length; None if there is none, or no body."""
        self.is_event_stream = False
        """Whether this is an event stream, which lasts until either side ends it."""
        if head_only or start[1] in (204, 304):
            return
        for name, value in start[2]:  # the lengths are compared first, because every response passes here
            if len(name) == 14 and name.lower() == b"content-length":
                self.remaining = int(value)
            elif len(name) == 12 and name.lower() == b"content-type":
                self.is_event_stream = value.lower().startswith(b"text/event-stream")
        if self.remaining is not None or start[0] != RESPONSE_START or not is_http:
            self.is_event_stream = False

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
