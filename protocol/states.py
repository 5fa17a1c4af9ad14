"""The state tables: what may follow what. Each life cycle is one table, `(state, event code) -> state`.

States are strings, because those are found in a table without running Python code, and every event is looked up.

An illegal step is an `IllegalTransition` that names the state and the event; at the worker it raises out of the app's
`send`, at the interface server it is a frame that is refused.
"""

from __future__ import annotations

from enum import StrEnum

from asgibus.protocol.connect_request import HTTP, WEBSOCKET
from asgibus.protocol.events import (
    ABORT,
    ACCEPT,
    CLOSE,
    CONTINUE,
    EARLY_HINT,
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


class App(StrEnum):
    """Where an app is in answering a connection."""

    WAITING = "waiting for the response to start"
    STARTED = "response started"
    STARTED_TRAILERS = "response started, trailers announced"
    TRAILERS = "response body complete, trailers to come"
    HANDSHAKE = "waiting for websocket.accept"
    OPEN = "open"
    DENYING = "denial response started"
    COMPLETE = "complete"


class IllegalTransition(RuntimeError):
    """An event that the state does not allow."""

    def __init__(self, state: App, code: int) -> None:
        super().__init__(state, code)
        self.state = state
        self.code = code

    def __str__(self) -> str:
        return f"{NAMES.get(self.code, self.code)} is not allowed in the state {self.state.value!r}"


Table = dict[tuple[App, int], App]

HTTP_TABLE: Table = {
    (App.WAITING, EARLY_HINT): App.WAITING,
    (App.WAITING, CONTINUE): App.WAITING,
    (App.WAITING, RESPONSE_START): App.STARTED,
    (App.WAITING, RESPONSE_START_TRAILERS): App.STARTED_TRAILERS,
    (App.WAITING, RESPONSE): App.COMPLETE,
    (App.WAITING, ABORT): App.COMPLETE,
    (App.STARTED, EARLY_HINT): App.STARTED,  # written while the head is not, else ignored
    (App.STARTED, CONTINUE): App.STARTED,
    (App.STARTED, RESPONSE_BODY): App.STARTED,
    (App.STARTED, RESPONSE_END): App.COMPLETE,
    (App.STARTED, ABORT): App.COMPLETE,
    (App.STARTED_TRAILERS, EARLY_HINT): App.STARTED_TRAILERS,
    (App.STARTED_TRAILERS, CONTINUE): App.STARTED_TRAILERS,
    (App.STARTED_TRAILERS, RESPONSE_BODY): App.STARTED_TRAILERS,
    (App.STARTED_TRAILERS, RESPONSE_END): App.TRAILERS,
    (App.STARTED_TRAILERS, ABORT): App.COMPLETE,
    (App.TRAILERS, TRAILERS): App.TRAILERS,
    (App.TRAILERS, TRAILERS_END): App.COMPLETE,
    (App.TRAILERS, ABORT): App.COMPLETE,
}

WEBSOCKET_TABLE: Table = {
    (App.HANDSHAKE, ACCEPT): App.OPEN,
    (App.HANDSHAKE, CLOSE): App.COMPLETE,  # refused: the client gets 403
    (App.HANDSHAKE, RESPONSE_START): App.DENYING,  # the extension "websocket.http.response"
    (App.HANDSHAKE, ABORT): App.COMPLETE,
    (App.DENYING, RESPONSE_BODY): App.DENYING,
    (App.DENYING, RESPONSE_END): App.COMPLETE,
    (App.DENYING, ABORT): App.COMPLETE,
    (App.OPEN, MESSAGE_SENT): App.OPEN,
    (App.OPEN, CLOSE): App.COMPLETE,
    (App.OPEN, ABORT): App.COMPLETE,
}

# UDP and every protocol that another package brings: its connections are open from the start.
OTHER_TABLE: Table = {
    (App.OPEN, OTHER_SENT): App.OPEN,
    (App.OPEN, OTHER_CLOSE): App.COMPLETE,
    (App.OPEN, ABORT): App.COMPLETE,
}


def beginning(kind: str) -> tuple[Table, App]:
    """What an app may send when on a connection of that kind, and where it begins."""
    if kind == HTTP:
        return HTTP_TABLE, App.WAITING
    if kind == WEBSOCKET:
        return WEBSOCKET_TABLE, App.HANDSHAKE
    return OTHER_TABLE, App.OPEN


def step(table: Table, state: App, code: int) -> App:
    """The state after an event. Raises IllegalTransition."""
    after = table.get((state, code))
    if after is None:
        raise IllegalTransition(state, code)
    return after


class Life(StrEnum):
    """Where a connection is at the interface server."""

    OFFERED = "offered to the workers"
    JOINED = "joined to a session"
    PARTING = "left by its client, and its app has not heard of it"
    LEFT = "left by its client while no worker had it"
    ENDED = "ended"


class Turn(StrEnum):
    """What happens to a connection at the interface server."""

    OWNED = "a worker names itself as owner"
    CLIENT_GONE = "the client is gone"
    HEARD = "the app has heard that the client is gone, or need not"
    COMPLETED = "the app has answered in full"
    REOPENED = "its run has ended, and it is offered for another one"
    GIVEN_UP = "no worker took it in time, or its worker is gone for good"


LIFE_TABLE: dict[tuple[Life, Turn], Life] = {
    (Life.OFFERED, Turn.OWNED): Life.JOINED,
    (Life.OFFERED, Turn.CLIENT_GONE): Life.LEFT,
    (Life.OFFERED, Turn.REOPENED): Life.OFFERED,  # whoever had claimed it died before it said so
    (Life.OFFERED, Turn.GIVEN_UP): Life.ENDED,
    (Life.JOINED, Turn.CLIENT_GONE): Life.PARTING,
    (Life.JOINED, Turn.COMPLETED): Life.ENDED,
    (Life.JOINED, Turn.REOPENED): Life.OFFERED,
    (Life.JOINED, Turn.GIVEN_UP): Life.ENDED,
    (Life.PARTING, Turn.HEARD): Life.ENDED,
    (Life.PARTING, Turn.REOPENED): Life.LEFT,
    (Life.PARTING, Turn.GIVEN_UP): Life.ENDED,
    (Life.LEFT, Turn.OWNED): Life.PARTING,
    (Life.LEFT, Turn.REOPENED): Life.LEFT,
    (Life.LEFT, Turn.GIVEN_UP): Life.ENDED,
}


class Run(StrEnum):
    """Where a session at the worker is, which is one run of the app."""

    SERVING = "serving its connection"
    LEAVING = "to be handed over"
    TOLD = "to be handed over, as the app knows"
    SUPERSEDED = "replaced by another run"
    LOST = "without its client"
    HANDED_OVER = "handed over"
    ENDED = "ended"


class Change(StrEnum):
    """What happens to a session at the worker."""

    DRAIN = "its worker stops"
    TELL = "the app is told that its client is gone"
    SUPERSEDE = "another run has taken its connection over"
    LOSE = "its client is gone"
    RETURN = "the app returns"


RUN_TABLE: dict[tuple[Run, Change], Run] = {
    (Run.SERVING, Change.DRAIN): Run.LEAVING,
    (Run.SERVING, Change.SUPERSEDE): Run.SUPERSEDED,
    (Run.SERVING, Change.LOSE): Run.LOST,
    (Run.SERVING, Change.RETURN): Run.ENDED,
    (Run.LEAVING, Change.TELL): Run.TOLD,
    (Run.LEAVING, Change.SUPERSEDE): Run.SUPERSEDED,
    (Run.LEAVING, Change.LOSE): Run.LOST,
    (Run.LEAVING, Change.RETURN): Run.ENDED,  # by itself: it has ended its connection
    (Run.TOLD, Change.SUPERSEDE): Run.SUPERSEDED,
    (Run.TOLD, Change.LOSE): Run.LOST,
    (Run.TOLD, Change.RETURN): Run.HANDED_OVER,
    (Run.SUPERSEDED, Change.SUPERSEDE): Run.SUPERSEDED,
    (Run.SUPERSEDED, Change.LOSE): Run.SUPERSEDED,  # the other run hears of that
    (Run.SUPERSEDED, Change.RETURN): Run.ENDED,
    (Run.LOST, Change.SUPERSEDE): Run.LOST,
    (Run.LOST, Change.RETURN): Run.ENDED,
    (Run.HANDED_OVER, Change.SUPERSEDE): Run.ENDED,
    (Run.HANDED_OVER, Change.LOSE): Run.ENDED,
    (Run.ENDED, Change.SUPERSEDE): Run.ENDED,
    (Run.ENDED, Change.LOSE): Run.ENDED,
}


class IllegalTurn(RuntimeError):
    """A turn that the life of a connection, or of a session, does not allow."""

    def __init__(self, life: Life | Run, turn: Turn | Change) -> None:
        super().__init__(life, turn)
        self.life = life
        self.turn = turn

    def __str__(self) -> str:
        return f"{self.turn.value!r} cannot happen to what is {self.life.value!r}"


def turn(life: Life, event: Turn) -> Life:
    """The life of a connection after a turn. Raises IllegalTurn."""
    after = LIFE_TABLE.get((life, event))
    if after is None:
        raise IllegalTurn(life, event)
    return after


def change(run: Run, event: Change) -> Run:
    """The state of a session after a change. Raises IllegalTurn."""
    after = RUN_TABLE.get((run, event))
    if after is None:
        raise IllegalTurn(run, event)
    return after
