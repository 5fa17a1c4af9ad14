"""Validation of everything that comes from the bus: frames of a mailbox, and requests of a shared channel.

A process that can write to the store can write anything. So each end checks everything before it is used: types,
lengths, ranges and names. `events.encode` has checked the events of an app already. These checks only keep the
process and its clients safe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, Final

from asgibus.layers.codec import unpack, unpack_message
from asgibus.layers.compiling import mypyc_attr
from asgibus.layers.frames import (
    ABANDONED,
    ACK,
    CLAIMED,
    DEAD,
    DECLINED,
    EVENT,
    EVENT_OFFSET,
    GROUP_MESSAGE,
    MESSAGE,
    PROBE,
    RESEND,
    RESET,
    SUPERSEDED,
)
from asgibus.layers.names import require_any_stream, require_group
from asgibus.layers.presence import INFO_BYTES, pack_info, require_user
from asgibus.layers.streams.offsets import parse_offset
from asgibus.layers.versions import CONNECT_REQUEST
from asgibus.protocol import events
from asgibus.protocol.channels import require_protocol
from asgibus.protocol.connect_request import HTTP, WEBSOCKET, ConnectRequest
from asgibus.protocol.events import MAX_CLOSE_REASON, SUBPROTOCOL, Event
from asgibus.protocol.header_lines import are_lines
from asgibus.protocol.stream_frames import read_template

MAX_KEPT_EVENT_BYTES = 16 * 1024  # of a will, or of an event that tells of joins or leaves
MAX_STATE_BYTES = 16 * 1024  # of `connection.state`, which interface servers keep in memory for every open connection

Check = Callable[[Event], None]


@mypyc_attr(native_class=False)
class BadFrame(ValueError):
    """A frame or a request that no version of asgibus writes. The text says what is wrong."""


# The fields of events.

Validate = Callable[[Any], None]


def _one_of(*types: type) -> Validate:
    """Return a check that the type of a field is one of these."""

    def validate(field: Any) -> None:
        if type(field) not in types:
            raise BadFrame(f"a field is a {type(field).__name__}")

    return validate


def _valid(require: Callable[[Any], object]) -> Validate:
    """Return a check that `require` raises no error for a field."""

    def validate(field: Any) -> None:
        try:
            require(field)
        except (TypeError, ValueError) as error:
            raise BadFrame(str(error)) from None

    return validate


def _headers(headers: Any) -> None:
    """Check that headers are lines and nothing else, because they are written to the client unchanged."""
    if type(headers) is not bytes:
        raise BadFrame(f"headers are a {type(headers).__name__}")
    if not are_lines(headers):
        raise BadFrame("headers are not lines of a name and a value")


def _status(status: Any) -> None:
    if type(status) is not int or not 200 <= status <= 999:
        raise BadFrame(f"{status!r:.20} is not the status of a response")


def _subprotocol(subprotocol: Any) -> None:
    if subprotocol is not None:
        if type(subprotocol) is not str:
            raise BadFrame(f"a subprotocol is a {type(subprotocol).__name__}")
        if not SUBPROTOCOL.match(subprotocol):
            raise BadFrame("a subprotocol is not a token")


def _sent_code(code: Any) -> None:
    if type(code) is not int or not 1000 <= code <= 4999 or code in (1004, 1005, 1006):
        raise BadFrame(f"the close code {code!r:.20} cannot be sent")


def _sent_reason(reason: Any) -> None:
    if type(reason) is not str or len(reason.encode()) > MAX_CLOSE_REASON:
        raise BadFrame("the reason of a close code cannot be sent")


def _received_code(code: Any) -> None:
    if type(code) is not int or not 0 <= code <= 65535:
        raise BadFrame(f"{code!r:.20} is not a close code")


def _offset(offset: Any) -> None:
    if type(offset) is not str:
        raise BadFrame(f"an offset is a {type(offset).__name__}")
    try:
        parse_offset(offset)
    except ValueError as error:
        raise BadFrame(str(error)) from None


def _template(template: Any) -> None:
    if type(template) is not bytes:
        raise BadFrame(f"a template is a {type(template).__name__}")
    try:
        read_template(template)
    except ValueError as error:
        raise BadFrame(str(error)) from None


def _info(info: Any) -> None:
    if type(info) is not bytes or len(info) > INFO_BYTES:
        raise BadFrame("the info about a user is not bytes, or too long")
    try:
        pack_info(unpack(info))
    except (TypeError, ValueError) as error:
        raise BadFrame(f"the info about a user cannot be used: {error}") from None


def _packed_event(packed: Any) -> None:
    """Check an event for a group, which is kept in memory; empty for none."""
    if type(packed) is not bytes or len(packed) > MAX_KEPT_EVENT_BYTES:
        raise BadFrame("an event that is kept is not bytes, or too long")
    try:
        if packed:
            events.encode(unpack_message(packed))
    except (TypeError, ValueError) as error:
        raise BadFrame(f"an event that is kept cannot be used: {error}") from None


def _state(state: Any) -> None:
    if type(state) is not bytes or len(state) > MAX_STATE_BYTES:
        raise BadFrame("the state of a connection is not bytes, or too long")
    try:
        good = not state or type(unpack(state)) is dict
    except ValueError:
        good = False
    if not good:
        raise BadFrame("the state of a connection cannot be read")


def _packed_fields(packed: Any) -> None:
    if type(packed) is not bytes:
        raise BadFrame(f"an event of another protocol is a {type(packed).__name__}")
    try:
        unpack_message(packed)
    except ValueError as error:
        raise BadFrame(f"an event of another protocol cannot be read: {error}") from None


_is_bool, _is_str = _one_of(bool), _one_of(str)
_group, _stream, _user = _valid(require_group), _valid(require_any_stream), _valid(require_user)


# Events.


def _event(*fields: Validate) -> Check:
    """Return a check of an event by its fields."""

    def check(event: Event) -> None:
        if len(event) != len(fields) + 1:
            raise _bad_fields(event)
        for index, validate in enumerate(fields, 1):
            validate(event[index])

    return check


# Every message, part of a body and response passes one of these three. They take a third of the time of the others.


def _body(event: Event) -> None:
    if len(event) != 2 or type(event[1]) is not bytes:
        raise _bad_fields(event)


def _message(event: Event) -> None:
    if len(event) != 2 or (type(event[1]) is not str and type(event[1]) is not bytes):
        raise _bad_fields(event)


def _response(event: Event) -> None:
    if len(event) != 4 or type(event[1]) is not int or not 200 <= event[1] <= 999 or type(event[3]) is not bytes:
        raise _bad_fields(event)
    _headers(event[2])


def _bad_fields(event: Event) -> BadFrame:
    return BadFrame(f"the fields of {events.NAMES[event[0]]} are {_shape(event[1:])}")


def _shape(fields: tuple[Any, ...]) -> str:
    return "(" + ", ".join(type(field).__name__ for field in fields) + ")"


_no_fields = _event()
_other = _event(_is_str, _packed_fields)

FROM_CLIENT: Final[Mapping[int, Check]] = {
    events.REQUEST_BODY: _body,
    events.REQUEST_END: _body,
    events.HTTP_DISCONNECT: _event(_is_bool),
    events.MESSAGE_RECEIVED: _message,
    events.WEBSOCKET_DISCONNECT: _event(_received_code, _is_str),
    events.OTHER_RECEIVED: _other,
    events.OTHER_DISCONNECT: _other,
    events.GROUP_DONE: _event(_one_of(str, NoneType), _is_str),
}
"""The checks of events from interface servers, by code."""

FROM_APP: Final[Mapping[int, Check]] = {
    events.RESPONSE: _response,
    events.RESPONSE_START: _event(_status, _headers),
    events.RESPONSE_START_TRAILERS: _event(_status, _headers),
    events.EVENT_STREAM: _event(_status, _headers),
    events.RESPONSE_BODY: _body,
    events.RESPONSE_END: _body,
    events.TRAILERS: _event(_headers),
    events.TRAILERS_END: _event(_headers),
    events.EARLY_HINT: _event(_headers),
    events.ACCEPT: _event(_subprotocol, _headers, _is_bool),
    events.MESSAGE_SENT: _message,
    events.CLOSE: _event(_sent_code, _sent_reason),
    events.OTHER_SENT: _other,
    events.OTHER_CLOSE: _other,
    events.CONTINUE: _no_fields,
    events.ABORT: _no_fields,
    events.GROUP_ADD: _event(_group),
    events.GROUP_DISCARD: _event(_group),
    events.FOLLOW: _event(_stream, _offset, _template),
    events.UNFOLLOW: _event(_stream),
    events.DETACH: _event(_stream, _offset, _template),
    events.SAVE_STATE: _event(_state),
    events.HANDOVER: _no_fields,
    events.IDENTIFY: _event(_user, _info),
    events.PRESENT: _event(_group, _packed_event, _packed_event),
    events.SET_WILL: _event(_group, _packed_event),
}
"""The checks of events from workers, by code."""


# Frames.

_TYPES: Final[Mapping[int, tuple[type, ...]]] = {
    MESSAGE: (int, str, dict),
    GROUP_MESSAGE: (int, str, dict),
    DEAD: (int, str, bool),
    CLAIMED: (int, int, int),
    ACK: (int, int, int, int),
    RESET: (int, int, int),
    SUPERSEDED: (int, int, int),
    RESEND: (int, int, int, int),
    PROBE: (int, int, int, int),
    ABANDONED: (int, int, int),
    DECLINED: (int, int, int),
}
"""The types of the items of every frame but EVENT, by kind."""


def check_frame(frame: Any, checks: Mapping[int, Check]) -> Event | None:
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
    types = _TYPES.get(frame[0])
    if types is None:
        raise BadFrame(f"a frame is of unknown kind {frame[0]!r:.20}")
    if tuple(map(type, frame)) != types and tuple(map(type, frame[: len(types)])) != types:  # later ones may add items
        raise BadFrame(f"the fields of a frame of kind {frame[0]} are {_shape(frame[1:])}")
    return None


# Connect requests.

_REQUEST_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "version": (int,),
    "interface": (str,),
    "connection": (int,),
    "attempt": (int,),
    "resumed": (bool,),
    "handled": (int,),
    "window": (int,),
    "kind": (str,),
    "http_version": (str,),
    "method": (str,),
    "scheme": (str,),
    "raw_path": (bytes,),
    "query_string": (bytes,),
    "root_path": (str,),
    "headers": (tuple,),
    "client": (tuple, NoneType),
    "server": (tuple, NoneType),
    "subprotocols": (tuple,),
    "extensions": (dict,),
    "expects_continue": (bool,),
    "events": (tuple,),
    "state": (bytes,),
    "scope": (NoneType, dict),
}
"""The types of every field; the usual one first."""
_WRITTEN: Final = CONNECT_REQUEST.written
_FIELDS: Final = len(_REQUEST_TYPES)
_USUAL_SHAPE: Final = [types[0] for types in _REQUEST_TYPES.values()]


def _describe(entry: object) -> str:
    """Describe an object that is not a request, without its content, because the text goes to a log."""
    return f"tuple of {len(entry)}" if isinstance(entry, tuple) else type(entry).__name__


def read_request(entry: object) -> ConnectRequest:
    """Check an entry of a shared channel.

    Returns:
        The request.

    Raises:
        ForeignVersion: Another release wrote the entry, in a version that this one does not read.
        BadFrame: The entry is not valid.
    """
    # The first two fields are the same in every version, so that only requests that can be read are checked further.
    if not isinstance(entry, tuple) or not entry or type(entry[0]) is not int:
        raise BadFrame(f"not a connect request, but a {_describe(entry)}")
    if entry[0] != _WRITTEN and not CONNECT_REQUEST.reads(entry[0]):
        raise CONNECT_REQUEST.refuse(entry[0], f"{entry[1]!s:.100}" if len(entry) > 1 else "whoever wrote them")
    if len(entry) != _FIELDS:
        if len(entry) < _FIELDS:
            raise BadFrame(f"not a connect request, but a {_describe(entry)}")
        entry = entry[:_FIELDS]  # later releases may add fields
    if type(entry) is not ConnectRequest:  # else its types are right: see `connect_request.unpack_request`
        entry = tuple.__new__(ConnectRequest, entry)  # as `_make` does, which is slower and checks the length again
        _check_types(entry)
    _check_values(entry)
    request: ConnectRequest = entry
    return request


def _check_types(request: Any) -> None:
    # `request` is Any, because compiled code raises TypeError where a field does not have its declared type.
    if [type(field) for field in request] != _USUAL_SHAPE:  # the usual types need no comparison field by field
        wrong = [
            f"{name} a {type(value).__name__}"
            for (name, types), value in zip(_REQUEST_TYPES.items(), request, strict=True)
            if type(value) not in types
        ]
        if wrong:
            raise BadFrame(f"a connect request has as {', '.join(wrong)}")
    try:
        for name, value in request.headers:  # any bytes are allowed, because headers only go to the app
            if type(name) is not bytes or type(value) is not bytes:
                raise TypeError
    except (TypeError, ValueError):
        raise BadFrame("headers are not pairs of bytes") from None
    addresses: tuple[Any, ...] = (request.client, request.server)
    for address in addresses:
        if address is not None and (
            len(address) != 2 or type(address[0]) is not str or (type(address[1]) is not int and address[1] is not None)
        ):
            raise BadFrame("a connect request has an invalid address")
    if request.subprotocols and not all(type(each) is str for each in request.subprotocols):
        raise BadFrame("the subprotocols of a connect request are not strings")


def _check_values(request: Any) -> None:
    # As in `_check_types`: the items of `events` are not checked yet.
    if request.window <= 0 or request.handled < 0 or request.interface[-1:] != "!":
        sender = f"{request.interface!r:.50}"
        raise BadFrame(f"a connect request has the window {request.window} and comes from {sender}")
    if request.kind != HTTP and request.kind != WEBSOCKET:
        try:
            require_protocol(request.kind)
        except ValueError as error:
            raise BadFrame(str(error)) from None
    if request.scope is not None and type(request.scope.get("extensions", {})) is not dict:
        raise BadFrame("the extensions of a scope are not a dict")
    if request.state:
        _state(request.state)
    for event in request.events:
        if type(event) is not tuple or not event or type(event[0]) is not int or event[0] not in FROM_CLIENT:
            raise BadFrame("a connect request has an event that is not from a client")
        FROM_CLIENT[event[0]](event)
