"""An HTTP socket without a network: the test is the client, the event loop and the worker."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

from asgibus.interface_server.http.protocol import HttpProtocol, HttpServer
from asgibus.interface_server.http.request import Request
from asgibus.interface_server.http.response import ResponseWriter, StandardHeaders
from asgibus.interface_server.lingering_close import LingeringClose
from asgibus.interface_server.read_scheduler import ReadScheduler
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.interface_server.websocket.protocol import WebSocketProtocol
from asgibus.layers.frames import ACK, EVENT
from asgibus.protocol.connect_request import ConnectRequest
from asgibus.protocol.events import RESPONSE, Event
from support.recording import WORKER, Table

HANDSHAKE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


def get(path: str = "/", more: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: test\r\n{more}\r\n".encode()


class Loop:
    """An event loop, turned by the test."""

    def __init__(self) -> None:
        self._soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def turn(self) -> bool:
        """Run the callbacks that are due, and return whether there were any."""
        soon, self._soon = self._soon, []
        for callback in soon:
            callback()
        return bool(soon)


class Transport:
    """A transport that records writes."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.written = b""
        self.reading = True
        self.closed = self.half_closed = False
        self.unwritten = 0

    def write(self, data: bytes) -> None:
        self.written += data

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.half_closed = True

    def close(self) -> None:
        self.closed = True

    abort = close

    def get_write_buffer_size(self) -> int:
        return self.unwritten


class Socket:
    """One client's socket, and the server around it."""

    def __init__(self, **settings: Any) -> None:
        self.settings = InterfaceSettings(**settings)
        self.table = Table(**settings)
        self.connections = self.table.connections
        self.loop = Loop()
        self.scheduler = ReadScheduler(cast(asyncio.AbstractEventLoop, self.loop), self.connections.counts)
        self.standard_headers = StandardHeaders(server=False, date=False)
        self.now = 100.0
        self.streams = None
        self.tail = b""
        self._posted = 0
        http = HttpProtocol(cast(HttpServer, self))
        self.transport = Transport(http)
        http.connection_made(cast(asyncio.Transport, self.transport))

    @property
    def protocol(self) -> Any:
        """Return the protocol that has the socket now."""
        return self.transport.protocol

    def admit(self, holder: Any) -> bool:
        return True

    def register(self, holder: Any) -> None:
        pass

    def forget(self, holder: Any) -> None:
        pass

    def peer_of(self, transport: Any, origin: Any) -> Any:
        return ("192.0.2.1", 1), ("192.0.2.2", 80), "http", {}

    def proxies_for(self, peer: Any) -> None:
        return None

    def upgrade(self, request: Request, transport: Any, writer: ResponseWriter, tail: bytes) -> None:
        self.tail = tail
        WebSocketProtocol(cast(Any, self), transport, writer).begin(request, tail)

    def check_slow_client(self, transport: Any) -> bool:
        return False

    # The client.

    def send(self, data: bytes, size: int | None = None) -> None:
        """Deliver bytes of the client, in pieces of a size."""
        for start in range(0, len(data), size or len(data)):
            self.protocol.data_received(data[start : start + (size or len(data))])
        self.turn()

    def turn(self) -> None:
        """Let the event loop run until no callback is due."""
        while self.loop.turn():
            pass

    def end(self) -> None:
        """Deliver the end of the client's input."""
        if not self.protocol.eof_received():
            self.transport.close()
        self.turn()

    def read(self) -> list[bytes]:
        """Return the status lines and the bodies that were written since the last call."""
        written, self.transport.written = self.transport.written, b""
        return [part for part in written.replace(b"HTTP/1.1 ", b"\r\n").split(b"\r\n") if part and b": " not in part]

    @property
    def lingers(self) -> bool:
        return isinstance(self.transport.protocol, LingeringClose)

    # The worker.

    @property
    def requests(self) -> list[ConnectRequest]:
        return self.table.openings

    def answer(self, body: bytes = b"hello", acked: int = 0) -> None:
        """Answer the request that was offered last."""
        self.table.frames((EVENT, self.requests[-1].connection, 1, 0, acked, RESPONSE, 200, b"", body))
        self.turn()

    def acknowledge(self, events: int) -> None:
        self.table.frames((ACK, self.requests[-1].connection, 1, events))
        self.turn()

    def post(self, *event: Any) -> None:
        """Send an event of the app to the connection that was offered last."""
        self.table.frames((EVENT, self.requests[-1].connection, 1, self._posted, 0, *event))
        self._posted += 1
        self.turn()

    def events(self) -> list[Event]:
        """Return the first events of the request that was offered last, and those that followed to its worker."""
        return [*self.requests[-1].events, *self.table.events(WORKER)]
