"""The app of the chaos tests, in a version that survives an outage of the store and notes failed broadcasts.

In addition to `chaos.chaos_app`: `/ticker?name=&room=&interval=` broadcasts numbers until it ends;
`/post?name=` answers after a moment, so that many requests are under way at once.
"""

import asyncio
import json
import os
import time
from urllib.parse import parse_qsl

from asgibus import connection
from asgibus.layers import LayerUnavailable
from chaos import chaos_app
from chaos.chaos_app import note

POST_SECONDS = 0.2


async def app(scope, receive, send):
    if scope["type"] == "websocket" and scope["path"] == "/room":
        await room(scope, receive, send, dict(parse_qsl(scope["query_string"].decode())))
    elif scope["type"] == "websocket" and scope["path"] == "/ticker":
        await ticker(scope, receive, send, dict(parse_qsl(scope["query_string"].decode())))
    elif scope["type"] == "http" and scope["path"] == "/post":
        await post(scope, receive, send, dict(parse_qsl(scope["query_string"].decode())))
    else:
        await chaos_app.app(scope, receive, send)


async def room(scope, receive, send, query):
    """Run the room of the chaos app, but note a failed broadcast and do not repeat it."""
    bus = connection(scope)
    run = {"name": query["name"], "path": "/room", "attempt": bus.attempt}
    assert (await receive())["type"] == "websocket.connect"
    note("connected", resumed=bus.resumed, **run)
    await send({"type": "websocket.accept"})
    if not bus.resumed:
        await bus.group_add(query["room"])
    while (event := await receive())["type"] == "websocket.receive":
        text = event["text"]
        if text == "?":
            await send({"type": "websocket.send", "text": "!" + json.dumps({"pid": os.getpid(), **run})})
            continue
        await broadcast(bus, query["room"], query["name"], int(text.partition(" ")[0]))
    note("disconnected", code=event["code"], **run)


async def broadcast(bus, room, name, number):
    began = time.monotonic()
    message = f"{name} {number} {bus.attempt} {os.getpid()}"
    try:
        await bus.group_send(room, {"type": "websocket.send", "text": message})
    except LayerUnavailable as error:
        note("broadcast failed", name=name, number=number, seconds=time.monotonic() - began, error=str(error))


async def ticker(scope, receive, send, query):
    bus = connection(scope)
    name = f"{query['name']}.{bus.attempt}"
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    note("ticking", name=name)
    leaving = asyncio.create_task(receive())
    number = 0
    while not leaving.done():
        await broadcast(bus, query["room"], name, number)
        number += 1
        await asyncio.wait([leaving], timeout=float(query["interval"]))
    note("ticked", name=name, count=number)


async def post(scope, receive, send, query):
    assert (await receive())["type"] == "http.request"
    note("posted", name=query["name"], attempt=connection(scope).attempt)
    await asyncio.sleep(POST_SECONDS)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": query["name"].encode()})
