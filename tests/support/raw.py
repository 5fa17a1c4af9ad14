"""An HTTP client that sends exactly the given bytes, and reads one response at a time."""

import socket
import ssl
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from support.deadline import HANG, TooLate

CLOSED = 4.5
"""Seconds for a connection that the peer is about to close: fewer than it may be idle."""


class Server(Protocol):
    """Address of a server that a client connects to, such as a `Process`."""

    url: str
    uds: str

    @property
    def port(self) -> int: ...


@dataclass(frozen=True)
class Response:
    """One response, informational (1xx) ones included, as it came over the wire."""

    version: str
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes
    trailers: list[tuple[str, str]]

    def get(self, name: str) -> str | None:
        """Return the value of the header, None without one. Fails if it came more than once."""
        values = self.get_all(name)
        assert len(values) <= 1, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None

    def get_all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def text(self) -> str:
        return self.body.decode()


class RawClient:
    """One connection. Every wait is bounded by `timeout` seconds (HANG without one) and ends in TimeoutError.

    `server` is a `Process`, a `(host, port)` or the path of a unix socket. `receive_buffer` makes a small window, for
    clients that read slowly. `before_tls` is sent first of all, before the handshake.
    """

    def __init__(
        self,
        server: Server | tuple[str, int] | str,
        *,
        timeout: float | None = None,
        receive_buffer: int | None = None,
        tls: ssl.SSLContext | None = None,
        before_tls: bytes = b"",
    ) -> None:
        address = _address(server)
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        plain = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._timeout = HANG if timeout is None else timeout
            self._closed = CLOSED if timeout is None else timeout
            plain.settimeout(self._timeout)
            if receive_buffer is not None:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            plain.connect(address)
            if family != socket.AF_UNIX:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.sendall(before_tls)
            self.socket = plain if tls is None else tls.wrap_socket(plain, server_hostname="localhost")
        except BaseException:
            plain.close()
            raise
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Sending.

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.socket.settimeout(self._timeout)
        self.socket.sendall(data)

    def send_pieces(self, pieces: bytes | Iterable[bytes], pause: float = 0.001) -> None:
        """Send each piece (of `bytes`: each byte) in a segment of its own, `pause` seconds apart."""
        for piece in pieces:
            self.send(bytes([piece]) if isinstance(piece, int) else piece)
            time.sleep(pause)

    def request(self, method: str, target: str = "/", *headers: str, body: bytes = b"") -> Response:
        """Send a plain request (`Host` and, with a body, `Content-Length` are added) and read its final response."""
        lines = [f"{method} {target} HTTP/1.1", "Host: test", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        while (response := self.read_response(method)).status < 200:
            pass
        return response

    def half_close(self) -> None:
        """Close the sending side (FIN); reading continues."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Break the connection with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    # Receiving.

    def read_response(self, method: str = "GET") -> Response:
        """Return the next response, a 1xx one included, with its whole body. A response to `method` HEAD has none.

        Raises EOFError if the peer closes before it is complete.
        """
        version, status, reason, headers = self.read_head()
        body, trailers = self._read_body(method, status, headers)
        return Response(version, status, reason, headers, body, trailers)

    def read_head(self) -> tuple[str, int, str, list[tuple[str, str]]]:
        """Return version, status, reason and headers of the next response, and leave the body unread."""
        first, *lines = self.read_until(b"\r\n\r\n")[:-4].decode("latin-1").split("\r\n")
        version, status, reason = [*first.split(" ", 2), ""][:3]
        assert version.startswith("HTTP/"), f"not a status line: {first!r}"
        return version, int(status), reason, [_header(line) for line in lines]

    def read_chunk(self) -> bytes:
        """Return the data of the next chunk of a chunked body, b"" for the last (its trailers stay unread)."""
        size = int(self.read_until(b"\r\n")[:-2].partition(b";")[0], 16)
        if size == 0:
            return b""
        data = self.read_exactly(size)
        assert self.read_exactly(2) == b"\r\n", "chunk without its end"
        return data

    def read_until(self, mark: bytes) -> bytes:
        """Read up to and including `mark`, and return that part."""
        deadline = time.monotonic() + self._timeout
        while (index := self._buffer.find(mark)) < 0:
            self._fill(deadline)
        return self._take(index + len(mark))

    def read_exactly(self, size: int) -> bytes:
        deadline = time.monotonic() + self._timeout
        while len(self._buffer) < size:
            self._fill(deadline)
        return self._take(size)

    def read_some(self) -> bytes:
        """Return the available bytes, at least one; b"" if the peer closed."""
        if not self._buffer:
            try:
                self._fill(time.monotonic() + self._timeout)
            except EOFError:
                return b""
        return self._take(len(self._buffer))

    def read_until_close(self, timeout: float | None = None) -> bytes:
        """Read until the peer closes or resets the connection; raise TooLate if it does not in time."""
        deadline = time.monotonic() + (self._closed if timeout is None else timeout)
        while True:
            try:
                self._fill(deadline)
            except (EOFError, ConnectionResetError, ssl.SSLEOFError):
                return self._take(len(self._buffer))
            except TimeoutError as error:
                raise TooLate(f"the peer did not close: {error}") from error

    def assert_silent(self, seconds: float = 0.2) -> None:
        """Check that the peer neither sends nor closes for that long."""
        assert not self._buffer, f"unread: {bytes(self._buffer)!r}"
        try:
            self._fill(time.monotonic() + seconds)
        except TimeoutError:
            return
        except EOFError:
            raise AssertionError("the peer closed") from None
        raise AssertionError(f"the peer sent {bytes(self._buffer)!r}")

    def _read_body(
        self, method: str, status: int, headers: list[tuple[str, str]]
    ) -> tuple[bytes, list[tuple[str, str]]]:
        if method == "HEAD" or status < 200 or status in {204, 304}:
            return b"", []
        names = {name.lower(): value for name, value in headers}
        if names.get("transfer-encoding", "").lower() == "chunked":
            body = b"".join(iter(self.read_chunk, b""))
            trailers = []
            while line := self.read_until(b"\r\n")[:-2].decode("latin-1"):
                trailers.append(_header(line))
            return body, trailers
        if "content-length" in names:
            return self.read_exactly(int(names["content-length"])), []
        return self.read_until_close(), []

    def _take(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _fill(self, deadline: float) -> None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError(f"nothing more came; so far: {bytes(self._buffer[-1000:])!r}")
        self.socket.settimeout(remaining)
        data = self.socket.recv(65536)
        if not data:
            raise EOFError(f"the peer closed; so far: {bytes(self._buffer[-1000:])!r}")
        self._buffer += data


def _address(server: Server | tuple[str, int] | str) -> tuple[str, int] | str:
    if isinstance(server, (tuple, str)):
        return server
    return server.uds or ("127.0.0.1", server.port)


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    assert colon, f"not a header: {line!r}"
    return name, value.strip()
