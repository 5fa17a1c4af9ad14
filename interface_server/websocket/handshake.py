"""The opening handshake of a WebSocket, RFC 6455 section 4."""

from __future__ import annotations

import base64
import binascii

from websockets.utils import accept_key

from asgibus.interface_server.http.request import ErrorResponse, Request
from asgibus.interface_server.http.response import StandardHeaders
from asgibus.protocol.header_lines import split_lines, without


def check_handshake(request: Request) -> ErrorResponse | None:
    """Return an error if the request is not a valid handshake, RFC 6455 section 4.2.1."""
    headers: dict[bytes, list[bytes]] = {}
    for name, value in request.headers:
        headers.setdefault(name, []).append(value)
    if request.http_version != "1.1":
        return ErrorResponse(505, "A WebSocket handshake needs HTTP/1.1.")
    if headers.get(b"sec-websocket-version", [b""])[0] != b"13":
        return ErrorResponse(426, "The WebSocket version understood is 13.")
    keys = headers.get(b"sec-websocket-key", [])
    try:
        valid = len(keys) == 1 and len(base64.b64decode(keys[0], validate=True)) == 16
    except binascii.Error:
        valid = False
    if not valid:
        return ErrorResponse(400, "The Sec-WebSocket-Key header is not a key.")
    return None


_FRAMING = frozenset((b"connection", b"upgrade", b"keep-alive", b"content-length", b"transfer-encoding", b"trailer"))


def _is_reserved(name: bytes) -> bool:
    """Return whether only the server may set a header of the response to a handshake."""
    return name in _FRAMING or name.startswith(b"sec-websocket-")


def switching_protocols(
    request: Request, subprotocol: str | None, headers: bytes, standard: StandardHeaders, extensions: bytes = b""
) -> bytes:
    """Return the response that accepts a valid handshake.

    Args:
        request: The handshake.
        subprotocol: The subprotocol that the app has chosen.
        headers: Headers of the app, as lines. Those that frame the response or belong to the handshake are left out.
        standard: Makes the headers that the server adds.
        extensions: The value of Sec-WebSocket-Extensions; empty for none.
    """
    names = {name for name, _ in split_lines(headers)}
    own = {name for name in names if not _is_reserved(name)}
    key = next(value for name, value in request.headers if name == b"sec-websocket-key")
    return b"".join(
        [
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: ",
            accept_key(key.decode()).encode(),
            b"\r\n",
            b"sec-websocket-protocol: %s\r\n" % subprotocol.encode() if subprotocol is not None else b"",
            b"sec-websocket-extensions: %s\r\n" % extensions if extensions else b"",
            without(headers, names - own),
            standard.get(own_server=b"server" in own, own_date=b"date" in own),
            b"\r\n",
        ]
    )
