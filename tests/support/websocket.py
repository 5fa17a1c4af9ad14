"""WebSocket clients: the sync client of websockets, and frames byte by byte over a `RawClient`."""

import base64
import json
import struct
from ssl import TLSVersion
from typing import Any
from urllib.parse import urlencode

from websockets.sync.client import ClientConnection, connect

from support.deadline import HANG, wait_until
from support.processes import Process
from support.raw import RawClient, Server

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

HANDSHAKE = (
    "GET {target} HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{more}\r\n"
)
KEY = base64.b64encode(bytes(range(16))).decode()


def ws(server: Process, path: str, **options: Any) -> ClientConnection:
    """Return an open WebSocket, a context manager that neither pings nor compresses by default.

    With `ssl` it speaks TLS 1.2. The client reads and writes one TLS connection in two threads, for which Python up to
    3.12 has no lock: it hangs when the session tickets arrive that TLS 1.3 sends behind the handshake.
    """
    if (context := options.get("ssl")) is not None:
        context.maximum_version = TLSVersion.TLSv1_2
    query = options.pop("query", None)
    target = f"{path}?{urlencode(query)}" if query else path
    defaults = {"compression": None, "ping_interval": None, "proxy": None, "close_timeout": HANG, "open_timeout": HANG}
    return connect(server.ws_url + target, **(defaults | options))


def handshake(target: str, *headers: str) -> bytes:
    """Return the bytes of a handshake request."""
    more = "".join(f"{header}\r\n" for header in headers)
    return HANDSHAKE.format(target=target, key=KEY, more=more).encode()


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True, rsv: int = 0) -> bytes:
    """Return a client's frame, RFC 6455 section 5.2; with the mask 0, so that the payload stays readable."""
    length = len(payload)
    mask = 0x80 if masked else 0
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if length < 126:
        head += bytes([mask | length])
    elif length < 65536:
        head += struct.pack("!BH", mask | 126, length)
    else:
        head += struct.pack("!BQ", mask | 127, length)
    return head + (bytes(4) if masked else b"") + payload


def close_frame(code: int, reason: str = "") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason.encode())


class RawWebSocket(RawClient):
    """A `RawClient` after a WebSocket handshake; `before`, the handshake and `early` go out as one segment.

    `answered=False`: the caller reads the answer with `read_answer`.
    """

    status: int
    headers: list[tuple[str, str]]

    def __init__(
        self,
        server: Server,
        target: str,
        *headers: str,
        before: bytes = b"",
        early: bytes = b"",
        answered: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(server, **options)
        self.send(before + handshake(target, *headers) + early)
        if answered:
            self.read_answer()

    def read_answer(self) -> int:
        """Return the status of the answer to the handshake."""
        _, self.status, _, self.headers = self.read_head()
        return self.status

    def send_until_blocked(self, data: bytes, seconds: float = 0.3) -> int:
        """Send until the peer has read nothing for `seconds`; return the number of bytes sent."""
        self.socket.settimeout(seconds)
        view, sent = memoryview(data), 0
        while sent < len(data):
            try:
                sent += self.socket.send(view[sent : sent + (1 << 18)])
            except TimeoutError:
                break
        return sent

    def read_frame(self) -> tuple[int, bytes]:
        """Return the opcode and payload of the next frame, which must be a whole message or a control frame."""
        first, second = self.read_exactly(2)
        assert first & 0x80, "a fragment"
        assert not first & 0x70, "reserved bits"
        assert not second & 0x80, "a server's frame is not masked"
        length = second
        if second == 126:
            (length,) = struct.unpack("!H", self.read_exactly(2))
        elif second == 127:
            (length,) = struct.unpack("!Q", self.read_exactly(8))
        return first & 0x0F, self.read_exactly(length)

    def read_close(self) -> tuple[int, str]:
        """Return code and reason of the close frame, which must be the next frame."""
        opcode, payload = self.read_frame()
        assert opcode == CLOSE, f"opcode {opcode}: {payload[:100]!r}"
        return struct.unpack("!H", payload[:2])[0], payload[2:].decode()


def read_notes(server: Server, name: str) -> list[Any]:
    """Return the notes of the app under this name, from its path /seen."""
    with RawClient(server) as client:
        response = client.request("GET", f"/seen?name={name}")
        assert response.status == 200, response
        notes: list[Any] = json.loads(response.body)
        return notes


def wait_for_note(server: Server, name: str, note: Any, timeout: float | None = None) -> None:
    """Wait until the app has made this note."""
    try:
        wait_until(lambda: note in read_notes(server, name), timeout)
    except AssertionError:
        raise AssertionError(f"{note!r} is not in {read_notes(server, name)!r}") from None
