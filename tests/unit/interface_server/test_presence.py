"""Users, presence and wills of connections, on a bus that records what is stored."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from asgibus.interface_server.connections.presence import TOO_MANY
from asgibus.layers.codec import pack, unpack
from asgibus.layers.frames import EVENT, GROUP_MESSAGE, MESSAGE
from asgibus.layers.presence import Announcements, Present, close_message, user_group
from asgibus.protocol.connect_request import HTTP
from asgibus.protocol.events import (
    CLOSE,
    GROUP_ADD,
    GROUP_DISCARD,
    GROUP_DONE,
    HANDOVER,
    IDENTIFY,
    PRESENT,
    RESPONSE_BODY,
    RESPONSE_END,
    RESPONSE_START,
    SET_WILL,
    WEBSOCKET_DISCONNECT,
    WILL_SET,
)
from support.recording import OTHER, RecordingPresence, Table, accept, claim_frame

GRACE = 3.0
INFO = {"name": ["é", 1]}
JOIN = pack({"type": "websocket.send", "text": "{user}"})
WILL = pack({"type": "websocket.send", "text": "gone"})


@pytest.fixture
def table() -> Table:
    return Table(presence_grace=GRACE)


@pytest.fixture
def store(table: Table) -> RecordingPresence:
    return table.bus.presence


class App:
    """A run of the app for an open WebSocket. It sends control events."""

    def __init__(self, table: Table, user: str = "", room: str = "") -> None:
        self.table = table
        self.connection, self.terminator = table.open_accepted()
        self.sent = 0
        if user:
            self.send(IDENTIFY, user, pack(INFO))
        if room:
            self.send(PRESENT, room, b"", b"")
        self.answers()

    @property
    def channel(self) -> str:
        return f"interface.1!{self.connection.number}"

    def send(self, *event: Any, attempt: int = 1) -> None:
        self.sent += 1
        acked = self.connection.stream.acked
        sender = "worker.1!" if attempt == 1 else OTHER
        self.table.frames((EVENT, self.connection.number, attempt, self.sent, acked, *event), sender=sender)

    def answers(self) -> list[tuple[str | None, str]]:
        """Return errors and names of the answers that the app has got."""
        return [event[1:] for event in self.table.events() if event[0] == GROUP_DONE]


def connections(store: RecordingPresence, room: str = "room") -> dict[str, int]:
    return {user: present.connections for user, present in store.users.get(room, {}).items()}


def test_an_app_is_answered_when_its_user_is_stored(table: Table, store: RecordingPresence) -> None:
    app = App(table)
    store.late = True
    app.send(IDENTIFY, "ann", pack(INFO))
    group = user_group("ann")
    assert table.bus.groups == [group]
    (stored,) = store.users[group].values()
    assert (stored.user, stored.info, stored.connections) == (app.channel, INFO, 1)
    assert app.answers() == []
    store.answers.pop()(None)
    assert app.answers() == [(None, group)]
    app.send(PRESENT, "room", JOIN, b"")
    assert app.answers() == []
    store.answers.pop()(None)
    assert app.answers() == [(None, "room")]
    assert store.announced == {"room": Announcements({"type": "websocket.send", "text": "{user}"}, None, 200)}
    assert connections(store) == {"ann": 1}
    assert store.users["room"]["ann"].info == INFO


def test_an_app_learns_that_its_user_could_not_be_stored(table: Table, store: RecordingPresence) -> None:
    app = App(table, "ann")
    store.late = True
    app.send(PRESENT, "room", b"", b"")
    store.answers.pop()("Redis is away")
    assert app.answers() == [("Redis is away", "room")]
    assert connections(store) == {}
    assert table.connections.counts["presence not stored"] == 1
    app.send(SET_WILL, "room", WILL)
    store.answers.pop()("Redis is away")
    assert app.answers() == [("Redis is away", WILL_SET)]
    app.connection.client_gone()
    assert store.executed == []


@pytest.mark.parametrize(
    "event", [(IDENTIFY, "ann", pack(None)), (PRESENT, "room", b"", b""), (SET_WILL, "room", WILL)]
)
def test_a_client_that_leaves_meanwhile_is_not_there(
    table: Table, store: RecordingPresence, event: tuple[Any, ...]
) -> None:
    app = App(table, "ann" if event[0] == PRESENT else "")
    store.late = True
    app.send(*event)
    app.connection.client_gone()
    store.answers.pop()(None)
    table.pass_time(GRACE)
    assert not any(store.users.values())
    assert not store.wills
    assert table.connections.users.gauges() == {"identified": 0, "present": 0, "wills": 0}


def test_nobody_is_present_who_is_not_known(table: Table, store: RecordingPresence) -> None:
    app = App(table)
    app.send(PRESENT, "room", b"", b"")
    ((error, name),) = app.answers()
    assert name == "room"
    assert error is not None
    assert "identify" in error


def test_a_connection_has_one_user(table: Table, store: RecordingPresence) -> None:
    app = App(table, "ann", "room")
    app.send(IDENTIFY, "ann", pack("another info"))
    app.send(IDENTIFY, "bob", pack(None))
    assert app.answers() == [(None, user_group("ann")), ("this is the connection of another user", user_group("bob"))]
    assert user_group("bob") not in store.users


def test_a_layer_may_keep_no_presence(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(bus: object) -> None:
        raise NotImplementedError("OtherLayer keeps no presence")

    app = App(table)
    del table.bus.presence
    monkeypatch.setattr(type(table.bus), "presence", property(missing), raising=False)
    app.send(IDENTIFY, "ann", pack(None))
    app.send(SET_WILL, "room", WILL)
    error = "OtherLayer keeps no presence"
    assert app.answers() == [(error, user_group("ann")), (error, WILL_SET)]
    app.connection.client_gone()


def test_a_user_leaves_after_the_grace(table: Table, store: RecordingPresence) -> None:
    first, second = App(table, "ann", "room"), App(table, "ann", "room")
    assert connections(store) == {"ann": 2}
    first.connection.client_gone()
    assert connections(store) == {"ann": 1}
    assert list(store.users[user_group("ann")]) == [second.channel], "connections have no grace"
    second.connection.client_gone()
    assert connections(store) == {"ann": 0}
    table.pass_time(GRACE - 0.1)
    assert connections(store) == {"ann": 0}
    table.pass_time(0.2)
    assert connections(store) == {}
    assert table.bus.groups == []


def test_a_user_who_comes_back_in_time_has_not_left(table: Table, store: RecordingPresence) -> None:
    App(table, "ann", "room").connection.client_gone()
    since = store.users["room"]["ann"].since
    table.pass_time(GRACE - 0.1)
    back = App(table, "ann", "room")
    table.pass_time(GRACE)
    assert connections(store) == {"ann": 1}
    back.connection.client_gone()
    table.pass_time(GRACE - 0.1)
    assert store.users["room"]["ann"] == Present("ann", INFO, since, 0), "the grace begins anew"
    table.pass_time(0.2)
    assert connections(store) == {}


def test_whoever_leaves_a_group_leaves_at_once(table: Table, store: RecordingPresence) -> None:
    first, second = App(table, "ann", "room"), App(table, "ann", "room")
    first.send(GROUP_DISCARD, "room")
    assert connections(store) == {"ann": 1}
    first.connection.client_gone()
    assert connections(store) == {"ann": 1}
    second.send(GROUP_DISCARD, "room")
    assert connections(store) == {}
    second.send(GROUP_ADD, "room")
    assert connections(store) == {}, "a membership alone shows nobody"


def test_a_group_that_is_joined_again_counts_once(table: Table, store: RecordingPresence) -> None:
    app = App(table, "ann", "room")
    app.send(PRESENT, "room", b"", b"")
    assert connections(store) == {"ann": 1}


def test_another_info_is_shown(table: Table, store: RecordingPresence) -> None:
    app, second = App(table, "ann", "room"), App(table, "ann")
    app.send(IDENTIFY, "ann", pack("at work"))
    assert store.users["room"]["ann"].info == "at work"
    second.send(IDENTIFY, "ann", pack("not in the room"))
    assert store.users["room"]["ann"].info == "at work"
    assert [each.info for each in store.users[user_group("ann")].values()] == ["at work", "not in the room"]


def test_who_leaves_a_group_before_it_is_joined_is_not_shown(
    table: Table, store: RecordingPresence, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, other = App(table, "ann"), App(table, "bob")
    waiting: list[Any] = []
    monkeypatch.setattr(table.connections.groups, "_tasks", type("Tasks", (), {"start_soon": lambda _, *a: None})())
    app.send(PRESENT, "room", b"", b"")
    other.send(PRESENT, "room", b"", b"")
    waiting += table.connections.groups._groups["room"].waiting or ()
    app.send(GROUP_DISCARD, "room")
    for on_joined in waiting:
        on_joined(None)
    assert connections(store) == {"bob": 1}


@pytest.mark.parametrize("ending", ["handed over", "killed"])
def test_a_further_run_is_no_leave(table: Table, store: RecordingPresence, ending: str) -> None:
    app = App(table, "ann", "room")
    app.send(SET_WILL, "room", WILL)
    if ending == "killed":
        table.dead()
    else:
        app.send(HANDOVER)
    assert table.openings[-1].extensions["asgibus"]["user"] == "ann"
    table.pass_time(2 * GRACE)
    assert connections(store) == {"ann": 1}
    table.frames(claim_frame(1, 2), accept(1, attempt=2, resumable=True), sender=OTHER)
    app.sent = 0
    app.send(IDENTIFY, "ann", pack(INFO), attempt=2)
    app.send(PRESENT, "room", b"", b"", attempt=2)
    assert connections(store) == {"ann": 1}
    assert store.executed == []


@pytest.mark.parametrize("ending", ["client", "app", "worker", "layer"])
def test_a_will_is_executed_once(table: Table, store: RecordingPresence, ending: str) -> None:
    app = App(table)
    app.connection.resumable = False
    app.send(SET_WILL, "room", pack({"type": "websocket.send", "text": "first"}))
    app.send(SET_WILL, "room", WILL)
    assert store.wills == {1: ("room", unpack(WILL))}
    if ending == "client":
        app.connection.client_gone()
    elif ending == "app":
        app.send(CLOSE, 1000, "")
    elif ending == "worker":
        table.dead()
    else:
        app.connection.fail((503, 1013))
    assert store.executed == [1]
    table.dead()
    table.pass_time()
    assert store.executed == [1]


def test_a_will_can_be_taken_back(table: Table, store: RecordingPresence) -> None:
    app = App(table)
    app.send(SET_WILL, "room", b"")
    app.send(SET_WILL, "room", WILL)
    app.send(SET_WILL, "none", b"")
    assert app.answers() == [(None, WILL_SET)] * 3
    app.connection.client_gone()
    assert store.executed == []


# Close from outside.


def test_a_user_can_be_closed(table: Table, store: RecordingPresence) -> None:
    app, other = App(table, "ann", "room"), App(table, "bob", "room")
    table.frames((GROUP_MESSAGE, user_group("ann"), close_message(4001, "signed out")), sender="")
    assert app.terminator.written[-1] == (CLOSE, 4001, "signed out")
    assert (WEBSOCKET_DISCONNECT, 4001, "signed out") in table.events()
    assert other.terminator.written[-1][0] != CLOSE
    assert connections(store) == {"ann": 0, "bob": 1}
    table.frames((MESSAGE, str(other.connection.number), close_message(4002, "")), sender="")
    assert other.terminator.written[-1] == (CLOSE, 4002, "")


@pytest.mark.parametrize("fields", [{}, {"code": 1006, "reason": ""}, {"code": "1", "reason": ""}, {"code": 4001}])
def test_a_bad_close_is_dropped(table: Table, fields: dict[str, Any]) -> None:
    app = App(table, "ann")
    message = {"type": "asgibus.close", **fields}
    table.frames((GROUP_MESSAGE, user_group("ann"), message), (MESSAGE, "1", message), sender="")
    assert table.connections.counts["bad message"] == 2
    assert app.terminator.written[-1][0] != CLOSE


def test_a_response_ends_when_its_user_is_closed(table: Table) -> None:
    connection, terminator = table.open(HTTP)
    table.frames((EVENT, 1, 1, 0, 0, RESPONSE_START, 200, b""), (EVENT, 1, 1, 1, 0, RESPONSE_BODY, b"1"))
    assert connection.close(4001, "")
    assert terminator.written[-1] == (RESPONSE_END, b"")
    waiting, _ = table.open(HTTP)
    assert not waiting.close(4001, ""), "its response has not begun"


# The limit of connections.


def test_a_response_that_has_not_begun_is_told_of_too_many_connections() -> None:
    table = Table(max_connections_per_user=1, user_limit="newest")
    App(table, "ann")
    connection, _ = table.open(HTTP)
    table.frames((EVENT, connection.number, 1, 0, 0, IDENTIFY, "ann", pack(None)))
    answers = [event for event in table.events() if event[0] == GROUP_DONE]
    assert answers[-1] == (GROUP_DONE, "the user has over 1 connections", user_group("ann"))


@pytest.mark.parametrize("limit", ["oldest", "newest"])
def test_too_many_connections_of_a_user(limit: str) -> None:
    table = Table(max_connections_per_user=2, user_limit=limit)
    store = table.bus.presence
    apps = [App(table, "ann") for _ in range(2)]
    elsewhere = Present("interface.2!7", None, 0.0, 1)
    if limit == "oldest":
        store.users[user_group("ann")][elsewhere.user] = elsewhere
    table.bus.posted.clear()
    late = App(table)
    late.send(IDENTIFY, "ann", pack(None))
    closed = {mailbox + frame[1]: frame[2] for mailbox, frame in table.bus.posted if frame[0] == MESSAGE}
    expected = [elsewhere.user, apps[0].channel] if limit == "oldest" else [late.channel]
    assert closed == dict.fromkeys(expected, close_message(*TOO_MANY))
    assert late.answers() == ([(None, user_group("ann"))] if limit == "oldest" else [])
    assert table.connections.counts["user limit"] == len(expected)


def test_a_newer_connection_that_was_stored_before_is_closed() -> None:
    table = Table(max_connections_per_user=2, user_limit="newest")
    App(table, "ann")
    newer = Present("interface.2!7", None, 2.0**40, 1)
    table.bus.presence.users[user_group("ann")][newer.user] = newer
    table.bus.posted.clear()
    late = App(table)
    late.send(IDENTIFY, "ann", pack(None))
    closed = {mailbox + frame[1] for mailbox, frame in table.bus.posted if frame[0] == MESSAGE}
    assert closed == {newer.user}
    assert late.answers() == [(None, user_group("ann"))]


# The stop, and the move to another process.


@pytest.mark.anyio
async def test_a_stop_waits_for_the_grace(table: Table, store: RecordingPresence) -> None:
    await table.connections.users.settle()
    App(table, "ann", "room").connection.client_gone()
    settling = asyncio.create_task(table.connections.users.settle())
    await asyncio.sleep(0)
    table.pass_time(GRACE - 0.1)
    await asyncio.sleep(0)
    assert not settling.done()
    table.pass_time(0.2)
    await settling
    assert connections(store) == {}
    store.lasts = False
    App(table, "ann", "room").connection.client_gone()
    await table.connections.users.settle()


def test_a_move_keeps_users_and_wills(table: Table, store: RecordingPresence) -> None:
    app, gone = App(table, "ann", "room"), App(table, "bob", "room")
    app.send(SET_WILL, "room", WILL)
    table.pass_time(1.0)
    gone.connection.client_gone()
    table.pass_time(1.0)
    state, moved = unpack(pack((table.connections.export(), table.connections.export_connection(app.connection))))
    successor = Table(presence_grace=GRACE)
    successor.bus.presence, successor.bus.groups = store, table.bus.groups
    successor.connections.restore(state)
    connection = successor.connections.restore_connection(moved, app.terminator)
    assert successor.connections.users.gauges() == table.connections.users.gauges()
    successor.pass_time(GRACE - 1.1)
    assert connections(store) == {"ann": 1, "bob": 0}
    successor.pass_time(0.2)
    assert connections(store) == {"ann": 1}
    connection.client_gone()
    assert store.executed == [connection.number]
    successor.pass_time(GRACE)
    assert connections(store) == {}
    assert successor.connections.users.gauges() == {"identified": 0, "present": 0, "wills": 0}


def test_the_state_of_an_earlier_release_has_no_users(table: Table) -> None:
    state = table.connections.export()
    del state["users"]
    Table().connections.restore(state)


def test_gauges(table: Table) -> None:
    App(table, "ann", "room").send(PRESENT, "other", b"", b"")
    App(table, "ann", "room").send(SET_WILL, "room", WILL)
    assert Counter(table.connections.users.gauges()) == Counter(identified=2, present=2, wills=1)
