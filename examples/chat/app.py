"""A chat in plain ASGI 3: one page at `/` and `/room/<name>`, one WebSocket at `/ws/<room>?name=…&after=…`.

A room is a group: a message to it reaches every socket in the room, whichever interface server holds it, without
running the app. The bus keeps the last messages of the room, and knows who is there. So the app has no list of people,
and no list of messages.

With `asgi-worker --resume` a socket outlives its worker. The next run of the app goes on: nobody leaves, nobody joins,
and no message comes twice.
"""

import json
import os
import platform
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import asgibus
from asgibus.layers.streams import parse_offset

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

PAGE = Path(__file__).with_name("page.html").read_bytes()
ROOM = re.compile(r"[A-Za-z0-9._-]{1,50}")
ID = re.compile(r"[A-Za-z0-9-]{1,50}")
WORKER = f"{platform.node()}:{os.getpid()}"  # shown at the foot of the page
KEPT = 200  # messages of a room
MAX_NAME = 32
MAX_TEXT = 2000
# A character of text takes up to 12 in JSON (an escaped surrogate pair). A longer message is not parsed.
MAX_MESSAGE = 12 * MAX_TEXT + 200
# Messages that the bus sends by itself: it fills in {user}, as JSON.
JOIN = {"type": "websocket.send", "text": '{"type":"join","name":{user},"at":{at}}'}
LEAVE = {"type": "websocket.send", "text": '{"type":"leave","name":{user},"at":{at}}'}
MISSED = '{"type":"missed"}'


async def app(scope: Event, receive: Receive, send: Send) -> None:
    """Run the ASGI application. Raise ValueError for scopes that it does not serve, such as lifespan."""
    if scope["type"] == "http":
        await serve_page(scope, send)
    elif scope["type"] == "websocket":
        await chat(scope, receive, send)
    else:
        raise ValueError(f"the chat serves http and websocket, not {scope['type']}")


async def serve_page(scope: Event, send: Send) -> None:
    """Answer with the page, which is the same for every room."""
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    status, kind, body = 200, b"text/html; charset=utf-8", PAGE
    if path != "/" and not (path.startswith("/room/") and ROOM.fullmatch(path, len("/room/"))):
        status, kind, body = 404, b"text/plain", b"There is no such page. The chat is at /\n"
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def chat(scope: Event, receive: Receive, send: Send) -> None:
    """Serve one socket from its start, or from where another worker stopped, to its end."""
    connection = asgibus.connection(scope)
    await receive()  # websocket.connect
    await send({"type": "websocket.accept"})
    try:
        room, name, after = room_name_and_offset(scope)
    except InvalidInputError as error:
        # A browser cannot read a rejected handshake, so the reason is an event before the close.
        await send(event("error", text=str(error)))
        await send({"type": "websocket.close", "code": 1008, "reason": "invalid room or name"})
        return

    group = f"chat.{room}"
    await connection.identify(name)
    # In every run: the last one may have died before it got here. Another call changes nothing.
    await connection.group_add(group, present=True, join=JOIN, leave=LEAVE, after=after, reset=MISSED)
    if connection.resumed:
        await send(event("served", worker=WORKER))
    else:
        here = [each.user for each in (await connection.layer.present(group)).users]
        interface = connection.reply_channel.partition("!")[0]
        await send(event("welcome", name=name, room=room, here=here, worker=WORKER, interface=interface))
    while (incoming := await receive())["type"] == "websocket.receive":
        try:
            message = parse(incoming.get("text"))
        except InvalidInputError as error:
            await send(event("error", text=str(error)))
            continue
        if message["type"] == "typing":
            await connection.group_send(group, event("typing", name=name), exclude=connection.reply_channel)
        else:
            said = event("message", offset="<offset>", id=message["id"], name=name, text=message["text"])
            # The page has made the id. If this worker dies here, the next one sends the message again, and so does the
            # page if its connection breaks: with the same id it is heard once.
            once = f"{name}/{message['id']}"
            await connection.group_send(group, said, keep=KEPT, id=once, placeholder="<offset>")


class InvalidInputError(ValueError):
    """A page has sent an event that is not valid. The text says why, for people."""


def room_name_and_offset(scope: Event) -> tuple[str, str, str]:
    """Return the room and the name that a socket asks for, and the offset of the last message that its page has.

    Raise InvalidInputError if one is not valid.
    """
    query = {key: values[0] for key, values in parse_qs(scope["query_string"].decode("latin-1")).items()}
    room = scope["path"].removeprefix(scope.get("root_path", "")).removeprefix("/ws/")
    if not ROOM.fullmatch(room):
        raise InvalidInputError("A room is 1 to 50 letters, digits, dots, dashes or underscores.")
    name = " ".join(query.get("name", "").split())
    if not 1 <= len(name) <= MAX_NAME or min(name) < " ":
        raise InvalidInputError(f"A name has 1 to {MAX_NAME} printable characters.")
    try:
        return room, name, str(parse_offset(query.get("after")))
    except ValueError as error:
        raise InvalidInputError(str(error)) from None


def parse(text: str | None) -> Event:
    """Return `{"type": "say", "id": …, "text": …}` or `{"type": "typing"}`. Raise InvalidInputError otherwise."""
    if text is None or len(text) > MAX_MESSAGE:
        raise InvalidInputError(f"A message is a text frame of at most {MAX_MESSAGE} characters.")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidInputError("A message is a JSON object.") from None
    match message:
        case {"type": "say", "id": str(once), "text": str(said)} if ID.fullmatch(once):
            said = said.strip()
            if not 1 <= len(said) <= MAX_TEXT:
                raise InvalidInputError(f"A text has 1 to {MAX_TEXT} characters.")
            return {"type": "say", "id": once, "text": said}
        case {"type": "typing"}:
            return {"type": "typing"}
    raise InvalidInputError('A message is {"type": "say", "id": …, "text": …} or {"type": "typing"}.')


def event(kind: str, **fields: Any) -> Event:
    """Return the ASGI event that writes one JSON message to a socket."""
    return {"type": "websocket.send", "text": json.dumps({"type": kind, "time": round(time.time() * 1000), **fields})}
