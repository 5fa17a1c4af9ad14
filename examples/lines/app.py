"""Answer every line in capital letters, until a line is empty."""


async def app(scope, receive, send):
    assert scope["type"] == "line"
    while True:
        event = await receive()
        if event["type"] == "line.disconnect" or not event["line"]:
            return
        await send({"type": "line.send", "line": event["line"].upper()})
