"""The state tables: which event may follow in which state. Each life cycle is one table, `(state, event) -> state`.

States are strings, because a string is found in a table without running Python code, and every event is looked up.
Code that handles every message looks into its table directly; all other code calls `transition`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, TypeVar

from asgibus.layers.compiling import mypyc_attr
from asgibus.protocol.connect_request import HTTP, WEBSOCKET
from asgibus.protocol.events import (
    ABORT,
    ACCEPT,
    CLOSE,
    CONTINUE,
    EARLY_HINT,
    EVENT_STREAM,
    MESSAGE_SENT,
    NAMES,
    OTHER_CLOSE,
    OTHER_SENT,
    RESPONSE,
    RESPONSE_BODY,
    RESPONSE_END,
    RESPONSE_START,
    RESPONSE_START_TRAILERS,
    TRAILERS,
    TRAILERS_END,
)


class AppState(StrEnum):
    """The progress of an app with its answer to a connection."""

    WAITING = "waiting for the response to start"
    STARTED = "response started"
    STARTED_TRAILERS = "response started, trailers announced"
    TRAILERS = "response body complete, trailers to come"
    STREAMING = "event stream started"
    CONTINUING = "waiting for a further run to continue with the event stream"
    HANDSHAKE = "waiting for websocket.accept"
    OPEN = "open"
    DENYING = "denial response started"
    COMPLETE = "complete"


FOLLOWING: Final = (AppState.OPEN, AppState.STARTED, AppState.STREAMING)
"""The states in which a client can get entries of streams."""


@mypyc_attr(native_class=False)
class IllegalTransition(RuntimeError):
    """An event that the state does not allow.

    A worker raises it from the app's `send`. At the interface server the event is dropped.
    """

    def __init__(self, state: StrEnum, event: int | StrEnum) -> None:
        super().__init__(state, event)
        self.state = state
        self.event = event

    def __str__(self) -> str:
        event = self.event.value if isinstance(self.event, StrEnum) else NAMES.get(self.event, self.event)
        return f"{event} is not allowed in the state {self.state.value!r}"


_State = TypeVar("_State", bound=StrEnum)
_Event = TypeVar("_Event", bound=int | StrEnum)


def transition(table: Mapping[tuple[_State, _Event], _State], state: _State, event: _Event) -> _State:
    """Return the state after an event.

    Raises:
        IllegalTransition: The table has no such transition.
    """
    after = table.get((state, event))
    if after is None:
        raise IllegalTransition(state, event)
    return after


AppTable = dict[tuple[AppState, int], AppState]

HTTP_TABLE: Final[AppTable] = {
    (AppState.WAITING, EARLY_HINT): AppState.WAITING,
    (AppState.WAITING, CONTINUE): AppState.WAITING,
    (AppState.WAITING, RESPONSE_START): AppState.STARTED,
    (AppState.WAITING, RESPONSE_START_TRAILERS): AppState.STARTED_TRAILERS,
    (AppState.WAITING, RESPONSE): AppState.COMPLETE,
    (AppState.WAITING, ABORT): AppState.COMPLETE,
    (AppState.STARTED, EARLY_HINT): AppState.STARTED,  # written while the head is not, else ignored
    (AppState.STARTED, CONTINUE): AppState.STARTED,
    (AppState.STARTED, RESPONSE_BODY): AppState.STARTED,
    (AppState.STARTED, RESPONSE_END): AppState.COMPLETE,
    (AppState.STARTED, ABORT): AppState.COMPLETE,
    (AppState.STARTED_TRAILERS, EARLY_HINT): AppState.STARTED_TRAILERS,
    (AppState.STARTED_TRAILERS, CONTINUE): AppState.STARTED_TRAILERS,
    (AppState.STARTED_TRAILERS, RESPONSE_BODY): AppState.STARTED_TRAILERS,
    (AppState.STARTED_TRAILERS, RESPONSE_END): AppState.TRAILERS,
    (AppState.STARTED_TRAILERS, ABORT): AppState.COMPLETE,
    (AppState.TRAILERS, TRAILERS): AppState.TRAILERS,
    (AppState.TRAILERS, TRAILERS_END): AppState.COMPLETE,
    (AppState.TRAILERS, ABORT): AppState.COMPLETE,
    # An event stream with which further runs may continue. Each run sends a head, and the client gets the first one.
    (AppState.WAITING, EVENT_STREAM): AppState.STREAMING,
    (AppState.STREAMING, EARLY_HINT): AppState.STREAMING,
    (AppState.STREAMING, CONTINUE): AppState.STREAMING,
    (AppState.STREAMING, RESPONSE_BODY): AppState.STREAMING,
    (AppState.STREAMING, RESPONSE_END): AppState.COMPLETE,
    (AppState.STREAMING, ABORT): AppState.COMPLETE,
    (AppState.CONTINUING, EARLY_HINT): AppState.CONTINUING,
    (AppState.CONTINUING, CONTINUE): AppState.CONTINUING,
    (AppState.CONTINUING, EVENT_STREAM): AppState.STREAMING,
    (AppState.CONTINUING, RESPONSE_START): AppState.STREAMING,
    (AppState.CONTINUING, RESPONSE_START_TRAILERS): AppState.STREAMING,
    (AppState.CONTINUING, RESPONSE): AppState.COMPLETE,
    (AppState.CONTINUING, ABORT): AppState.COMPLETE,
}

WEBSOCKET_TABLE: Final[AppTable] = {
    (AppState.HANDSHAKE, ACCEPT): AppState.OPEN,
    (AppState.HANDSHAKE, CLOSE): AppState.COMPLETE,  # refused: the client gets 403
    (AppState.HANDSHAKE, RESPONSE_START): AppState.DENYING,  # the extension "websocket.http.response"
    (AppState.HANDSHAKE, ABORT): AppState.COMPLETE,
    (AppState.DENYING, RESPONSE_BODY): AppState.DENYING,
    (AppState.DENYING, RESPONSE_END): AppState.COMPLETE,
    (AppState.DENYING, ABORT): AppState.COMPLETE,
    (AppState.OPEN, MESSAGE_SENT): AppState.OPEN,
    (AppState.OPEN, CLOSE): AppState.COMPLETE,
    (AppState.OPEN, ABORT): AppState.COMPLETE,
}

# UDP, and protocols that plugins bring: their connections are open from the start.
OTHER_TABLE: Final[AppTable] = {
    (AppState.OPEN, OTHER_SENT): AppState.OPEN,
    (AppState.OPEN, OTHER_CLOSE): AppState.COMPLETE,
    (AppState.OPEN, ABORT): AppState.COMPLETE,
}


def initial_state(kind: str) -> tuple[AppTable, AppState]:
    """Return the table for the app's events on a connection of that kind, and the state it begins in."""
    if kind == HTTP:
        return _HTTP_START
    if kind == WEBSOCKET:
        return _WEBSOCKET_START
    return _OTHER_START


# Up to Python 3.11 a lookup of a member on its enum takes 50 ns.
_HTTP_START: Final = (HTTP_TABLE, AppState.WAITING)
_WEBSOCKET_START: Final = (WEBSOCKET_TABLE, AppState.HANDSHAKE)
_OTHER_START: Final = (OTHER_TABLE, AppState.OPEN)


class ConnectionState(StrEnum):
    """The state of a connection at the interface server."""

    OFFERED = "offered to the workers"
    JOINED = "joined to a session"
    DETACHED = "following a stream without a session, until the stream or its client ends"
    CLOSING = "closed by its client, and its app has not received the disconnect"
    ABANDONED = "closed by its client while no worker had it"
    ENDED = "ended"


class ConnectionEvent(StrEnum):
    """An event in the life cycle of a connection at the interface server."""

    CLAIMED = "claimed by a worker"
    CLIENT_GONE = "client gone"
    DISCONNECT_DELIVERED = "disconnect delivered to the app, or not needed"
    DETACHED = "detached from its session"
    COMPLETED = "answered in full"
    OFFERED_AGAIN = "offered for a further run"
    GIVEN_UP = "given up: not claimed in time, or its worker is gone for good"


CONNECTION_TABLE: Final[dict[tuple[ConnectionState, ConnectionEvent], ConnectionState]] = {
    (ConnectionState.OFFERED, ConnectionEvent.CLAIMED): ConnectionState.JOINED,
    (ConnectionState.OFFERED, ConnectionEvent.CLIENT_GONE): ConnectionState.ABANDONED,
    # The worker that claimed it died before it sent CLAIMED.
    (ConnectionState.OFFERED, ConnectionEvent.OFFERED_AGAIN): ConnectionState.OFFERED,
    (ConnectionState.OFFERED, ConnectionEvent.GIVEN_UP): ConnectionState.ENDED,
    (ConnectionState.JOINED, ConnectionEvent.CLIENT_GONE): ConnectionState.CLOSING,
    (ConnectionState.JOINED, ConnectionEvent.COMPLETED): ConnectionState.ENDED,
    (ConnectionState.JOINED, ConnectionEvent.OFFERED_AGAIN): ConnectionState.OFFERED,
    (ConnectionState.JOINED, ConnectionEvent.GIVEN_UP): ConnectionState.ENDED,
    (ConnectionState.JOINED, ConnectionEvent.DETACHED): ConnectionState.DETACHED,
    (ConnectionState.DETACHED, ConnectionEvent.CLIENT_GONE): ConnectionState.ENDED,
    (ConnectionState.DETACHED, ConnectionEvent.COMPLETED): ConnectionState.ENDED,
    (ConnectionState.DETACHED, ConnectionEvent.GIVEN_UP): ConnectionState.ENDED,
    (ConnectionState.CLOSING, ConnectionEvent.DISCONNECT_DELIVERED): ConnectionState.ENDED,
    (ConnectionState.CLOSING, ConnectionEvent.OFFERED_AGAIN): ConnectionState.ABANDONED,
    (ConnectionState.CLOSING, ConnectionEvent.GIVEN_UP): ConnectionState.ENDED,
    (ConnectionState.ABANDONED, ConnectionEvent.CLAIMED): ConnectionState.CLOSING,
    (ConnectionState.ABANDONED, ConnectionEvent.OFFERED_AGAIN): ConnectionState.ABANDONED,
    (ConnectionState.ABANDONED, ConnectionEvent.GIVEN_UP): ConnectionState.ENDED,
}


class RunState(StrEnum):
    """The state of a session at the worker. A session is one run of the app."""

    SERVING = "serving its connection"
    DRAINING = "to be handed over"
    NOTIFIED = "to be handed over, and the app knows"
    SUPERSEDED = "replaced by another run"
    DISCONNECTED = "without its client"
    HANDED_OVER = "handed over"
    ENDED = "ended"


class RunEvent(StrEnum):
    """An event in the life cycle of a session at the worker."""

    DRAIN = "worker stops"
    NOTIFY = "app notified of the handover"
    SUPERSEDE = "superseded by another run"
    DISCONNECT = "client gone"
    RETURN = "app returned"


RUN_TABLE: Final[dict[tuple[RunState, RunEvent], RunState]] = {
    (RunState.SERVING, RunEvent.DRAIN): RunState.DRAINING,
    (RunState.SERVING, RunEvent.SUPERSEDE): RunState.SUPERSEDED,
    (RunState.SERVING, RunEvent.DISCONNECT): RunState.DISCONNECTED,
    (RunState.SERVING, RunEvent.RETURN): RunState.ENDED,
    (RunState.DRAINING, RunEvent.NOTIFY): RunState.NOTIFIED,
    (RunState.DRAINING, RunEvent.SUPERSEDE): RunState.SUPERSEDED,
    (RunState.DRAINING, RunEvent.DISCONNECT): RunState.DISCONNECTED,
    (RunState.DRAINING, RunEvent.RETURN): RunState.ENDED,  # the app has ended the connection itself
    (RunState.NOTIFIED, RunEvent.SUPERSEDE): RunState.SUPERSEDED,
    (RunState.NOTIFIED, RunEvent.DISCONNECT): RunState.DISCONNECTED,
    (RunState.NOTIFIED, RunEvent.RETURN): RunState.HANDED_OVER,
    (RunState.SUPERSEDED, RunEvent.SUPERSEDE): RunState.SUPERSEDED,
    (RunState.SUPERSEDED, RunEvent.DISCONNECT): RunState.SUPERSEDED,  # the other run receives the disconnect
    (RunState.SUPERSEDED, RunEvent.RETURN): RunState.ENDED,
    (RunState.DISCONNECTED, RunEvent.SUPERSEDE): RunState.DISCONNECTED,
    (RunState.DISCONNECTED, RunEvent.RETURN): RunState.ENDED,
    (RunState.HANDED_OVER, RunEvent.SUPERSEDE): RunState.ENDED,
    (RunState.HANDED_OVER, RunEvent.DISCONNECT): RunState.ENDED,
    (RunState.ENDED, RunEvent.SUPERSEDE): RunState.ENDED,
    (RunState.ENDED, RunEvent.DISCONNECT): RunState.ENDED,
}
