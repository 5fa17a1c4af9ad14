"""An app for interface servers and workers of different releases. It uses what both releases have.

HTTP: `/digest` answers with the SHA-256 of the body; `/bytes?size=` with so many bytes; `/events?count=` with an event
stream; `/job?number=&reply=` sends a message to the channel "work", whose result goes to the reply channel. With
`&held=` the first attempt to handle it creates the file `<held>.begun`, and does not end.

WebSocket: `/echo`; `/denied` refuses the handshake with a page; `/room?room=` sends each text to all members of the
room, `/excluding?room=` to all others; `/run` answers with the number of the run and what it and earlier runs have
received, by the state of the connection. All of them answer "reply channel" with their reply channel.
"""

import asyncio
import hashlib
import json
import os
from pathlib import Path
from urllib.parse import parse_qsl

from asgibus import connection


async def app(scope, receive, send):
    assert scope["type"] != "lifespan"
    if scope["type"] == "channel":
        await work(scope, await receive())
        return
    query = dict(parse_qsl(scope["query_string"].decode()))
    serve = {"http": http, "websocket": websocket}[scope["type"]]
    await serve(scope, receive, send, query)


def begins(held):
    """Return whether this is the first attempt."""
    begun = Path(f"{held}.begun")
    first = not begun.exists()
    begun.touch()
    return first


async def work(scope, message):
    layer = scope["extensions"]["asgibus"]["layer"]
    if message.get("held") and begins(message["held"]):
        await asyncio.Event().wait()
    text = f"done {message['number']}"
    await layer.send(message["reply"], {"type": "websocket.send", "text": text})


async def http(scope, receive, send, query):
    start = {"type": "http.response.start", "status": 200}
    if scope["path"] == "/digest":
        digest = hashlib.sha256()
        while True:
            event = await receive()
            digest.update(event["body"])
            if not event["more_body"]:
                break
        await send(start)
        await send({"type": "http.response.body", "body": digest.hexdigest().encode()})
    elif scope["path"] == "/bytes":
        await send(start)
        await send({"type": "http.response.body", "body": bytes(int(query["size"]))})
    elif scope["path"] == "/events":
        await send(start | {"headers": [(b"content-type", b"text/event-stream")]})
        for number in range(int(query["count"])):
            event = f"id: {number}\ndata: event {number}\n\n".encode()
            await send({"type": "http.response.body", "body": event, "more_body": True})
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body"})
    else:
        job = {"type": "job", "number": int(query["number"]), "reply": query["reply"], "held": query.get("held")}
        await connection(scope).layer.send("work", job)
        await send(start)
        await send({"type": "http.response.body"})


async def websocket(scope, receive, send, query):
    bus = connection(scope)
    path = scope["path"]
    assert (await receive())["type"] == "websocket.connect"
    if path == "/denied":
        await send({"type": "websocket.http.response.start", "status": 418, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b"no coffee"})
        return
    await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
    if path in ("/room", "/excluding"):
        await bus.group_add(query["room"])
    while (event := await receive())["type"] == "websocket.receive":
        answer = {"type": "websocket.send", "text": event.get("text"), "bytes": event.get("bytes")}
        if event.get("text") == "reply channel":
            await send({"type": "websocket.send", "text": bus.reply_channel})
        elif path == "/room":
            await bus.group_send(query["room"], answer)
        elif path == "/excluding":
            await bus.group_send(query["room"], answer, exclude=bus.reply_channel)
        elif path == "/run":
            bus.state.setdefault("received", []).append(event["text"])
            await bus.save_state()
            known = {
                "pid": os.getpid(),
                "attempt": bus.attempt,
                "resumed": bus.resumed,
                "received": bus.state["received"],
            }
            await send({"type": "websocket.send", "text": json.dumps(known)})
        else:
            await send(answer)
