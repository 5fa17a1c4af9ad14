"""Apps written for any ASGI server run unmodified, with the app in another process and embedded."""

import hashlib
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from support.deadline import wait_until
from support.processes import Process
from support.servers import LAYERS, serving
from support.websocket import ws

Serve = Callable[[str], AbstractContextManager[tuple[Process, httpx.Client, Process]]]


@pytest.fixture(params=LAYERS)
def serve(request: pytest.FixtureRequest) -> Serve:
    """Serve an app of this folder: its interface server, a client of that, and its worker."""

    @contextmanager
    def serve(app: str) -> Iterator[tuple[Process, httpx.Client, Process]]:
        with serving(request, f"end_to_end.{app}:app", layer=request.param) as servers:
            (server,), (worker,) = servers.interfaces, servers.workers
            with httpx.Client(base_url=server.url, trust_env=False, timeout=10) as client:
                yield server, client, worker

    return serve


def leave(server: Process, target: str) -> None:
    """Send a request and go away without the answer, once it is on its way."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)


def test_starlette(serve: Serve) -> None:
    with serve("starlette_app") as (server, client, worker):
        for visit in (1, 2):
            assert client.get("/?a=1", headers={"cookie": "x=y"}).json() == {
                "greeting": "hello from start-up",
                "visits": visit,
                "query": {"a": "1"},
                "url": f"{server.url}/?a=1",
                "cookies": {"x": "y"},
            }
        posted = client.post("/json", json={"müll": [1, None]})
        assert (posted.status_code, posted.json()) == (201, {"got": {"müll": [1, None]}, "type": "application/json"})
        assert dict(client.cookies) == {"a": "1", "b": "2"}
        assert posted.headers["x-stamp"] == "1"
        body = bytes(range(256)) * 8192
        parts = (body[start : start + 100_000] for start in range(0, len(body), 100_000))
        assert client.post("/upload", content=parts).text == hashlib.sha256(body).hexdigest()

        streamed = client.get("/stream")
        assert streamed.text == "".join(f"{number}\n" * 1000 for number in range(100))
        assert streamed.headers["content-encoding"] == "gzip"
        assert client.get("/download").content == body[: 1 << 20]
        part = client.get("/download", headers={"range": "bytes=1000-1009", "accept-encoding": "identity"})
        assert (part.status_code, part.content) == (206, body[1000:1010])
        parts = client.get("/download", headers={"range": "bytes=0-1,-2", "accept-encoding": "identity"})
        assert (parts.status_code, len(parts.content)) == (206, int(parts.headers["content-length"]))
        assert client.get("/download", headers={"range": "bytes=9999999-"}).status_code == 416
        head = client.head("/download")
        assert (head.headers["content-length"], head.content) == (str(1 << 20), b"")
        gone = client.get("/download-gone")
        assert (gone.status_code, gone.text) == (500, "Internal Server Error")
        worker.wait_for("FileNotFoundError")
        assert client.get("/later").text == "soon"
        wait_until(lambda: "done behind the response" in client.get("/log").json())

        assert client.get("/missing").status_code == 404
        assert (client.get("/teapot").status_code, client.get("/teapot").text) == (418, "short and stout")
        failed = client.get("/error")
        assert (failed.status_code, failed.text) == (500, "Internal Server Error")
        worker.wait_for("ArithmeticError: no such number")
        leave(server, "/wait")
        wait_until(lambda: "the poller is gone" in client.get("/log").json())

        with ws(server, "/room/7", subprotocols=["v0", "v1"]) as socket:
            assert socket.subprotocol == "v1"
            assert json.loads(socket.recv(timeout=5)) == {"room": "7", "greeting": "hello from start-up"}
            socket.send("abc")
            assert socket.recv(timeout=5) == "cba"
        wait_until(lambda: "room left" in client.get("/log").json())
        with pytest.raises(InvalidStatus) as denied, ws(server, "/private"):
            pass
        assert (denied.value.response.status_code, denied.value.response.body) == (403, b"members only")
        with pytest.raises(InvalidStatus) as denied, ws(server, "/missing"):
            pass
        assert denied.value.response.status_code == 403


def test_fastapi(serve: Serve) -> None:
    with serve("fastapi_app") as (server, client, worker):
        created = client.post("/items", json={"name": "rake", "price": 9.5})
        assert (created.status_code, created.json()) == (201, {"number": 2, "item": {"name": "rake", "price": 9.5}})
        assert client.get("/items/2").json() == "rake"
        missing = client.get("/items/3")
        assert (missing.status_code, missing.json()) == (404, {"detail": "not on the shelf"})
        invalid = client.post("/items", json={"name": "rake"})
        assert (invalid.status_code, invalid.json()["detail"][0]["type"]) == (422, "missing")
        assert client.get("/stream").text == "".join(f"line {number}\n" for number in range(5000))
        assert client.get("/docs").status_code == 200
        assert client.get("/openapi.json").json()["info"]["title"] == "FastAPI"
        assert (client.get("/error").status_code, client.get("/error").text) == (500, "Internal Server Error")
        worker.wait_for("ArithmeticError: no such number")
        with ws(server, "/ws/echo?loud=1") as socket:
            socket.send("grüße")
            assert json.loads(socket.recv(timeout=5)) == {"echo": "GRÜSSE"}
            socket.close(1001, "bye")
        wait_until(lambda: [1001, "bye"] in client.get("/left").json())


def test_django(serve: Serve) -> None:
    with serve("django_app") as (server, client, worker):
        host = f"127.0.0.1:{server.port}"
        for visit in (1, 2):
            assert client.get("/").text == f"visit {visit} by 127.0.0.1 on {host}"
        posted = client.post("/form", data={"a": ["1", "2"], "ü": "ö"})
        assert posted.json() == {"fields": {"a": ["1", "2"], "ü": ["ö"]}, "upload": None}
        upload = bytes(range(256)) * 2000
        posted = client.post("/form", data={"a": "1"}, files={"upload": ("file.bin", upload)})
        assert posted.json() == {
            "fields": {"a": ["1"]},
            "upload": ["file.bin", len(upload), hashlib.sha256(upload).hexdigest()],
        }
        assert client.post("/protected", data={}).status_code == 403
        assert client.get("/stream").content == b"".join(b"%d\n" % number * 500 for number in range(200))
        missing = client.get("/missing")
        assert (missing.status_code, "<h1>Not Found</h1>" in missing.text) == (404, True)
        failed = client.get("/error")
        assert (failed.status_code, "<h1>Server Error (500)</h1>" in failed.text) == (500, True)
        worker.wait_for("ArithmeticError: no such number")
        leave(server, "/wait")
        wait_until(lambda: client.get("/seen").json() == ["cancelled"])
        with pytest.raises(InvalidStatus) as refused, ws(server, "/"):
            pass  # Django serves no WebSockets: it raises, which is a 500
        assert refused.value.response.status_code == 500


def test_asgi_2(serve: Serve) -> None:
    with serve("asgi2_app") as (server, client, _):
        answer = {"version": "2.0", "path": "/ä", "body": "hello"}
        assert client.post("/ä", content="hello").json() == answer
        with ws(server, "/") as one, ws(server, "/") as other:
            other.send("joined")
            assert other.recv(5) == "joined"
            one.send("to all")
            assert other.recv(5) == "to all"


def test_flask(serve: Serve) -> None:
    with serve("flask_app") as (server, client, worker):
        body = bytes(range(256)) * 8192
        digest = hashlib.sha256(body).hexdigest()
        form = client.post("/form", data={"name": "ü"}, files={"file": ("a.bin", body)})
        assert form.json() == {"name": "ü", "file": "a.bin", "digest": digest, "address": "127.0.0.1"}
        parts = (body[start : start + 100_000] for start in range(0, len(body), 100_000))
        assert client.post("/raw", content=parts).text == digest
        assert client.get("/stream").text == "".join(f"{number}\n" * 1000 for number in range(100))
        assert [client.get("/visits").text for _ in range(3)] == ["1", "2", "3"]
        assert client.get("/%C3%A4pfel/gr%C3%BCn").text == f"grün {server.url}/äpfel/grün"
        assert client.get("/missing").status_code == 404
        failed = client.get("/error")
        assert failed.status_code == 500
        assert "Internal Server Error" in failed.text
        worker.wait_for("ArithmeticError: no such number")
