"""The seam between a protocol's terminator and the rest of the interface server.

A terminator holds a client's socket. For each exchange on it (an HTTP request, a WebSocket) it opens a `Connection`,
gives it what the client sends, and is called with what the app sends. Another protocol needs only this.
"""

from __future__ import annotations

from typing import Any, Protocol

from asgibus.protocol.events import Event


class Holding(Protocol):
    """What writes some things only when a batch is through."""

    def flush(self) -> None:
        """Write what is still held: no more comes in this batch."""


class Terminator(Holding, Protocol):
    """What a `Connection` asks of the protocol that holds the socket. Nothing here may block or raise."""

    deadline: float
    """When `expire` is to be called, by the clock of the event loop."""
    write_paused: bool
    """Whether the socket's write buffer is full: what is written waits for the client."""

    def write_event(self, event: Event) -> None:
        """An event of the app, legal in the connection's state; written at once, or held until `flush`."""

    def broadcast(self, event: Event, shared: dict[str, Any]) -> None:
        """An event for a whole group. `shared` keeps its encoded form from one member to the next."""

    def pause(self) -> None:
        """Stop reading from the client: the app is behind."""

    def resume(self) -> None:
        """Read on."""

    def fail(self, status: int, close_code: int) -> None:
        """No worker serves this connection, or none any more: answer with the HTTP status, or the close code."""

    def expire(self, now: float) -> None:
        """The deadline has passed."""

    def shut_down(self) -> None:
        """The server stops: end as soon as the running exchange allows it."""

    def abort(self) -> None:
        """End the socket at once."""
