"""Check who is in a group, and the wills of connections."""

from __future__ import annotations

from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.contract import Bus
from asgibus.layers.presence import Announcements, Present, PresentPage, user_group
from asgibus.testing.conformance.recorder import Recorder
from asgibus.testing.conformance.tools import (
    LayerFactory,
    another_layer,
    expect,
    expect_equal,
    expect_error,
    fresh_layer,
    receive,
    until,
)

MANY = 2500  # users, who fill more than two parts

JOIN = {"type": "websocket.send", "text": "{user} {info} {count}"}
LEAVE = {"type": "websocket.send", "text": "-{user} {count}", "bytes": b"{info}"}
TOLD = Announcements(JOIN, LEAVE, 100)


def _user(name: str, since: float = 1.0, connections: int = 1) -> Present:
    return Present(name, {"name": [name]}, since, connections)


async def _show(bus: Bus, group: str, *users: Present) -> None:
    """Store users, and wait until they are stored."""
    errors: list[str | None] = []
    for user in users:
        bus.presence.show(group, user, errors.append)
    await until(lambda: len(errors) == len(users), what="the storing of users")
    expect_equal(set(errors), {None}, "errors")


async def _hide(bus: Bus, group: str, *users: str) -> None:
    for user in users:
        bus.presence.hide(group, user)
    await bus.presence.settle()


async def _all(layer: ChannelLayer, group: str) -> list[Present]:
    page = await layer.present(group)
    found = page.users
    while page.cursor is not None:
        page = await layer.present(group, page.cursor)
        found += page.users
    return sorted(found)


async def check_who_is_in_a_group(make_layer: LayerFactory) -> None:
    """Check users of two servers, one of whom is at both."""
    async with (
        fresh_layer(make_layer) as layer,
        layer.bus("a", Recorder()) as a,
        layer.bus("b", Recorder()) as b,
    ):
        expect_equal(await layer.present("group"), PresentPage([], None), "an empty group")
        await _show(a, "group", _user("x", 5.0), _user("y", 2.0, 3), _user("é"))
        await _show(b, "group", _user("x", 3.0, 2)._replace(info="at b"), _user("z"))
        await _show(b, "other", _user("x"))
        expected = [_user("x", 3.0, 3), _user("y", 2.0, 3), _user("z"), _user("é")]
        expect_equal(await _all(layer, "group"), expected, "users, with the latest info and the first time")
        expect_equal(tuple(await layer.present_count("group")), (4, 8), "users and connections")
        await _show(a, "group", _user("y", 2.0, 0))
        expect_equal(tuple(await layer.present_count("group")), (4, 5), "connections after some have ended")
        await _hide(a, "group", "x", "y", "nobody")
        await _hide(b, "group", "z")
        found = [(each.user, each.connections) for each in await _all(layer, "group")]
        expect_equal(found, [("x", 2), ("é", 1)], "users after some have left")
        await _hide(a, "group", "é")
        await _hide(b, "group", "x")
        expect_equal(tuple(await layer.present_count("group")), (0, 0), "users and connections at the end")


async def check_a_large_group_is_read_in_parts(make_layer: LayerFactory) -> None:
    """Check that the parts have every user."""
    async with fresh_layer(make_layer) as layer, layer.bus("a", Recorder()) as bus:
        await _show(bus, "group", *(_user(f"user {number}") for number in range(MANY)))
        first = await layer.present("group")
        expect(first.cursor is not None, f"{MANY} users are one part")
        expect(1000 <= len(first.users) < 1500, f"the first part has {len(first.users)} users")
        found = {each.user for each in await _all(layer, "group")}
        expect_equal(len(found), MANY, "users in all parts")
        expect_equal(tuple(await layer.present_count("group")), (MANY, MANY), "users and connections")


async def check_joins_and_leaves_are_told_once(make_layer: LayerFactory) -> None:
    """Check what a member gets, when users come and go at two servers."""
    async with (
        fresh_layer(make_layer) as layer,
        layer.bus("a", Recorder()) as a,
        layer.bus("b", Recorder()) as b,
    ):
        member = await layer.new_channel()
        await layer.group_add("group", member)
        a.presence.announce("group", TOLD)
        b.presence.announce("group", TOLD)
        await _show(a, "group", _user("x"))
        expect_equal(await receive(layer, member), {**JOIN, "text": '"x" {"name":["x"]} 1'}, "the first join")
        await _show(b, "group", _user("x"))
        await _show(a, "group", _user("x", connections=2))
        await _hide(a, "group", "x")
        await _show(b, "group", _user("y"))
        expect_equal((await receive(layer, member))["text"], '"y" {"name":["y"]} 2', "the second join")
        await _hide(b, "group", "x", "y")
        left = [await receive(layer, member) for _ in range(2)]
        expected = [
            {**LEAVE, "text": '-"x" 1', "bytes": b'{"name":["x"]}'},
            {**LEAVE, "text": '-"y" 0', "bytes": b'{"name":["y"]}'},
        ]
        expect_equal(left, expected, "the leaves")


async def check_joins_and_leaves_have_an_order(make_layer: LayerFactory) -> None:
    """Check the times in the events of a user who leaves one server and joins at the other."""
    async with (
        fresh_layer(make_layer) as layer,
        layer.bus("a", Recorder()) as a,
        layer.bus("b", Recorder()) as b,
    ):
        member = await layer.new_channel()
        await layer.group_add("group", member)
        timed = {"type": "websocket.send", "text": "{at}"}
        for bus, leaves in ((a, True), (b, False)):
            bus.presence.announce("group", Announcements(timed, timed, 100))
            await _show(bus, "group", _user("x"))
            if leaves:
                await _hide(bus, "group", "x")
        times = [int((await receive(layer, member))["text"]) for _ in range(3)]
        expect(len(set(times)) == 3, f"two changes have the same time: {times}")
        expect_equal(times, sorted(times), "the times of a join, a leave and a join")


async def check_a_large_group_is_told_nothing(make_layer: LayerFactory) -> None:
    """Check the number of users above which joins and leaves are not told."""
    async with fresh_layer(make_layer) as layer, layer.bus("a", Recorder()) as bus:
        member = await layer.new_channel()
        await layer.group_add("group", member)
        bus.presence.announce("group", TOLD._replace(most=2))
        for name in "xyz":
            await _show(bus, "group", _user(name))
        await _hide(bus, "group", "z", "y")
        texts = [(await receive(layer, member))["text"] for _ in range(4)]
        expect_equal(texts, ['"x" {"name":["x"]} 1', '"y" {"name":["y"]} 2', '-"z" 2', '-"y" 1'], "what was told")


async def check_wills(make_layer: LayerFactory) -> None:
    """Check that a will is sent when its connection ends, unless it was taken back or replaced."""
    async with fresh_layer(make_layer) as layer, layer.bus("a", Recorder()) as bus:
        member = await layer.new_channel()
        await layer.group_add("group", member)
        errors: list[str | None] = []
        for number, text in ((1, "first"), (2, "taken back"), (3, "replaced"), (3, "third")):
            event = {"type": "websocket.send", "text": text}
            bus.presence.set_will(number, "group", event, errors.append)
        await until(lambda: len(errors) == 4, what="the storing of wills")
        bus.presence.clear_will(2)
        for number in (1, 2, 3, 3, 4):
            bus.presence.execute_will(number)
            await bus.presence.settle()
        texts = [(await receive(layer, member))["text"] for _ in range(2)]
        expect_equal(texts, ["first", "third"], "the wills")
        await layer.send(member, {"text": "last"})
        expect_equal(await receive(layer, member), {"text": "last"}, "the message behind them")


async def check_users(make_layer: LayerFactory) -> None:
    """Check the connections of a user, and the ids that are refused."""
    async with fresh_layer(make_layer) as layer, layer.bus("a", Recorder()) as bus:
        expect_equal(await layer.user_connections("x"), [], "connections of an unknown user")
        await bus.join_group(user_group("x"))
        await _show(bus, user_group("x"), Present(f"{bus.mailbox}2", 1, 2.0, 1), Present(f"{bus.mailbox}1", 0, 1.0, 1))
        found = [tuple(each) for each in await layer.user_connections("x")]
        expect_equal(found, [(f"{bus.mailbox}1", 0, 1.0), (f"{bus.mailbox}2", 1, 2.0)], "connections of a user")
        await layer.user_send("nobody", {"type": "websocket.send", "text": ""})
        for user, error in ((1, TypeError), ("", ValueError), ("x" * 201, ValueError), ("\ud800", ValueError)):
            await expect_error(error, layer.user_connections(user), f"the user {user!r}")  # type: ignore[arg-type]
        await expect_error(ValueError, layer.user_close("x", 1006), "the close code 1006")
        await expect_error(TypeError, layer.present("a b"), "a name that is not valid")


async def check_what_a_server_leaves_behind(make_layer: LayerFactory) -> None:
    """Check that nobody is in a group because of a server that has ended, and that its wills are sent."""
    async with another_layer(make_layer) as layer, layer.bus("b", Recorder()) as b:
        member = await layer.new_channel()
        await layer.group_add("group", member)
        async with layer.bus("a", Recorder()) as a:
            errors: list[str | None] = []
            a.presence.announce("group", TOLD)
            a.presence.set_will(1, "group", {"type": "websocket.send", "text": "will"}, errors.append)
            await until(lambda: bool(errors), what="the storing of a will")
            await _show(a, "group", _user("x"), _user("y"))
            await _show(b, "group", _user("y"))
            expect_equal(len((await layer.present("group")).users), 2, "users")
            for _ in range(2):
                await receive(layer, member)
        texts = sorted([(await receive(layer, member))["text"] for _ in range(2)])
        expect_equal(texts, ['-"x" 1', "will"], "what was told when it had ended")
        expect_equal([each.user for each in (await layer.present("group")).users], ["y"], "users at the end")
        await _hide(b, "group", "y")


CHECKS = (
    check_who_is_in_a_group,
    check_a_large_group_is_read_in_parts,
    check_joins_and_leaves_are_told_once,
    check_joins_and_leaves_have_an_order,
    check_a_large_group_is_told_nothing,
    check_wills,
    check_users,
    check_what_a_server_leaves_behind,
)
