"""Test the forms of entries for followers: templates, WebSocket messages and server-sent events."""

import json
from typing import Any

import pytest

from asgibus.layers.codec import pack
from asgibus.layers.streams import Offset, StreamState
from asgibus.protocol.events import MESSAGE_SENT, RESPONSE_BODY, RESPONSE_END
from asgibus.protocol.followers import Delivery
from asgibus.protocol.stream_frames import pack_template, read_template, websocket_template
from support.event_source import ServerSentEvent, interpret

LAST = Offset(1000, 7)
ITEMS: list[Any] = ["a<b", b"\xff", {"k": [1, None]}, "two\r\nlines", "", 1.5]


def written(
    template: Any, items: Any = (), *, reset: bool = False, over: StreamState | None = None, error: str = ""
) -> list[Any]:
    """Return what a template makes of entries."""
    entries = [(Offset(1000, number), item) for number, item in enumerate(items, 8 - len(items))]
    delivery: Delivery[Any] = Delivery((), Offset(1000, 0) if reset else None, entries, over, error, LAST)
    bad: list[str] = []
    events = read_template(pack_template(template)).events("answer", delivery, bad)
    assert not bad
    return events


def sse(template: Any, items: Any = (), **options: Any) -> list[ServerSentEvent]:
    """Return what a browser makes of one part of a body."""
    [(code, body)] = written({"kind": "sse", **template}, items, **options)
    assert code == RESPONSE_BODY
    return interpret(body).events


def test_messages_are_json_by_default() -> None:
    events = written({}, ITEMS, reset=True, over=StreamState.FAILED, error='a "b"')
    assert {code for code, _ in events} == {MESSAGE_SENT}
    messages = [json.loads(text) for _, text in events]
    assert messages[0] == {"stream": "answer", "offset": "1000-0", "reset": True}
    assert messages[1] == {"stream": "answer", "offset": "1000-2", "data": "a<b"}
    assert [message["data"] for message in messages[2:-1]] == ["/w==", {"k": [1, None]}, "two\r\nlines", "", 1.5]
    assert messages[-1] == {"stream": "answer", "offset": "1000-7", "error": 'a "b"'}
    [(_, end)] = written({}, over=StreamState.ENDED)
    assert json.loads(end) == {"stream": "answer", "offset": "1000-7", "end": True}


def test_raw_entries_are_text_or_binary() -> None:
    events = written({"raw": True, "end": None}, ITEMS[:3], over=StreamState.ENDED)
    assert [data for _, data in events] == [
        "a<b",
        b"\xff",
        '{"stream":"answer","offset":"1000-7","data":{"k":[1,null]}}',
    ]


def test_texts_have_placeholders() -> None:
    template = {
        "entry": '{stream} {offset} {data} {text} {html} {other} {"a":{data}}',
        "end": "over",
        "reset": "{text}.",
    }
    events = written(template, ["<&"], reset=True, over=StreamState.ENDED)
    assert [text for _, text in events] == [
        ".",
        'answer 1000-7 "<&" <& &lt;&amp; {other} {"a":"<&"}',
        "over",
    ]


def test_what_is_none_is_not_written() -> None:
    assert written({"entry": None, "reset": None}, ["a"], reset=True) == []


def test_events_of_a_browser() -> None:
    assert sse({"event": "token"}, ITEMS[3:], reset=True, over=StreamState.FAILED, error="why") == [
        ("reset", "null", "1000-0"),
        ("token", '"two\\r\\nlines"', "1000-5"),
        ("token", '""', "1000-6"),
        ("token", "1.5", "1000-7"),
        ("error", '"why"', "1000-7"),
    ]
    assert sse({"raw": True, "end": "[DONE]"}, ["two\r\n\nlines"], over=StreamState.ENDED) == [
        ("message", "two\n\nlines", "1000-7"),
        ("message", "[DONE]", "1000-7"),
    ]


def test_events_of_apps_are_written_as_they_are() -> None:
    body = {"type": "http.response.body", "body": b"data: x\n\n", "more_body": True}
    events = written({"kind": "events"}, [{"type": "websocket.send", "text": "a"}, body], over=StreamState.ENDED)
    assert events == [(MESSAGE_SENT, "a"), (RESPONSE_BODY, b"data: x\n\n")]


def test_keys_that_json_lacks_and_depth_that_it_cannot_have() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    entries = [(Offset(1000, number), item) for number, item in enumerate([{(1, 2): 3}, deep, "whole"], 5)]
    bad: list[str] = []
    frames = read_template(pack_template({"entry": "{data}"}))
    events = frames.events("answer", Delivery((), None, entries, None, "", LAST), bad)
    assert [event[1] for event in events] == ["null", "null", '"whole"']
    assert [each.partition(" is null in JSON: ")[0] for each in bad] == ["1000-5", "1000-6"]


def test_the_same_template_is_read_once() -> None:
    assert read_template(pack({"raw": True})) is read_template(pack({"raw": True}))


@pytest.mark.parametrize(
    "template",
    [
        *({"kind": "tcp"}, {"kind": []}, {"event": 1}, {"event": "a\nb"}),
        *({"entry": b"x"}, {1: 2}, {"end": "x" * 5000}),
    ],
)
def test_templates_that_are_refused(template: Any) -> None:
    with pytest.raises(ValueError, match=r"stream|template|server-sent"):
        pack_template(template)


def test_texts_may_be_events() -> None:
    event = {"type": "websocket.send", "text": "{data}"}
    assert websocket_template({"entry": event, "end": None}) == {"entry": "{data}", "end": None}
    assert (websocket_template(None), websocket_template("raw")) == ({}, {"raw": True})
    for odd in ("html", 1, {"entry": {"type": "websocket.send", "bytes": b"x"}}):
        with pytest.raises(ValueError, match="template"):
            websocket_template(odd)  # type: ignore[arg-type]


def test_no_part_of_a_body_ends_it() -> None:
    assert all(event[0] != RESPONSE_END for event in written({"kind": "sse"}, ITEMS, over=StreamState.ENDED))
