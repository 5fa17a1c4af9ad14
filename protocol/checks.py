"""Validation of everything that comes from the bus: frames of a mailbox, and requests of a shared channel.

A process that can write to the store can write anything. So each end checks everything before it is used: types,
lengths, ranges and names. `events.encode` has checked the events of an app already. These checks only keep the
process and its clients safe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any

from asgibus.layers.codec import unpack, unpack_message
from asgibus.layers.contract import Frame
from asgibus.layers.frames import (
    ABANDONED,
    ACK,
    CLAIMED,
    DEAD,
    EVENT,
    EVENT_OFFSET,
    GROUP_MESSAGE,
    MESSAGE,
    PROBE,
    RESEND,
    RESET,
    SUPERSEDED,
)
from asgibus.layers.names import require_group
from asgibus.protocol import events
from asgibus.protocol.channels import require_protocol
from asgibus.protocol.connect_request import HTTP, REQUEST_VERSION, WEBSOCKET, ConnectRequest
from asgibus.protocol.events import MAX_CLOSE_REASON, Event

MAX_STATE_BYTES = 16 * 1024  # of `connection.state`, which interface servers keep in memory for every open connection
MAX_NUMBER = 2**63 - 1

Check = Callable[[Event], None]


class BadFrame(ValueError):
    """A frame or a request that no version of asgibus writes. The text says what is wrong."""


def _types(*expected: type | tuple[type, ...]) -> Check:
    """Return a check of the types of an event's fields. A tuple of types allows each of them."""
    shapes: set[tuple[type, ...]] = {()}
    for each in expected:
        choices = each if isinstance(each, tuple) else (each,)
        shapes = {(*shape, choice) for shape in shapes for choice in choices}

    def check(event: Event) -> None:
        if tuple(map(type, event[1:])) not in shapes:
            raise BadFrame(f"the fields of {events.NAMES[event[0]]} are {_shape(event[1:])}")

    return check


def _shape(fields: tuple[Any, ...]) -> str:
    return "(" + ", ".join(type(field).__name__ for field in fields) + ")"


def _of(entry: object) -> str:
    """Describe an object that is not a request, without its content, because the text goes to a log."""
    return f"tuple of {len(entry)}" if isinstance(entry, tuple) else type(entry).__name__


def _check_headers(headers: Any) -> None:
    """Check that headers are pairs of bytes without line breaks, because they are written to the client unchanged."""
    if type(headers) is not tuple:
        raise BadFrame(f"headers are a {type(headers).__name__}")
    try:
        lines = b"".join([name + value for name, value in headers])
    except (TypeError, ValueError):
        raise BadFrame("headers are not pairs of bytes") from None
    if b"\n" in lines or b"\r" in lines or b"\0" in lines:
        raise BadFrame("a header holds a line break or a zero byte")


def _check_status(status: Any) -> None:
    if type(status) is not int or not 200 <= status <= 999:
        raise BadFrame(f"{status!r:.20} is not the status of a response")


def _response(event: Event) -> None:
    if len(event) != 4 or type(event[3]) is not bytes:
        raise BadFrame(f"the fields of RESPONSE are {_shape(event[1:])}")
    _check_status(event[1])
    _check_headers(event[2])


def _response_start(event: Event) -> None:
    if len(event) != 3:
        raise BadFrame(f"the fields of {events.NAMES[event[0]]} are {_shape(event[1:])}")
    _check_status(event[1])
    _check_headers(event[2])


def _headers(event: Event) -> None:
    if len(event) != 2:
        raise BadFrame(f"the fields of {events.NAMES[event[0]]} are {_shape(event[1:])}")
    _check_headers(event[1])


_accept_types = _types((str, NoneType), tuple, bool)


def _accept(event: Event) -> None:
    _accept_types(event)
    _check_headers(event[2])
    if event[1] is not None:
        _check_headers(((event[1].encode("utf-8", "replace"), b""),))


_close_types = _types(int, str)


def _close(event: Event) -> None:
    _close_types(event)
    if not 1000 <= event[1] <= 4999 or event[1] in (1004, 1005, 1006) or len(event[2].encode()) > MAX_CLOSE_REASON:
        raise BadFrame(f"the close code {event[1]!r:.20}, or its reason, cannot be sent")


def _disconnected(event: Event) -> None:
    _close_types(event)
    if not 0 <= event[1] <= 65535:
        raise BadFrame(f"{event[1]!r:.20} is not a close code")


def _group(event: Event) -> None:
    if len(event) != 2:
        raise BadFrame(f"the fields of {events.NAMES[event[0]]} are {_shape(event[1:])}")
    try:
        require_group(event[1])
    except TypeError as error:
        raise BadFrame(str(error)) from None


def _state(event: Event) -> None:
    if len(event) != 2:
        raise BadFrame(f"the fields of SAVE_STATE are {_shape(event[1:])}")
    _check_state(event[1])


def _check_state(state: Any) -> None:
    if type(state) is not bytes or len(state) > MAX_STATE_BYTES:
        raise BadFrame("the state of a connection is not bytes, or too long")
    try:
        good = not state or type(unpack(state)) is dict
    except ValueError:
        good = False
    if not good:
        raise BadFrame("the state of a connection cannot be read")


_other_types = _types(str, bytes)


def _other(event: Event) -> None:
    _other_types(event)
    try:
        unpack_message(event[2])
    except ValueError as error:
        raise BadFrame(f"an event of another protocol cannot be read: {error}") from None


# Every message and every part of a body passes one of these two. They take a third of the time of `_types`.


def _bytes(event: Event) -> None:
    if len(event) != 2 or type(event[1]) is not bytes:
        raise BadFrame(f"the fields of {events.NAMES[event[0]]} are {_shape(event[1:])}")


def _message(event: Event) -> None:
    if len(event) != 2 or (type(event[1]) is not str and type(event[1]) is not bytes):
        raise BadFrame(f"the fields of {events.NAMES[event[0]]} are {_shape(event[1:])}")


_nothing = _types()

FROM_CLIENT: Mapping[int, Check] = {
    events.REQUEST_BODY: _bytes,
    events.REQUEST_END: _bytes,
    events.HTTP_DISCONNECT: _types(bool),
    events.MESSAGE_RECEIVED: _message,
    events.WEBSOCKET_DISCONNECT: _disconnected,
    events.OTHER_RECEIVED: _other,
    events.OTHER_DISCONNECT: _other,
    events.GROUP_DONE: _types((str, NoneType), str),
}
"""The checks of events from interface servers, by code."""

FROM_APP: Mapping[int, Check] = {
    events.RESPONSE: _response,
    events.RESPONSE_START: _response_start,
    events.RESPONSE_START_TRAILERS: _response_start,
    events.RESPONSE_BODY: _bytes,
    events.RESPONSE_END: _bytes,
    events.TRAILERS: _headers,
    events.TRAILERS_END: _headers,
    events.EARLY_HINT: _headers,
    events.ACCEPT: _accept,
    events.MESSAGE_SENT: _message,
    events.CLOSE: _close,
    events.OTHER_SENT: _other,
    events.OTHER_CLOSE: _other,
    events.CONTINUE: _nothing,
    events.ABORT: _nothing,
    events.GROUP_ADD: _group,
    events.GROUP_DISCARD: _group,
    events.SAVE_STATE: _state,
    events.HANDOVER: _nothing,
}
"""The checks of events from workers, by code."""

_FIELDS: Mapping[int, frozenset[tuple[type, ...]]] = {
    MESSAGE: frozenset({(int, str, dict)}),
    GROUP_MESSAGE: frozenset({(int, str, dict)}),
    DEAD: frozenset({(int, str, bool)}),
    CLAIMED: frozenset({(int, int, int)}),
    ACK: frozenset({(int, int, int, int)}),
    RESET: frozenset({(int, int, int)}),
    SUPERSEDED: frozenset({(int, int, int)}),
    RESEND: frozenset({(int, int, int, int)}),
    PROBE: frozenset({(int, int, int, int)}),
    ABANDONED: frozenset({(int, int, int)}),
}


def check_frame(frame: Frame, checks: Mapping[int, Check]) -> Event | None:
    """Check a frame of any kind.

    Args:
        frame: An item of a mailbox.
        checks: `FROM_CLIENT` or `FROM_APP`: the events that are expected in an EVENT frame.

    Returns:
        The event of an EVENT frame; None for a frame of another kind.

    Raises:
        BadFrame: The frame is not valid.
    """
    if type(frame) is not tuple or not frame or type(frame[0]) is not int:
        raise BadFrame(f"a frame is a {type(frame).__name__}")
    if frame[0] == EVENT:
        if (
            len(frame) > EVENT_OFFSET
            and type(frame[1]) is int
            and type(frame[2]) is int
            and type(frame[3]) is int
            and type(frame[4]) is int
            and type(frame[5]) is int
            and (check := checks.get(frame[5])) is not None
        ):
            event = frame[5:]
            check(event)
            return event
        code = frame[EVENT_OFFSET : EVENT_OFFSET + 1]
        raise BadFrame(f"the fields of an EVENT frame are {_shape(frame[1:])}, its code {code!r:.20}")
    fields = _FIELDS.get(frame[0])
    if fields is None:
        raise BadFrame(f"a frame is of unknown kind {frame[0]!r:.20}")
    if tuple(map(type, frame)) not in fields:
        raise BadFrame(f"the fields of a frame of kind {frame[0]} are {_shape(frame[1:])}")
    return None


_REQUEST_TYPES: tuple[type, ...] = (
    *(int, str, int, int, bool, int, int, str, str, str, str, bytes, bytes, str, tuple),
    *(NoneType, NoneType, tuple, dict, bool, tuple, bytes, NoneType),
)
_SCOPE = ConnectRequest._fields.index("scope")
_CHOICES = {
    ConnectRequest._fields.index("client"): tuple,
    ConnectRequest._fields.index("server"): tuple,
    _SCOPE: dict,
}


def _request_shapes() -> frozenset[tuple[type, ...]]:
    shapes = {_REQUEST_TYPES}
    for index, other in _CHOICES.items():
        shapes |= {(*shape[:index], other, *shape[index + 1 :]) for shape in shapes}
    return frozenset(shapes)


_REQUEST_SHAPES = _request_shapes()
_USUAL_SHAPE = tuple(_CHOICES.get(i, t) if i != _SCOPE else t for i, t in enumerate(_REQUEST_TYPES))


class ForeignVersion(ValueError):
    """A request of another version of asgibus, which this one cannot read."""


def read_request(entry: object) -> ConnectRequest:
    """Check an entry of a shared channel.

    Returns:
        The request.

    Raises:
        ForeignVersion: Another version of asgibus wrote the entry.
        BadFrame: The entry is not valid.
    """
    # The version is the first field in every version, so that only requests of this version are checked further.
    if not isinstance(entry, tuple) or not entry or type(entry[0]) is not int:
        raise BadFrame(f"not a connect request, but a {_of(entry)}")
    if entry[0] != REQUEST_VERSION:
        raise ForeignVersion(
            f"a connect request of version {entry[0]}, where version {REQUEST_VERSION} is understood: run the same "
            "version of asgibus in interface servers and workers"
        )
    if len(entry) != len(ConnectRequest._fields):
        raise BadFrame(f"not a connect request, but a {_of(entry)}")
    request = ConnectRequest._make(entry)
    _check_request(request)
    return request


def _check_request(request: ConnectRequest) -> None:
    shape = tuple(map(type, request))
    if shape != _USUAL_SHAPE and shape not in _REQUEST_SHAPES:
        wrong = [
            f"{name} a {type(value).__name__}"
            for name, value, right in zip(ConnectRequest._fields, request, _REQUEST_TYPES, strict=True)
            if type(value) is not right and type(value) is not _CHOICES.get(ConnectRequest._fields.index(name))
        ]
        raise BadFrame(f"a connect request has as {', '.join(wrong)}")
    if request.window <= 0 or request.handled < 0 or request.interface[-1:] != "!":
        sender = f"{request.interface!r:.50}"
        raise BadFrame(f"a connect request has the window {request.window} and comes from {sender}")
    if request.kind != HTTP and request.kind != WEBSOCKET:
        try:
            require_protocol(request.kind)
        except ValueError as error:
            raise BadFrame(str(error)) from None
    try:
        for name, value in request.headers:  # they only go to the app, which may get any bytes
            if type(name) is not bytes or type(value) is not bytes:
                raise TypeError
    except (TypeError, ValueError):
        raise BadFrame("headers are not pairs of bytes") from None
    _check_address(request.client)
    _check_address(request.server)
    if request.scope is not None and type(request.scope.get("extensions", {})) is not dict:
        raise BadFrame("the extensions of a scope are not a dict")
    if request.subprotocols and not all(type(each) is str for each in request.subprotocols):
        raise BadFrame("the subprotocols of a connect request are not strings")
    if request.state:
        _check_state(request.state)
    for event in request.events:
        if type(event) is not tuple or not event or type(event[0]) is not int or event[0] not in FROM_CLIENT:
            raise BadFrame("a connect request has an event that is not from a client")
        FROM_CLIENT[event[0]](event)


def _check_address(address: Any) -> None:
    if address is not None and (
        len(address) != 2 or type(address[0]) is not str or (type(address[1]) is not int and address[1] is not None)
    ):
        raise BadFrame("a connect request has an invalid address")
