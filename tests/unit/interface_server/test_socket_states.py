"""The life cycles of sockets: HTTP and WebSocket."""

import itertools

import pytest

from asgibus.interface_server.http.states import (
    CLIENT_EOF,
    CLOSE,
    CLOSED,
    DRAINING,
    HALF_CLOSED,
    INVALID_INPUT,
    OPEN,
    REJECTING,
    SERVER_STOP,
    SOCKET_TABLE,
    SocketEvent,
    SocketState,
)
from asgibus.interface_server.websocket.states import WEBSOCKET_TABLE, WebSocketEvent, WebSocketState
from asgibus.protocol.states import IllegalTransition, transition


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([], OPEN),
        ([CLIENT_EOF], HALF_CLOSED),
        ([SERVER_STOP], DRAINING),
        ([INVALID_INPUT], REJECTING),
        ([CLIENT_EOF, SERVER_STOP], HALF_CLOSED),
        ([SERVER_STOP, CLIENT_EOF], HALF_CLOSED),
        ([SERVER_STOP, INVALID_INPUT], REJECTING),
        ([INVALID_INPUT, CLIENT_EOF, SERVER_STOP], REJECTING),
    ],
)
def test_states_after_events(events: list[SocketEvent], state: SocketState) -> None:
    reached = OPEN
    for event in events:
        reached = SOCKET_TABLE[reached, event]
    assert reached is state
    assert SOCKET_TABLE[reached, CLOSE] is CLOSED


def test_any_event_may_come_in_any_state() -> None:
    assert set(SOCKET_TABLE) == set(itertools.product(SocketState, SocketEvent))


def test_no_event_opens_a_socket_again() -> None:
    later: dict[SocketState, set[SocketState]] = {
        state: {SOCKET_TABLE[state, event] for event in SocketEvent} for state in SocketState
    }
    assert later[CLOSED] == {CLOSED}
    assert all(OPEN not in states for states in later.values())
    assert later[HALF_CLOSED] == {HALF_CLOSED, REJECTING, CLOSED}
    assert later[REJECTING] == {REJECTING, CLOSED}


@pytest.mark.parametrize(
    ("state", "event"), sorted(set(itertools.product(WebSocketState, WebSocketEvent)) - set(WEBSOCKET_TABLE))
)
def test_a_websocket_is_accepted_or_rejected_once_and_closed_once(state: WebSocketState, event: WebSocketEvent) -> None:
    with pytest.raises(IllegalTransition):
        transition(WEBSOCKET_TABLE, state, event)


def test_an_accepted_websocket_opens_and_closes() -> None:
    state = WebSocketState.HANDSHAKE
    for event in (WebSocketEvent.ACCEPT, WebSocketEvent.CLOSE):
        state = transition(WEBSOCKET_TABLE, state, event)
    assert state is WebSocketState.CLOSING
