"""WebSockets of Litestar: listeners, streams, handlers, and channels over its own Redis backend."""

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from litestar import Litestar, MediaType, WebSocket, get, post, websocket, websocket_listener, websocket_stream
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.redis import RedisChannelsPubSubBackend
from litestar.handlers import WebsocketListener
from redis.asyncio import Redis


def note(text: str) -> None:
    with Path("notes").open("a") as notes:
        notes.write(f"{text}\n")


@get("/", media_type=MediaType.HTML)
async def home() -> str:
    return "<!doctype html><title>Litestar</title><link rel=icon href=data:,>"


@websocket_listener("/listener")
async def listener(data: dict[str, Any]) -> dict[str, Any]:
    return {"got": data}


class Shouting(WebsocketListener):
    """A listener as a class."""

    path = "/shouting"

    async def on_accept(self, socket: WebSocket[Any, Any, Any]) -> None:
        note("shouting: accepted")

    async def on_disconnect(self, socket: WebSocket[Any, Any, Any]) -> None:
        note("shouting: left")

    async def on_receive(self, data: str) -> str:
        return data.upper()


@websocket_stream("/stream/{name:str}")
async def stream(name: str) -> AsyncGenerator[int, None]:
    number = 0
    try:
        while True:
            yield number
            number += 1
            await asyncio.sleep(0.01)
    finally:
        note(f"stream {name} ended")


@websocket("/handler")
async def handler(socket: WebSocket[Any, Any, Any]) -> None:
    await socket.accept()
    async for data in socket.iter_json():
        await socket.send_json([data, data])


@post("/publish/{room:str}", status_code=204)
async def publish(room: str, data: dict[str, Any], channels: ChannelsPlugin) -> None:
    channels.publish(data, room)


app = Litestar(
    [home, listener, Shouting, stream, handler, publish],
    plugins=[
        ChannelsPlugin(
            RedisChannelsPubSubBackend(redis=Redis.from_url(os.environ["REDIS_URL"])),
            arbitrary_channels_allowed=True,
            create_ws_route_handlers=True,
            ws_handler_base_path="/rooms",
        )
    ],
)
