"""Tells each client which worker serves it. A request blocks its worker, as code that computes does."""

import os
import time


async def app(scope, receive, send):
    pid = str(os.getpid())
    if scope["type"] == "http":
        time.sleep(0.1)  # noqa: ASYNC251 - as an app that computes
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(pid))]})
        await send({"type": "http.response.body", "body": pid.encode()})
        return
    if scope["type"] != "websocket":
        raise ValueError(scope["type"])
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": pid})
    while (await receive())["type"] == "websocket.receive":
        pass
