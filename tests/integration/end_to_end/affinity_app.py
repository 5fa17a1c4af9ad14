"""Tells each client which worker serves it, at once and before each message."""

import os


async def app(scope, receive, send):
    pid = str(os.getpid())
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": pid.encode()})
        return
    if scope["type"] != "websocket":
        raise ValueError(scope["type"])
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": pid})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": f"{pid} {event['text']}"})
