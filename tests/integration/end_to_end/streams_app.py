"""An app whose clients follow the stream that their path names."""

from typing import Any
from urllib.parse import parse_qs

import asgibus


async def app(scope: Any, receive: Any, send: Any) -> None:
    name = scope["path"].removeprefix("/")
    if scope["type"] == "http":
        await asgibus.stream_response(scope, receive, send, name)
        return
    assert scope["type"] == "websocket"
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    after = parse_qs(scope["query_string"].decode()).get("after", [None])[0]
    await asgibus.connection(scope).follow(name, after=after)
    while (await receive())["type"] != "websocket.disconnect":
        pass
