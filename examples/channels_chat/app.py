"""A chat with rooms for Channels, in one file, in which nobody leaves when a worker is replaced.

    asgi-interface app:application                           # to develop, one process without Redis
    asgi-interface --layer redis://127.0.0.1:6379            # in production
    asgi-worker --resume app:application --layer redis://127.0.0.1:6379

The consumer runs on any server. `REDIS_URL` names the Redis of its channel layer; without it, the layer is in memory.
"""

import os
from secrets import token_hex

from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.urls import path

from asgibus.channels import HandOverMixin

if url := os.environ.get("REDIS_URL"):
    LAYER = {"BACKEND": "asgibus.layers.RedisChannelLayer", "CONFIG": {"hosts": [url], "prefix": "chat"}}
else:
    LAYER = {"BACKEND": "asgibus.layers.InMemoryChannelLayer"}

settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=(), SECRET_KEY=token_hex(), CHANNEL_LAYERS={"default": LAYER})
django = get_asgi_application()


class Chat(HandOverMixin, AsyncWebsocketConsumer):
    async def connect(self):
        self.name, self.room = (self.scope["url_route"]["kwargs"][name] for name in ("name", "room"))
        await self.channel_layer.group_add(self.room, self.channel_name)
        await self.accept()
        if not self.resumed:
            await self.say(f"{self.name} has joined")

    async def disconnect(self, code):
        await self.say(f"{self.name} has left")  # the client is gone: at a deploy this is not called
        await self.channel_layer.group_discard(self.room, self.channel_name)

    async def receive(self, text_data=None, bytes_data=None):
        await self.say(f"{self.name}: {text_data}")

    async def say(self, text):
        await self.channel_layer.group_send(self.room, {"type": "chat.message", "text": text})

    async def chat_message(self, event):
        await self.send(event["text"])


application = ProtocolTypeRouter(
    {"http": django, "websocket": URLRouter([path("rooms/<slug:room>/<slug:name>", Chat.as_asgi())])}
)
