"""Rejection of malformed frames and openings, with a clear sentence."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgibus.layers import frames
from asgibus.layers.codec import pack, unpack
from asgibus.layers.frames import DEAD, GROUP_MESSAGE, MESSAGE
from asgibus.protocol import events
from asgibus.protocol.checks import FROM_APP, FROM_CLIENT, BadFrame, check_frame, read_request
from asgibus.protocol.connect_request import HTTP, REQUEST_VERSION, ConnectRequest
from asgibus.protocol.events import encode, other

HEADERS = b"content-type: text/plain\r\nx-empty: \r\n"
PACKED = other(events.OTHER_SENT, {"type": "udp.send", "bytes": b"x"})[1:]
GOOD_FROM_APP: list[tuple[Any, ...]] = [
    (events.RESPONSE, 200, HEADERS, b"body"),
    (events.RESPONSE_START, 200, HEADERS),
    (events.RESPONSE_START_TRAILERS, 999, b""),
    (events.EVENT_STREAM, 200, HEADERS),
    (events.RESPONSE_BODY, b""),
    (events.RESPONSE_END, b"x"),
    (events.TRAILERS, HEADERS),
    (events.TRAILERS_END, b""),
    (events.EARLY_HINT, b"link: </a>\r\n"),
    (events.ACCEPT, None, b"", True),
    (events.ACCEPT, "chat", HEADERS, False),
    (events.MESSAGE_SENT, "text"),
    (events.MESSAGE_SENT, b"bytes"),
    (events.CLOSE, 1000, ""),
    (events.CLOSE, 4999, "x" * 123),
    (events.OTHER_SENT, *PACKED),
    (events.OTHER_CLOSE, *PACKED),
    (events.CONTINUE,),
    (events.ABORT,),
    (events.GROUP_ADD, "room"),
    (events.GROUP_DISCARD, "room"),
    (events.FOLLOW, "answer", "0", pack({})),
    (events.FOLLOW, "answer", "1764541234567-42", pack({"entry": "{text}", "end": None, "raw": True})),
    (events.UNFOLLOW, "answer"),
    (events.DETACH, "answer", "0", pack({"kind": "sse", "event": "token"})),
    (events.SAVE_STATE, pack({"a": 1})),
    (events.IDENTIFY, "user 1", pack({"name": "é", "tags": [1, None]})),
    (events.PRESENT, "room", b"", pack({"type": "websocket.send", "text": "{user}"})),
    (events.SET_WILL, "room", pack({"type": "websocket.send", "text": "gone"})),
    (events.SET_WILL, "room", b""),
    (events.HANDOVER,),
]
GOOD_FROM_CLIENT: list[tuple[Any, ...]] = [
    (events.REQUEST_BODY, b""),
    (events.REQUEST_END, b"x"),
    (events.HTTP_DISCONNECT, True),
    (events.MESSAGE_RECEIVED, "text"),
    (events.MESSAGE_RECEIVED, b"bytes"),
    (events.WEBSOCKET_DISCONNECT, 1005, ""),
    (events.OTHER_RECEIVED, *PACKED),
    (events.OTHER_DISCONNECT, *PACKED),
    (events.GROUP_DONE, None, "room"),
    (events.GROUP_DONE, "why not", "room"),
]
GOOD_FRAMES: list[tuple[Any, ...]] = [
    (MESSAGE, "1", {"type": "websocket.send", "text": "x"}),
    (GROUP_MESSAGE, "room", {}),
    (DEAD, "worker.1!", False),
    (DEAD, "worker.1!", True),
    (frames.CLAIMED, 1, 1),
    (frames.ACK, 1, 1, 0),
    (frames.RESET, 1, 1),
    (frames.SUPERSEDED, 1, 1),
    (frames.RESEND, 1, 1, 0),
    (frames.PROBE, 1, 1, 0),
    (frames.ABANDONED, 1, 1),
    (frames.DECLINED, 1, 1),
]
BAD_EVENTS: list[tuple[Any, ...]] = [
    (events.RESPONSE, 99999, b"", b""),
    (events.RESPONSE_START, 100, b""),
    (events.RESPONSE_START, True, b""),
    (events.RESPONSE_START, 200, [(b"a", b"b")]),
    (events.RESPONSE_START, 200, "a: b\r\n"),
    (events.RESPONSE_START, 200, b"a: b"),
    (events.RESPONSE_START, 200, b"a: b\n"),
    (events.RESPONSE_START, 200, b"a: b\r\n\r\n"),
    (events.RESPONSE_START, 200, b"\r\na: b\r\n"),
    (events.RESPONSE_START, 200, b"a: b\r\n\r\nbody: c\r\n"),
    (events.RESPONSE_START, 200, b"a: b\nc: d\r\n"),
    (events.RESPONSE_START, 200, b"a: b\rc: d\r\n"),
    (events.RESPONSE_START, 200, b"a: b\r\n c\r\n"),
    (events.RESPONSE_START, 200, b"a:b\r\n"),
    (events.RESPONSE_START, 200, b"a\r\n"),
    (events.RESPONSE_START, 200, b": b\r\n"),
    (events.RESPONSE_START, 200, b"a b: c\r\n"),
    (events.RESPONSE_START, 200, b"Content-Length: 5\r\n"),
    (events.RESPONSE, 200, b"x-a: \x7f\r\n", b""),
    (events.EARLY_HINT, b"link: a\r\nb\r\n"),
    (events.TRAILERS, b"a: \0\r\n"),
    (events.ACCEPT, "chat\r\nx: y", b"", True),
    (events.ACCEPT, "chat", b"a: b\r\n\r\n", True),
    (events.CLOSE, 999, ""),
    (events.CLOSE, 1005, ""),
    (events.CLOSE, 70000, ""),
    (events.CLOSE, 1000, "x" * 124),
    (events.GROUP_ADD, "no group"),
    (events.GROUP_ADD, None),
    (events.FOLLOW, "no stream", "0", pack({})),
    (events.FOLLOW, "answer", "x", pack({})),
    (events.FOLLOW, "answer", "0", b""),
    (events.FOLLOW, "answer", "0", pack([])),
    (events.FOLLOW, "answer", "0", pack({"new": 1})),
    (events.FOLLOW, "answer", "0", pack({"kind": "tcp"})),
    (events.FOLLOW, "answer", "0", pack({"entry": 1})),
    (events.FOLLOW, "answer", "0", pack({"entry": "x" * 5000})),
    (events.DETACH, "answer", "0", pack({"kind": "sse", "event": "a\ndata: b"})),
    (events.UNFOLLOW, None),
    (events.IDENTIFY, "", pack(None)),
    (events.IDENTIFY, "x" * 201, pack(None)),
    (events.IDENTIFY, 1, pack(None)),
    (events.IDENTIFY, "x", b""),
    (events.IDENTIFY, "x", None),
    (events.IDENTIFY, "x", pack(b"no JSON")),
    (events.IDENTIFY, "x", pack("x" * 17_000)),
    (events.IDENTIFY, "x", pack({"a": float("nan")})),
    *((events.IDENTIFY, "x", b"\x91" * deep + b"\xc0") for deep in (1000, 16_000)),
    (events.PRESENT, "no group", b"", b""),
    (events.PRESENT, "user:1", b"", b""),
    (events.PRESENT, "room", None, b""),
    (events.PRESENT, "room", b"", b"\xc1"),
    (events.PRESENT, "room", b"", pack({"type": "websocket.what"})),
    (events.PRESENT, "room", b"", pack({"type": "websocket.send", "text": "x" * 17_000})),
    (events.SET_WILL, "room", pack([1])),
    (events.SET_WILL, None, b""),
    (events.SAVE_STATE, b"x" * 20_000),
    (events.SAVE_STATE, b"\xc1"),
    (events.SAVE_STATE, pack([1])),
    (events.OTHER_SENT, "udp.send", b"\xc1"),
    (events.PATH_SEND, "/etc/passwd"),
    (events.MESSAGE_RECEIVED, "not from an app"),
    (99,),
]
ODD = [None, True, -1, 2**70, 1.5, "x", b"x", (), (1,), [], {}, {"type": "x"}, "\u00b2", "a!b!c", b"\xff" * 10]


def event(code: int, *fields: Any) -> tuple[Any, ...]:
    return (frames.EVENT, 1, 1, 0, 0, code, *fields)


@pytest.mark.parametrize("good", GOOD_FROM_APP)
def test_events_of_apps_pass_only_at_the_interface_server(good: tuple[Any, ...]) -> None:
    check_frame(event(*good), FROM_APP)
    with pytest.raises(BadFrame):
        check_frame(event(*good), FROM_CLIENT)


@pytest.mark.parametrize("good", GOOD_FROM_CLIENT)
def test_events_of_clients_pass_only_at_the_worker(good: tuple[Any, ...]) -> None:
    check_frame(event(*good), FROM_CLIENT)
    with pytest.raises(BadFrame):
        check_frame(event(*good), FROM_APP)


def test_every_event_of_a_frame_is_checked() -> None:
    never = {"PATH_SEND", "ZERO_COPY_SEND"}
    assert {events.NAMES[code] for code in (*FROM_APP, *FROM_CLIENT)} == {*events.NAMES.values()} - never
    assert {good[0] for good in GOOD_FROM_APP} == {*FROM_APP}
    assert {good[0] for good in GOOD_FROM_CLIENT} == {*FROM_CLIENT}


@pytest.mark.parametrize("good", GOOD_FRAMES)
def test_frames_without_events_pass(good: tuple[Any, ...]) -> None:
    check_frame(good, FROM_APP)
    check_frame(good, FROM_CLIENT)


@pytest.mark.parametrize("bad", BAD_EVENTS)
def test_bad_events_are_refused(bad: tuple[Any, ...]) -> None:
    with pytest.raises(BadFrame):
        check_frame(event(*bad), FROM_APP)


@pytest.mark.parametrize("good", GOOD_FRAMES)
def test_items_that_a_later_release_has_added_to_a_frame_are_ignored(good: tuple[Any, ...]) -> None:
    check_frame((*good, "new", 1), FROM_APP)


@pytest.mark.parametrize("good", [*GOOD_FRAMES, *(event(*each) for each in GOOD_FROM_APP)])
def test_wrong_fields_are_rejected(good: tuple[Any, ...]) -> None:
    longer = [(*good, 1)] if good[0] == frames.EVENT else []
    for bad in (*longer, good[:-1], *((*good[:at], object(), *good[at + 1 :]) for at in range(len(good)))):
        with pytest.raises(BadFrame):
            check_frame(bad, FROM_APP)


@given(st.recursive(st.sampled_from(ODD[:10]), lambda inner: st.lists(inner, max_size=8).map(tuple)))
def test_odd_frames_raise_no_other_error(frame: Any) -> None:
    for checks in (FROM_APP, FROM_CLIENT):
        for candidate in (frame, (frames.EVENT, frame), event(4, frame), event(frame), (frames.ACK, 1, 1, frame)):
            with suppress(BadFrame):
                check_frame(candidate, checks)


def opening(**fields: Any) -> ConnectRequest:
    values: dict[str, Any] = {
        "version": REQUEST_VERSION,
        "interface": "interface.1!",
        "connection": 7,
        "attempt": 1,
        "resumed": False,
        "handled": 0,
        "window": 1000,
        "kind": HTTP,
        "headers": ((b"host", b"a"),),
        "client": ("127.0.0.1", 1),
        "server": ("unix", None),
        "events": ((events.REQUEST_END, b""),),
        "state": pack({}),
    }
    return ConnectRequest(**(values | fields))


@pytest.mark.parametrize("name", ConnectRequest._fields)
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_odd_connect_requests_raise_no_other_error(name: str, value: Any) -> None:
    try:
        good = read_request(tuple(opening(**{name: value})))
    except ValueError:
        return
    assert type(getattr(good, name)) is type(getattr(opening(), name)) or name in ("client", "server", "scope")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("window", 0),
        ("handled", -1),
        ("interface", "interface.1"),
        ("kind", "lifespan"),
        ("kind", "a b"),
        ("headers", ((b"a", "b"),)),
        ("headers", ((b"a",),)),
        ("headers", ((b"a", b"b", b"c"),)),
        ("client", ("127.0.0.1", 1, 2)),
        ("server", (1, 2)),
        ("subprotocols", (b"chat",)),
        ("scope", {"extensions": None}),
        ("state", b"\xc1"),
        ("events", ((events.RESPONSE_END, b""),)),
        ("events", ((events.REQUEST_END, "text"),)),
        ("events", ((),)),
        ("events", (5,)),
    ],
)
def test_an_opening_with_a_value_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(BadFrame):
        read_request(tuple(opening(**{name: value})))


def test_a_refusal_names_the_field() -> None:
    with pytest.raises(BadFrame, match="a connect request has as raw_path a str, headers a int"):
        read_request(tuple(opening(raw_path="/", headers=5)))


class Text(str):
    """A subclass of str, as template engines make."""

    __slots__ = ()


def test_events_of_apps_hold_plain_values_without_packing() -> None:
    accept = {"type": "websocket.accept", "subprotocol": Text("chat"), "headers": [(bytearray(b"a"), memoryview(b"b"))]}
    for message in (
        {"type": "websocket.send", "text": Text("<b>")},
        {"type": "websocket.close", "code": True + 999, "reason": Text("bye")},
        accept,
    ):
        encoded = encode(message)
        check_frame(event(*encoded), FROM_APP)
        assert unpack(pack(encoded)) == encoded
