"""The app behind the HTTP tests: the path selects the behaviour, and `/seen` returns the notes."""

import asyncio
import contextlib
import json
from collections import defaultdict
from typing import Any
from urllib.parse import parse_qs

NOTES: defaultdict[str, list[Any]] = defaultdict(list)
GATES: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

START = {"type": "http.response.start", "status": 200, "headers": []}
BODY = {"type": "http.response.body"}

INVALID = {
    "no type": ({}, ValueError),
    "not a dict": ("http.response.start", ValueError),
    "unknown type": ({"type": "http.response.nothing"}, ValueError),
    "of a websocket": ({"type": "websocket.send", "text": "a"}, ValueError),
    "no status": ({"type": "http.response.start"}, ValueError),
    "status as text": ({"type": "http.response.start", "status": "200"}, TypeError),
    "status of no response": ({"type": "http.response.start", "status": 101}, ValueError),
    "header name as text": (START | {"headers": [("a", b"b")]}, TypeError),
    "header value as text": (START | {"headers": [(b"a", "b")]}, TypeError),
    "header of three": (START | {"headers": [(b"a", b"b", b"c")]}, ValueError),
    "header name with a space": (START | {"headers": [(b"a b", b"c")]}, ValueError),
    "header name with a colon": (START | {"headers": [(b"a:", b"c")]}, ValueError),
    "pseudo header": (START | {"headers": [(b":status", b"200")]}, ValueError),
    "empty header name": (START | {"headers": [(b"", b"c")]}, ValueError),
    "header name that splits": (START | {"headers": [(b"a\r\nb", b"c")]}, ValueError),
    "header value that splits": (START | {"headers": [(b"a", b"b\r\nset-cookie: c")]}, ValueError),
    "header value with LF": (START | {"headers": [(b"a", b"b\nc")]}, ValueError),
    "header value with NUL": (START | {"headers": [(b"a", b"b\0")]}, ValueError),
    "content-length that is no number": (START | {"headers": [(b"content-length", b"ten")]}, ValueError),
    "negative content-length": (START | {"headers": [(b"content-length", b"-1")]}, ValueError),
    "content-length with a sign": (START | {"headers": [(b"content-length", b"+1")]}, ValueError),
    "content-length with an underscore": (START | {"headers": [(b"content-length", b"1_0")]}, ValueError),
    "content-length of many digits": (START | {"headers": [(b"content-length", b"9" * 5000)]}, ValueError),
    "two content-lengths": (START | {"headers": [(b"content-length", b"1"), (b"content-length", b"2")]}, ValueError),
    "body before the start": (BODY | {"body": b"a"}, RuntimeError),
    "trailers before the start": ({"type": "http.response.trailers", "headers": []}, RuntimeError),
}
INVALID_AFTER_START = {
    "second start": (START, RuntimeError),
    "body as text": (BODY | {"body": "a"}, TypeError),
    "trailer that frames the body": (
        {"type": "http.response.trailers", "headers": [(b"Content-Length", b"5")]},
        ValueError,
    ),
    "trailers that were not announced": ({"type": "http.response.trailers", "headers": []}, RuntimeError),
}


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
        return
    assert scope["type"] == "http"
    query = {key: values[0] for key, values in parse_qs(scope["query_string"].decode()).items()}
    notes = NOTES[query.get("name", "")]
    if scope["path"] == "/seen":
        await answer(send, json.dumps(notes).encode())
        return
    handler = globals().get(scope["path"].partition("/")[2].partition("/")[0].replace("-", "_"), echo)
    try:
        await handler(scope, receive, send, query, notes)
    finally:
        notes.append("over")


async def lifespan(scope, receive, send):
    assert (await receive())["type"] == "lifespan.startup"
    scope["state"]["made at start-up"] = "yes"
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    await send({"type": "lifespan.shutdown.complete"})


async def answer(send, body, *headers, status=200):
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def read_all(receive):
    """Return the whole body of the request; raise EOFError if the client leaves before its end."""
    parts = []
    more = True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise EOFError
        parts.append(event["body"])
        more = event["more_body"]
    return b"".join(parts)


async def open_gate(scope, receive, send, query, notes):
    GATES[query["gate"]].set()
    await answer(send, b"")


async def echo(scope, receive, send, query, notes):
    """Answer with the scope and the body, as JSON."""
    body = await read_all(receive)
    scope = {**scope, "extensions": sorted(scope["extensions"]), "body": body}
    text = json.dumps(scope, default=lambda value: value.decode("latin-1"))
    await answer(send, text.encode(), (b"content-type", b"application/json"))


async def tls(scope, receive, send, query, notes):
    """Answer with the TLS extension of the scope as JSON."""
    await answer(send, json.dumps(scope["extensions"].get("tls")).encode())


async def body(scope, receive, send, query, notes):
    """Answer with the body of the request and its length."""
    content = await read_all(receive)
    await answer(send, content, (b"content-length", b"%d" % len(content)))


async def stream_back(scope, receive, send, query, notes):
    """Echo each part of the body as soon as the part arrives."""
    await send(START)
    more = True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            notes.append("disconnect")
            return
        more = event["more_body"]
        await send(BODY | {"body": event["body"], "more_body": more})


async def count(scope, receive, send, query, notes):
    """Answer with the length of the body, with only one part in memory at a time."""
    total, event = 0, {"more_body": True}
    while event["more_body"]:
        event = await receive()
        total += len(event["body"])
    await answer(send, b"%d" % total)


async def stream(scope, receive, send, query, notes):
    """Send `parts` parts of the response, then, by the query, the end or an exception."""
    headers = [(b"content-length", query["length"].encode())] if "length" in query else []
    await send(START | {"headers": headers})
    for _ in range(int(query.get("parts", 3))):
        await send(BODY | {"body": b"part", "more_body": True})
    if "raise" in query:
        raise ArithmeticError("in the middle of the response")
    if "return" not in query:
        await send(BODY | {"body": b""})


async def large(scope, receive, send, query, notes):
    """Send a large response in one event, or in many equal ones; note the bytes sent before an exception."""
    size, part = int(query["size"]), int(query.get("part", query["size"]))
    await send(START | {"headers": [(b"content-length", b"%d" % size)]})
    for start in range(0, size, part):
        try:
            await send(BODY | {"body": bytes(part), "more_body": start + part < size})
        except OSError as error:
            notes += [start, f"OSError: {type(error).__name__}"]
            raise


async def empty(scope, receive, send, query, notes):
    """Send the status in the query, with a body where HTTP allows none."""
    headers = [(b"content-length", query["length"].encode())] if "length" in query else []
    await send(START | {"status": int(query["status"]), "headers": headers})
    if "body" in query:
        await send(BODY | {"body": query["body"].encode(), "more_body": True})
    await send(BODY)


async def headers(scope, receive, send, query, notes):
    """Send the response headers that the request's body lists, one a line."""
    lines = (await read_all(receive)).split(b"\n")
    await answer(send, b"ok", *[tuple(line.split(b"=", 1)) for line in lines])


async def mismatch(scope, receive, send, query, notes):
    """Send a body in `parts`, with a Content-Length of `length`."""
    await send(START | {"headers": [(b"content-length", query["length"].encode())]})
    parts = query["parts"].split(",")
    try:
        for number, part in enumerate(parts, 1):
            await send(BODY | {"body": part.encode(), "more_body": number < len(parts)})
    except RuntimeError:
        notes.append("RuntimeError")
        raise


async def wait(scope, receive, send, query, notes):
    """Answer when the gate opens."""
    notes.append("waiting")
    await GATES[query["gate"]].wait()
    await answer(send, query["gate"].encode())


async def sleepy(scope, receive, send, query, notes):
    """Never complete the response; note the exception or event at the end. `start`: begin the response."""
    if "start" in query:
        await send(START)
        await send(BODY | {"body": b"begun", "more_body": True})
    notes.append("waiting")
    await read_all(receive)
    notes.append((await receive())["type"])
    with contextlib.suppress(OSError):
        await answer(send, b"too late")


async def leave(scope, receive, send, query, notes):
    """Note that the client has left, then send until that raises."""
    await read_all(receive)
    notes.append("waiting")
    notes.append((await receive())["type"])
    await send(START)
    try:
        while True:
            await send(BODY | {"body": bytes(1000), "more_body": True})
            await asyncio.sleep(0.01)  # a stream that goes on and on
    except OSError as error:
        notes.append(f"OSError: {type(error).__name__}")
        raise


async def give_up(scope, receive, send, query, notes):
    """Return when the client has left, as long polls and event streams do. `start`: in the middle of a response."""
    if "start" in query:
        await send(START)
        await send(BODY | {"body": b"begun", "more_body": True})
    notes.append("waiting")
    while (await receive())["type"] != "http.disconnect":
        pass


async def half(scope, receive, send, query, notes):
    """Send a response after the disconnect event, to a client that has closed only its sending half."""
    await read_all(receive)
    notes.append((await receive())["type"])
    await send(START)
    await send(BODY | {"body": b"still ", "more_body": True})
    await send(BODY | {"body": b"there"})


async def unread(scope, receive, send, query, notes):
    """Answer without reading the body. `late`: wait for its first part."""
    if "late" in query:
        while not (await receive())["body"]:
            pass
    size = int(query.get("size", 5))
    await answer(send, bytes(size), (b"content-length", b"%d" % size), status=413)


async def torn_body(scope, receive, send, query, notes):
    """Note the events of an interrupted request body."""
    notes.append("reading")
    try:
        notes.append(len(await read_all(receive)))
    except EOFError:
        notes.append("disconnect")
        return
    await answer(send, b"")


async def boom(scope, receive, send, query, notes):
    raise ArithmeticError("before the response")


async def silent(scope, receive, send, query, notes):
    return


async def start_only(scope, receive, send, query, notes):
    await send(START)
    raise ArithmeticError("after the start")


async def invalid(scope, receive, send, query, notes):
    """Send each invalid event, note the expected and the actual exception, and answer."""
    for label, (event, error) in INVALID.items():
        notes.append([label, error.__name__, await error_of(send(event))])
    await send(START | {"unknown key": 1})
    for label, (event, error) in INVALID_AFTER_START.items():
        notes.append([label, error.__name__, await error_of(send(event))])
    await send(BODY | {"body": b"alive"})
    notes.append(["after the end", None, await error_of(send(BODY | {"body": b"ignored"}))])


async def error_of(sending):
    try:
        await sending
    except (ValueError, TypeError, RuntimeError) as error:
        return next(kind.__name__ for kind in (ValueError, TypeError, RuntimeError) if isinstance(error, kind))
    return None


async def after(scope, receive, send, query, notes):
    """Note the event that `receive` returns when the response is complete."""
    await answer(send, b"done")
    while (event := await receive())["type"] != "http.disconnect":
        pass
    notes.append(event["type"])


async def hint(scope, receive, send, query, notes):
    await send({"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload", b"</b.js>; rel=preload"]})
    await send({"type": "http.response.early_hint", "links": [b"</c.js>; rel=preload"]})
    await answer(send, b"hinted")


async def late_hint(scope, receive, send, query, notes):
    """Send hints after the start: the first is in time, the second is late."""
    await send(START)
    await send({"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]})
    await send(BODY | {"body": b"first ", "more_body": True})
    await send({"type": "http.response.early_hint", "links": [b"</late.css>; rel=preload"]})
    await send(BODY | {"body": b"last"})


async def trailers(scope, receive, send, query, notes):
    """Send trailers. `length`: with a Content-Length. `none`: announce trailers and send none."""
    notes.append("http.response.trailers" in scope["extensions"])
    headers = [(b"Trailer", b"x-sum, x-more"), *([(b"Content-Length", b"4")] if "length" in query else [])]
    await send(START | {"headers": headers, "trailers": True})
    await send(BODY | {"body": b"body"})
    if "none" in query:
        return
    await send({"type": "http.response.trailers", "headers": [(b"X-Sum", b"1")], "more_trailers": True})
    await send({"type": "http.response.trailers", "headers": [(b"x-more", b"2")]})


async def refuse_early(scope, receive, send, query, notes):
    """Send a final response to a request that expects "100 Continue", without asking for the body."""
    await answer(send, b"no, thank you", status=403)


async def slow_ask(scope, receive, send, query, notes):
    """Ask for the body when the gate opens."""
    notes.append("waiting")
    await GATES[query["gate"]].wait()
    await answer(send, await read_all(receive))
