"""A WSGI app that uses PEP 3333 to the letter, with cases that an adapter may get wrong."""

import gzip
import hashlib
import io
import json
import os
import random
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.validate import validator

from asgiref.sync import async_to_sync

import asgibus

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]

if "LARGEST_FILE" in os.environ:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["LARGEST_FILE"]),) * 2)
if "MOST_FILES" in os.environ:
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(os.environ["MOST_FILES"]),) * 2)

notes: list[str] = []
met = threading.Condition()
inside = 0


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Call the function that the path names."""
    call = globals()[environ["PATH_INFO"].split("/")[1] or "environ"]
    return call(environ, start_response)  # type: ignore[no-any-return]


class Closing:
    """A body that notes its `close`."""

    def __init__(self, name: str, parts: Iterable[bytes]) -> None:
        self._name = name
        self._parts = parts

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._parts)

    def close(self) -> None:
        notes.append(f"{self._name} closed")


def text(start_response: StartResponse, body: str) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [body.encode()]


def environ(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    shown = {name: value for name, value in environ.items() if isinstance(value, str | bool)}
    shown["errors"] = environ["wsgi.errors"] is sys.stderr
    shown["scope"] = environ["asgi.scope"]["extensions"]["asgibus"]["attempt"] == 1
    return text(start_response, json.dumps(shown))


def noted(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    body = json.dumps(notes)
    if environ["QUERY_STRING"] == "clear":
        notes.clear()
    return text(start_response, body)


def threads(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    return text(start_response, str(inside))


def meet(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer when the number of running requests is that of the query, or after a timeout."""
    global inside  # noqa: PLW0603
    count = int(environ["QUERY_STRING"])
    with met:
        inside += 1
        met.notify_all()
        complete = met.wait_for(lambda: inside >= count, 20)
        most = inside
    time.sleep(0.05)
    with met:
        inside -= 1
    return text(start_response, f"{complete} {most}")


def upload(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    digest = hashlib.sha256()
    notes.append("upload begun")
    try:
        while part := environ["wsgi.input"].read(100_000):
            digest.update(part)
    except OSError as error:
        notes.append(f"upload: {error}")
        raise
    return text(start_response, digest.hexdigest())


def lines(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with the body, read in each way of PEP 3333."""
    source: io.BufferedReader = environ["wsgi.input"]
    read = [source.readline(4), source.readline(), *source.readlines(5), next(source), source.read(2), source.read()]
    return text(start_response, json.dumps([part.decode() for part in read]))


def echo(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])
    while part := environ["wsgi.input"].read1():
        yield part


def large(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with the number of MiB in the query, in small parts or in one part."""
    count, _, in_one_part = environ["QUERY_STRING"].partition("&")
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    body = pattern(int(count) << 20)
    parts = [body] if in_one_part else (body[start : start + 50_000] for start in range(0, len(body), 50_000))
    return Closing("large", parts)


def file(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with a file of the number of MiB in the query, from the ninth byte on, optionally packed with gzip."""
    count, _, packed = environ["QUERY_STRING"].partition("&")
    stored = tempfile.TemporaryFile()  # noqa: SIM115
    file = gzip.GzipFile(fileobj=stored, mode="wb") if packed else stored
    file.write(pattern(int(count) << 20))
    if packed:
        file.close()
        stored.seek(0)
        file = gzip.GzipFile(fileobj=stored)
    file.seek(8)
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    shown = environ["wsgi.file_wrapper"](file, 1000)
    shown.close = lambda: (notes.append("file closed"), file.close())
    return shown


def pattern(size: int) -> bytes:
    """Return `size` bytes of which no two parts are alike."""
    return random.Random(size).randbytes(size)


def prompt(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer in two parts, the second after a request for /second."""
    start_response("200 OK", [])
    yield b"first"
    with met:
        asked = met.wait_for(lambda: "second" in notes, 20)
    yield b"second" if asked else b"never"


def second(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    with met:
        notes.append("second")
        met.notify_all()
    return text(start_response, "told")


def stream(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Stream without end, and note the progress."""
    start_response("200 OK", [])

    def parts() -> Iterator[bytes]:
        for number in range(1 << 30):
            notes[:] = [*(note for note in notes if not note.startswith("part")), f"part {number}"]
            yield bytes(64 * 1024)

    return Closing("stream", parts())


def breaking(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])

    def parts() -> Iterator[bytes]:
        yield b"begun"
        raise ArithmeticError("no such number")

    return Closing("breaking", parts())


def raising(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    raise ArithmeticError("no such number")


def stopping(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    raise StopIteration


def error_page(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Fail after `start_response`, before the head is sent."""
    start_response("200 OK", [("X-First", "1")])
    try:
        raise ArithmeticError("no such number")
    except ArithmeticError:
        start_response("503 Later", [("X-Second", "2")], sys.exc_info())
    return [b"", b"sorry"]


def late_error(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Fail after the head is sent: `start_response` raises the error."""
    start_response("200 OK", [])
    yield b"begun"
    try:
        raise ArithmeticError("no such number")
    except ArithmeticError:
        start_response("503 Later", [], sys.exc_info())


def written(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    write = start_response("201 Created", [("Content-Length", "11")])
    write(b"hello ")
    write(b"")
    return [b"world"]


def twice(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])
    start_response("200 OK", [])
    return []


def headless(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    return [b"body"]


def wait(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    notes.append("waiting")
    time.sleep(float(environ["QUERY_STRING"]))
    notes.append("waited")
    return text(start_response, "waited")


def bus(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Send a message to this app through the channel layer, and receive the message."""
    layer = asgibus.connection(environ["asgi.scope"]).layer
    async_to_sync(layer.send)("work", {"type": "work", "text": environ["QUERY_STRING"]})
    return text(start_response, async_to_sync(layer.receive)("work")["text"])


validated = validator(app)  # checks the requirements of PEP 3333 on servers
