"""A Flask app as one writes it."""

import hashlib
from collections.abc import Iterator

from flask import Flask, Response, jsonify, request, session

app = Flask(__name__)
app.secret_key = "of the tests"


@app.post("/form")
def form() -> Response:
    file = request.files["file"]
    digest = hashlib.sha256(file.stream.read()).hexdigest()
    return jsonify(name=request.form["name"], file=file.filename, digest=digest, address=request.remote_addr)


@app.post("/raw")
def raw() -> str:
    return hashlib.sha256(request.get_data()).hexdigest()


@app.get("/stream")
def stream() -> Response:
    def parts() -> Iterator[str]:
        for number in range(100):
            yield f"{number}\n" * 1000

    return Response(parts(), mimetype="text/plain")


@app.get("/visits")
def visits() -> str:
    session["visits"] = session.get("visits", 0) + 1
    return str(session["visits"])


@app.get("/error")
def error() -> str:
    raise ArithmeticError("no such number")


@app.get("/äpfel/<name>")
def url(name: str) -> str:
    return f"{name} {request.url}"
