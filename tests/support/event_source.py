"""An EventSource, as the HTML standard describes it in section 9.2: what a browser makes of a body."""

import re
from typing import NamedTuple


class ServerSentEvent(NamedTuple):
    """An event, as a page gets it."""

    type: str
    data: str
    last_event_id: str


class Interpreted(NamedTuple):
    """Everything that a browser has learned from a body."""

    events: list[ServerSentEvent]
    last_event_id: str
    retry: int | None


def interpret(body: bytes, last_event_id: str = "") -> Interpreted:
    """Return what a browser makes of a body, which may end anywhere."""
    lines = re.split("\r\n|\n|\r", body.decode("utf-8", "replace").removeprefix("\ufeff"))
    events: list[ServerSentEvent] = []
    buffered_id = last_event_id
    kind, data, retry = "", "", None
    for line in lines[:-1]:  # the last one is not ended, and is discarded
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            last_event_id = buffered_id
            if data:
                events.append(ServerSentEvent(kind or "message", data.removesuffix("\n"), last_event_id))
            kind = data = ""
        elif name == "event":
            kind = value
        elif name == "data":
            data += value + "\n"
        elif name == "id" and "\0" not in value:
            buffered_id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            retry = int(value)
    return Interpreted(events, last_event_id, retry)
