"""The terminator of an event stream that outlives the runs of the app.

The client gets one response with whole events, whichever runs they come from, and in any case a proper end.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from asgibus.protocol.counted_log import CountedLog
from asgibus.protocol.event_stream import LAST_EVENT_ID, EventStream, is_event_stream
from asgibus.protocol.events import (
    ABORT,
    EVENT_STREAM,
    RESPONSE,
    RESPONSE_BODY,
    RESPONSE_END,
    RESPONSE_START,
    RESPONSE_START_TRAILERS,
    Event,
)

if TYPE_CHECKING:
    from asgibus.interface_server.connections.connection import Connection
    from asgibus.interface_server.terminator import SharedWriter
    from asgibus.protocol.connect_request import Headers

SERVER_STOPS: Final = (503, 1012)
"""The answer for `Connection.fail` when the interface server stops."""

_FIRST_ANSWERS: Final = (EVENT_STREAM, RESPONSE_START, RESPONSE_START_TRAILERS, RESPONSE, ABORT)


class EventStreamTerminator:
    """Passes whole events to the socket, and hides from its client that runs end and begin. Implements `Terminator`.

    Args:
        terminator: The terminator of the socket, which has written the head.
        connection: The connection of the response.
        headers: The headers of the request.
        log: Counts and logs streams that no further run can continue.
    """

    __slots__ = ("_connection", "_log", "_terminator", "events")

    def __init__(self, terminator: SharedWriter, connection: Connection, headers: Headers, log: CountedLog) -> None:
        self._terminator = terminator
        self._connection = connection
        self._log = log
        self.events = EventStream(dict(headers).get(LAST_EVENT_ID, b""))
        """The events that the client has got."""

    @property
    def write_paused(self) -> bool:
        """See `Terminator`."""
        return self._terminator.write_paused

    def write_event(self, event: Event) -> None:
        """See `Terminator`."""
        code: int = event[0]
        if code == RESPONSE_BODY:
            if whole := self.events.feed(event[1]):
                self._terminator.write_event((RESPONSE_BODY, whole))
        elif code == RESPONSE_END:
            self._terminator.write_event((RESPONSE_END, self.events.feed(event[1]) + self.events.end()))
        elif self.events.awaits_head and code in _FIRST_ANSWERS:
            self._check_first_answer(event)
        else:
            self._terminator.write_event(event)

    def _check_first_answer(self, event: Event) -> None:
        """Swallow the head of a further run, if it is one of an event stream. Else end the response."""
        code: int = event[0]
        self.events.awaits_head = False
        if code == ABORT:
            self._end("the app failed")
        elif code == RESPONSE_START_TRAILERS or not is_event_stream(event[1], event[2]):
            self._end(f"the app answered with another response, of status {event[1]}")
            if code != RESPONSE:  # else the connection ends with this event
                self._connection.client_gone()
        else:
            self._connection.resumable = code == EVENT_STREAM
            if code == RESPONSE:
                self.write_event((RESPONSE_END, event[3]))

    def broadcast(self, event: Event, shared: dict[str, Any]) -> None:
        """See `Terminator`."""
        if event[0] == RESPONSE_BODY:
            others = shared.get("events")
            if others is None:
                others = shared["events"] = EventStream()
                others.feed(event[1])
            self.events.add(others)
        self._terminator.broadcast(event, shared)

    def write_shared(self, events: Sequence[Event], shared: dict[str, Any]) -> None:
        """See `SharedWriter`."""
        others = shared.get("events")
        if others is None:
            others = shared["events"] = EventStream()
            for event in events:
                if event[0] == RESPONSE_BODY:
                    others.feed(event[1])
        self.events.add(others)
        self._terminator.write_shared(events, shared)

    def detach(self) -> None:
        """Do nothing: the response ends well already."""

    def fail(self, status: int, close_code: int) -> None:
        """See `Terminator`."""
        if (status, close_code) == SERVER_STOPS:
            self._end("the interface server stops", level=logging.INFO)
        else:
            self._end(self.events.obstacle or ("no worker is ready" if status == 503 else "its worker is gone"))

    def _end(self, why: str, *, level: int = logging.WARNING) -> None:
        """End the response properly, and have the client connect again in a while."""
        text = "an event stream was ended, so that its client connects again: %s"
        self._log.count("event stream ended", text, why, level=level)
        self._terminator.write_event((RESPONSE_END, self.events.farewell(random.random())))

    # Passed on.

    def flush(self) -> None:
        """See `Terminator`."""
        self._terminator.flush()

    def keeps_up(self) -> bool:
        """See `Terminator`."""
        return self._terminator.keeps_up()

    def pause(self) -> None:
        """See `Terminator`."""
        self._terminator.pause()

    def resume(self) -> None:
        """See `Terminator`."""
        self._terminator.resume()

    def abort(self) -> None:
        """See `Terminator`."""
        self._terminator.abort()
