"""ASGI events as tuples: valid and invalid events of an app, and events to an app."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgibus.layers.codec import pack, unpack
from asgibus.protocol import events
from asgibus.protocol.events import EVENT_OVERHEAD, NAMES, decode, disconnect, encode, message_of, other, size

H = [(b"x-a", b"1")]

GOOD: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    ({"type": "http.response.start", "status": 200}, (events.RESPONSE_START, 200, b"")),
    ({"type": "http.response.start", "status": 999, "headers": H}, (events.RESPONSE_START, 999, b"x-a: 1\r\n")),
    (
        {"type": "http.response.start", "status": 200, "headers": iter([[b"X-A", b""]]), "trailers": True},
        (events.RESPONSE_START_TRAILERS, 200, b"x-a: \r\n"),
    ),
    ({"type": "http.response.body"}, (events.RESPONSE_END, b"")),
    ({"type": "http.response.body", "body": b"a", "more_body": True}, (events.RESPONSE_BODY, b"a")),
    ({"type": "http.response.body", "body": bytearray(b"a"), "more_body": False}, (events.RESPONSE_END, b"a")),
    ({"type": "http.response.body", "body": memoryview(b"ab")[1:]}, (events.RESPONSE_END, b"b")),
    ({"type": "http.response.trailers"}, (events.TRAILERS_END, b"")),
    ({"type": "http.response.trailers", "headers": H, "more_trailers": True}, (events.TRAILERS, b"x-a: 1\r\n")),
    ({"type": "http.response.early_hint"}, (events.EARLY_HINT, b"")),
    ({"type": "http.response.early_hint", "links": [b"</a>"]}, (events.EARLY_HINT, b"link: </a>\r\n")),
    ({"type": "websocket.accept"}, (events.ACCEPT, None, b"", False)),
    ({"type": "websocket.accept", "subprotocol": None, "headers": []}, (events.ACCEPT, None, b"", False)),
    (
        {"type": "websocket.accept", "subprotocol": "a.b", "headers": H},
        (events.ACCEPT, "a.b", b"x-a: 1\r\n", False),
    ),
    ({"type": "websocket.send", "text": ""}, (events.MESSAGE_SENT, "")),
    ({"type": "websocket.send", "text": "\u00fc\U0001f600", "bytes": None}, (events.MESSAGE_SENT, "\u00fc\U0001f600")),
    ({"type": "websocket.send", "bytes": b""}, (events.MESSAGE_SENT, b"")),
    ({"type": "websocket.send", "bytes": bytearray(b"a"), "text": None}, (events.MESSAGE_SENT, b"a")),
    ({"type": "websocket.close"}, (events.CLOSE, 1000, "")),
    ({"type": "websocket.close", "code": 4999, "reason": None}, (events.CLOSE, 4999, "")),
    ({"type": "websocket.close", "code": 3000, "reason": "\u00fc" * 61}, (events.CLOSE, 3000, "\u00fc" * 61)),
    ({"type": "websocket.http.response.start", "status": 403}, (events.RESPONSE_START, 403, b"")),
    ({"type": "websocket.http.response.body", "body": b"a"}, (events.RESPONSE_END, b"a")),
    ({"type": "udp.send", "bytes": bytearray(b"a")}, (events.OTHER_SENT, "udp.send", pack({"bytes": b"a"}))),
    ({"type": "udp.send", "bytes": b""}, (events.OTHER_SENT, "udp.send", pack({"bytes": b""}))),
    ({"type": "udp.close"}, (events.OTHER_CLOSE, "udp.close", pack({}))),
]
KINDS = sorted({event["type"] for event, _ in GOOD})


@pytest.mark.parametrize(("event", "expected"), GOOD)
def test_good_events(event: dict[str, Any], expected: tuple[Any, ...]) -> None:
    encoded = encode({**event, "extra": object(), "key": {1}})
    assert encoded == expected
    assert [type(field) for field in encoded] == [type(field) for field in expected]
    assert unpack(pack(encoded)) == encoded, "the event is changed by packing"


VALUE, TYPE = ValueError, TypeError
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"type": "http.response.start"}, VALUE, "lacks 'status'"),
    ({"type": "http.response.start", "status": "200"}, TYPE, "status must be an int"),
    ({"type": "http.response.start", "status": None}, TYPE, "status must be an int"),
    ({"type": "http.response.start", "status": 200.0}, TYPE, "status must be an int"),
    *(({"type": "http.response.start", "status": status}, VALUE, str(status)) for status in (-1, 0, 100, 199, 1000)),
    ({"type": "http.response.start", "status": 200, "headers": [("a", b"1")]}, TYPE, "must be bytes, not str"),
    ({"type": "http.response.start", "status": 200, "headers": [(b"a", "1")]}, TYPE, "must be bytes, not str"),
    ({"type": "http.response.start", "status": 200, "headers": [(b"a", 1)]}, TYPE, "must be bytes, not int"),
    ({"type": "http.response.start", "status": 200, "headers": 5}, TYPE, "."),
    ({"type": "http.response.start", "status": 200, "headers": [(b"a",)]}, VALUE, "."),
    *(
        ({"type": "http.response.start", "status": 200, "headers": [(name, b"1")]}, VALUE, "not a header name")
        for name in (b"", b" ", b"a b", b"a:", b"a\n", b"a\r\nb", b"a\x00", b"\xe4", b"(a)")
    ),
    *(
        ({"type": "http.response.start", "status": 200, "headers": [(b"a", value)]}, VALUE, "control bytes")
        for value in (b"\n", b"a\r\nb: c", b"\x00", b"a\r", b"\x7f", b"\x1f")
    ),
    *(
        (
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", v) for v in values]},
            VALUE,
            ".",
        )
        for values in ([b"x"], [b"-1"], [b""], [b"1", b"2"], [b"1, 1"])
    ),
    ({"type": "http.response.body", "body": "text"}, TYPE, "must be bytes, not str"),
    ({"type": "http.response.body", "body": None}, TYPE, "must be bytes, not NoneType"),
    ({"type": "http.response.body", "body": 5}, TYPE, "must be bytes, not int"),
    ({"type": "http.response.trailers", "headers": [(b"a", b"\n")]}, VALUE, "control bytes"),
    ({"type": "http.response.early_hint", "links": ["</a>"]}, TYPE, "must be bytes"),
    ({"type": "http.response.early_hint", "links": [b"</a>\r\n"]}, VALUE, "control bytes"),
    ({"type": "websocket.accept", "subprotocol": b"a"}, TYPE, "subprotocol must be a str"),
    *(
        ({"type": "websocket.accept", "subprotocol": name}, VALUE, "not the name of a subprotocol")
        for name in ("", "a b", "a,b", "a\n", "\u00e9")
    ),
    ({"type": "websocket.accept", "headers": [(b"Sec-WebSocket-Protocol", b"a")]}, VALUE, "choose the subprotocol"),
    ({"type": "websocket.send"}, VALUE, "needs one of"),
    ({"type": "websocket.send", "text": None, "bytes": None}, VALUE, "needs one of"),
    ({"type": "websocket.send", "text": b"a"}, TYPE, "text must be a str"),
    ({"type": "websocket.send", "bytes": "a"}, TYPE, "must be bytes"),
    ({"type": "websocket.send", "text": "\ud800"}, VALUE, "surrogates"),
    ({"type": "websocket.close", "code": "1000"}, TYPE, "close code must be an int"),
    *(
        ({"type": "websocket.close", "code": code}, VALUE, "may not be sent")
        for code in (-1, 0, 999, 1004, 1005, 1006, 1015, 2999, 5000)
    ),
    ({"type": "websocket.close", "reason": b"a"}, TYPE, "reason must be a str"),
    ({"type": "websocket.close", "reason": "x" * 124}, VALUE, "at most 123 bytes"),
    ({"type": "websocket.close", "reason": "\u00fc" * 62}, VALUE, "at most 123 bytes"),
    ({"type": "http.request", "body": b""}, VALUE, "unknown ASGI event type 'http.request'"),
    ({"type": "websocket.receive", "text": ""}, VALUE, "unknown ASGI event type"),
    ({"type": "http.response.pathsend"}, VALUE, "lacks 'path'"),
    ({"type": "http.response.pathsend", "path": b"/"}, TYPE, "path must be a str"),
    ({"type": "http.response.zerocopysend"}, VALUE, "lacks 'file'"),
    ({"type": "http.response.zerocopysend", "file": "/"}, TYPE, "one with a descriptor"),
    ({"type": "http.response.zerocopysend", "file": 1, "offset": 1.5}, TYPE, "offset must be an int"),
    ({"type": "http.response.zerocopysend", "file": 1, "count": "1"}, TYPE, "count must be an int"),
    ({"type": "http.response.zerocopysend", "file": 1, "offset": -1}, VALUE, "must not be negative"),
    ({"type": "http.response.zerocopysend", "file": 1, "count": -1}, VALUE, "must not be negative"),
    *(
        ({"type": "http.response.trailers", "headers": [(name, b"1")]}, VALUE, "may not be a trailer")
        for name in (b"Content-Length", b"transfer-encoding", b"host", b"Set-Cookie")
    ),
    ({"type": "lifespan.nonsense"}, VALUE, "unknown ASGI event type"),
    ({"type": "nonsense"}, VALUE, "unknown ASGI event type"),
    ({"type": "udp.sent", "bytes": b""}, VALUE, "unknown ASGI event type 'udp.sent'"),
    ({"type": "udp.send"}, VALUE, "lacks 'bytes'"),
    ({"type": "udp.send", "bytes": "a"}, TYPE, "a datagram must be bytes, not str"),
    ({"type": "udp.send", "bytes": bytes(65508)}, VALUE, "a datagram has at most 65507 bytes, not 65508"),
    ({"type": "line.send", "line": {1}}, TYPE, "set"),
    ({"type": None}, VALUE, "unknown ASGI event type None"),
    ({"type": ["http.response.body"]}, TYPE, "unhashable"),
    ({}, VALUE, "a dict with a 'type'"),
]


@pytest.mark.parametrize(("event", "error", "text"), BAD)
def test_bad_events(event: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        encode(event)


@pytest.mark.parametrize("event", [None, 5, "http.response.body", [("type", "websocket.close")]])
def test_other_values_are_rejected(event: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        encode(event)


FIELDS = [
    "status",
    "headers",
    "trailers",
    "body",
    "more_body",
    "links",
    "subprotocol",
    "text",
    "bytes",
    "code",
    "reason",
]
ODD = (
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.lists(st.tuples(st.binary(), st.binary()))
)


@given(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(FIELDS), ODD))
def test_an_event_is_encoded_or_refused(kind: str, fields: dict[str, Any]) -> None:
    try:
        encoded = encode({"type": kind, **fields})
    except (ValueError, TypeError):
        return
    assert unpack(pack(encoded)) == encoded


@given(st.text() | st.binary())
def test_a_message_keeps_its_type(data: str | bytes) -> None:
    key = "text" if isinstance(data, str) else "bytes"
    assert encode({"type": "websocket.send", key: data}) == (events.MESSAGE_SENT, data)
    received = decode(unpack(pack((events.MESSAGE_RECEIVED, data))))
    assert received == {"type": "websocket.receive", key: data}
    assert type(received[key]) is type(data)


@given(st.binary(), st.booleans())
def test_a_body_keeps_its_bytes(body: bytes, more: bool) -> None:
    event = encode({"type": "http.response.body", "body": body, "more_body": more})
    assert event == ((events.RESPONSE_BODY if more else events.RESPONSE_END), body)
    code = events.REQUEST_BODY if more else events.REQUEST_END
    assert decode((code, body)) == {"type": "http.request", "body": body, "more_body": more}


def test_disconnects() -> None:
    for final in (True, False):
        assert decode((events.HTTP_DISCONNECT, final)) == {"type": "http.disconnect"}
    assert decode((events.WEBSOCKET_DISCONNECT, 1006, "gone")) == {
        "type": "websocket.disconnect",
        "code": 1006,
        "reason": "gone",
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text().filter(lambda name: name != "type"), JSON))
def test_events_of_other_protocols_are_unchanged_by_packing(fields: dict[str, Any]) -> None:
    event = {"type": "line.send", **fields}
    encoded = encode(event)
    assert encoded[0] == events.OTHER_SENT
    assert message_of(unpack(pack(encoded))) == event
    assert size(encoded) == EVENT_OVERHEAD + len(pack(fields))
    received = {**event, "type": "line.receive"}
    assert decode(other(events.OTHER_RECEIVED, received)) == received


def test_close_ends_a_connection_of_another_protocol() -> None:
    assert encode({"type": "line.close", "why": "over"})[0] == events.OTHER_CLOSE


def test_each_kind_of_connection_has_a_disconnect() -> None:
    assert decode(disconnect("http", 1006, "")) == {"type": "http.disconnect"}
    assert decode(disconnect("websocket", 1006, "r")) == {"type": "websocket.disconnect", "code": 1006, "reason": "r"}
    assert decode(disconnect("udp", 1006, "silent")) == {"type": "udp.disconnect", "reason": "silent"}


TO_APP = {
    events.OTHER_RECEIVED,
    events.OTHER_DISCONNECT,
    events.REQUEST_BODY,
    events.REQUEST_END,
    events.HTTP_DISCONNECT,
    events.MESSAGE_RECEIVED,
    events.WEBSOCKET_DISCONNECT,
}


@pytest.mark.parametrize("code", sorted(set(NAMES) - TO_APP))
def test_events_of_the_app_are_never_delivered_to_the_app(code: int) -> None:
    with pytest.raises(ValueError, match=f"event {NAMES[code]} is not for the app"):
        decode((code, b"", ()))


@given(st.binary(max_size=1000) | st.text(max_size=1000))
def test_the_size_of_an_event_counts_its_data(data: bytes | str) -> None:
    assert size((events.MESSAGE_SENT, data)) == EVENT_OVERHEAD + len(data)
    assert size((events.RESPONSE, 200, b"", data)) == EVENT_OVERHEAD + len(data)


@pytest.mark.parametrize("event", [(events.ABORT,), (events.RESPONSE_START, 200, b""), (events.ACCEPT, None, b"")])
def test_the_smallest_event_has_a_size(event: tuple[Any, ...]) -> None:
    assert size(event) == EVENT_OVERHEAD


def test_each_code_has_a_name() -> None:
    codes = [value for name, value in vars(events).items() if name in NAMES.values()]
    assert len(codes) == len(set(codes)) == len(NAMES)
    assert not {"EVENT_OVERHEAD", "MAX_CLOSE_REASON"} & set(NAMES.values())


def test_a_message_with_text_and_bytes_is_sent_as_bytes() -> None:
    assert encode({"type": "websocket.send", "text": "a", "bytes": b"b"}) == (events.MESSAGE_SENT, b"b")


def test_a_close_without_a_code_is_1000() -> None:
    assert encode({"type": "websocket.close", "code": None, "reason": None}) == (events.CLOSE, 1000, "")


def test_the_validation_errors_of_fastapi_are_no_reason() -> None:
    assert encode({"type": "websocket.close", "code": 1008, "reason": [{"loc": ["name"]}]}) == (events.CLOSE, 1008, "")
