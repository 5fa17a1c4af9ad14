"""Clients that send orders to `interface_server/groups_app.py`."""

import json
from types import TracebackType
from typing import Any, Self

from websockets.sync.client import ClientConnection

from support.processes import Process
from support.websocket import TEXT, RawWebSocket, frame, ws


class Member:
    """A WebSocket whose app executes orders; a context manager."""

    socket: ClientConnection

    def __init__(self, server: Process, **query: str) -> None:
        self._context = ws(server, "/", query=query, max_size=None)

    def __enter__(self) -> Self:
        self.socket = self._context.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.__exit__(kind, error, trace)

    def do(self, action: str, **arguments: Any) -> Any:
        """Send an order and return the answer, which must be the next message."""
        self.socket.send(json.dumps({"do": action, **arguments}))
        return json.loads(self.socket.recv(timeout=30))["answer"]

    def receive(self) -> Any:
        """Return the next message."""
        return self.socket.recv(timeout=30)

    def is_silent(self) -> bool:
        """Return whether no other message arrives before the answer to an order."""
        return isinstance(self.do("identify"), list)


def send_order(client: RawWebSocket, action: str, **arguments: Any) -> None:
    """Send an order over a raw WebSocket."""
    client.send(frame(TEXT, json.dumps({"do": action, **arguments}).encode()))


def expect_done(client: RawWebSocket) -> None:
    """Assert that the next message is the answer to a completed order."""
    assert client.read_frame() == (TEXT, b'{"answer": null}')
