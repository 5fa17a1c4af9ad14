"""App for the tests of the move in place: it echoes, and sends to all members what begins with "all"."""

from typing import Any

from asgibus import connection


async def app(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] != "lifespan"
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(int(scope["query_string"] or 0)):  # of the parts of a download
            await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
        await send({"type": "http.response.body", "body": b"hello"})
        return
    bus = connection(scope)
    await receive()
    await send({"type": "websocket.accept"})
    await bus.group_add("all")
    while (event := await receive())["type"] == "websocket.receive":
        answer = {"type": "websocket.send", "text": event["text"]}
        if event["text"].startswith("all"):
            await bus.group_send("all", answer)
        else:
            await send(answer)
    print("left with", event["code"], flush=True)  # noqa: T201 - the test reads it in the log
