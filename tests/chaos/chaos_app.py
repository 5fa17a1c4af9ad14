"""The app of the chaos tests. It notes its events in the file that the variable CHAOS_NOTES names.

WebSockets, called by name (`?name=`):

- `/echo`: answers the text "<number> …" with "<number> <attempt> <pid>". It remembers the last number in the saved
  state, and notes a number that does not follow the one before. `&save=1` saves the state before each answer.
  `&work=` waits at most that many seconds before each answer. `&gate=` accepts when the file of that name is beside the
  notes.
- `/room?room=`: sends "<name> <number> <attempt> <pid>" to all members of the room.

Both answer "?" with the state of their run, as JSON. "kill" and "crash" end their process.
`&deaf=1`: the first run receives nothing. `&join=again`: a resumed run joins its room once more.

HTTP: `/fast`; `/slow?gate=` answers when the file of that name exists beside the notes; `/stream?gate=` begins its
response first; `/kill` kills its process, `?kills=` times at most. All of them answer with JSON: attempt and pid.
`/events` is an event stream that counts from the last event id on, until its client is gone.
"""

import asyncio
import json
import os
import random
import signal
import time
from pathlib import Path
from urllib.parse import parse_qsl

from asgibus import connection

NOTES = Path(os.environ["CHAOS_NOTES"])
GATE_STEP = 0.01
EVENT_STEP = 0.1


def note(what, **more):
    """Append a line at once: nothing may be lost with the process. The clock is the machine's."""
    line = json.dumps({"what": what, "at": time.monotonic(), "pid": os.getpid(), **more}) + "\n"
    descriptor = os.open(NOTES, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    query = dict(parse_qsl(scope["query_string"].decode()))
    if scope["type"] == "websocket":
        await websocket(scope, receive, send, query)
    else:
        await http(scope, receive, send, query)


async def lifespan(receive, send):
    while True:
        event = await receive()
        note(event["type"])
        await send({"type": f"{event['type']}.complete"})
        if event["type"] == "lifespan.shutdown":
            return


def kill(**more):
    note("kill", **more)
    os.kill(os.getpid(), signal.SIGKILL)


async def gate(query):
    path = NOTES.parent / query["gate"]
    while True:
        if path.exists():
            return
        await asyncio.sleep(GATE_STEP)


# WebSockets.


async def websocket(scope, receive, send, query):
    bus = connection(scope)
    name, path = query["name"], scope["path"]
    run = {"name": name, "path": path, "attempt": bus.attempt}
    assert (await receive())["type"] == "websocket.connect"
    note("connected", resumed=bus.resumed, state=dict(bus.state), **run)
    if "gate" in query:
        await gate(query)
    await send({"type": "websocket.accept"})
    room = query.get("room")
    if room is not None and (not bus.resumed or query.get("join") == "again"):
        await bus.group_add(room)
    if query.get("deaf") and bus.attempt == 1:
        note("deaf", **run)
        await asyncio.Event().wait()
    state, work = bus.state, float(query.get("work", 0))
    suffix = f"{bus.attempt} {os.getpid()}"
    try:
        while (event := await receive())["type"] == "websocket.receive":
            text = event["text"]
            if text == "?":
                known = {"pid": os.getpid(), "resumed": bus.resumed, "state": state, **run}
                await send({"type": "websocket.send", "text": "!" + json.dumps(known)})
                continue
            if text == "kill":
                kill(**run)
            if text == "crash":
                note("kill", **run)
                os.kill(os.getpid(), signal.SIGSEGV)
            if work:
                await asyncio.sleep(random.uniform(0, work))
            number = int(text.partition(" ")[0])
            if "last" in state and number != state["last"] + 1:
                note("disorder", number=number, last=state["last"], **run)
            state["last"] = number
            if query.get("save"):
                await bus.save_state()
            answer = {"type": "websocket.send", "text": f"{number} {suffix}"}
            if room is None:
                await send(answer)
            else:
                await bus.group_send(room, answer | {"text": f"{name} {number} {suffix}"})
    except OSError as error:
        note("send failed", error=repr(error), **run)
        return
    note("disconnected", code=event["code"], last=state.get("last"), **run)
    await asyncio.sleep(GATE_STEP)  # as an app that has data to save
    state["cleaned"] = state.get("cleaned", 0) + 1
    note("cleaned", **run)


# HTTP.


async def http(scope, receive, send, query):
    bus = connection(scope)
    path = scope["path"]
    run = {"path": path, "method": scope["method"], "attempt": bus.attempt, "name": query.get("name")}
    body = b""
    while (event := await receive())["type"] == "http.request":
        body += event["body"]
        if not event["more_body"]:
            break
        note("part", length=len(body), **run)
    note("request", length=len(body), **run)
    if path == "/kill" and bus.attempt <= int(query.get("kills", 99)):
        kill(**run)
    if path == "/events":
        await count_events(scope, receive, send)
        return
    answer = json.dumps({"pid": os.getpid(), "length": len(body), **run}).encode()
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
    if path == "/stream":
        await send(start)
        await send({"type": "http.response.body", "body": b"begun\n", "more_body": True})
    if "gate" in query:
        waiting = asyncio.create_task(gate(query))
        leaving = asyncio.create_task(receive())
        await asyncio.wait([waiting, leaving], return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            note("left", event=leaving.result()["type"], **run)
            waiting.cancel()
            return
        leaving.cancel()
    if path != "/stream":
        await send(start)
    await send({"type": "http.response.body", "body": answer})


async def count_events(scope, receive, send):
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    number = int(dict(scope["headers"]).get(b"last-event-id", b"0"))
    leaving = asyncio.create_task(receive())
    while not leaving.done():
        number += 1
        await send(
            {"type": "http.response.body", "body": b"id: %d\ndata: %d\n\n" % (number, number), "more_body": True}
        )
        await asyncio.wait([leaving], timeout=EVENT_STEP)
