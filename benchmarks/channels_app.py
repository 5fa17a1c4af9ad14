"""The peer app for Channels 4: the same three paths as consumers, groups through channels_redis.

The environment variable BENCHMARK_REDIS holds the URL of the Redis to use.
"""

import os
from typing import Any

import django  # type: ignore[import-untyped]
from channels.generic.http import AsyncHttpConsumer  # type: ignore[import-untyped]
from channels.generic.websocket import AsyncWebsocketConsumer  # type: ignore[import-untyped]
from channels.routing import ProtocolTypeRouter, URLRouter  # type: ignore[import-untyped]
from django.conf import settings  # type: ignore[import-untyped]
from django.urls import path  # type: ignore[import-untyped]

from benchmarks.apps import GROUP, HEADERS
from benchmarks.payloads import BODY, BROADCAST, JOINED

# Settings without which the count would be spoilt: beyond its capacity (100) the layer drops, with too few connections
# (100) sockets that close all at once stay in the group, and the client's own timeout (5 s) is no longer than the
# layer's blocking read, so that quiet sockets are closed. A timeout of None would make the client connect again and
# again, at more than twice the CPU time a request.
REDIS = {"address": os.environ["BENCHMARK_REDIS"], "max_connections": 5000, "socket_timeout": 60}
LAYER = {
    "BACKEND": "channels_redis.core.RedisChannelLayer",
    "CONFIG": {"hosts": [REDIS], "capacity": 100_000},
}

settings.configure(SECRET_KEY="benchmark", ALLOWED_HOSTS=["*"], CHANNEL_LAYERS={"default": LAYER})
django.setup()


class Hello(AsyncHttpConsumer):  # type: ignore[misc]
    """`/`: 13 bytes."""

    async def handle(self, body: bytes) -> None:
        await self.send_response(200, BODY, headers=HEADERS)


class Echo(AsyncWebsocketConsumer):  # type: ignore[misc]
    """`/ws`: each message is sent back."""

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.send(text_data=text_data, bytes_data=bytes_data)


class FanOut(AsyncWebsocketConsumer):  # type: ignore[misc]
    """`/fanout`: a member of the group, whose every message is a broadcast."""

    async def connect(self) -> None:
        await self.accept()
        await self.channel_layer.group_add(GROUP, self.channel_name)
        await self.send(text_data=JOINED)

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(GROUP, self.channel_name)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.channel_layer.group_send(GROUP, {"type": "broadcast", "text": BROADCAST})

    async def broadcast(self, event: dict[str, Any]) -> None:
        await self.send(text_data=event["text"])


app = ProtocolTypeRouter(
    {
        "http": URLRouter([path("", Hello.as_asgi())]),
        "websocket": URLRouter([path("ws", Echo.as_asgi()), path("fanout", FanOut.as_asgi())]),
    }
)
