"""ASGI events as compact tuples, `(code, field, …)`, and back.

`encode` checks an event that an app sends, or that any process sends to a reply channel. ASGI requires that an invalid
event raises from `send`. `decode` returns an event that the app receives. Cited sections are those of the ASGI 3
specification, "HTTP & WebSocket ASGI Message Format" 2.5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from asgibus.layers.codec import pack, unpack_message
from asgibus.protocol.header_lines import as_bytes, find_content, is_length, make_lines, split_lines

Event = tuple[Any, ...]

# From the client to the app.
REQUEST_BODY: Final = 1  # (body,) and more parts follow
REQUEST_END: Final = 2  # (body,) the last part
HTTP_DISCONNECT: Final = 3  # (final,) the client sends nothing more; final: it cannot be written to either
MESSAGE_RECEIVED: Final = 4  # (str or bytes,)
WEBSOCKET_DISCONNECT: Final = 5  # (code, reason)
OTHER_RECEIVED: Final = 6  # (type, packed fields) an event of a protocol other than HTTP and WebSocket
OTHER_DISCONNECT: Final = 7  # (type, packed fields) the last event of such a protocol

# From the app to the client. The code says whether more events follow, so that the state tables need only the code.
RESPONSE_START: Final = 16  # (status, header lines)
RESPONSE_START_TRAILERS: Final = 17  # (status, header lines) and trailers follow the body
RESPONSE_BODY: Final = 18  # (body,) and more parts follow
RESPONSE_END: Final = 19  # (body,) the last part
TRAILERS: Final = 20  # (header lines,) and more follow
TRAILERS_END: Final = 21  # (header lines,)
RESPONSE: Final = 26  # (status, header lines, body) a whole response: a start and the only part of its body
EARLY_HINT: Final = 22  # (header lines,)
ACCEPT: Final = 23  # (subprotocol or None, header lines, resumable) resumable: another run may continue with the client
MESSAGE_SENT: Final = 24  # (str or bytes,)
CLOSE: Final = 25  # (code, reason)
OTHER_SENT: Final = 27  # (type, packed fields)
OTHER_CLOSE: Final = 28  # (type, packed fields) the app ends the connection
EVENT_STREAM: Final = 29  # (status, header lines) the start of an event stream, with which another run may continue

# From the app to its worker, which reads the file and sends parts of a body instead. They are never posted.
PATH_SEND: Final = 48  # (path,)
ZERO_COPY_SEND: Final = 49  # (more_body, file object or descriptor, offset or None, count or None)

# Between the worker and the interface server.
CONTINUE: Final = 32  # () the app asks for the body of a request that expects "100 Continue"
ABORT: Final = 33  # () the response cannot be completed: the client must see that it was cut off
GROUP_ADD: Final = 34  # (group,)
GROUP_DISCARD: Final = 35  # (group,)
GROUP_DONE: Final = 36  # (error or None, group) the answer to the oldest GROUP_ADD or GROUP_DISCARD of the group
SAVE_STATE: Final = 37  # (packed state,) kept at the interface server for a further run
HANDOVER: Final = 38  # () the last event of a run that ends before its connection: another run continues
FOLLOW: Final = 39  # (stream, offset, packed template) GROUP_DONE of the group "stream:…" is the answer
UNFOLLOW: Final = 40  # (stream,) answered in the same way
DETACH: Final = 41  # as FOLLOW, without an answer: the last event of a run, whose response ends with the stream
IDENTIFY: Final = 42  # (user, packed info) whose connection it is; GROUP_DONE of the group "user:…" is the answer
PRESENT: Final = 43  # (group, packed join or empty, packed leave or empty) as GROUP_ADD, and show the user there
SET_WILL: Final = 44  # (group, packed event) none if empty; GROUP_DONE of the group WILL_SET is the answer

WILL_SET: Final = "will:set"
DISCONNECTS: Final = (HTTP_DISCONNECT, WEBSOCKET_DISCONNECT, OTHER_DISCONNECT)

NAMES: Final = {
    value: name
    for name, value in list(globals().items())
    if name.isupper() and isinstance(value, int) and not name.startswith("_")
}

EXCLUDE: Final = "asgibus.exclude"
"""The key of a broadcast that names, by its reply channel, a member that does not get it."""

EVENT_OVERHEAD: Final = 256  # bytes that an event counts for besides its content: the memory of an empty one
MAX_CLOSE_REASON: Final = 123  # bytes of UTF-8 in a close frame, RFC 6455 section 5.5.1
MAX_DATAGRAM: Final = 65_507  # bytes of payload in a UDP datagram over IPv4: 65,535 without the two headers

_KNOWN: Final = frozenset({"http", "websocket", "lifespan", "udp"})  # their unknown events are invalid

_NO_TRAILERS: Final = frozenset(  # not for trailers, RFC 9110 section 6.5.1: framing, routing, authentication, content
    (
        *(
            b"content-length",
            b"transfer-encoding",
            b"trailer",
            b"te",
            b"connection",
            b"keep-alive",
            b"upgrade",
            b"host",
        ),
        *(b"authorization", b"proxy-authenticate", b"proxy-authorization", b"www-authenticate", b"set-cookie"),
        *(
            b"content-encoding",
            b"content-type",
            b"content-range",
            b"cache-control",
            b"expires",
            b"date",
            b"location",
        ),
    )
)
SUBPROTOCOL: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z", re.ASCII)


def size(event: Event) -> int:
    """Return the bytes that an event counts for in the window. Its content is its last field; of a str, its length."""
    carried = event[-1]
    return EVENT_OVERHEAD + len(carried) if isinstance(carried, (bytes, str)) else EVENT_OVERHEAD


def encode(event: Mapping[str, Any]) -> Event:
    """Check an app's event and convert it to a tuple. Keys that are not in the specification are ignored.

    Raises:
        ValueError: The type is unknown, a key is missing, or a value is out of range.
        TypeError: A value has a wrong type.
    """
    try:
        kind = event["type"]
    except (KeyError, TypeError):
        raise ValueError(f"an ASGI event is a dict with a 'type', not {_kind_of(event)}") from None
    encoder = _ENCODERS.get(kind)
    if encoder is None:
        if not isinstance(kind, str) or "." not in kind or kind.partition(".")[0] in _KNOWN:
            raise ValueError(f"unknown ASGI event type {kind!r}")
        return other(OTHER_CLOSE if kind.endswith(".close") else OTHER_SENT, event)
    try:
        return encoder(event)
    except KeyError as missing:
        raise ValueError(f"the event {kind!r} lacks {missing}") from None


def _kind_of(event: object) -> str:
    """Describe an object that is not an event, without its content, because the text goes to a log."""
    if not isinstance(event, Mapping):
        return f"of type {type(event).__name__}"
    return f"one with the keys {', '.join(sorted(map(repr, event)))[:100] or 'of nothing'}"


def decode(event: Event) -> dict[str, Any]:
    """Return the dict that the app's `receive` returns for an event of the client."""
    code: int = event[0]
    if code == MESSAGE_RECEIVED:
        data = event[1]
        # One key, as with other servers: apps check `if "text" in message`.
        return {"type": "websocket.receive", "text" if isinstance(data, str) else "bytes": data}
    if code == REQUEST_BODY or code == REQUEST_END:
        return {"type": "http.request", "body": event[1], "more_body": code == REQUEST_BODY}
    if code == HTTP_DISCONNECT:
        return {"type": "http.disconnect"}
    if code == WEBSOCKET_DISCONNECT:
        return {"type": "websocket.disconnect", "code": event[1], "reason": event[2]}
    if code == OTHER_RECEIVED or code == OTHER_DISCONNECT:
        return message_of(event)
    raise ValueError(f"event {NAMES.get(code, code)} is not for the app")


def other(code: int, event: Mapping[str, Any]) -> Event:
    """Encode an event of a protocol that is neither HTTP nor WebSocket.

    Args:
        code: `OTHER_RECEIVED` for an event of the client.
        event: The event: a dict whose `type` begins with the kind and a dot.

    Returns:
        The event in the form that `Connection.event` takes.

    Raises:
        TypeError: The event holds a value that a message cannot hold.
    """
    return (code, event["type"], pack({name: value for name, value in event.items() if name != "type"}))


def message_of(event: Event) -> dict[str, Any]:
    """Decode an event that `other` has encoded.

    Args:
        event: An event that was passed to `Terminator.write_event`, of the code `OTHER_SENT` or `OTHER_CLOSE`.

    Returns:
        The dict that the app has sent.
    """
    return {"type": event[1], **unpack_message(event[2])}


def disconnect(kind: str, code: int, reason: str) -> Event:
    """Return the disconnect for the app of a connection.

    Args:
        kind: The type of the connection's scope.
        code: The close code, for a WebSocket.
        reason: The reason, for a WebSocket and for protocols other than HTTP.
    """
    if kind == "http":
        return (HTTP_DISCONNECT, True)
    if kind == "websocket":
        return (WEBSOCKET_DISCONNECT, code, reason)
    return other(OTHER_DISCONNECT, {"type": f"{kind}.disconnect", "reason": reason})


def _plain(text: str) -> str:
    """Convert an instance of a subclass of str to a str, as packing would do."""
    return text if type(text) is str else text.encode().decode()


def _response_start(event: Mapping[str, Any]) -> Event:
    status = event["status"]
    if not isinstance(status, int):
        raise TypeError(f"the status must be an int, not {type(status).__name__}")
    if not 200 <= status <= 999:
        raise ValueError(f"{status} is not the status of a final response")
    code = RESPONSE_START_TRAILERS if event.get("trailers") else RESPONSE_START
    lines = make_lines(event.get("headers", ()), "the response's headers")
    lengths, _ = find_content(lines)
    if lengths and (len(lengths) > 1 or not is_length(lengths[0])):
        raise ValueError(f"the response's content-length is not one number: {lengths}")
    return (code, int(status), lines)


def _response_body(event: Mapping[str, Any]) -> Event:
    body = event.get("body", b"")
    if type(body) is not bytes:
        body = as_bytes(body, "the body")
    return (RESPONSE_BODY if event.get("more_body") else RESPONSE_END, body)


def _path_send(event: Mapping[str, Any]) -> Event:
    path = event["path"]
    if not isinstance(path, str):
        raise TypeError(f"the path must be a str, not {type(path).__name__}")
    return (PATH_SEND, path)


def _zero_copy_send(event: Mapping[str, Any]) -> Event:
    file = event["file"]
    if not isinstance(file, int) and not callable(getattr(file, "fileno", None)):
        raise TypeError(f"the file must be one with a descriptor, not {type(file).__name__}")
    numbers = (event.get("offset"), event.get("count"))
    for name, number in zip(("offset", "count"), numbers, strict=True):
        if number is not None and not isinstance(number, int):
            raise TypeError(f"the {name} must be an int, not {type(number).__name__}")
        if number is not None and number < 0:
            raise ValueError(f"the {name} must not be negative: {number}")
    return (ZERO_COPY_SEND, bool(event.get("more_body")), file, *numbers)


def _trailers(event: Mapping[str, Any]) -> Event:
    lines = make_lines(event.get("headers", ()), "the trailers")
    for name, _ in split_lines(lines):
        if name in _NO_TRAILERS:
            raise ValueError(f"{name!r} may not be a trailer (RFC 9110 section 6.5.1)")
    return (TRAILERS if event.get("more_trailers") else TRAILERS_END, lines)


def _early_hint(event: Mapping[str, Any]) -> Event:
    return (EARLY_HINT, make_lines([(b"link", link) for link in event.get("links", ())], "the early hint"))


def _accept(event: Mapping[str, Any]) -> Event:
    subprotocol = event.get("subprotocol")
    if subprotocol is not None:
        if not isinstance(subprotocol, str):
            raise TypeError(f"the subprotocol must be a str, not {type(subprotocol).__name__}")
        if not SUBPROTOCOL.match(subprotocol):
            raise ValueError(f"{subprotocol!r} is not the name of a subprotocol")
        subprotocol = _plain(subprotocol)
    lines = make_lines(event.get("headers", ()), "the headers of websocket.accept")
    if any(name == b"sec-websocket-protocol" for name, _ in split_lines(lines)):
        raise ValueError("choose the subprotocol by 'subprotocol', not by a sec-websocket-protocol header")
    return (ACCEPT, subprotocol, lines, False)


def _message_sent(event: Mapping[str, Any]) -> Event:
    text, data = event.get("text"), event.get("bytes")
    if text is None and data is None:
        raise ValueError("websocket.send needs one of 'text' and 'bytes'")
    if data is None:
        if not isinstance(text, str):
            raise TypeError(f"the text must be a str, not {type(text).__name__}")
        if not text.isascii():
            text.encode()  # raises UnicodeEncodeError, a ValueError, for a lone surrogate, which cannot be sent
        return (MESSAGE_SENT, _plain(text))
    return (MESSAGE_SENT, as_bytes(data, "the message"))


def _close(event: Mapping[str, Any]) -> Event:
    code, reason = event.get("code"), event.get("reason") or ""
    if isinstance(reason, list):
        reason = ""  # FastAPI gives its validation errors, for a client that gets 403; other servers ignore them
    if code is None:
        code = 1000
    if not isinstance(code, int):
        raise TypeError(f"the close code must be an int, not {type(code).__name__}")
    if not ((1000 <= code <= 1014 and code not in (1004, 1005, 1006)) or 3000 <= code <= 4999):
        raise ValueError(f"{code} may not be sent as a close code (RFC 6455 section 7.4)")
    if not isinstance(reason, str):
        raise TypeError(f"the close reason must be a str, not {type(reason).__name__}")
    if len(reason.encode()) > MAX_CLOSE_REASON:
        raise ValueError(f"a close reason has at most {MAX_CLOSE_REASON} bytes")
    return (CLOSE, int(code), _plain(reason))


def _datagram(event: Mapping[str, Any]) -> Event:
    data = as_bytes(event["bytes"], "a datagram")
    if len(data) > MAX_DATAGRAM:
        raise ValueError(f"a datagram has at most {MAX_DATAGRAM} bytes, not {len(data)}")
    return other(OTHER_SENT, {"type": "udp.send", "bytes": data})


def _forget_peer(event: Mapping[str, Any]) -> Event:
    return other(OTHER_CLOSE, {"type": "udp.close"})


_ENCODERS: Final = {
    "http.response.start": _response_start,
    "http.response.body": _response_body,
    "http.response.pathsend": _path_send,
    "http.response.zerocopysend": _zero_copy_send,
    "http.response.trailers": _trailers,
    "http.response.early_hint": _early_hint,
    "websocket.accept": _accept,
    "websocket.send": _message_sent,
    "websocket.close": _close,
    "websocket.http.response.start": _response_start,
    "websocket.http.response.body": _response_body,
    "udp.send": _datagram,
    "udp.close": _forget_peer,
}
