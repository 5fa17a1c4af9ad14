"""Messages of a consumer of Channels to a client that has just left: dropped, as on daphne."""

import asyncio
import logging
from typing import Any

import pytest
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from channels.layers import channel_layers
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.sessions import CookieMiddleware
from django.conf import settings
from django.urls import path

from asgibus.layers import InMemoryChannelLayer
from asgibus.testing import Bus

pytestmark = pytest.mark.anyio

if not settings.configured:
    settings.configure(DATABASES={})  # of which consumers close old connections


class Ends:
    """The signals between consumers and the test."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.handling = asyncio.Event()
        self.left = asyncio.Event()
        self.notes: list[str] = []

    def wait(self) -> None:
        """Wait for the client to leave, in the thread of a synchronous consumer."""
        self.loop.call_soon_threadsafe(self.handling.set)
        asyncio.run_coroutine_threadsafe(self.left.wait(), self.loop).result()


class Async(AsyncWebsocketConsumer):
    ends: Ends

    async def chat_message(self, event: Any) -> None:
        self.ends.handling.set()
        await self.ends.left.wait()
        for _ in range(3):
            await self.send("too late")
        self.ends.notes.append("handled")

    async def disconnect(self, code: int) -> None:
        await self.send("good-bye")
        self.ends.notes.append(f"disconnect {code}")


class Sync(WebsocketConsumer):
    ends: Ends

    def chat_message(self, event: Any) -> None:
        self.ends.wait()
        for _ in range(3):
            self.send("too late")
        self.ends.notes.append("handled")

    def disconnect(self, code: int) -> None:
        self.send("good-bye")
        self.ends.notes.append(f"disconnect {code}")


def routed(consumer: Any) -> Any:
    return ProtocolTypeRouter({"websocket": CookieMiddleware(URLRouter([path("", consumer)]))})


@pytest.mark.parametrize("kind", [Async, Sync])
@pytest.mark.parametrize("wrap", [routed, lambda consumer: consumer], ids=["router", "consumer"])
async def test_a_consumer_gets_its_disconnect_after_a_late_message(
    kind: Any, wrap: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layer, ends = InMemoryChannelLayer(), Ends()
    monkeypatch.setitem(channel_layers.backends, "default", layer)
    monkeypatch.setattr(kind, "ends", ends, raising=False)
    monkeypatch.setattr(kind, "groups", ["chat"])
    with caplog.at_level(logging.INFO):
        async with Bus(wrap(kind.as_asgi()), lifespan="off") as bus:
            async with bus.websocket("/"):
                await layer.group_send("chat", {"type": "chat.message"})
                await asyncio.wait_for(ends.handling.wait(), 30)
            ends.left.set()
        assert ends.notes == ["handled", "disconnect 1000"]
    assert caplog.text == ""
