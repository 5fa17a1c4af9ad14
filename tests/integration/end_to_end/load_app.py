"""Numbers its messages, checks the messages of its clients, and answers an HTTP request with the request body."""

import os


async def app(scope, receive, send):
    if scope["type"] == "http":
        body, event = b"", {"more_body": True}
        while event["more_body"]:
            event = await receive()
            body += event["body"]
        length = b"%d" % len(body)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": body})
        return
    if scope["type"] != "websocket":
        raise ValueError(scope["type"])
    await receive()
    await send({"type": "websocket.accept"})
    number = 0
    while (event := await receive())["type"] == "websocket.receive":
        sent, _, rest = event["bytes"].partition(b" ")
        if int(sent) != number:
            await send({"type": "websocket.close", "code": 4000, "reason": f"{sent.decode()} instead of {number}"})
            return
        await send({"type": "websocket.send", "bytes": b"%d %s" % (number, rest)})
        number += 1
        if number % 16 == 0:  # a count of its own, so that the two directions are not in step
            await send({"type": "websocket.send", "bytes": b"%d more from %d" % (number, os.getpid())})
