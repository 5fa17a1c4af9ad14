import json

from channels.db import database_sync_to_async
from channels.exceptions import ChannelFull
from channels.generic.websocket import AsyncWebsocketConsumer

from .models import Line


class Chat(AsyncWebsocketConsumer):
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
