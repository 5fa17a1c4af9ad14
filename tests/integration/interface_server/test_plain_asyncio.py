"""The interface server in a program that `asyncio.run` has started, beside packages that use sniffio."""

import asyncio
from typing import Any

import pytest
from websockets.asyncio.client import connect

import asgibus
from asgibus.layers import ChannelLayer, InMemoryChannelLayer, RedisChannelLayer
from asgibus.testing import Bus
from support.in_process import serving_here

pytest.importorskip("sniffio", reason="without it anyio always knows that asyncio runs")


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "websocket":
        raise NotImplementedError
    await receive()
    await send({"type": "websocket.accept"})
    connection = asgibus.connection(scope)
    await connection.group_add("group")
    await connection.group_send("group", {"type": "websocket.send", "text": "joined"})
    await receive()
    await connection.group_discard("group")
    await send({"type": "websocket.send", "text": "left"})
    await receive()


@pytest.mark.parametrize("kind", ["memory", pytest.param("redis", marks=pytest.mark.redis)])
def test_groups_under_plain_asyncio(kind: str, request: pytest.FixtureRequest) -> None:
    async def main() -> list[str | bytes]:
        layer: ChannelLayer = InMemoryChannelLayer()
        if kind == "redis":
            layer = RedisChannelLayer(request.getfixturevalue("redis_url"))
        async with (
            asyncio.timeout(30),
            serving_here(app, layer) as port,
            connect(f"ws://127.0.0.1:{port}/") as socket,
        ):
            first = await socket.recv()
            await socket.send("leave")
            received = [first, await socket.recv()]
        await layer.close()
        return received

    assert asyncio.run(main()) == ["joined", "left"]


def test_the_test_bus_runs_under_plain_asyncio() -> None:
    async def main() -> list[str | bytes]:
        async with Bus(app) as bus, bus.websocket("/") as socket:
            first = await socket.receive()
            await socket.send("leave")
            return [first, await socket.receive()]

    assert asyncio.run(main()) == ["joined", "left"]
