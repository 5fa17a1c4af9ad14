"""The life cycle of an HTTP socket, as one table: `(state, event) -> state`.

The state says which further requests of the client are served. Whether a request is being answered at the moment, and
how far, is the state of its connection on the bus (`protocol.states`). Flow control is no part of it either: a socket
in any state may be paused.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class SocketState(StrEnum):
    """The state of a socket: which of its requests are served."""

    OPEN = "requests are read and answered"
    HALF_CLOSED = "the client sends no more; requests that have arrived are answered"
    DRAINING = "the request under way is answered, or the first one, and no other"
    REJECTING = "nothing more is read; requests before the invalid input are answered, then an error"
    CLOSED = "nothing more is read or answered: the socket closes, is lost, or speaks another protocol"


class SocketEvent(StrEnum):
    """A change on either side of a socket."""

    CLIENT_EOF = "the client closes its sending side"
    INVALID_INPUT = "the client breaks HTTP, or a limit"
    SERVER_STOP = "the server stops"
    CLOSE = "the socket is closed, lost, or upgraded"


OPEN: Final = SocketState.OPEN
HALF_CLOSED: Final = SocketState.HALF_CLOSED
DRAINING: Final = SocketState.DRAINING
REJECTING: Final = SocketState.REJECTING
CLOSED: Final = SocketState.CLOSED
CLIENT_EOF: Final = SocketEvent.CLIENT_EOF
INVALID_INPUT: Final = SocketEvent.INVALID_INPUT
SERVER_STOP: Final = SocketEvent.SERVER_STOP
CLOSE: Final = SocketEvent.CLOSE

SOCKET_TABLE: Final[dict[tuple[SocketState, SocketEvent], SocketState]] = {
    (OPEN, CLIENT_EOF): HALF_CLOSED,
    (OPEN, INVALID_INPUT): REJECTING,
    (OPEN, SERVER_STOP): DRAINING,
    (OPEN, CLOSE): CLOSED,
    (HALF_CLOSED, CLIENT_EOF): HALF_CLOSED,
    (HALF_CLOSED, INVALID_INPUT): REJECTING,
    (HALF_CLOSED, SERVER_STOP): HALF_CLOSED,  # what has arrived is little, and no more follows
    (HALF_CLOSED, CLOSE): CLOSED,
    (DRAINING, CLIENT_EOF): HALF_CLOSED,
    (DRAINING, INVALID_INPUT): REJECTING,
    (DRAINING, SERVER_STOP): DRAINING,
    (DRAINING, CLOSE): CLOSED,
    (REJECTING, CLIENT_EOF): REJECTING,
    (REJECTING, INVALID_INPUT): REJECTING,
    (REJECTING, SERVER_STOP): REJECTING,
    (REJECTING, CLOSE): CLOSED,
    (CLOSED, CLIENT_EOF): CLOSED,  # a transport may report what happened before it was closed
    (CLOSED, INVALID_INPUT): CLOSED,
    (CLOSED, SERVER_STOP): CLOSED,
    (CLOSED, CLOSE): CLOSED,
}
