"""Test presence, users and wills with an app on interface servers within this process."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

import pytest
from websockets.exceptions import InvalidStatus

import asgibus
from asgibus.layers import InMemoryChannelLayer
from asgibus.testing import Bus, WebSocket
from support.deadline import HANG

pytestmark = pytest.mark.anyio

GRACE = 0.3  # seconds, more than a tick of the server
JOIN = {"type": "websocket.send", "text": '{"join": {user}, "info": {info}, "count": {count}}'}
LEAVE = {"type": "websocket.send", "text": '{"leave": {user}, "count": {count}}'}
WILL = {"type": "websocket.send", "text": '"gone"'}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Serve a room: the query names the user, and what to do before the WebSocket is accepted."""
    assert scope["type"] == "websocket"
    connection = asgibus.connection(scope)
    query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
    await receive()
    await connection.identify(query["user"], {"name": query["user"].upper()})
    templates = {} if "quiet" in query else {"join": JOIN, "leave": LEAVE}
    await connection.group_add("room", present=True, **templates)
    if "will" in query:
        await connection.set_will("room", WILL)
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        command = event["text"]
        if command == "discard":
            await connection.group_discard("room")
        elif command == "clear":
            await connection.clear_will()
        elif command.startswith("identify"):
            try:
                await connection.identify(command.split()[1])
            except RuntimeError as error:
                command = str(error)
        await send({"type": "websocket.send", "text": json.dumps([command, connection.user])})


@pytest.fixture
async def layer() -> InMemoryChannelLayer:
    return InMemoryChannelLayer()


@pytest.fixture
async def buses(layer: InMemoryChannelLayer) -> AsyncIterator[tuple[Bus, Bus]]:
    """Provide two interface servers, each with a worker, on one layer."""
    async with (
        Bus(app, layer=layer, presence_grace=GRACE) as one,
        Bus(app, layer=layer, presence_grace=GRACE) as two,
    ):
        yield one, two


async def users(layer: InMemoryChannelLayer) -> dict[str, int]:
    return {each.user: each.connections for each in (await layer.present("room")).users}


async def count(layer: InMemoryChannelLayer, user: str, connections: int) -> bool:
    return (await users(layer)).get(user) == connections


async def empty(layer: InMemoryChannelLayer) -> bool:
    return await users(layer) == {}


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(HANG):
        while not await condition():  # noqa: ASYNC110  # it is about a store
            await asyncio.sleep(0.01)


async def pass_grace() -> None:
    await asyncio.sleep(2 * GRACE)


async def exchange(socket: WebSocket, text: str) -> Any:
    await socket.send(text)
    return await read(socket)


async def read(socket: WebSocket) -> Any:
    return json.loads(await socket.receive())


async def test_who_is_there(layer: InMemoryChannelLayer, buses: tuple[Bus, Bus]) -> None:
    one, two = buses
    async with one.websocket("/?user=a") as a, two.websocket("/?user=b"), two.websocket("/?user=a"):
        page = await layer.present("room")
        assert page.cursor is None
        assert [(each.user, each.info, each.connections) for each in page.users] == [
            ("a", {"name": "A"}, 2),
            ("b", {"name": "B"}, 1),
        ]
        assert tuple(await layer.present_count("room")) == (2, 3)
        assert len(await layer.user_connections("a")) == 2
        assert await read(a) == {"join": "b", "info": {"name": "B"}, "count": 2}
        # Told once: the next message is the answer to this one.
        assert await exchange(a, "hello") == ["hello", "a"]


async def test_a_user_leaves_once_with_the_last_device(layer: InMemoryChannelLayer, buses: tuple[Bus, Bus]) -> None:
    one, two = buses
    async with one.websocket("/?user=a&quiet=1") as a:
        async with one.websocket("/?user=b"):
            async with two.websocket("/?user=b"):
                assert (await read(a))["join"] == "b"
            await eventually(lambda: count(layer, "b", 1))
            await pass_grace()
            assert await exchange(a, "hello") == ["hello", "a"], "b has not left"
        await eventually(lambda: count(layer, "b", 0))
        assert await read(a) == {"leave": "b", "count": 1}
        assert await users(layer) == {"a": 1}
        assert await layer.user_connections("b") == []
    await eventually(lambda: empty(layer))


async def test_a_reload_is_no_leave(layer: InMemoryChannelLayer, buses: tuple[Bus, Bus]) -> None:
    one, two = buses
    async with one.websocket("/?user=a&quiet=1") as a:
        for bus in (one, one, two, one):
            async with bus.websocket("/?user=b"):
                await eventually(lambda: count(layer, "b", 1))
        assert (await read(a))["join"] == "b"
        assert (await read(a))["leave"] == "b", "the next event after four connections"


async def test_whoever_leaves_the_group_leaves_at_once(layer: InMemoryChannelLayer, buses: tuple[Bus, Bus]) -> None:
    one, _ = buses
    async with one.websocket("/?user=a&quiet=1") as a, one.websocket("/?user=b") as b:
        await b.send("discard")
        assert (await read(a))["join"] == "b"
        assert (await read(a))["leave"] == "b"
        assert await users(layer) == {"a": 1}
        assert len(await layer.user_connections("b")) == 1


async def test_events_and_the_end_of_all_connections_of_a_user(
    layer: InMemoryChannelLayer, buses: tuple[Bus, Bus]
) -> None:
    one, two = buses
    async with (
        one.websocket("/?user=a&quiet=1") as a,
        two.websocket("/?user=a") as again,
        two.websocket("/?user=b") as b,
    ):
        await layer.user_send("a", {"type": "websocket.send", "text": "1"})
        assert [await read(a), await read(again)] == [{"join": "b", "info": {"name": "B"}, "count": 2}] * 2
        assert [await read(a), await read(again)] == [1, 1]
        await layer.user_close("a", 4001, "signed out")
        assert [await a.closed(), await again.closed()] == [4001, 4001]
        assert (await read(b))["leave"] == "a"


async def test_a_will_is_sent_once_unless_it_is_taken_back(buses: tuple[Bus, Bus]) -> None:
    one, two = buses
    async with one.websocket("/?user=a&quiet=1") as a:
        async with two.websocket("/?user=b&quiet=1&will=1"):
            pass
        assert await read(a) == "gone"
        async with two.websocket("/?user=b&quiet=1&will=1") as b:
            await exchange(b, "clear")
        async with two.websocket("/?user=c"):
            assert (await read(a))["join"] == "c"


async def test_a_connection_has_one_user(buses: tuple[Bus, Bus]) -> None:
    one, _ = buses
    async with one.websocket("/?user=a&quiet=1") as a:
        assert await exchange(a, "identify a") == ["identify a", "a"]
        assert await exchange(a, "identify b") == ["this is the connection of 'a': a connection has one user", "a"]


@pytest.mark.parametrize("limit", ["oldest", "newest"])
async def test_a_user_has_a_limited_number_of_connections(layer: InMemoryChannelLayer, limit: str) -> None:
    options = {"max_connections_per_user": 2, "user_limit": limit}
    async with (
        Bus(app, layer=layer, **options) as one,
        Bus(app, layer=layer, **options) as two,
        one.websocket("/?user=a&quiet=1") as first,
        two.websocket("/?user=a&quiet=1") as second,
    ):
        if limit == "newest":
            with pytest.raises(InvalidStatus, match="403"):
                await two.websocket("/?user=a&quiet=1").__aenter__()
            assert await exchange(first, "hello") == ["hello", "a"]
        else:
            async with two.websocket("/?user=a&quiet=1") as third:
                assert await first.closed() == 4429
                assert await exchange(third, "hello") == ["hello", "a"]
        assert await exchange(second, "hello") == ["hello", "a"]
