"""An ordinary Flask app; only `publish` uses the bus."""

import hashlib
import os
import threading
import time
from collections import defaultdict

from asgiref.sync import async_to_sync
from flask import Flask, Response, abort, jsonify, redirect, request, session, url_for

import asgibus

NOTES = []
gates = defaultdict(threading.Event)

app = Flask(__name__, static_folder="public", static_url_path="/static")
app.secret_key = "of the tests"
app.debug = bool(os.environ.get("DEBUG"))


@app.get("/")
def seen():
    response = jsonify(
        method=request.method,
        path=request.path,
        root_path=request.root_path,
        scheme=request.scheme,
        host=request.host,
        client=request.remote_addr,
        query=request.args.to_dict(),
        cookies=request.cookies,
    )
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


@app.post("/form")
def form():
    return {key: request.form.getlist(key) for key in request.form}


@app.post("/upload")
def upload():
    file = request.files["file"]
    content = file.read()
    return {
        "title": request.form["title"],
        "name": file.filename,
        "size": len(content),
        "digest": hashlib.sha256(content).hexdigest(),
    }


@app.post("/raw")
def raw():
    digest = hashlib.sha256()
    while part := request.stream.read(65536):
        digest.update(part)
    return digest.hexdigest()


@app.get("/stream/<name>")
def stream(name):
    def parts():
        try:
            yield "first\n"
            gates[name].wait(30)
            yield "second\n"
        finally:
            NOTES.append(f"{name} over")

    return Response(parts(), mimetype="text/plain")


@app.get("/go/<name>")
def go(name):
    gates[name].set()
    return "gone"


@app.get("/large")
def large():
    return Response((b"%d\n" % number * 1000 for number in range(1000)), mimetype="text/plain")


@app.get("/events/<name>")
def events(name):
    def ticks():
        try:
            number = 0
            while True:
                yield f"id: {number}\ndata: tick {number}\n\n"
                number += 1
                time.sleep(0.02)
        finally:
            NOTES.append(f"{name} left")

    return Response(ticks(), mimetype="text/event-stream", headers={"cache-control": "no-cache"})


@app.get("/later/<name>")
def later(name):
    def work():
        gates[name].wait(30)
        NOTES.append(f"{name} done")

    threading.Thread(target=work, daemon=True).start()
    return "soon"


@app.get("/noted")
def noted():
    return jsonify(NOTES)


@app.get("/error")
def error():
    raise ArithmeticError("as asked")


@app.get("/broken/<name>")
def broken(name):
    def parts():
        yield "some\n"
        gates[name].wait(30)
        raise ArithmeticError("as asked")

    return Response(parts(), mimetype="text/plain")


@app.get("/teapot")
def teapot():
    abort(418, "short and stout")


@app.get("/visits")
def visits():
    session["visits"] = session.get("visits", 0) + 1
    return str(session["visits"])


@app.get("/old")
def old():
    return redirect(url_for("fruit", name="grün", q="ü"), 303)


@app.get("/äpfel/<name>")
def fruit(name):
    return {"name": name, "q": request.args.get("q")}


@app.post("/publish")
def publish():
    event = {"type": "websocket.send", "text": request.form["text"]}
    async_to_sync(asgibus.connection(request.environ["asgi.scope"]).group_send)("everybody", event)
    return "published"


@app.get("/empty")
def empty():
    return "", 204
