"""Channels: a chat over groups of its layer, with consumers that are asynchronous and that run in threads."""

import os

import django
from asgiref.sync import async_to_sync
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.urls import path

from frameworks.moving.notes import note

LAYER = {
    "BACKEND": "asgibus.layers.RedisChannelLayer",
    "CONFIG": {"hosts": [os.environ["LAYER_URL"]], "prefix": "chat"},
}
settings.configure(SECRET_KEY="of the tests", CHANNEL_LAYERS={"default": LAYER})
django.setup()


class Chat(AsyncWebsocketConsumer):
    async def connect(self):
        self.name = self.scope["url_route"]["kwargs"]["name"]
        await self.channel_layer.group_add("chat", self.channel_name)
        await self.accept()

    async def receive(self, text_data=None, bytes_data=None):
        await self.send(f"you: {text_data}")
        await self.channel_layer.group_send("chat", {"type": "chat.line", "text": f"{self.name}: {text_data}"})

    async def chat_line(self, event):
        await self.send(event["text"])

    async def disconnect(self, code):
        note(f"left {self.name}")
        await self.channel_layer.group_discard("chat", self.channel_name)
        note(f"cleaned up {self.name}")


class ChatInThread(WebsocketConsumer):
    def connect(self):
        self.name = self.scope["url_route"]["kwargs"]["name"]
        async_to_sync(self.channel_layer.group_add)("chat", self.channel_name)
        self.accept()

    def receive(self, text_data=None, bytes_data=None):
        self.send(f"you: {text_data}")
        line = {"type": "chat.line", "text": f"{self.name}: {text_data}"}
        async_to_sync(self.channel_layer.group_send)("chat", line)

    def chat_line(self, event):
        self.send(event["text"])

    def disconnect(self, code):
        note(f"left {self.name}")
        async_to_sync(self.channel_layer.group_discard)("chat", self.channel_name)
        note(f"cleaned up {self.name}")


app = ProtocolTypeRouter(
    {
        "websocket": URLRouter(
            [path("chat/<str:name>", Chat.as_asgi()), path("thread/<str:name>", ChatInThread.as_asgi())]
        )
    }
)
