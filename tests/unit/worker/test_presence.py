"""Users, presence and wills, as apps use them; the test is the interface server."""

from typing import Any

import pytest

import asgibus
from asgibus.layers import LayerUnavailable
from asgibus.layers.codec import pack, unpack
from asgibus.layers.frames import EVENT
from asgibus.layers.presence import user_group
from asgibus.protocol import events
from asgibus.protocol.connect_request import PRESENCE, USER
from support.bus import until
from support.worker_harness import Calls, running

pytestmark = pytest.mark.anyio

OFFERED = {"asgibus": {PRESENCE: True}}
TEXT = {"type": "websocket.send", "text": "{user}"}


async def user_of(connection: asgibus.Connection) -> str | None:
    return connection.user


async def test_a_call_waits_for_the_interface_server() -> None:
    app = Calls(
        lambda connection: connection.identify("ann", {"name": ["é"]}),
        lambda connection: connection.group_add("room", present=True, join=TEXT),
        lambda connection: connection.set_will("room", TEXT),
        lambda connection: connection.clear_will(),
        user_of,
    )
    names = [user_group("ann"), "room", events.WILL_SET, events.WILL_SET]
    async with running(app) as interface:
        number = await interface.accepted(extensions=OFFERED)
        for index, (name, error) in enumerate(zip(names, [None, "away", None, None], strict=True)):
            await until(lambda at=index: len(interface.events(number)) == at + 2, what="the next call")
            assert len(app.outcome) == index
            interface.post((EVENT, number, 1, index, 0, events.GROUP_DONE, error, name))
        first, second, *wills, user = await app.outcomes()
    assert first is None
    assert isinstance(second, LayerUnavailable)
    assert wills == [None] * 2
    assert user == "ann"
    identify, present, will, no_will = interface.events(number)[1:5]
    assert (identify[:2], unpack(identify[2])) == ((events.IDENTIFY, "ann"), {"name": ("é",)})
    assert present == (events.PRESENT, "room", pack(TEXT), b"")
    assert will == (events.SET_WILL, "room", pack(TEXT))
    assert (no_will[0], no_will[2]) == (events.SET_WILL, b"")


def nested(depth: int) -> list[Any]:
    """Return a list in so many others."""
    info: list[Any] = []
    for _ in range(depth):
        info = [info]
    return info


async def test_what_is_not_valid_raises_at_once() -> None:
    app = Calls(
        lambda connection: connection.identify(17),
        lambda connection: connection.identify(""),
        lambda connection: connection.identify("x" * 201),
        lambda connection: connection.identify("ann", b"no JSON"),
        lambda connection: connection.identify("ann", {"a": {1, 2}}),
        lambda connection: connection.identify("ann", nested(2000)),
        lambda connection: connection.identify("ann", nested(100)),
        lambda connection: connection.identify("ann", "x" * 17_000),
        lambda connection: connection.group_add("room", present=True),
        lambda connection: connection.group_add("room", join=TEXT),
        lambda connection: connection.group_add("no room", present=True),
        lambda connection: connection.set_will("room", {"type": "websocket.what"}),
        lambda connection: connection.set_will("room", {"type": "websocket.send", "text": "x" * 17_000}),
        lambda connection: connection.set_will("user:1", TEXT),
    )
    async with running(app) as interface:
        number = await interface.accepted(extensions=OFFERED)
        outcomes = await app.outcomes()
        assert len(interface.events(number)) == 1
    ids = [TypeError, ValueError, ValueError]
    infos = [TypeError, TypeError, TypeError, ValueError, ValueError]
    groups = [RuntimeError, ValueError, TypeError]
    assert [type(each) for each in outcomes] == [*ids, *infos, *groups, ValueError, ValueError, TypeError]


async def test_a_further_run_knows_the_user() -> None:
    app = Calls(
        lambda connection: connection.identify("bob"),
        lambda connection: connection.group_add("room", present=True, join={"type": "websocket.close"}),
        user_of,
    )
    async with running(app) as interface:
        number = await interface.accepted(extensions={"asgibus": {PRESENCE: True, USER: "ann"}})
        await interface.last(number, events.PRESENT)
        interface.post((EVENT, number, 1, 0, 0, events.GROUP_DONE, None, "room"))
        refused, shown, user = await app.outcomes()
    assert isinstance(refused, RuntimeError)
    assert "'ann'" in str(refused)
    assert (shown, user) == (None, "ann")


@pytest.mark.parametrize("extensions", [{}, {"asgibus": {}}, {"asgibus": {"streams": True, "user": 1}}, {"asgibus": 1}])
async def test_an_interface_server_of_the_last_release_knows_no_users(extensions: dict[str, Any]) -> None:
    app = Calls(
        lambda connection: connection.identify("ann"),
        lambda connection: connection.set_will("room", TEXT),
    )
    async with running(app) as interface:
        await interface.accepted(extensions=extensions)
        for error in await app.outcomes():
            assert isinstance(error, RuntimeError)
            assert "earlier release" in str(error)
