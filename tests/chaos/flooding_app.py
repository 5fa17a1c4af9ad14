"""An app that sends large numbered messages as fast as its client reads, and counts the calls of `send`."""

from asgibus import connection

SIZE = 32 * 1024
COUNT = 200


async def app(scope, receive, send):
    assert scope["type"] == "websocket"
    state = connection(scope).state
    await receive()
    await send({"type": "websocket.accept"})
    number = state.get("sent", 0)
    try:
        while number < COUNT:
            await send({"type": "websocket.send", "text": str(number).ljust(SIZE)})
            number += 1
    except OSError:
        assert connection(scope).handed_over
    state["sent"] = number
    await receive()
