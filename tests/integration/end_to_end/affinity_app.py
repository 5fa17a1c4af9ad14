"""Tells each client which worker serves it, at once and before each message. Sessions are of one process."""

import os
import secrets

sessions = set()


async def app(scope, receive, send):
    pid = str(os.getpid())
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        status, body = 200, pid
        if scope["path"] == "/session":
            sessions.add(made := secrets.token_hex(8))
            body = f'{{"sid": "{made}"}}'
        elif scope["query_string"].startswith(b"sid=") and scope["query_string"].decode()[4:] not in sessions:
            status = 404
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body.encode()})
        return
    if scope["type"] != "websocket":
        raise ValueError(scope["type"])
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": pid})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": f"{pid} {event['text']}"})
