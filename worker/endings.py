"""The last events of a run that ends without a whole answer of its app."""

from __future__ import annotations

from typing import Final

from asgibus.protocol.connect_request import HTTP, WEBSOCKET
from asgibus.protocol.events import ABORT, CLOSE, OTHER_CLOSE, RESPONSE_END, RESPONSE_START, Event, other
from asgibus.protocol.states import AppState

SERVICE_RESTART: Final = 1012  # close code: the service restarts, and the client may connect again


def at_return(kind: str, state: AppState, *, resumed: bool, failed: bool) -> tuple[tuple[Event, ...], str]:
    """Return the events for an app that has ended without a whole answer.

    Args:
        kind: The type of the scope.
        state: The state in which the app has left the connection.
        resumed: Whether an earlier run has accepted the client.
        failed: Whether the app has raised.

    Returns:
        The events, and the mistake of an app that has returned in this state; an empty text if it made none.
    """
    if kind != HTTP and kind != WEBSOCKET:
        return ((ABORT,) if failed else _other_close(kind),), ""
    if state in (AppState.WAITING, AppState.HANDSHAKE) and not resumed:
        return _answer(500, b"Internal Server Error"), "returned without answering"
    if state in (AppState.OPEN, AppState.HANDSHAKE):
        return ((CLOSE, 1011 if failed else 1000, ""),), ""
    return ((ABORT,),), "returned before its response was complete"


def at_stop(kind: str, state: AppState, *, resumed: bool) -> tuple[Event, ...]:
    """Return the events that close a WebSocket, or a connection of another protocol, because the worker stops.

    Args:
        kind: The type of the scope.
        state: The state in which the app has left the connection.
        resumed: Whether an earlier run has accepted the client.
    """
    if kind != WEBSOCKET:
        return (_other_close(kind),) if state is AppState.OPEN else ()
    if state is AppState.OPEN or resumed:
        return ((CLOSE, SERVICE_RESTART, ""),)
    if state is AppState.HANDSHAKE:
        return _answer(503, b"This server is stopping.")
    return ((ABORT,),) if state is AppState.DENYING else ()


def _other_close(kind: str) -> Event:
    return other(OTHER_CLOSE, {"type": f"{kind}.close"})


def _answer(status: int, body: bytes) -> tuple[Event, ...]:
    headers = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n" % len(body)
    return (RESPONSE_START, status, headers), (RESPONSE_END, body)
