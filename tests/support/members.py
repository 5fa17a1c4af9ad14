"""Clients of `interface_server/groups_app.py`, whose WebSockets take orders."""

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

    def do(self, what: str, **order: Any) -> Any:
        """Give an order and wait for the answer, which must be the next message."""
        self.socket.send(json.dumps({"do": what, **order}))
        return json.loads(self.socket.recv(timeout=30))["answer"]

    def hear(self) -> Any:
        """Return the next message."""
        return self.socket.recv(timeout=30)

    def silent(self) -> bool:
        """Return whether no message was waiting: the next message answers the order."""
        return isinstance(self.do("who"), list)


def order(client: RawWebSocket, what: str, **order: Any) -> None:
    """Give an order over a raw WebSocket."""
    client.send(frame(TEXT, json.dumps({"do": what, **order}).encode()))


def obeyed(client: RawWebSocket) -> None:
    """Check that the next message says that an order was obeyed."""
    assert client.read_frame() == (TEXT, b'{"answer": null}')
