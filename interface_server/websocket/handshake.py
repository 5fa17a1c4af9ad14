"""The opening handshake of a WebSocket, RFC 6455 section 4: what makes a request one, and the answer to it."""

from __future__ import annotations

import base64
import binascii

from websockets.utils import accept_key

from asgibus.interface_server.http.request import Refusal, Request
from asgibus.interface_server.http.response import StandardHeaders, header_lines
from asgibus.protocol.events import Headers


def check_handshake(request: Request) -> Refusal | None:
    """Why the handshake request is not one, if it is not: RFC 6455 section 4.2.1."""
    headers: dict[bytes, list[bytes]] = {}
    for name, value in request.headers:
        headers.setdefault(name, []).append(value)
    if request.http_version != "1.1":
        return Refusal(505, "A WebSocket handshake needs HTTP/1.1.")
    if headers.get(b"sec-websocket-version", [b""])[0] != b"13":
        return Refusal(426, "The WebSocket version understood is 13.")
    keys = headers.get(b"sec-websocket-key", [])
    try:
        valid = len(keys) == 1 and len(base64.b64decode(keys[0], validate=True)) == 16
    except binascii.Error:
        valid = False
    if not valid:
        return Refusal(400, "The Sec-WebSocket-Key header is not a key.")
    return None


_FRAMING = frozenset((b"connection", b"upgrade", b"keep-alive", b"content-length", b"transfer-encoding", b"trailer"))


def _is_ours(name: bytes) -> bool:
    """Return whether a header of the response to a handshake is this server's alone to send."""
    return name in _FRAMING or name.startswith(b"sec-websocket-")


def switching_protocols(
    request: Request, subprotocol: str | None, headers: Headers, standard: StandardHeaders, extensions: bytes = b""
) -> bytes:
    """Return the response that accepts a request which `check_handshake` found in order.

    Args:
        headers: What the app adds. Those that frame the response or belong to the handshake are left out.
        extensions: The value of Sec-WebSocket-Extensions; empty for none.
    """
    headers = tuple([header for header in headers if not _is_ours(header[0].lower())])
    key = next(value for name, value in request.headers if name == b"sec-websocket-key")
    own = {name.lower() for name, _ in headers}
    return b"".join(
        [
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: ",
            accept_key(key.decode()).encode(),
            b"\r\n",
            b"sec-websocket-protocol: %s\r\n" % subprotocol.encode() if subprotocol is not None else b"",
            b"sec-websocket-extensions: %s\r\n" % extensions if extensions else b"",
            header_lines(headers),
            standard.get(own_server=b"server" in own, own_date=b"date" in own),
            b"\r\n",
        ]
    )
