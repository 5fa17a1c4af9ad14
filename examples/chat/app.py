"""A chat in plain ASGI 3: one page at `/` and `/room/<name>`, one WebSocket at `/ws/<room>?name=…`.

The app keeps no list of the people in a room. A room is a group: a message to it reaches every socket in the room,
whichever interface server holds it, without running the app. A newcomer announces its reply channel to the group. Every
page answers "present" through its own socket, and the app sends that to the reply channel.

With `asgi-worker --resume` a socket outlives its worker. The next run of the app neither welcomes nor announces it
again, and continues the count of messages.
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

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

PAGE = Path(__file__).with_name("page.html").read_bytes()
ROOM = re.compile(r"[A-Za-z0-9._-]{1,50}")
# Only the reply channel of a connection: a page must not be able to write to any other channel of the bus.
REPLY_CHANNEL = re.compile(r"interface\.[A-Za-z0-9._-]{1,60}![A-Za-z0-9._-]{1,30}")
WORKER = f"{platform.node()}:{os.getpid()}"  # shown at the foot of the page
MAX_NAME = 32
MAX_TEXT = 2000
# A character of text takes up to 12 in JSON (an escaped surrogate pair). A longer message is not parsed.
MAX_MESSAGE = 12 * MAX_TEXT + 100


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
    me = connection.reply_channel
    await receive()  # websocket.connect
    await send({"type": "websocket.accept"})
    try:
        room, name = room_and_name(scope)
    except InvalidInputError as error:
        # A browser cannot read a rejected handshake, so the reason is an event before the close.
        await send(event("error", text=str(error)))
        await send({"type": "websocket.close", "code": 1008, "reason": "invalid room or name"})
        return

    group = f"chat.{room}"
    if connection.resumed:
        await send(event("served", worker=WORKER))
    else:
        await send(event("welcome", id=me, name=name, room=room, worker=WORKER))
    await connection.group_add(group)  # in every run: the last one may have died before it got here
    if not connection.resumed:
        await connection.group_send(group, event("join", id=me, name=name))
    # Counts this sender's messages, so that every page can see their order and notice a gap.
    sent = connection.state.get("sent", 0)
    try:
        while (incoming := await receive())["type"] == "websocket.receive":
            try:
                message = parse(incoming.get("text"))
            except InvalidInputError as error:
                await send(event("error", text=str(error)))
                continue
            if message["type"] == "present":
                await connection.layer.send(message["to"], event("present", id=me, name=name, room=room))
            else:
                sent += 1
                await connection.group_send(group, event("message", id=me, name=name, seq=sent, text=message["text"]))
                # After the message: if the worker dies between the two, the next one sends the message again with the
                # same number, and the pages ignore it.
                connection.state["sent"] = sent
                await connection.save_state()
    finally:
        # The membership ends by itself. Tell the others, unless another worker continues with this socket.
        if not connection.handed_over:
            await connection.group_send(group, event("leave", id=me, name=name))


class InvalidInputError(ValueError):
    """A page has sent an event that is not valid. The text says why, for people."""


def room_and_name(scope: Event) -> tuple[str, str]:
    """Return the room and the name that a socket asks for. Raise InvalidInputError if one is not valid."""
    room = scope["path"].removeprefix(scope.get("root_path", "")).removeprefix("/ws/")
    if not ROOM.fullmatch(room):
        raise InvalidInputError("A room is 1 to 50 letters, digits, dots, dashes or underscores.")
    name = " ".join(parse_qs(scope["query_string"].decode("latin-1")).get("name", [""])[0].split())
    if not 1 <= len(name) <= MAX_NAME or min(name) < " ":
        raise InvalidInputError(f"A name has 1 to {MAX_NAME} printable characters.")
    return room, name


def parse(text: str | None) -> Event:
    """Return `{"type": "say", "text": …}` or `{"type": "present", "to": …}`. Raise InvalidInputError otherwise."""
    if text is None or len(text) > MAX_MESSAGE:
        raise InvalidInputError(f"A message is a text frame of at most {MAX_MESSAGE} characters.")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidInputError("A message is a JSON object.") from None
    match message:
        case {"type": "say", "text": str(said)}:
            said = said.strip()
            if not 1 <= len(said) <= MAX_TEXT:
                raise InvalidInputError(f"A text has 1 to {MAX_TEXT} characters.")
            return {"type": "say", "text": said}
        case {"type": "present", "to": str(to)} if REPLY_CHANNEL.fullmatch(to):
            return {"type": "present", "to": to}
    raise InvalidInputError('A message is {"type": "say", "text": …} or {"type": "present", "to": <reply channel>}.')


def event(kind: str, **fields: Any) -> Event:
    """Return the ASGI event that writes one JSON message to a socket."""
    return {"type": "websocket.send", "text": json.dumps({"type": kind, "time": round(time.time() * 1000), **fields})}
