"""An app whose WebSockets broadcast numbers to their room five times a second.

They use the connection, the layer of the worker and a layer of the app in turn. An error of `group_send` ends the run.
"""

import asyncio
import os
from urllib.parse import parse_qsl

from asgibus import connection
from asgibus.layers import RedisChannelLayer

INTERVAL = 0.2
own_layer = RedisChannelLayer(os.environ["OWN_LAYER"])


async def app(scope, receive, send):
    assert scope["type"] == "websocket"
    query = dict(parse_qsl(scope["query_string"].decode()))
    bus = connection(scope)
    await receive()
    await send({"type": "websocket.accept"})
    if not bus.resumed:
        await bus.group_add(query["room"])
    leaving = asyncio.create_task(receive())
    number = 0
    while not leaving.done():
        text = f"{query['name']}.{bus.attempt} {number}"
        sender = (bus, bus.layer, own_layer)[number % 3]
        await sender.group_send(query["room"], {"type": "websocket.send", "text": text})
        await bus.layer.send(bus.reply_channel, {"type": "websocket.send", "text": f"own.{text}"})
        number += 1
        await asyncio.wait([leaving], timeout=INTERVAL)
