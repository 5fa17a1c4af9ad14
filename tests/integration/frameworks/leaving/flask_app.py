"""Flask: views in threads, a generator, and a callback at the close of the response."""

import time

from flask import Flask, Response, request

from frameworks.leaving.notes import PARTS, STEP, note, noting, released_thread

app = Flask(__name__)


@app.get("/ready")
def ready():
    return "ready"


@app.post("/job/<name>")
def work(name):
    with noting(name):
        released_thread(name)
    response = Response("worked")
    response.call_on_close(lambda: note(name, "closed"))
    return response


@app.post("/upload/<name>")
def upload(name):
    with noting(name):
        return str(len(request.get_data()))


@app.get("/stream/<name>")
def stream(name):
    def parts():
        with noting(name):
            for _ in range(PARTS):
                yield b"data: part\n\n"
                time.sleep(STEP)

    response = Response(parts(), content_type="text/event-stream")
    response.call_on_close(lambda: note(name, "closed"))
    return response
