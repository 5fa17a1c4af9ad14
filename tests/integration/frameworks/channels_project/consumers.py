import asyncio
import json

from channels.consumer import SyncConsumer
from channels.db import database_sync_to_async
from channels.exceptions import ChannelFull
from channels.generic.http import AsyncHttpConsumer
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer

import asgibus
from frameworks.django_project.models import Line
from frameworks.django_project.views import NOTES


class Talk(AsyncWebsocketConsumer):
    async def connect(self):
        self.name = self.scope["url_route"]["kwargs"]["name"]
        protocol = "v1" if "v1" in self.scope["subprotocols"] else None
        await self.accept(protocol, headers=[(b"x-room", self.name.encode())])
        await self.send(json.dumps({"name": self.name, "cookies": self.scope["cookies"]}))

    async def receive(self, text_data=None, bytes_data=None):
        if text_data == "close":
            await self.close(4001, "as asked")
        elif text_data == "raise":
            raise ArithmeticError("as asked")
        elif text_data is not None:
            await self.send(text_data[::-1])
        else:
            await self.send(bytes_data=bytes_data)

    async def disconnect(self, code):
        NOTES.append(f"{self.name} left: {code}")


class Closed(WebsocketConsumer):
    def connect(self):  # runs in a thread
        self.close()


class Chat(AsyncWebsocketConsumer):
    """A chat through the channel layer of the project."""

    async def connect(self):
        self.room = self.scope["url_route"]["kwargs"]["room"]
        await self.channel_layer.group_add(self.room, self.channel_name)
        await self.accept()
        await self.send(json.dumps({"earlier": await self.earlier()}))

    async def disconnect(self, code):
        await self.channel_layer.group_discard(self.room, self.channel_name)

    async def receive(self, text_data=None, bytes_data=None):
        if bytes_data is not None:
            await self.channel_layer.group_send(self.room, {"type": "chat.bytes", "bytes": bytes_data})
        elif text_data == "fill":
            await self.fill()
        else:
            await self.keep(text_data)
            await self.channel_layer.group_send(self.room, {"type": "chat.line", "text": text_data})

    async def fill(self):
        sent = 0
        try:
            while True:
                await self.channel_layer.send(f"small.{self.room}", {"type": "x"})
                sent += 1
        except ChannelFull:
            await self.send(json.dumps({"sent": sent}))

    async def chat_line(self, event):
        await self.send(json.dumps({"line": event["text"]}))

    async def chat_bytes(self, event):
        await self.send(bytes_data=event["bytes"])

    @database_sync_to_async
    def keep(self, text):
        Line.objects.create(room=self.room, text=text)

    @database_sync_to_async
    def earlier(self):
        return [line.text for line in Line.objects.filter(room=self.room).order_by("id")]


class Everybody(AsyncWebsocketConsumer):
    """A consumer in a group of the bus: a broadcast goes to the sockets and wakes no consumer."""

    async def connect(self):
        await self.accept()
        self.connection = asgibus.connection(self.scope)
        await self.connection.group_add("everybody")

    async def receive(self, text_data=None, bytes_data=None):
        await self.connection.group_send("everybody", {"type": "websocket.send", "text": text_data})


class Ticker(AsyncHttpConsumer):
    """Server-sent events in the style of Channels."""

    async def handle(self, body):
        self.name = self.scope["url_route"]["kwargs"]["name"]
        await self.send_headers(headers=[(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")])
        number = 0
        while True:
            await self.send_body(b"data: tick %d\n\n" % number, more_body=True)
            number += 1
            await asyncio.sleep(0.02)

    async def disconnect(self):
        NOTES.append(f"{self.name} left")


class Work(SyncConsumer):
    def work_do(self, message):
        Line.objects.create(room="work", text=f"{message['name']} done")
