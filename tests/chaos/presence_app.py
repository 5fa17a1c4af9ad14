"""The app of the tests of presence: `?user=`, `&will=` for a text that the room gets, `&quiet=1` for no events.

It sends "ready" when its user is shown in the group "room". It answers "?" with the attempt, the process and the user.
"""

import json
import os
from urllib.parse import parse_qsl

from asgibus import connection

JOIN = {"type": "websocket.send", "text": '["join",{user}]'}
LEAVE = {"type": "websocket.send", "text": '["leave",{user}]'}


async def app(scope, receive, send):
    assert scope["type"] == "websocket"
    bus = connection(scope)
    query = dict(parse_qsl(scope["query_string"].decode()))
    await receive()
    await send({"type": "websocket.accept"})
    if not bus.resumed:
        await bus.identify(query["user"], {"name": query["user"].title()})
        told = {} if "quiet" in query else {"join": JOIN, "leave": LEAVE}
        await bus.group_add("room", present=True, **told)
        if "will" in query:
            text = json.dumps(["will", query["will"]])
            await bus.set_will("room", {"type": "websocket.send", "text": text})
        await send({"type": "websocket.send", "text": '["ready"]'})
    while (event := await receive())["type"] == "websocket.receive":
        if event["text"] == "?":
            known = [bus.attempt, os.getpid(), bus.user]
            await send({"type": "websocket.send", "text": json.dumps(["known", *known])})
