"""The app of the demo: a page at `/`, and a WebSocket that answers numbered messages and passes on chat messages.

Nothing here handles workers that die or are replaced. The app only tells the page which worker it runs in. The bus
keeps the messages of the chat, and knows who is there.
"""

import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import asgibus

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

HERE = Path(__file__).parent
FILES = {  # by path: the media type, and the content
    "/": (b"text/html; charset=utf-8", (HERE / "page.html").read_bytes()),
    "/page.css": (b"text/css; charset=utf-8", (HERE / "page.css").read_bytes()),
    "/page.js": (b"text/javascript; charset=utf-8", (HERE / "page.js").read_bytes()),
}
NOT_FOUND = (b"text/plain", b"There is only /\n")
GROUP = "never_drop"  # every open page is a member; the demo announces its actions there
MAX_TEXT = 500
KEPT = 100  # messages of the chat
JOIN = {"type": "websocket.send", "text": '{"type":"join","name":{user}}'}
LEAVE = {"type": "websocket.send", "text": '{"type":"leave","name":{user}}'}


async def app(scope: Event, receive: Receive, send: Send) -> None:
    """Run the ASGI application. Raise ValueError for scopes that it does not serve, such as lifespan."""
    if scope["type"] == "http":
        await serve_file(scope, send)
    elif scope["type"] == "websocket":
        await serve_socket(scope, receive, send)
    else:
        raise ValueError(f"the demo serves http and websocket, not {scope['type']}")


async def serve_file(scope: Event, send: Send) -> None:
    kind, body = FILES.get(scope["path"], NOT_FOUND)
    status = 200 if scope["path"] in FILES else 404
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def serve_socket(scope: Event, receive: Receive, send: Send) -> None:
    """Serve one socket, from its start or from where another worker stopped."""
    connection = asgibus.connection(scope)
    query = parse_qs(scope["query_string"].decode())
    name, after = query["name"][0][:20], query["after"][0]
    here = {"pid": os.getpid(), "version": os.environ.get("NEVER_DROP_VERSION"), "attempt": connection.attempt}
    await receive()  # websocket.connect
    await send({"type": "websocket.accept"})
    await connection.identify(name)
    await connection.group_add(GROUP, present=True, join=JOIN, leave=LEAVE, after=after)
    people = [each.user for each in (await connection.layer.present(GROUP)).users]
    await send(event("serving", people=people, **here))
    while (incoming := await receive())["type"] == "websocket.receive":
        match json.loads(incoming["text"]):
            case {"number": int(number)}:
                await send(event("answer", number=number, **here))
            case {"say": str(text), "id": int(number)} if 0 < len(text) <= MAX_TEXT:
                said = event("said", offset="<offset>", name=name, text=text)
                # Handled again after a crash, it has the same id, and is heard once.
                await connection.group_send(GROUP, said, keep=KEPT, id=f"{name}/{number}", placeholder="<offset>")


def event(kind: str, /, **fields: Any) -> Event:
    """Return the ASGI event that writes one JSON message to a socket."""
    return {"type": "websocket.send", "text": json.dumps({"type": kind, **fields})}
