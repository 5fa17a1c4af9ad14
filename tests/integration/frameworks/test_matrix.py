"""Unmodified apps of each framework, over Redis with separate processes, in one process, and on uvicorn."""

import hashlib
import json
import re
from collections.abc import Iterator

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from frameworks.matrix import Site, Sites
from support.deadline import wait_until
from support.raw import RawClient
from support.websocket import ws

OURS = [pytest.param("redis", marks=pytest.mark.redis), "memory"]
MIB = 1 << 20
LARGE = b"".join(b"%d\n" % number * 1000 for number in range(1000))


def reads(parts: Iterator[str], mark: str) -> str:
    """Read the body up to and including `mark`, and return that part."""
    read = ""
    while mark not in read:
        read += next(parts)
    return read


# HTTP.


@pytest.mark.smoke
def test_a_request_as_the_app_gets_it(site: Site) -> None:
    forwarded = {"x-forwarded-for": "10.1.2.3", "x-forwarded-proto": "https"}
    with httpx.Client(base_url=site.server.url, trust_env=False, cookies={"c": "3"}) as client:
        answer = client.get("/", params={"q": "ü ?"}, headers=forwarded)
    expected = {
        "method": "GET",
        "root_path": "",
        "path": "/",
        "scheme": "https",
        "host": f"127.0.0.1:{site.server.port}",
        "client": "10.1.2.3",
        "query": {"q": "ü ?"},
        "cookies": {"c": "3"},
    }
    if site.has("lifespan"):
        expected["greeting"] = "hello from start-up"
    assert answer.json() == expected
    assert dict(answer.cookies) == {"a": "1", "b": "2"}


def test_a_form(site: Site) -> None:
    for _ in range(2):
        answer = site.client.post("/form", data={"a": ["1", "2"], "ü": "ö & ="})
        assert answer.json() == {"a": ["1", "2"], "ü": ["ö & ="]}


@pytest.mark.smoke
def test_an_upload_of_several_megabytes(site: Site) -> None:
    content = bytes(range(256)) * (5 * 4096)
    answer = site.client.post("/upload", data={"title": "größer"}, files={"file": ("a.bin", content)})
    digest = hashlib.sha256(content).hexdigest()
    assert answer.json() == {"title": "größer", "name": "a.bin", "size": 5 * MIB, "digest": digest}


def test_a_chunked_body(site: Site) -> None:
    content = bytes(range(256)) * 8192
    parts = (content[start : start + 100_000] for start in range(0, len(content), 100_000))
    answer = site.client.post("/raw", content=parts)
    if site.framework.name == "flask" and not site.ours:
        content = b""  # Flask reads the body only if `wsgi.input_terminated` is set
    assert answer.text == hashlib.sha256(content).hexdigest()
    assert site.client.post("/raw").text == hashlib.sha256().hexdigest()


@pytest.mark.smoke
def test_a_stream_arrives_part_by_part(site: Site) -> None:
    with site.client.stream("GET", f"/stream/{site.setup}") as answer:
        parts = answer.iter_text()
        assert reads(parts, "first\n") == "first\n"
        site.client.get(f"/go/{site.setup}")  # the app waits for this request before the second part
        assert reads(parts, "second\n") == "second\n"
        assert list(parts) == []


def test_a_large_stream(site: Site) -> None:
    assert site.client.get("/large").content == LARGE


def test_server_sent_events_end_at_a_disconnect(site: Site) -> None:
    name = f"listener-{site.setup}"
    with site.client.stream("GET", f"/events/{name}", headers={"accept": "text/event-stream"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        data = [line for line in (next(lines) for _ in range(12)) if line.startswith("data:")]
        assert [line.removeprefix("data: ").strip('"') for line in data[:3]] == ["tick 0", "tick 1", "tick 2"]
        assert f"{name} left" not in site.notes()
    if site.ours or site.framework.name != "flask":  # uvicorn never notifies a WSGI app
        wait_until(lambda: f"{name} left" in site.notes())


@pytest.mark.smoke
def test_a_disconnect_ends_a_silent_stream(site: Site) -> None:
    """Most frameworks notice the disconnect at once; the apps of the others at their next `send`."""
    name = f"silent-{site.setup}"
    with site.client.stream("GET", f"/stream/{name}") as answer:
        assert reads(answer.iter_text(), "first\n") == "first\n"
    if not site.has("hears"):
        assert f"{name} over" not in site.notes()
        site.client.get(f"/go/{name}")
    wait_until(lambda: f"{name} over" in site.notes())


@pytest.mark.needs("long polling")
def test_a_disconnect_ends_a_long_poll(site: Site) -> None:
    """Starlette reports the disconnect when asked; Django cancels an asynchronous view."""
    name = f"poller-{site.setup}"
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{site.server.url}/wait/{name}", trust_env=False, timeout=0.3)
    wait_until(lambda: f"{name} left" in site.notes())


@pytest.mark.smoke
@pytest.mark.needs("background")
def test_background_work_continues_after_the_response(site: Site) -> None:
    name = f"work-{site.setup}"
    assert site.client.get(f"/later/{name}").text == "soon"
    assert f"{name} done" not in site.notes()
    site.client.get(f"/go/{name}")
    wait_until(lambda: f"{name} done" in site.notes())


@pytest.mark.smoke
def test_error_pages(site: Site) -> None:
    failed = httpx.get(f"{site.server.url}/error", trust_env=False)
    assert failed.status_code == 500
    assert "as asked" not in failed.text
    assert site.client.get("/missing").status_code == 404
    teapot = site.client.get("/teapot")
    assert teapot.status_code == 418
    assert "short and stout" in teapot.text
    if site.ours or not site.has("project"):  # whose logger needs a handler of the root, and uvicorn sets none
        site.worker.wait_for("ArithmeticError: as asked")


def test_an_incomplete_response_is_an_error_at_the_client(site: Site) -> None:
    name = f"broken-{site.setup}"
    with site.client.stream("GET", f"/broken/{name}") as answer:
        parts = answer.iter_text()
        assert reads(parts, "some\n") == "some\n"
        site.client.get(f"/go/{name}")
        with pytest.raises(httpx.RemoteProtocolError):
            list(parts)


def test_redirects_and_non_ascii_paths(site: Site) -> None:
    answer = site.client.get("/old")
    assert answer.status_code == 303
    assert answer.headers["location"].removeprefix(site.server.url) == "/%C3%A4pfel/gr%C3%BCn?q=%C3%BC"
    followed = site.client.get("/old", follow_redirects=True)
    assert followed.json() == {"name": "grün", "q": "ü"}


def test_head_and_no_content(site: Site) -> None:
    with RawClient(site.server) as client:
        for path in ("/%C3%A4pfel/x?q=1", "/empty"):
            assert client.request("HEAD", path).status in {200, 204, 405}
        empty = client.request("GET", "/empty")
        assert (empty.status, empty.body) == (204, b"")
        assert client.request("GET", "/noted").status == 200


@pytest.mark.smoke
@pytest.mark.needs("sessions")
def test_sessions(site: Site) -> None:
    with httpx.Client(base_url=site.server.url, trust_env=False) as client:
        assert [client.get("/visits").text for _ in range(3)] == ["1", "2", "3"]
    with httpx.Client(base_url=site.server.url, trust_env=False) as other:
        assert other.get("/visits").text == "1"


@pytest.mark.needs("fastapi")
def test_fastapi_validates_types(site: Site) -> None:
    created = site.client.post("/items", json={"name": "rake", "price": 9.5})
    assert (created.status_code, created.json()) == (201, {"number": 2, "item": {"name": "rake", "price": 9.5}})
    assert site.client.get("/items/2").json() == "rake"
    missing = site.client.get("/items/3")
    assert (missing.status_code, missing.json()) == (404, {"detail": "not on the shelf"})
    invalid = site.client.post("/items", json={"name": "rake"})
    assert (invalid.status_code, invalid.json()["detail"][0]["type"]) == (422, "missing")
    assert site.client.get("/docs").status_code == 200
    assert site.client.get("/openapi.json").json()["info"]["title"] == "FastAPI"


@pytest.mark.smoke
@pytest.mark.needs("static")
def test_static_files(site: Site) -> None:
    file = site.client.get("/static/hello.txt")
    assert file.text == "hello from a file\n"
    assert file.headers["content-length"] == "18"
    assert file.headers["content-type"].startswith("text/plain")
    head = site.client.head("/static/hello.txt")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "18", b"")
    assert site.client.get("/static/missing.txt").status_code == 404
    assert site.client.get("/static/../test_matrix.py").status_code == 404


@pytest.mark.needs("static", "conditional")
def test_an_unmodified_static_file(site: Site) -> None:
    file = site.client.get("/static/hello.txt")
    fresh = {"if-modified-since": file.headers["last-modified"]}
    if "etag" in file.headers:
        fresh["if-none-match"] = file.headers["etag"]
    unchanged = site.client.get("/static/hello.txt", headers=fresh)
    assert (unchanged.status_code, unchanged.content) == (304, b"")


@pytest.mark.needs("static", "ranges")
def test_a_part_of_a_static_file(site: Site) -> None:
    part = site.client.get("/static/hello.txt", headers={"range": "bytes=6-9"})
    assert (part.status_code, part.text, part.headers["content-range"]) == (206, "from", "bytes 6-9/18")


@pytest.mark.needs("starlette")
@pytest.mark.parametrize("setup", OURS, indirect=True)
def test_further_files_of_starlette(site: Site) -> None:
    path = "/static/hello.txt"
    parts = site.client.get(path, headers={"range": "bytes=0-1,-2"})
    assert (parts.status_code, len(parts.content)) == (206, int(parts.headers["content-length"]))
    assert site.client.get(path, headers={"range": "bytes=9999999-"}).status_code == 416
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        site.client.get("/gone")
    site.worker.wait_for("FileNotFoundError")


# Against uvicorn.


def head_of(site: Site, method: str, path: str) -> tuple[int, list[tuple[str, str]], bytes]:
    """Return status, headers and body of an answer, without values that differ between requests or ports."""
    with RawClient(site.server) as client:
        answer = client.request(method, path, "Accept-Encoding: gzip")
    here = f"127.0.0.1:{site.server.port}"
    headers = sorted(
        (name.lower(), re.sub(r"(session\w*|expires)=[^;]*", r"\1=", value).replace(here, "here"))
        for name, value in answer.headers
        if name.lower() not in {"date", "server"}
    )
    return answer.status, headers, answer.body.replace(here.encode(), b"here")


PAGES = ("/", "/empty", "/large", "/old", "/static/hello.txt", "/missing", "/teapot", "/visits", "/error")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("setup", OURS, indirect=True)
def test_responses_are_those_of_uvicorn(site: Site, sites: Sites, method: str) -> None:
    for path in PAGES:
        status, headers, body = head_of(sites.get("uvicorn"), method, path)
        if status == 204:  # no Content-Length, RFC 9110 section 8.6; uvicorn sends that of the app
            headers = [header for header in headers if header[0] != "content-length"]
        if (site.framework.name, path) == ("asgi2", "/error"):  # the server's own page; here the connection goes on
            headers.remove(("connection", "close"))
        assert head_of(site, method, path) == (status, headers, body), path


# WebSockets.


@pytest.mark.smoke
@pytest.mark.needs("websocket")
def test_a_websocket(site: Site) -> None:
    name = f"caller-{site.setup}"
    options = {"subprotocols": ["v0", "v1"], "additional_headers": {"cookie": "c=3"}}
    with ws(site.server, f"/talk/{name}", **options) as socket:
        assert socket.subprotocol == "v1"
        assert socket.response is not None
        assert socket.response.headers["x-room"] == name
        hello = {"name": name}
        if site.framework.name != "asgi2":
            hello["cookies"] = {"c": "3"}
        if site.has("lifespan"):
            hello["greeting"] = "hello from start-up"
        assert json.loads(socket.recv(5)) == hello
        for text in ("abc", "grüße", "x" * 100_000):
            socket.send(text)
            assert socket.recv(5) == text[::-1]
        for data in (b"\x00\xff", bytes(200_000)):
            socket.send(data)
            assert socket.recv(5) == data
        socket.close(4000, "bye")
    disconnect_note = f"{name} left"
    (note,) = wait_until(lambda: [note for note in site.notes() if note.startswith(disconnect_note)])
    if site.has("reasons"):
        assert note == f"{disconnect_note}: 4000 bye"


@pytest.mark.smoke
@pytest.mark.needs("websocket")
def test_a_group_joined_through_the_connection(site: Site) -> None:
    with ws(site.server, "/everybody") as first, ws(site.server, "/everybody") as second:
        if not site.ours:
            with pytest.raises(ConnectionClosed):
                first.recv(5)
            site.worker.wait_for(r"RuntimeError: this websocket scope did not come over asgibus")
            return
        second.send("joined")
        assert second.recv(5) == "joined"
        first.send("to all")
        assert second.recv(5) == "to all"
        while first.recv(5) != "to all":
            pass


@pytest.mark.needs("websocket")
def test_the_app_closes_a_websocket(site: Site) -> None:
    with ws(site.server, "/talk/x") as socket:
        socket.recv(5)
        socket.send("close")
        with pytest.raises(ConnectionClosed):
            socket.recv(5)
        assert (socket.close_code, socket.close_reason) == (4001, "as asked")


@pytest.mark.needs("websocket")
def test_the_app_raises_in_a_websocket(site: Site) -> None:
    with ws(site.server, "/talk/x") as socket:
        socket.recv(5)
        socket.send("raise")
        with pytest.raises(ConnectionClosed):
            socket.recv(5)
        code = site.framework.failure_code
        assert socket.close_code == (1006 if code == 1011 and not site.ours else code)  # 1006: without a close frame


@pytest.mark.needs("websocket")
def test_a_rejected_websocket(site: Site) -> None:
    with pytest.raises(InvalidStatus) as rejected, ws(site.server, "/closed"):
        pass
    assert rejected.value.response.status_code == (410 if site.framework.name == "quart" else 403)


@pytest.mark.needs("private")
def test_a_websocket_rejected_by_an_exception(site: Site) -> None:
    with pytest.raises(InvalidStatus) as rejected, ws(site.server, "/private"):
        pass
    response = rejected.value.response
    assert response.status_code == 403
    assert ("members only" in response.body.decode()) == site.has("denial")


@pytest.mark.needs("websocket")
def test_a_websocket_without_a_route(site: Site) -> None:
    with pytest.raises(InvalidStatus) as rejected, ws(site.server, "/missing"):
        pass
    assert rejected.value.response.status_code in {403, 404, 500}
