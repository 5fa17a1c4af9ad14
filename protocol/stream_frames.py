"""The entries of a stream for its followers: as WebSocket messages, or as server-sent events. No IO.

An app describes both by a dict, its *template*, which passes the bus. Text in it has placeholders: `{stream}` and
`{offset}`, `{data}` for an entry as JSON, `{text}` for an entry that is text, and `{html}` for the same, escaped.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, Literal

from msgspec import json

from asgibus.layers.codec import pack, unpack
from asgibus.layers.streams.offsets import Offset
from asgibus.layers.streams.page import StreamState
from asgibus.layers.streams.past import place_offset
from asgibus.protocol.events import MESSAGE_SENT, RESPONSE_BODY, Event, encode
from asgibus.protocol.followers import Delivery

MAX_TEMPLATE_BYTES: Final = 4 * 1024  # packed: every follower of an interface server has one
TEMPLATES_KEPT: Final = 1000  # that are compiled at a time in a process

WEBSOCKET, SSE, EVENTS = "websocket", "sse", "events"
KEEP_ALIVE: Final[Event] = (RESPONSE_BODY, b":\n\n")
"""A comment that keeps proxies from ending an event stream without events."""

_KINDS: Final = (WEBSOCKET, SSE, EVENTS)
_TEXTS: Final = ("entry", "end", "error", "reset")
_PLACEHOLDER: Final = re.compile(r"\{(stream|offset|data|text|html)\}")
_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_JSON: Final = {
    "entry": '{"stream":"{stream}","offset":"{offset}","data":{data}}',
    "end": '{"stream":"{stream}","offset":"{offset}","end":true}',
    "error": '{"stream":"{stream}","offset":"{offset}","error":{data}}',
    "reset": '{"stream":"{stream}","offset":"{offset}","reset":true}',
}
_DEFAULTS: Final[Mapping[str, Mapping[str, str | None]]] = {
    WEBSOCKET: _JSON,
    SSE: {},
    EVENTS: dict.fromkeys(_TEXTS),  # the entries are written as they are, and nothing else
}


Template = Literal["raw"] | Mapping[str, Any]
"""The form of entries for clients: `"raw"` for entries as they are, or texts by their use."""


def _members(template: Template | None) -> Mapping[str, Any]:
    """Return the members of a template, as an app gives it. Raises ValueError if it is none."""
    if template is None:
        return {}
    if template == "raw":
        return {"raw": True}
    if not isinstance(template, Mapping):
        raise ValueError(f'a template is "raw" or a dict, not {template!r:.50}')
    for name in ("kind", "event"):  # the first is known, and the second is an argument of its own
        if name in template:
            raise ValueError(f"a template has no member {name!r}")
    return template


def sse_template(template: Template | None, event: str) -> bytes:
    """Return the packed template of an event stream.

    Args:
        template: As an app gives it.
        event: The type of the events.

    Raises:
        ValueError: It is not valid.
    """
    return pack_template({**_members(template), "kind": SSE, **({"event": event} if event else {})})


def websocket_template(template: Template | None) -> dict[str, Any]:
    """Return the members of a template for WebSockets.

    Args:
        template: As an app gives it. A text may also be a `websocket.send` event with a text.

    Raises:
        ValueError: It is not valid, or a member is an event of another type.
    """
    members = {}
    for name, text in _members(template).items():
        if isinstance(text, Mapping):
            if text.get("type") != "websocket.send" or not isinstance(text.get("text"), str):
                raise ValueError(f"the {name} of a template is a text, or a websocket.send event with a text")
            members[name] = text["text"]
        else:
            members[name] = text
    return members


def pack_template(template: Mapping[str, Any]) -> bytes:
    """Check a template, and pack it.

    Args:
        template: `kind` is "websocket", "sse", or "events" for entries that are ASGI events. The texts are `entry`,
            `end`, `error` and `reset`; None for one that clients do not get. `raw` has entries written as they are.
            `event` is the type of server-sent events.

    Raises:
        ValueError: A member is not known or not valid, or all are too long.
    """
    packed = pack(dict(template))
    read_template(packed)
    return packed


@lru_cache(TEMPLATES_KEPT)
def read_template(packed: bytes) -> StreamFrames:
    """Return what a packed template describes: the same object for the same bytes.

    Raises:
        ValueError: It is not valid; the text says why.
    """
    if len(packed) > MAX_TEMPLATE_BYTES:
        raise ValueError(f"the template of a followed stream has at most {MAX_TEMPLATE_BYTES} bytes, not {len(packed)}")
    template = unpack(packed)
    if type(template) is not dict:
        raise ValueError(f"the template of a followed stream is a dict, not {template!r:.50}")
    kind, event, raw = template.get("kind", WEBSOCKET), template.get("event", ""), template.get("raw", False)
    if kind not in _KINDS:
        raise ValueError(f"a stream is followed as one of {', '.join(_KINDS)}, not as {kind!r:.50}")
    if type(event) is not str or _LINE_END.search(event):
        raise ValueError("the type of server-sent events is one line of text")
    texts = {name: template[name] for name in _TEXTS if name in template}
    for name, text in texts.items():
        if text is not None and type(text) is not str:
            raise ValueError(f"the {name} of a template is text or None, not {text!r:.50}")
    if unknown := [name for name in template if name not in (*_TEXTS, "kind", "event", "raw")]:
        raise ValueError(f"the template of a followed stream has no member {unknown[0]!r:.50}")
    return StreamFrames(packed, kind, texts, raw=bool(raw), event=event)


class StreamFrames:
    """Turns entries of a stream into events for clients.

    Args:
        packed: The packed template.
        kind: WEBSOCKET, SSE or EVENTS.
        texts: The texts of the app, by what they are for.
        raw: Whether entries are written as they are: str as text and bytes as binary messages.
        event: The type of server-sent events.
    """

    __slots__ = ("_event", "_parts", "_raw", "_texts", "kind", "packed")

    def __init__(
        self, packed: bytes, kind: str, texts: Mapping[str, str | None], *, raw: bool = False, event: str = ""
    ) -> None:
        self.packed = packed
        self.kind = kind
        self._raw = raw
        self._event = event
        self._texts = texts
        defaults = _DEFAULTS[kind] or dict.fromkeys(_TEXTS, "{text}" if raw else "{data}")
        self._parts = {
            name: None if text is None else _PLACEHOLDER.split(text) for name, text in {**defaults, **texts}.items()
        }

    def events(self, stream: str, delivery: Delivery[Any], bad: list[str]) -> list[Event]:
        """Return the events of a delivery, in their order.

        Args:
            stream: The name of the stream.
            delivery: The delivery.
            bad: Gets a text for each entry that cannot be written, or only as null.
        """
        written: list[Event] = []
        if delivery.reset is not None:
            self._add(written, "reset", stream, delivery.reset, None)
        for offset, item in delivery.entries:
            if self.kind == EVENTS:
                try:
                    written.append(encode(place_offset(item, offset)))
                except (ValueError, TypeError, AttributeError) as error:
                    bad.append(str(error))
            elif self._raw and self.kind == WEBSOCKET and type(item) in (str, bytes) and "entry" not in self._texts:
                written.append((MESSAGE_SENT, item))
            else:
                try:
                    self._add(written, "entry", stream, offset, item)
                except (TypeError, RecursionError) as error:
                    bad.append(f"{offset} is null in JSON: {error}")
                    self._add(written, "entry", stream, offset, None)
        if delivery.over is not None:
            failed = delivery.over is StreamState.FAILED
            self._add(written, "error" if failed else "end", stream, delivery.offset, delivery.error or None)
        if self.kind == SSE and len(written) > 1:
            return [(RESPONSE_BODY, b"".join([event[1] for event in written]))]
        return written

    def _add(self, written: list[Event], name: str, stream: str, offset: Offset, item: Any) -> None:
        """Add the event for one entry, or for what is said about a stream."""
        parts = self._parts[name]
        if parts is None:
            return
        text = _fill(parts, {"stream": stream, "offset": str(offset)}, item)
        if self.kind != SSE:
            written.append((MESSAGE_SENT, text))
            return
        event = self._event if name == "entry" else "" if name in self._texts else name
        lines = [f"id: {offset}"]
        if event:
            lines.append(f"event: {event}")
        lines += [f"data: {line}" for line in _LINE_END.split(text)]
        written.append((RESPONSE_BODY, ("\n".join(lines) + "\n\n").encode()))


def _fill(parts: list[str], names: Mapping[str, str], item: Any) -> str:
    """Join the parts of a text: every second one is the name of a placeholder.

    Raises:
        TypeError, RecursionError: JSON cannot express the item.
    """
    if len(parts) == 1:
        return parts[0]
    filled = list(parts)
    for index in range(1, len(parts), 2):
        name = parts[index]
        if name in names:
            filled[index] = names[name]
        elif name == "data":
            filled[index] = json.encode(item).decode()
        else:
            text = _as_text(item)
            filled[index] = html.escape(text) if name == "html" else text
    return "".join(filled)


def _as_text(item: Any) -> str:
    if isinstance(item, str):
        return item
    if item is None:
        return ""
    return item.decode("utf-8", "replace") if isinstance(item, bytes) else json.encode(item).decode()
