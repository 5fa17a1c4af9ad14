"""The app behind the proxies: the scope of the client, a stream that stays open, uploads, and an echo."""

import hashlib
import json
import logging
import os
from typing import Any

import asgibus


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await echo(scope, receive, send)
    elif scope["type"] != "http":
        raise ValueError("only http and websocket")
    elif scope["path"] == "/events":
        await events(receive, send)
    elif scope["path"] == "/upload":
        await upload(receive, send)
    else:
        await answer(send, json.dumps(summary(scope)).encode())


def summary(scope: Any) -> dict[str, Any]:
    return {
        "client": scope["client"][0],
        "scheme": scope["scheme"],
        "host": next(value.decode() for name, value in scope["headers"] if name == b"host"),
        "interface": asgibus.connection(scope).reply_channel.partition("!")[0],
    }


async def answer(send: Any, body: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def events(receive: Any, send: Any) -> None:
    """Send one event and stay open: the event arrives only if no proxy waits for more."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": b"data: first\n\n", "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        pass


async def upload(receive: Any, send: Any) -> None:
    digest = hashlib.sha256()
    more = True
    while more:
        event = await receive()
        if event["body"]:
            logging.getLogger("asgibus").info("the upload has begun")
        digest.update(event["body"])
        more = event["more_body"]
    await answer(send, digest.hexdigest().encode())


async def echo(scope: Any, receive: Any, send: Any) -> None:
    connection = asgibus.connection(scope)
    await receive()
    await send({"type": "websocket.accept"})
    here = {"pid": os.getpid(), "attempt": connection.attempt, **summary(scope)}
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": json.dumps({"text": event["text"], **here})})
