"""The ASGI apps under load: one for the bus, one for a server that runs the app in its own process.

`/` answers 13 bytes, `/upload` counts a body, `/download` sends one, `/ws` echoes, `/pid` names the process, and
`/fanout` joins a group, says so, and broadcasts at every message it gets. The apps differ only in how they reach the
members of the group.
"""

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from benchmarks.payloads import BODY, BROADCAST, JOINED, PART, PID_DIGITS, TRANSFER

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

GROUP = "everyone"
ZEROS = bytes(PART)
HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(BODY))]
DOWNLOAD_HEADERS = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % TRANSFER)]


async def bus(scope: Scope, receive: Receive, send: Send) -> None:
    """Broadcast with the groups of the bus: one call, and the interface servers write to the sockets."""
    if scope["type"] == "websocket" and scope["path"] == "/fanout":
        import asgibus  # noqa: PLC0415 - the in-process peer must not carry the bus in its memory

        connection = asgibus.connection(scope)
        await join(receive, send)
        await connection.group_add(GROUP)
        await send({"type": "websocket.send", "text": JOINED})
        while (await receive())["type"] == "websocket.receive":
            await connection.group_send(GROUP, {"type": "websocket.send", "text": BROADCAST})
    else:
        await answer(scope, receive, send)


members: set[Send] = set()


async def in_process(scope: Scope, receive: Receive, send: Send) -> None:
    """Broadcast with a loop over the `send` of every member in this process."""
    if scope["type"] == "websocket" and scope["path"] == "/fanout":
        await join(receive, send)
        members.add(send)
        await send({"type": "websocket.send", "text": JOINED})
        try:
            while (await receive())["type"] == "websocket.receive":
                for member in tuple(members):
                    await member({"type": "websocket.send", "text": BROADCAST})
        finally:
            members.discard(send)
    else:
        await answer(scope, receive, send)


async def join(receive: Receive, send: Send) -> None:
    """Take the connect event and accept."""
    await receive()
    await send({"type": "websocket.accept"})


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve the pages and sockets that are the same for every peer."""
    if scope["type"] == "http":
        await answer_request(scope["path"], receive, send)
    elif scope["type"] == "websocket":
        await join(receive, send)
        if scope["path"] == "/pid":
            await send({"type": "websocket.send", "text": f"{os.getpid():0{PID_DIGITS}}"})
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": event["text"]})
    else:
        raise ValueError(f"no answer to a scope of type {scope['type']!r}")


async def answer_request(path: str, receive: Receive, send: Send) -> None:
    """Answer 13 bytes, after the whole body of an upload, or send the body of a download."""
    if path == "/download":
        await send({"type": "http.response.start", "status": 200, "headers": DOWNLOAD_HEADERS})
        for sent in range(PART, TRANSFER + PART, PART):
            await send({"type": "http.response.body", "body": ZEROS, "more_body": sent < TRANSFER})
        return
    if path == "/upload":
        size, more = 0, True
        while more:
            event = await receive()
            size += len(event.get("body", b""))
            more = event.get("more_body", False)
        assert size == TRANSFER, size
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})
