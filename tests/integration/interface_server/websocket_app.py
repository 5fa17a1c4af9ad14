"""The app behind the WebSocket tests: the path selects the behaviour, and `/seen` returns the received events."""

import asyncio
import json
from collections import defaultdict
from typing import Any
from urllib.parse import parse_qs

from asgibus.layers import MessageTooLarge

NOTES: defaultdict[str, list[Any]] = defaultdict(list)
GATES: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

ACCEPT = {"type": "websocket.accept"}

INVALID = (
    {},
    {"type": "websocket.nothing"},
    {"type": "http.response.start", "status": 200},
    {"type": "websocket.send"},
    {"type": "websocket.send", "text": 1},
    {"type": "websocket.send", "bytes": "a"},
    {"type": "websocket.send", "text": "\ud800"},
    {"type": "websocket.send", "bytes": bytes((16 << 20) + 1)},
    {"type": "websocket.close", "code": 1005},
    {"type": "websocket.close", "code": "1000"},
    {"type": "websocket.close", "reason": "x" * 124},
    {"type": "websocket.accept"},
)


async def app(scope, receive, send):
    if scope["type"] == "http":
        await control(scope, send)
    elif scope["type"] == "websocket":
        query = {key: values[0] for key, values in parse_qs(scope["query_string"].decode()).items()}
        notes = NOTES[query.get("name", "")]
        assert await receive() == {"type": "websocket.connect"}
        try:
            await globals()[scope["path"][1:].replace("-", "_")](scope, receive, send, query, notes)
        finally:
            notes.append("over")
    else:
        raise ValueError(scope["type"])


async def control(scope, send):
    query = {key: values[0] for key, values in parse_qs(scope["query_string"].decode()).items()}
    if scope["path"] == "/open":
        GATES[query["name"]].set()
    body = json.dumps(NOTES[query["name"]], default=repr).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def note(event):
    """Note an event that the app received, as a list."""
    if event["type"] == "websocket.receive":
        assert ("text" in event) != ("bytes" in event)
        return ["text", event["text"]] if "text" in event else ["bytes", len(event["bytes"])]
    return ["disconnect", event["code"], event["reason"]]


async def echo(scope, receive, send, query, notes):
    if gate := query.get("gate"):
        await GATES[gate].wait()
    await send(ACCEPT)
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})
    notes.append(note(event))


async def listen(scope, receive, send, query, notes):
    """Note everything, send nothing."""
    await send(ACCEPT)
    event = {"type": ""}
    while event["type"] != "websocket.disconnect":
        event = await receive()
        notes.append(note(event))


async def hesitate(scope, receive, send, query, notes):
    """Wait for the client before accepting."""
    notes.append("connected")
    notes.append(note(await receive()))


async def subprotocol(scope, receive, send, query, notes):
    notes.append(scope["subprotocols"])
    headers = [(b"x-one", b"1"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
    accept = ACCEPT | {"subprotocol": query.get("choose"), "headers": headers}
    try:
        await send(accept)
    except ValueError as error:
        notes.append(str(error))
        await send(accept | {"subprotocol": None})
    await receive()


async def headers(scope, receive, send, query, notes):
    """Accept with headers that only the server may send, as an app that forwards another handshake does."""
    names = ("Connection", "upgrade", "Keep-Alive", "Content-Length", "Transfer-Encoding", "Sec-WebSocket-Accept")
    foreign = [(name.encode(), b"7") for name in (*names, "sec-websocket-extensions", "Sec-WebSocket-Version")]
    await send(ACCEPT | {"headers": [*foreign, (b"X-One", b"1")]})
    await echo_on(receive, send)


async def echo_on(receive, send):
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": event["text"]})


async def show_scope(scope, receive, send, query, notes):
    await send(ACCEPT)
    scope = {**scope, "extensions": sorted(scope["extensions"]), "state": None}
    await send({"type": "websocket.send", "text": json.dumps(scope, default=lambda value: value.decode("latin-1"))})
    await receive()


async def refuse(scope, receive, send, query, notes):
    await send({"type": "websocket.close", "code": 4001, "reason": "not you"})
    notes.append(note(await receive()))


async def deny(scope, receive, send, query, notes):
    assert scope["extensions"]["websocket.http.response"] == {}
    headers = [(b"content-type", b"text/plain"), (b"www-authenticate", b"Basic")]
    await send({"type": "websocket.http.response.start", "status": 401, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": b"log in ", "more_body": True})
    await send({"type": "websocket.http.response.body", "body": b"first"})
    notes.append(note(await receive()))


async def deny_and_return(scope, receive, send, query, notes):
    await send({"type": "websocket.http.response.start", "status": 401})
    await send({"type": "websocket.http.response.body", "body": b"log in ", "more_body": True})


async def begin_denial_and_return(scope, receive, send, query, notes):
    await send({"type": "websocket.http.response.start", "status": 401})


async def begin_denial_and_raise(scope, receive, send, query, notes):
    await send({"type": "websocket.http.response.start", "status": 401})
    raise RuntimeError("on purpose")


async def deny_at_length(scope, receive, send, query, notes):
    """Deny with a body of many parts of 100,000 bytes; with a `gate`, wait before the last."""
    await send({"type": "websocket.http.response.start", "status": 403})
    for number in range(int(query["parts"])):
        await send({"type": "websocket.http.response.body", "body": bytes(100_000), "more_body": True})
        notes.append(number)
    if "gate" in query:
        await GATES[query["gate"]].wait()
    await send({"type": "websocket.http.response.body"})


async def close(scope, receive, send, query, notes):
    await send(ACCEPT)
    await send({"type": "websocket.close", "code": int(query.get("code", 1000)), "reason": query.get("reason")})
    notes.append(note(await receive()))
    try:
        await send({"type": "websocket.send", "text": "too late"})
    except RuntimeError as error:
        notes.append(str(error))


async def close_beside_receive(scope, receive, send, query, notes):
    """Wait for the client in one task while another one closes."""
    await send(ACCEPT)
    receiving = asyncio.create_task(receive())
    await asyncio.sleep(0)
    await send({"type": "websocket.close", "code": 4002})
    notes.append(note(await receiving))


async def raise_early(scope, receive, send, query, notes):
    raise ArithmeticError("raised early")


async def raise_late(scope, receive, send, query, notes):
    await send(ACCEPT)
    raise ArithmeticError("raised late")


async def return_early(scope, receive, send, query, notes):
    pass


async def return_late(scope, receive, send, query, notes):
    await send(ACCEPT)


async def invalid(scope, receive, send, query, notes):
    await send(ACCEPT)
    for event in INVALID:
        try:
            await send(event)
        except (ValueError, TypeError, RuntimeError, MessageTooLarge) as error:
            notes.append(type(error).__name__)
        else:
            notes.append(None)
    await send({"type": "websocket.send", "text": "alive", "unknown key": 1})
    await receive()


async def send_after(scope, receive, send, query, notes):
    """Send to a disconnected client, once before the disconnect event was received and once after."""
    await send(ACCEPT)
    await GATES[query["name"]].wait()
    for _ in range(2):
        try:
            await send({"type": "websocket.send", "text": "anyone?"})
        except OSError as error:
            notes.append(["OSError", type(error).__name__])
        else:
            notes.append("sent")
        notes.append(note(await receive()))
    raise ConnectionResetError("raised again, as an app without a care does") from None


async def let_raise(scope, receive, send, query, notes):
    """Send until `send` raises, and propagate the exception."""
    await send(ACCEPT)
    while True:
        await send({"type": "websocket.send", "bytes": bytes(1000)})


async def flood(scope, receive, send, query, notes):
    """Send numbered messages of 64 KiB as fast as `send` returns, and note their number."""
    await send(ACCEPT)
    notes.append(0)
    for number in range(int(query["count"])):
        await send({"type": "websocket.send", "bytes": number.to_bytes(8) + bytes(65528)})
        notes[0] = number + 1
    await receive()


async def deaf(scope, receive, send, query, notes):
    """Receive nothing until the gate opens, then everything. `gate=first`: accept only then, too."""
    if "gate" not in query:
        await send(ACCEPT)
    await GATES[query["name"]].wait()
    if "gate" in query:
        await send(ACCEPT)
    await listen_on(receive, notes)


async def listen_on(receive, notes):
    total = 0
    while (event := await receive())["type"] == "websocket.receive":
        total += len(event["bytes"])
    notes.append(["total", total])


async def impatient(scope, receive, send, query, notes):
    """Give up waiting for the client again and again, as `Request.is_disconnected` of some frameworks does."""
    await send(ACCEPT)
    for _ in range(20_000):
        try:
            async with asyncio.timeout(0):
                await receive()
        except TimeoutError:
            pass
        else:
            break
    await send({"type": "websocket.send", "text": "patient at last"})
    await listen_on(receive, notes)
