"""One client socket, opened and upgraded by hand, and the frames that travel on it."""

import re
import socket

HOST = "127.0.0.1"
PATIENCE = 15.0
"""Seconds without a byte after which a measure is given up."""

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
MASK = b"\x12\x34\x56\x78"


class ClientError(Exception):
    """The server did not answer, or with another response than the apps of this benchmark."""


class Connection:
    """A socket with the two numbers that a measure keeps for it."""

    __slots__ = ("received", "sent_at", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((HOST, port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = 0
        self.sent_at = 0.0

    def read_exactly(self, size: int) -> bytes:
        """Block until `size` bytes are there."""
        parts = bytearray()
        while len(parts) < size:
            part = self.socket.recv(size - len(parts))
            if not part:
                raise ClientError(f"closed by the server after {bytes(parts[:200])!r}")
            parts += part
        return bytes(parts)

    def read_head(self) -> bytes:
        """Block until the empty line, and take nothing behind it."""
        head = bytearray()
        while not head.endswith(b"\r\n\r\n"):
            head += self.read_exactly(1)
        return bytes(head)

    def read_response(self) -> int:
        """Block until a response has come, and return its size in bytes with the head.

        Raises ClientError unless the status is 200.
        """
        head = self.read_head()
        length = re.search(rb"\r\ncontent-length: *(\d+)\r\n", head, re.IGNORECASE)
        if not head.startswith(b"HTTP/1.1 200 ") or length is None:
            raise ClientError(f"unexpected answer: {head!r}")
        return len(head) + len(self.read_exactly(int(length[1])))

    def upgrade(self, path: str) -> None:
        """Open a WebSocket. Raises ClientError when the server does not answer 101 with the right key."""
        self.socket.sendall(handshake(path))
        check_handshake(self.read_head())

    def expect(self, frame: bytes) -> None:
        """Block until exactly this frame has come."""
        if (found := self.read_exactly(len(frame))) != frame:
            raise ClientError(f"expected {frame!r}, got {found!r}")


def handshake(path: str) -> bytes:
    """Return the request that opens a WebSocket."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {KEY.decode()}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def check_handshake(head: bytes) -> None:
    """Raise ClientError unless this is the head of an answer that opens a WebSocket."""
    if not head.startswith(b"HTTP/1.1 101") or ACCEPT not in head:
        raise ClientError(f"no WebSocket: {head[:200]!r}")


def client_frame(text: str) -> bytes:
    """Return a complete, masked text frame of up to 125 bytes."""
    payload = text.encode()
    masked = bytes(byte ^ MASK[index % 4] for index, byte in enumerate(payload))
    return bytes((0x81, 0x80 | len(payload))) + MASK + masked


def server_frame(text: str) -> bytes:
    """Return the same frame as a server sends it."""
    payload = text.encode()
    return bytes((0x81, len(payload))) + payload
