"""An ordinary Quart app; only `everybody` knows of the bus."""

import asyncio
import hashlib
import os
from collections import defaultdict

from quart import Quart, abort, g, jsonify, redirect, request, session, stream_with_context, url_for, websocket

import asgibus

NOTES = []
gates = defaultdict(asyncio.Event)

app = Quart(__name__, static_folder="public", static_url_path="/static")
app.secret_key = "of the tests"
app.debug = bool(os.environ.get("DEBUG"))


@app.before_serving
async def start():
    app.config["GREETING"] = "hello from start-up"


@app.after_serving
async def stop():
    print("good-bye from shut-down", flush=True)  # noqa: T201 - the log is where a test sees it


@app.get("/")
async def seen():
    response = jsonify(
        method=request.method,
        path=request.path,
        root_path=request.root_path,
        scheme=request.scheme,
        host=request.host,
        client=request.remote_addr,
        query=request.args.to_dict(),
        greeting=app.config["GREETING"],
        cookies=dict(request.cookies),
    )
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


@app.post("/form")
async def form():
    fields = await request.form
    return {key: fields.getlist(key) for key in fields}


@app.post("/upload")
async def upload():
    file = (await request.files)["file"]
    content = file.read()
    return {
        "title": (await request.form)["title"],
        "name": file.filename,
        "size": len(content),
        "digest": hashlib.sha256(content).hexdigest(),
    }


@app.post("/raw")
async def raw():
    digest = hashlib.sha256()
    async for part in request.body:
        digest.update(part)
    return digest.hexdigest()


@app.get("/stream/<name>")
async def stream(name):
    @stream_with_context
    async def parts():
        try:
            yield "first\n"
            await gates[name].wait()
            yield "second\n"
        finally:
            NOTES.append(f"{name} over")

    return parts(), {"content-type": "text/plain"}


@app.get("/go/<name>")
async def go(name):
    gates[name].set()
    return "gone"


@app.get("/large")
async def large():
    async def parts():
        for number in range(1000):
            yield b"%d\n" % number * 1000

    return parts(), {"content-type": "text/plain"}


@app.get("/events/<name>")
async def events(name):
    async def ticks():
        try:
            number = 0
            while True:
                yield f"id: {number}\ndata: tick {number}\n\n"
                number += 1
                await asyncio.sleep(0.02)
        finally:
            NOTES.append(f"{name} left")

    response = await app.make_response((ticks(), {"content-type": "text/event-stream", "cache-control": "no-cache"}))
    response.timeout = None
    return response


@app.get("/later/<name>")
async def later(name):
    async def work():
        await gates[name].wait()
        NOTES.append(f"{name} done")

    app.add_background_task(work)
    return "soon"


@app.get("/noted")
async def noted():
    return jsonify(NOTES)


@app.get("/error")
async def error():
    raise ArithmeticError("as asked")


@app.get("/broken/<name>")
async def broken(name):
    async def parts():
        yield "some\n"
        await gates[name].wait()
        raise ArithmeticError("as asked")

    return parts(), {"content-type": "text/plain"}


@app.get("/teapot")
async def teapot():
    abort(418, "short and stout")


@app.get("/visits")
def visits():  # runs in a thread
    session["visits"] = session.get("visits", 0) + 1
    return str(session["visits"])


@app.get("/old")
async def old():
    return redirect(url_for("fruit", name="grün", q="ü"), 303)


@app.get("/äpfel/<name>")
async def fruit(name):
    return {"name": name, "q": request.args.get("q")}


@app.get("/empty")
async def empty():
    return "", 204


@app.websocket("/talk/<name>")
async def talk(name):
    g.name = name
    offered = websocket.requested_subprotocols
    await websocket.accept({"x-room": name}, "v1" if "v1" in offered else None)
    await websocket.send_json({"name": name, "greeting": app.config["GREETING"], "cookies": dict(websocket.cookies)})
    try:
        while True:
            message = await websocket.receive()
            if message == "close":
                await websocket.close(4001, "as asked")
                return
            if message == "raise":
                raise ArithmeticError("as asked")
            await websocket.send(message[::-1] if isinstance(message, str) else message)
    except asyncio.CancelledError:
        NOTES.append(f"{name} left")
        raise


@app.websocket("/everybody")
async def everybody():
    await websocket.accept()
    connection = asgibus.connection(websocket.scope)
    await connection.group_add("everybody")
    while True:
        text = await websocket.receive()
        await connection.group_send("everybody", {"type": "websocket.send", "text": text})


@app.websocket("/private")
async def private():
    abort(403, "members only")


@app.websocket("/closed")
async def closed():
    return "not here", 410
