"""The life cycle of a WebSocket at its socket, as one table: `(state, event) -> state`."""

from __future__ import annotations

from enum import StrEnum


class WebSocketState(StrEnum):
    """The states of a WebSocket, in their order."""

    HANDSHAKE = "waiting for the app to accept"
    OPEN = "open"
    CLOSING = "rejected, or in the closing handshake"


class WebSocketEvent(StrEnum):
    """A change of a WebSocket."""

    ACCEPT = "the app accepts the handshake"
    REJECT = "the app or the server rejects the handshake"
    CLOSE = "one side begins to close"


WEBSOCKET_TABLE: dict[tuple[WebSocketState, WebSocketEvent], WebSocketState] = {
    (WebSocketState.HANDSHAKE, WebSocketEvent.ACCEPT): WebSocketState.OPEN,
    (WebSocketState.HANDSHAKE, WebSocketEvent.REJECT): WebSocketState.CLOSING,
    (WebSocketState.OPEN, WebSocketEvent.CLOSE): WebSocketState.CLOSING,
}
