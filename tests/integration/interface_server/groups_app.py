"""The app behind the group tests. A WebSocket takes orders as JSON and answers each; `/stream` is an event stream."""

import asyncio
import json
import os
from collections import defaultdict
from typing import Any
from urllib.parse import parse_qs

import asgibus
from asgibus.layers.errors import LayerError

NOTES: defaultdict[str, list[Any]] = defaultdict(list)


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise ValueError("no lifespan")
    query = {key: values[0] for key, values in parse_qs(scope["query_string"].decode()).items()}
    notes = NOTES[query.get("name", "")]
    if scope["path"] == "/hesitate":
        await hesitate(asgibus.connection(scope), receive, notes)
    elif scope["type"] == "websocket":
        await obey(asgibus.connection(scope), receive, send, notes)
    elif scope["path"] == "/stream":
        await stream(asgibus.connection(scope), receive, send, query, notes)
    else:
        body = json.dumps(notes).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


async def hesitate(connection, receive, notes):
    """Wait without answering the handshake: an event of a group does."""
    await receive()
    notes.append(connection.reply_channel)
    event = await receive()
    notes.append([event["type"], event["code"]])


async def stream(connection, receive, send, query, notes):
    kind = query.get("type", "text/event-stream")
    await connection.group_add(query["group"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind.encode())]})
    await send({"type": "http.response.body", "body": b"data: joined\n\n", "more_body": True})
    assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
    notes.append((await receive())["type"])


async def obey(connection, receive, send, notes):
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        order = json.loads(event["text"])
        notes.append(order["do"])
        try:
            answer = await globals()[order.pop("do")](connection, **order)
        except (OSError, TypeError, LayerError) as error:
            answer = f"{type(error).__name__}: {error}"
        await send({"type": "websocket.send", "text": json.dumps({"answer": answer})})
    notes.append(["disconnect", event["code"], event["reason"]])


async def identify(connection):
    return [os.getpid(), connection.reply_channel]


async def add(connection, group):
    await connection.group_add(group)


async def discard(connection, group):
    await connection.group_discard(group)


async def broadcast(connection, group, text, times=1):
    for number in range(times):
        await connection.group_send(group, {"type": "websocket.send", "text": text.format(number)})


async def send_event(connection, group, event):
    if "body" in event:
        event["body"] = event["body"].encode()
    await connection.group_send(group, event)


async def big(connection, group, times):
    """Broadcast messages of 64 KiB."""
    for number in range(times):
        await connection.group_send(group, {"type": "websocket.send", "bytes": number.to_bytes(8) + bytes(65528)})


async def send_to(connection, channel, event):
    if "body" in event:
        event["body"] = event["body"].encode()
    await connection.layer.send(channel, event)


async def add_beside(connection, new, joined):
    """Join two groups at once, and broadcast to the new group as soon as the app has joined the group."""
    tasks = [asyncio.create_task(connection.group_add(group)) for group in (new, joined)]
    await tasks[0]
    await connection.group_send(new, {"type": "websocket.send", "text": "joined"})
    await tasks[1]


async def keep(connection, value):
    """Save a state."""
    connection.state["value"] = value
    await connection.save_state()
    return connection.state


async def keep_unfit(connection):
    connection.state["value"] = object()
    try:
        await connection.save_state()
    finally:
        connection.state.clear()
