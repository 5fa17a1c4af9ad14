"""Test presence where Redis loses data or has odd data."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import msgpack
import pytest
import redis

from asgibus.layers import LayerUnavailable, RedisChannelLayer
from asgibus.layers.codec import pack, unpack
from asgibus.layers.contract import Handler
from asgibus.layers.presence import Announcements, Present, user_key
from asgibus.layers.redis import heartbeat
from asgibus.layers.redis.pipeline import Pipeline
from asgibus.layers.redis.scripts import PRESENCE_WRITE, WILL_WRITE
from support.bus import until

pytestmark = [pytest.mark.anyio, pytest.mark.redis, pytest.mark.usefixtures("regroup")]

KEY = "asgibus:present:room"
SERVERS = ":servers"
DEAD = "interface.0123456789abcdef!"
TOLD = Announcements(
    {"type": "websocket.send", "text": "+{user}"}, {"type": "websocket.send", "text": "-{user} {count}"}, 100
)


@pytest.fixture(autouse=True)
def _quick(regroup: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "GRACE_SECONDS", 0.0)


@pytest.fixture
async def layer(redis_url: str) -> AsyncIterator[RedisChannelLayer]:
    layer = RedisChannelLayer(redis_url)
    yield layer
    await layer.close()


@pytest.fixture
async def buses(layer: RedisChannelLayer) -> AsyncIterator[tuple[Any, Any]]:
    async with layer.bus("interface", Handler()) as one, layer.bus("interface", Handler()) as two:
        for bus in (one, two):
            await bus.join_group("room")
            bus.presence.announce("room", TOLD)
        yield one, two


def user(name: str) -> Present:
    return Present(name, {"name": name}, 1.0, 1)


async def show(bus: Any, *names: str) -> None:
    for name in names:
        bus.presence.show("room", user(name))
    await bus.presence.settle()


async def names(layer: RedisChannelLayer) -> set[str]:
    return {each.user for each in (await layer.present("room")).users}


async def receive(layer: RedisChannelLayer, channel: str) -> Any:
    return await asyncio.wait_for(layer.receive(channel), 20)


async def eventually(layer: RedisChannelLayer, expected: set[str]) -> None:
    async with asyncio.timeout(10):
        while await names(layer) != expected:  # noqa: ASYNC110  # it is about Redis
            await asyncio.sleep(0.02)


async def test_users_are_back_after_a_flush_and_nothing_is_told(
    layer: RedisChannelLayer, buses: tuple[Any, Any], admin: "redis.Redis[bytes]"
) -> None:
    one, two = buses
    member = await layer.new_channel()
    await layer.group_add("room", member)
    await show(one, "a", "b")
    await show(two, "b", "c")
    assert {(await receive(layer, member))["text"] for _ in range(3)} == {'+"a"', '+"b"', '+"c"'}
    admin.flushall()
    one.presence.hide("room", "a")  # before anything is written again
    await eventually(layer, {"b", "c"})
    assert (await receive(layer, member))["text"].startswith('-"a"')
    one.presence.hide("room", "b")
    await one.presence.settle()
    two.presence.hide("room", "b")
    await two.presence.settle()
    assert (await receive(layer, member))["text"] == '-"b" 1'
    assert tuple(await layer.present_count("room")) == (1, 1)


async def test_a_heartbeat_before_the_first_user_changes_nothing(
    layer: RedisChannelLayer, buses: tuple[Any, Any]
) -> None:
    one, _ = buses
    member = await layer.new_channel()
    await layer.group_add("room", member)
    for everything in (False, True):
        one.presence.renew(one.presence._home, everything=everything, lapsed=False)
        await one.presence.settle()
    await show(one, "a")
    assert (await receive(layer, member))["text"] == '+"a"'


@pytest.mark.parametrize("lost", ["the reply of a join", "the reply of a leave"])
async def test_a_change_is_told_although_its_reply_was_lost(
    lost: str, layer: RedisChannelLayer, buses: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Have a write done twice, as when the connection breaks before the reply to the first one."""
    one, two = buses
    member = await layer.new_channel()
    await layer.group_add("room", member)
    call, repeats = Pipeline.call, [True]

    async def repeat(pipeline: Pipeline, *args: Any, **kwargs: Any) -> Any:
        if PRESENCE_WRITE in args and repeats:
            repeats.clear()
            await call(pipeline, *args, **kwargs)
        return await call(pipeline, *args, **kwargs)

    if lost == "the reply of a leave":
        await show(one, "a")
    monkeypatch.setattr(Pipeline, "call", repeat)
    if lost == "the reply of a join":
        await show(one, "a", "b")
        await show(two, "b")
        one.presence.hide("room", "b")
        assert {(await receive(layer, member))["text"] for _ in range(2)} == {'+"a"', '+"b"'}
    else:
        assert (await receive(layer, member))["text"] == '+"a"'
    one.presence.hide("room", "a")
    await one.presence.settle()
    assert (await receive(layer, member))["text"].startswith('-"a"')
    assert not repeats


async def test_a_user_who_leaves_after_a_loss_leaves_also_if_the_process_moves(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    member = await layer.new_channel()
    await layer.group_add("room", member)
    async with AsyncExitStack() as stack:
        old: Any = await stack.enter_async_context(layer.bus("interface", Handler()))
        old.presence.announce("room", TOLD)
        await show(old, "a", "b")
        for _ in range(2):
            await receive(layer, member)
        admin.flushall()
        old.presence.hide("room", "a")
        await eventually(layer, {"a", "b"})  # until others had time to write theirs
        identity = unpack(pack(await old.freeze()))
        old.give_away()
    async with layer.moved_bus(identity, Handler()) as new:
        new.thaw()
        assert (await receive(layer, member))["text"] == '-"a" 1'
        assert await names(layer) == {"b"}


async def test_a_process_that_was_taken_for_dead_tells_joins(
    layer: RedisChannelLayer, buses: tuple[Any, Any], admin: "redis.Redis[bytes]"
) -> None:
    one, two = buses
    member = await layer.new_channel()
    await layer.group_add("room", member)
    await show(one, "a", "b")
    epoch = admin.zrange("asgibus:processes", "+inf", "+inf", byscore=True)
    await two.presence.remove_dead(one.mailbox, None)
    one.presence.renew(one.presence._home, everything=True, lapsed=True)  # as the heartbeat does
    await one.presence.settle()
    told = [(await receive(layer, member))["text"] for _ in range(6)]
    assert [sorted(told[:2]), sorted(each[:4] for each in told[2:4]), sorted(told[4:])] == [
        ['+"a"', '+"b"'],
        ['-"a"', '-"b"'],
        ['+"a"', '+"b"'],
    ]
    renewed = {admin.zscore("asgibus:processes", one.mailbox)}

    def has_beaten() -> bool:
        renewed.add(admin.zscore("asgibus:processes", one.mailbox))
        return len(renewed) == 5

    await until(has_beaten)
    assert admin.zrange("asgibus:processes", "+inf", "+inf", byscore=True) == epoch, "nothing was lost"


async def test_users_of_older_data_are_removed(
    layer: RedisChannelLayer, buses: tuple[Any, Any], admin: "redis.Redis[bytes]"
) -> None:
    one, _ = buses
    await show(one, "a", "b")
    older = {key: admin.dump(key) for key in admin.keys("asgibus:*") if b"{" in key}
    one.presence.hide("room", "b")
    await show(one, "c")
    admin.flushall()
    for key, value in older.items():
        admin.restore(key, 0, value, replace=True)
    await eventually(layer, {"a", "c"})
    assert tuple(await layer.present_count("room")) == (2, 2)


def entries(admin: "redis.Redis[bytes]", name: str) -> list[Any]:
    """Return mailboxes and entries of a user, or the list of the processes with users."""
    return list(msgpack.unpackb(admin.hget(KEY, name) or b"\x90", raw=True))


def set_entries(admin: "redis.Redis[bytes]", name: str, values: list[Any]) -> None:
    admin.hset(KEY, name, msgpack.packb(values, use_bin_type=False))


def leave_behind(admin: "redis.Redis[bytes]", *names: str) -> None:
    """Write what a process leaves behind that nobody has cleaned up after."""
    for name in names:
        entry = RedisChannelLayer()._entries.pack(KEY, user(name)._asdict())
        set_entries(admin, user_key(name), [*entries(admin, user_key(name)), DEAD, entry])
    set_entries(admin, SERVERS, [*entries(admin, SERVERS), DEAD, len(names), 1, 0])


@pytest.mark.parametrize("by", ["present", "present_count", "a join"])
async def test_what_a_dead_process_left_is_removed_by_who_looks(
    by: str, layer: RedisChannelLayer, buses: tuple[Any, Any], admin: "redis.Redis[bytes]"
) -> None:
    one, two = buses
    if by != "a join":
        await show(one, "a")
    leave_behind(admin, "a", "ghost")
    if by == "present":
        assert await names(layer) == {"a"}
    elif by == "present_count":
        assert tuple(await layer.present_count("room")) == (1, 1)
    else:
        await show(two, "b")
    mailbox = (two if by == "a join" else one).mailbox.encode()
    assert entries(admin, SERVERS)[::4] == [mailbox]
    assert set(admin.hkeys(KEY)) == {user_key("b" if by == "a join" else "a").encode(), SERVERS.encode(), mailbox}


async def test_the_many_users_of_a_dead_process_are_removed(
    layer: RedisChannelLayer, buses: tuple[Any, Any], admin: "redis.Redis[bytes]"
) -> None:
    one, two = buses
    many = [f"user {number}" for number in range(700)]
    await show(one, "a", *many[:100])
    await show(two, *many)
    await one.presence.remove_dead(two.mailbox, None)
    assert await names(layer) == {"a", *many[:100]}
    assert tuple(await layer.present_count("room")) == (101, 101)
    assert admin.hlen(KEY) == 103, "besides, the processes, and the events of one"


async def test_a_process_that_has_written_since_is_not_taken_for_dead(
    layer: RedisChannelLayer, buses: tuple[Any, Any], admin: "redis.Redis[bytes]"
) -> None:
    one, two = buses
    await show(one, "a")
    await two.presence.remove_dead(one.mailbox, 1)
    assert await names(layer) == {"a"}
    assert admin.smembers(f"asgibus:presence:{one.mailbox}") == {b"room"}


async def test_within_the_grace_nobody_is_taken_for_dead(
    layer: RedisChannelLayer, buses: tuple[Any, Any], admin: "redis.Redis[bytes]"
) -> None:
    leave_behind(admin, "a")
    seconds, _ = admin.time()
    admin.zadd("asgibus:processes", {"grace": (seconds + 5) * 1000})
    assert await names(layer) == {"a"}


async def test_odd_data_does_not_matter(
    layer: RedisChannelLayer, buses: tuple[Any, Any], admin: "redis.Redis[bytes]"
) -> None:
    one, _ = buses
    await show(one, "a")
    for number, entry in enumerate((b"\xc1", b"\x80", b"\x93\x01\x02\x03")):
        set_entries(admin, f"{number:032}", [one.mailbox, entry])
    for number, value in enumerate((b"\xc1", b"\x80", b"\x91\x01", b""), 10):
        admin.hset(KEY, f"{number:032}", value)
    set_entries(admin, f"{20:032}", [b"\xff no name", b"\x80"])
    admin.hset(KEY, "no user", b"\xc1")
    assert await names(layer) == {"a"}
    assert layer.counts["damaged entry"] == 7
    assert layer.counts["odd name"] > 0
    with pytest.raises(ValueError, match="cursor"):
        await layer.present("room", "1 2")


@pytest.mark.parametrize("value", ["of another type", "odd processes", None])
async def test_a_key_that_others_have_changed_is_written_again(
    value: str | None, layer: RedisChannelLayer, buses: tuple[Any, Any], admin: "redis.Redis[bytes]"
) -> None:
    one, two = buses
    member = await layer.new_channel()
    await layer.group_add("room", member)
    await show(one, "a")
    await show(two, "a", "c")
    if value == "odd processes":
        admin.hset(KEY, SERVERS, value)
    else:
        admin.delete(KEY)
        if value is not None:
            admin.set(KEY, value)
    one.presence.hide("room", "a")  # who stays because of the other server
    one.presence.show("room", user("b"))
    await one.presence.settle()

    async def read() -> set[str]:
        try:
            return await names(layer)
        except LayerUnavailable:
            return set()

    async with asyncio.timeout(10):
        while await read() != {"a", "b", "c"}:  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.05)

    async def counted() -> Any:
        return await layer.present_count("room")

    async with asyncio.timeout(10):
        while tuple(await counted()) != (3, 3):  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.05)
    assert layer.counts["wrong type"] + layer.counts["lost key"] > 0
    two.presence.hide("room", "c")
    told = [await receive(layer, member)]
    while told[-1]["text"] != '-"c" 2':
        told.append(await receive(layer, member))
    assert [each["text"] for each in told if '"a"' in each["text"]] == ['+"a"'], "nobody is told that a has left"


@pytest.mark.parametrize("value", [None, "of another type"])
async def test_the_groups_of_a_process_are_named_again(
    value: str | None, layer: RedisChannelLayer, buses: tuple[Any, Any], admin: "redis.Redis[bytes]"
) -> None:
    one, _ = buses
    await show(one, "a")
    key = f"asgibus:presence:{one.mailbox}"
    admin.delete(key)
    if value is not None:
        admin.set(key, value)
    await until(lambda: admin.type(key) == b"set")
    assert admin.smembers(key) == {b"room"}


@pytest.mark.parametrize("loss", ["of all data", "of their key", "of the type of their key"])
async def test_wills_outlive_a_loss(
    loss: str, layer: RedisChannelLayer, buses: tuple[Any, Any], admin: "redis.Redis[bytes]"
) -> None:
    one, _ = buses
    member = await layer.new_channel()
    await layer.group_add("room", member)
    stored: list[str | None] = []
    for number in (1, 2):
        one.presence.set_will(number, "room", {"n": number}, stored.append)
    await until(lambda: len(stored) == 2)
    key = f"asgibus:wills:{one.mailbox}"
    assert admin.hlen(key) == 3
    written = admin.hget(key, ":at")
    if loss == "of all data":
        admin.flushall()
    else:
        await until(lambda: admin.hget(key, ":at") != written)  # the first heartbeat writes them again
        admin.delete(key)
        if loss == "of the type of their key":
            admin.set(key, "odd")
    one.presence.execute_will(1)
    await until(lambda: admin.type(key) == b"hash" and admin.hlen(key) == 2)
    assert await receive(layer, member) == {"n": 1}
    one.presence.execute_will(2)
    assert await receive(layer, member) == {"n": 2}


async def test_a_will_that_may_not_have_been_stored_is_never_sent(
    layer: RedisChannelLayer, monkeypatch: pytest.MonkeyPatch, admin: "redis.Redis[bytes]"
) -> None:
    member = await layer.new_channel()
    await layer.group_add("room", member)
    call = Pipeline.call

    async def lose(pipeline: Pipeline, *args: Any, **kwargs: Any) -> Any:
        reply = await call(pipeline, *args, **kwargs)
        if WILL_WRITE in args:
            raise LayerUnavailable("no reply")
        return reply

    stored: list[str | None] = []
    async with layer.bus("interface", Handler()) as bus:
        with monkeypatch.context() as patch:
            patch.setattr(Pipeline, "call", lose)
            bus.presence.set_will(1, "room", {"n": 1}, stored.append)
            await until(lambda: stored == ["no reply"])
        bus.presence.set_will(2, "room", {"n": 2}, stored.append)
        await until(lambda: len(stored) == 2)
        bus.presence.execute_will(1)
    assert await receive(layer, member) == {"n": 2}, "the will of a process that has ended"


async def test_entries_are_sealed(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    layer = RedisChannelLayer(redis_url, symmetric_encryption_keys=["a secret"])
    async with layer.bus("interface", Handler()) as bus:
        stored: list[str | None] = []
        bus.presence.announce("room", TOLD)
        bus.presence.set_will(1, "room", {"text": "my-secret"}, stored.append)
        await show(bus, "my-secret")
        await until(lambda: stored)
        for key in admin.keys("*"):
            assert b"secret" not in key
            assert b"my-secret" not in (admin.dump(key) or b"")
        assert await names(layer) == {"my-secret"}
    await layer.close()
