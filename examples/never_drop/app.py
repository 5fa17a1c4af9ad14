"""The app of the demo: a page at `/`, and a WebSocket that answers numbered messages and passes on chat messages.

Nothing here handles workers that die or are replaced. The app only tells the page which worker it runs in.
"""

import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

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
    here = {"pid": os.getpid(), "version": os.environ.get("NEVER_DROP_VERSION"), "attempt": connection.attempt}
    await receive()  # websocket.connect
    await send({"type": "websocket.accept"})
    await connection.group_add(GROUP)
    await send(event("serving", **here))
    while (incoming := await receive())["type"] == "websocket.receive":
        match json.loads(incoming["text"]):
            case {"number": int(number)}:
                await send(event("answer", number=number, **here))
            case {"say": str(text), "name": str(name)} if 0 < len(text) <= MAX_TEXT:
                await connection.group_send(GROUP, event("said", name=name[:20], text=text))


def event(kind: str, /, **fields: Any) -> Event:
    """Return the ASGI event that writes one JSON message to a socket."""
    return {"type": "websocket.send", "text": json.dumps({"type": kind, **fields})}
