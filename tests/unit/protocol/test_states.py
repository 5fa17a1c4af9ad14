"""Transition tables: a transition that a table lacks raises an error that names both states."""

import itertools
import re
from typing import Any

import pytest

from asgibus.protocol import events
from asgibus.protocol.events import NAMES
from asgibus.protocol.states import (
    CONNECTION_TABLE,
    HTTP_TABLE,
    OTHER_TABLE,
    RUN_TABLE,
    WEBSOCKET_TABLE,
    AppState,
    AppTable,
    ConnectionEvent,
    ConnectionState,
    IllegalTransition,
    RunEvent,
    RunState,
    initial_state,
    transition,
)

HTTP_STATES = [
    *(AppState.WAITING, AppState.STARTED, AppState.STARTED_TRAILERS, AppState.TRAILERS),
    *(AppState.STREAMING, AppState.CONTINUING, AppState.COMPLETE),
]
WEBSOCKET_STATES = [AppState.HANDSHAKE, AppState.OPEN, AppState.DENYING, AppState.COMPLETE]
OTHER_STATES = [AppState.OPEN, AppState.COMPLETE]

# Written from the ASGI specification, not from the tables: the events in each state, and the states after them.
HTTP = {
    AppState.WAITING: "EARLY_HINT>WAITING CONTINUE>WAITING RESPONSE_START>STARTED "
    "RESPONSE_START_TRAILERS>STARTED_TRAILERS EVENT_STREAM>STREAMING RESPONSE>COMPLETE ABORT>COMPLETE",
    AppState.STARTED: "EARLY_HINT>STARTED CONTINUE>STARTED RESPONSE_BODY>STARTED RESPONSE_END>COMPLETE ABORT>COMPLETE",
    AppState.STARTED_TRAILERS: "EARLY_HINT>STARTED_TRAILERS CONTINUE>STARTED_TRAILERS RESPONSE_BODY>STARTED_TRAILERS "
    "RESPONSE_END>TRAILERS ABORT>COMPLETE",
    AppState.TRAILERS: "TRAILERS>TRAILERS TRAILERS_END>COMPLETE ABORT>COMPLETE",
    AppState.STREAMING: "EARLY_HINT>STREAMING CONTINUE>STREAMING RESPONSE_BODY>STREAMING RESPONSE_END>COMPLETE "
    "ABORT>COMPLETE",
    AppState.CONTINUING: "EARLY_HINT>CONTINUING CONTINUE>CONTINUING EVENT_STREAM>STREAMING RESPONSE_START>STREAMING "
    "RESPONSE_START_TRAILERS>STREAMING RESPONSE>COMPLETE ABORT>COMPLETE",
    AppState.COMPLETE: "",
}
WEBSOCKET = {
    AppState.HANDSHAKE: "ACCEPT>OPEN CLOSE>COMPLETE RESPONSE_START>DENYING ABORT>COMPLETE",
    AppState.OPEN: "MESSAGE_SENT>OPEN CLOSE>COMPLETE ABORT>COMPLETE",
    AppState.DENYING: "RESPONSE_BODY>DENYING RESPONSE_END>COMPLETE ABORT>COMPLETE",
    AppState.COMPLETE: "",
}
OTHER = {
    AppState.OPEN: "OTHER_SENT>OPEN OTHER_CLOSE>COMPLETE ABORT>COMPLETE",
    AppState.COMPLETE: "",
}
LIFE = {
    ConnectionState.OFFERED: "CLAIMED>JOINED CLIENT_GONE>ABANDONED OFFERED_AGAIN>OFFERED GIVEN_UP>ENDED",
    ConnectionState.JOINED: "CLIENT_GONE>CLOSING COMPLETED>ENDED OFFERED_AGAIN>OFFERED GIVEN_UP>ENDED "
    "DETACHED>DETACHED",
    ConnectionState.DETACHED: "CLIENT_GONE>ENDED COMPLETED>ENDED GIVEN_UP>ENDED",
    ConnectionState.CLOSING: "DISCONNECT_DELIVERED>ENDED OFFERED_AGAIN>ABANDONED GIVEN_UP>ENDED",
    ConnectionState.ABANDONED: "CLAIMED>CLOSING OFFERED_AGAIN>ABANDONED GIVEN_UP>ENDED",
    ConnectionState.ENDED: "",
}
RUN = {
    RunState.SERVING: "DRAIN>DRAINING SUPERSEDE>SUPERSEDED DISCONNECT>DISCONNECTED RETURN>ENDED",
    RunState.DRAINING: "NOTIFY>NOTIFIED SUPERSEDE>SUPERSEDED DISCONNECT>DISCONNECTED RETURN>ENDED",
    RunState.NOTIFIED: "SUPERSEDE>SUPERSEDED DISCONNECT>DISCONNECTED RETURN>HANDED_OVER",
    RunState.SUPERSEDED: "SUPERSEDE>SUPERSEDED DISCONNECT>SUPERSEDED RETURN>ENDED",
    RunState.DISCONNECTED: "SUPERSEDE>DISCONNECTED RETURN>ENDED",
    RunState.HANDED_OVER: "SUPERSEDE>ENDED DISCONNECT>ENDED",
    RunState.ENDED: "SUPERSEDE>ENDED DISCONNECT>ENDED",
}
# Kinds outside the state machine: handled earlier in every state, or replaced by parts of a body.
OUTSIDE = {"GROUP_ADD", "GROUP_DISCARD", "GROUP_DONE", "SAVE_STATE", "HANDOVER", "PATH_SEND", "ZERO_COPY_SEND"}
OUTSIDE |= {"FOLLOW", "UNFOLLOW", "DETACH", "IDENTIFY", "PRESENT", "SET_WILL"}


def check(table: Any, state: Any, event: Any, after: Any, name: str) -> None:
    """Check where an event leads from a state; nowhere if `after` is None."""
    if after is not None:
        assert transition(table, state, event) is after, (state, event)
        return
    with pytest.raises(IllegalTransition, match=f"{name} is not allowed in the state '{state.value}'") as raised:
        transition(table, state, event)
    assert (raised.value.state, raised.value.event) == (state, event)
    assert isinstance(raised.value, RuntimeError)


def targets(line: str) -> dict[str, str]:
    """Return the state after each event that a line above allows."""
    return dict(word.split(">") for word in line.split())


@pytest.mark.parametrize(
    ("table", "expected"),
    [(HTTP_TABLE, HTTP), (WEBSOCKET_TABLE, WEBSOCKET), (OTHER_TABLE, OTHER)],
    ids=["http", "websocket", "other"],
)
def test_every_state_with_every_event(table: AppTable, expected: dict[AppState, str]) -> None:
    for state, code in itertools.product(expected, NAMES):
        after = targets(expected[state]).get(NAMES[code])
        check(table, state, code, AppState[after] if after else None, NAMES[code])


def test_an_unknown_event_is_illegal_everywhere() -> None:
    for state in AppState:
        with pytest.raises(IllegalTransition, match="99"):
            transition(HTTP_TABLE, state, 99)


def test_every_state_of_a_connection_with_every_event() -> None:
    for life, event in itertools.product(ConnectionState, ConnectionEvent):
        after = targets(LIFE[life]).get(event.name)
        check(CONNECTION_TABLE, life, event, ConnectionState[after] if after else None, re.escape(event.value))


def test_every_state_of_a_run_with_every_event() -> None:
    for run, event in itertools.product(RunState, RunEvent):
        after = targets(RUN[run]).get(event.name)
        check(RUN_TABLE, run, event, RunState[after] if after else None, re.escape(event.value))


@pytest.mark.parametrize(
    ("table", "states"),
    [(HTTP_TABLE, HTTP_STATES), (WEBSOCKET_TABLE, WEBSOCKET_STATES), (OTHER_TABLE, OTHER_STATES)],
)
def test_a_table_has_exactly_its_own_states(table: AppTable, states: list[AppState]) -> None:
    between_runs = {AppState.CONTINUING} & set(states)
    assert {state for state, _ in table} | set(table.values()) == set(states)
    reached = {states[0]} | between_runs
    while more := {after for (state, _), after in table.items() if state in reached} - reached:
        reached |= more
    assert reached == set(states)
    assert all((AppState.COMPLETE, code) not in table for code in NAMES)


def test_initial_states() -> None:
    assert initial_state("http") == (HTTP_TABLE, AppState.WAITING)
    assert initial_state("websocket") == (WEBSOCKET_TABLE, AppState.HANDSHAKE)
    assert initial_state("udp") == initial_state("line") == (OTHER_TABLE, AppState.OPEN)


def test_every_connection_can_end() -> None:
    assert {life for life, _ in CONNECTION_TABLE} | set(CONNECTION_TABLE.values()) == set(ConnectionState)
    assert all((ConnectionState.ENDED, event) not in CONNECTION_TABLE for event in ConnectionEvent)


def test_every_run_can_end() -> None:
    assert {run for run, _ in RUN_TABLE} | set(RUN_TABLE.values()) == set(RunState)
    for first in RunState:
        reached = {first}
        while more := {after for (run, _), after in RUN_TABLE.items() if run in reached} - reached:
            reached |= more
        assert RunState.ENDED in reached


def test_every_event_of_the_app_is_in_a_table() -> None:
    placed = {code for table in (HTTP_TABLE, WEBSOCKET_TABLE, OTHER_TABLE) for _, code in table}
    from_app = {code for code, name in NAMES.items() if code >= events.RESPONSE_START and name not in OUTSIDE}
    assert placed == from_app
