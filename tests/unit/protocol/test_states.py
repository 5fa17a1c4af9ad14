"""Every table says what may follow what; whatever it does not say is an error that names both."""

import itertools
import re

import pytest

from asgibus.protocol import events
from asgibus.protocol.events import NAMES
from asgibus.protocol.states import (
    HTTP_TABLE,
    LIFE_TABLE,
    OTHER_TABLE,
    RUN_TABLE,
    WEBSOCKET_TABLE,
    App,
    Change,
    IllegalTransition,
    IllegalTurn,
    Life,
    Run,
    Table,
    Turn,
    beginning,
    change,
    step,
    turn,
)

HTTP_STATES = [App.WAITING, App.STARTED, App.STARTED_TRAILERS, App.TRAILERS, App.COMPLETE]
WEBSOCKET_STATES = [App.HANDSHAKE, App.OPEN, App.DENYING, App.COMPLETE]
OTHER_STATES = [App.OPEN, App.COMPLETE]

# Written out from the ASGI specification, not from the tables: from each state, what may come, and where it leads.
HTTP = {
    App.WAITING: "EARLY_HINT>WAITING CONTINUE>WAITING RESPONSE_START>STARTED "
    "RESPONSE_START_TRAILERS>STARTED_TRAILERS RESPONSE>COMPLETE ABORT>COMPLETE",
    App.STARTED: "EARLY_HINT>STARTED CONTINUE>STARTED RESPONSE_BODY>STARTED RESPONSE_END>COMPLETE ABORT>COMPLETE",
    App.STARTED_TRAILERS: "EARLY_HINT>STARTED_TRAILERS CONTINUE>STARTED_TRAILERS RESPONSE_BODY>STARTED_TRAILERS "
    "RESPONSE_END>TRAILERS ABORT>COMPLETE",
    App.TRAILERS: "TRAILERS>TRAILERS TRAILERS_END>COMPLETE ABORT>COMPLETE",
    App.COMPLETE: "",
}
WEBSOCKET = {
    App.HANDSHAKE: "ACCEPT>OPEN CLOSE>COMPLETE RESPONSE_START>DENYING ABORT>COMPLETE",
    App.OPEN: "MESSAGE_SENT>OPEN CLOSE>COMPLETE ABORT>COMPLETE",
    App.DENYING: "RESPONSE_BODY>DENYING RESPONSE_END>COMPLETE ABORT>COMPLETE",
    App.COMPLETE: "",
}
OTHER = {
    App.OPEN: "OTHER_SENT>OPEN OTHER_CLOSE>COMPLETE ABORT>COMPLETE",
    App.COMPLETE: "",
}
LIFE = {
    Life.OFFERED: "OWNED>JOINED CLIENT_GONE>LEFT REOPENED>OFFERED GIVEN_UP>ENDED",
    Life.JOINED: "CLIENT_GONE>PARTING COMPLETED>ENDED REOPENED>OFFERED GIVEN_UP>ENDED",
    Life.PARTING: "HEARD>ENDED REOPENED>LEFT GIVEN_UP>ENDED",
    Life.LEFT: "OWNED>PARTING REOPENED>LEFT GIVEN_UP>ENDED",
    Life.ENDED: "",
}
RUN = {
    Run.SERVING: "DRAIN>LEAVING SUPERSEDE>SUPERSEDED LOSE>LOST RETURN>ENDED",
    Run.LEAVING: "TELL>TOLD SUPERSEDE>SUPERSEDED LOSE>LOST RETURN>ENDED",
    Run.TOLD: "SUPERSEDE>SUPERSEDED LOSE>LOST RETURN>HANDED_OVER",
    Run.SUPERSEDED: "SUPERSEDE>SUPERSEDED LOSE>SUPERSEDED RETURN>ENDED",
    Run.LOST: "SUPERSEDE>LOST RETURN>ENDED",
    Run.HANDED_OVER: "SUPERSEDE>ENDED LOSE>ENDED",
    Run.ENDED: "SUPERSEDE>ENDED LOSE>ENDED",
}
# What the bus itself keeps from the state machine: handled before, in every state; and what stands for parts of a body.
OUTSIDE = {"GROUP_ADD", "GROUP_DISCARD", "GROUP_DONE", "SAVE_STATE", "HANDOVER", "PATH_SEND", "ZERO_COPY_SEND"}


def cases(table: Table, expected: dict[App, str]) -> list[tuple[Table, App, int, App | None]]:
    found = []
    for state, code in itertools.product(expected, NAMES):
        after = dict(word.split(">") for word in expected[state].split()).get(NAMES[code])
        found.append((table, state, code, App[after] if after else None))
    return found


@pytest.mark.parametrize(
    ("table", "state", "code", "after"),
    [
        pytest.param(*case, id=f"{kind}-{case[1].name}-{NAMES[case[2]]}")
        for kind, table, expected in (
            ("http", HTTP_TABLE, HTTP),
            ("websocket", WEBSOCKET_TABLE, WEBSOCKET),
            ("other", OTHER_TABLE, OTHER),
        )
        for case in cases(table, expected)
    ],
)
def test_every_state_with_every_event(table: Table, state: App, code: int, after: App | None) -> None:
    if after is not None:
        assert step(table, state, code) is after
        return
    with pytest.raises(IllegalTransition, match=f"{NAMES[code]} is not allowed in the state '{state.value}'") as raised:
        step(table, state, code)
    assert (raised.value.state, raised.value.code) == (state, code)
    assert isinstance(raised.value, RuntimeError)


def test_an_unknown_event_is_illegal_everywhere() -> None:
    for state in App:
        with pytest.raises(IllegalTransition, match="99"):
            step(HTTP_TABLE, state, 99)


@pytest.mark.parametrize(("life", "event"), [*itertools.product(Life, Turn)])
def test_every_life_with_every_turn(life: Life, event: Turn) -> None:
    after = dict(word.split(">") for word in LIFE[life].split()).get(event.name)
    if after is not None:
        assert turn(life, event) is Life[after]
        return
    with pytest.raises(IllegalTurn, match=re.escape(f"'{event.value}' cannot happen")) as raised:
        turn(life, event)
    assert (raised.value.life, raised.value.turn) == (life, event)


@pytest.mark.parametrize(("run", "event"), [*itertools.product(Run, Change)])
def test_every_run_with_every_change(run: Run, event: Change) -> None:
    after = dict(word.split(">") for word in RUN[run].split()).get(event.name)
    if after is not None:
        assert change(run, event) is Run[after]
        return
    with pytest.raises(
        IllegalTurn, match=re.escape(f"'{event.value}' cannot happen to what is '{run.value}'")
    ) as raised:
        change(run, event)
    assert (raised.value.life, raised.value.turn) == (run, event)


@pytest.mark.parametrize(
    ("table", "states"),
    [(HTTP_TABLE, HTTP_STATES), (WEBSOCKET_TABLE, WEBSOCKET_STATES), (OTHER_TABLE, OTHER_STATES)],
)
def test_a_table_speaks_of_its_own_states_and_reaches_all_of_them(table: Table, states: list[App]) -> None:
    first = states[0]
    assert {state for state, _ in table} | set(table.values()) == set(states)
    reached = {first}
    while more := {after for (state, _), after in table.items() if state in reached} - reached:
        reached |= more
    assert reached == set(states)
    assert all((App.COMPLETE, code) not in table for code in NAMES)


def test_where_each_kind_of_connection_begins() -> None:
    assert beginning("http") == (HTTP_TABLE, App.WAITING)
    assert beginning("websocket") == (WEBSOCKET_TABLE, App.HANDSHAKE)
    assert beginning("udp") == beginning("line") == (OTHER_TABLE, App.OPEN)


def test_every_life_comes_to_an_end() -> None:
    assert {life for life, _ in LIFE_TABLE} | set(LIFE_TABLE.values()) == set(Life)
    assert all((Life.ENDED, event) not in LIFE_TABLE for event in Turn)


def test_every_run_comes_to_an_end() -> None:
    assert {run for run, _ in RUN_TABLE} | set(RUN_TABLE.values()) == set(Run)
    for first in Run:
        reached = {first}
        while more := {after for (run, _), after in RUN_TABLE.items() if run in reached} - reached:
            reached |= more
        assert Run.ENDED in reached


def test_every_event_of_the_app_has_its_place() -> None:
    placed = {code for table in (HTTP_TABLE, WEBSOCKET_TABLE, OTHER_TABLE) for _, code in table}
    from_app = {code for code, name in NAMES.items() if code >= events.RESPONSE_START and name not in OUTSIDE}
    assert placed == from_app
