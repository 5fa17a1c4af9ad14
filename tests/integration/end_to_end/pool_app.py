"""Answers with the name of its pool."""

import os


async def app(scope, receive, send):
    pool = os.environ["POOL"].encode()
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(pool))]})
        await send({"type": "http.response.body", "body": pool})
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "bytes": pool})
        await receive()
    else:
        raise ValueError(scope["type"])
