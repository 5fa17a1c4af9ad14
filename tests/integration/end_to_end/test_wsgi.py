"""WSGI apps, in threads of a worker and embedded, driven by real clients."""

import hashlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from end_to_end.wsgi_app import pattern
from support.deadline import wait_until
from support.processes import Process
from support.raw import RawClient
from support.redis import RedisServer
from support.servers import LAYERS, serving
from support.websocket import ws

APP = "end_to_end.wsgi_app:app"
THREADS = 3
MIB = 1 << 20
Start = Callable[..., Process]


@pytest.fixture(scope="module", params=LAYERS)
def server(request: pytest.FixtureRequest) -> Iterator[Process]:
    """Provide an interface server whose app runs in three threads, for all tests."""
    threads, mount = ("--threads", THREADS), ("--root-path", "/mount")
    options = (*threads, *mount) if request.param == "memory" else mount
    with serving(request, APP, *options, layer=request.param, worker_options=threads) as servers:
        yield servers.interfaces[0]


@pytest.fixture
def client(server: Process) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client:
        client.get("/noted?clear")
        yield client


def open_files(server: Process) -> list[int]:
    """Return the sizes of the temporary files that a server has open."""
    sizes = []
    for descriptor in Path(f"/proc/{server.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # the file was closed meanwhile
            if descriptor.readlink().name.endswith(" (deleted)"):
                sizes.append(descriptor.stat().st_size)
    return sizes


def notes(client: httpx.Client) -> list[str]:
    lines: list[str] = client.get("/noted").json()
    return lines


def test_the_environ(server: Process, client: httpx.Client) -> None:
    headers = [("x-two", "1"), ("x-two", "2"), ("cookie", "a=1"), ("cookie", "b=2"), ("x_forwarded_for", "evil")]
    headers = [*headers, ("content-type", "text/x"), ("x-forwarded-for", "10.1.2.3"), ("x-forwarded-proto", "https")]
    environ = client.post("/environ/a%20%C3%BC%FF%2Fb?q=%C3%BC&r", headers=headers, content=b"12345").json()
    expected = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "/mount",
        "PATH_INFO": "/environ/a \xc3\xbc\xff/b",
        "QUERY_STRING": "q=%C3%BC&r",
        "CONTENT_LENGTH": "5",
        "CONTENT_TYPE": "text/x",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": str(server.port),
        "REMOTE_ADDR": "10.1.2.3",
        "HTTP_X_TWO": "1,2",
        "HTTP_COOKIE": "a=1; b=2",
        "HTTP_X_FORWARDED_FOR": "10.1.2.3",
        "HTTP_HOST": f"127.0.0.1:{server.port}",
        "wsgi.url_scheme": "https",
        "wsgi.multithread": True,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "errors": True,
        "scope": True,
    }
    assert {name: environ.get(name) for name in expected} == expected


def test_concurrent_requests_use_all_threads(client: httpx.Client) -> None:
    def meet(count: int) -> str:
        return client.get(f"/meet?{count}").text

    with ThreadPoolExecutor(12) as clients:
        assert set(clients.map(meet, [THREADS] * THREADS)) == {f"True {THREADS}"}
        answers = set(clients.map(meet, [1] * 12))
    assert max(int(answer.split()[1]) for answer in answers) <= THREADS


def test_a_worker_without_a_free_thread_claims_nothing(
    start_redis: Callable[..., RedisServer], start_interface: Start, start_worker: Start
) -> None:
    """A worker without a free thread claims nothing, so an idle worker gets the request."""
    url = start_redis().url
    for _ in range(2):
        start_worker(APP, "--layer", url, "--threads", 1)
    interface = start_interface("--layer", url)
    with httpx.Client(base_url=interface.url, trust_env=False, timeout=30) as client, ThreadPoolExecutor(1) as other:
        slow = other.submit(client.get, "/wait?2")
        for _ in range(10):
            assert client.get("/environ").status_code == 200
        assert not slow.done()
        assert slow.result().text == "waited"


def test_bodies_arrive_whole(client: httpx.Client) -> None:
    body = bytes(range(256)) * (5 * 4096)
    digest = hashlib.sha256(body).hexdigest()
    parts = (body[start : start + 100_000] for start in range(0, len(body), 100_000))
    assert client.post("/upload", content=parts).text == digest
    assert client.post("/upload", content=body).text == digest
    assert client.post("/upload").text == hashlib.sha256().hexdigest()
    assert client.post("/echo", content=body).content == body


def test_each_way_to_read_a_body(client: httpx.Client) -> None:
    def slow() -> Iterator[bytes]:
        yield from (b"a long ", b"line\n2\n", b"3", b"3333\n", b"4\n5", b"\nrest\n ", b"end")

    expected = ["a lo", "ng line\n", "2\n", "33333\n", "4\n", "5\n", "rest\n end"]
    assert client.post("/lines", content=slow()).json() == expected


def test_the_length_of_a_chunked_body_is_known(client: httpx.Client) -> None:
    environ = client.post("/environ", content=iter([b"abc", b"de"])).json()
    assert environ["CONTENT_LENGTH"] == "5"
    assert "HTTP_TRANSFER_ENCODING" not in environ
    assert "CONTENT_LENGTH" not in client.get("/environ").json()


def test_slow_uploads_take_no_threads(server: Process, client: httpx.Client) -> None:
    with ExitStack() as stack:
        uploads = [stack.enter_context(RawClient(server)) for _ in range(10 * THREADS)]
        for upload in uploads:
            upload.send(b"POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: 200000\r\n\r\nsome")
        for size in (1, 100_000):  # kept in memory, and on disk
            for upload in uploads:
                upload.send(bytes(size))
            assert client.get("/meet?1").text.startswith("True")
        for leaving in uploads[1::2]:
            leaving.reset()
        for upload in uploads[::2]:
            upload.send(bytes(99_995))
        expected = hashlib.sha256(b"some" + bytes(199_996)).hexdigest()
        assert {upload.read_response().text for upload in uploads[::2]} == {expected}
    assert notes(client).count("upload begun") == 5 * THREADS, "the app began with an incomplete body"


@pytest.mark.parametrize("query", ["8", "8&whole"])
def test_slow_readers_take_no_threads(server: Process, client: httpx.Client, query: str) -> None:
    with ExitStack() as stack:
        readers = [stack.enter_context(RawClient(server, receive_buffer=1 << 16)) for _ in range(4 * THREADS)]
        for reader in readers:
            reader.send(b"GET /large?%b HTTP/1.1\r\nHost: test\r\n\r\n" % query.encode())
            reader.read_head()
        wait_until(lambda: notes(client).count("large closed") == len(readers))
        assert client.get("/meet?1").text.startswith("True")
        for leaving in readers[1::2]:
            leaving.reset()
        expected = pattern(8 * MIB)
        for reader in readers[::2]:
            assert b"".join(iter(reader.read_chunk, b"")) == expected


def test_readers_of_large_files_take_no_threads(server: Process, client: httpx.Client) -> None:
    expected = pattern(32 * MIB)[8:]
    with ExitStack() as stack:
        readers = [stack.enter_context(RawClient(server, receive_buffer=1 << 16)) for _ in range(2 * THREADS)]
        for reader in readers:
            reader.send(b"GET /file?32 HTTP/1.1\r\nHost: test\r\n\r\n")
            reader.read_head()
        assert client.get("/meet?1").text.startswith("True")
        assert notes(client).count("file closed") == 0
        readers[0].reset()
        assert b"".join(iter(readers[1].read_chunk, b"")) == expected
        wait_until(lambda: notes(client).count("file closed") == 2)
    wait_until(lambda: notes(client).count("file closed") == len(readers))


def test_a_decompressing_file_wrapper(client: httpx.Client) -> None:
    assert client.get("/file?1&packed").content == pattern(MIB)[8:]
    assert client.head("/file?1").content == b""
    assert notes(client).count("file closed") == 2


def test_the_response_buffer_is_an_option(start_interface: Start) -> None:
    server = start_interface("--threads", 1, "--wsgi-response-buffer", 100 * MIB, app=APP)
    with RawClient(server, receive_buffer=1 << 16) as slow:
        slow.send(b"GET /large?40 HTTP/1.1\r\nHost: test\r\n\r\n")
        slow.read_head()
        assert httpx.get(f"{server.url}/noted", trust_env=False, timeout=30).json()[-1] == "large closed"


def test_each_part_of_a_stream_is_sent_at_once(server: Process, client: httpx.Client) -> None:
    with RawClient(server) as stream:
        stream.send(b"GET /prompt HTTP/1.1\r\nHost: test\r\n\r\n")
        stream.read_head()
        assert stream.read_chunk() == b"first"
        assert client.get("/second").text == "told"
        assert stream.read_chunk() == b"second"
        assert stream.read_chunk() == b""


def test_100_continue_is_sent(server: Process) -> None:
    with RawClient(server) as client:
        client.send(b"POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert client.read_response().status == 100
        client.send(b"some")
        assert client.read_response().text == hashlib.sha256(b"some").hexdigest()


def test_an_oversized_body_is_rejected(start_interface: Start) -> None:
    server = start_interface("--wsgi-max-body-size", 100_000, app=APP)
    with RawClient(server) as client:
        client.send(b"POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: 100001\r\nExpect: 100-continue\r\n\r\n")
        assert client.read_response().status == 413, "the server asked for an unwanted body"
    with RawClient(server) as client:
        client.send(b"POST /upload HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(2):
            client.send(b"C351\r\n" + bytes(0xC351) + b"\r\n")
        assert client.read_response().status == 413
    assert httpx.post(f"{server.url}/upload", content=bytes(100_000), trust_env=False).status_code == 200


def test_the_spool_size_is_shared_and_freed(start_interface: Start) -> None:
    server = start_interface("--wsgi-spool-size", 200_000, app=APP)
    with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client:
        for leaves in (True, False):
            with RawClient(server) as upload:
                upload.send(b"POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: 170000\r\n\r\n" + bytes(160_000))
                wait_until(lambda: any(size > 150_000 for size in open_files(server)))
                assert client.post("/upload", content=bytes(100_000)).status_code == 503
                assert client.post("/upload", content=bytes(50_000)).status_code == 200, "a body in memory was rejected"
                if leaves:
                    upload.reset()
                else:
                    upload.send(bytes(10_000))
                    assert upload.read_response().status == 200
            wait_until(lambda: client.post("/upload", content=bytes(100_000)).status_code == 200)
        assert client.get("/large?8").content == pattern(8 * MIB), "a response without spool was cut"
    server.wait_for("others have used up --wsgi-spool-size")


def test_slow_uploads_leave_file_descriptors(start_interface: Start) -> None:
    server = start_interface(app=APP, env={"MOST_FILES": "512"})
    with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client, ExitStack() as stack:
        uploads = [stack.enter_context(RawClient(server)) for _ in range(32)]
        for upload in uploads:
            upload.send(b"POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: 100001\r\n\r\n" + bytes(100_000))
        wait_until(lambda: sum(size > 90_000 for size in open_files(server)) == len(uploads))
        assert client.post("/upload", content=bytes(100_000)).status_code == 503
        assert client.post("/upload", content=bytes(50_000)).status_code == 200, "a body in memory was rejected"
        assert client.get("/large?8").content == pattern(8 * MIB), "a response without spool was cut"
        for upload in uploads:
            upload.send(b"\0")
            assert upload.read_response().status == 200
        wait_until(lambda: client.post("/upload", content=bytes(100_000)).status_code == 200)


def test_a_full_disk_is_logged(start_interface: Start) -> None:
    server = start_interface(app=APP, env={"LARGEST_FILE": "100000"})
    with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client:
        assert client.post("/upload", content=bytes(150_000)).status_code == 500
        server.wait_for(r"its body cannot be kept in a temporary file: \[Errno 27\] File too large")
        assert client.get("/large?8").content == pattern(8 * MIB), "a response without spool was cut"
        assert client.post("/upload", content=bytes(90_000)).status_code == 200


def test_the_server_passes_wsgiref_validate(start_interface: Start) -> None:
    server = start_interface("--interface", "wsgi", app="end_to_end.wsgi_app:validated")
    with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client:
        assert client.get("/environ?a=b").json()["QUERY_STRING"] == "a=b"
        assert client.post("/upload", content=bytes(100_000)).status_code == 200
        assert client.get("/large?1").content == pattern(MIB)
        assert client.head("/large?1").content == b""
    server.terminate()
    assert server.wait() == 0
    assert "without being closed" not in server.log()


def test_a_slow_client_pauses_the_app_and_a_disconnect_frees_its_thread(server: Process, client: httpx.Client) -> None:
    for count in range(1, THREADS + 2):  # more than there are threads, so each must have come free
        with RawClient(server, receive_buffer=1 << 16) as slow:
            slow.send(b"GET /stream HTTP/1.1\r\nHost: test\r\n\r\n")
            slow.read_head()
            progress: list[Any] = [None]

            def stands_still(progress: list[Any] = progress) -> bool:
                progress.append(notes(client)[-1])
                return len(progress) > 8 and len(set(progress[-8:])) == 1

            wait_until(stands_still)
            assert int(progress[-1].removeprefix("part ")) < 24 * MIB // (64 * 1024), "the app ran ahead of its client"
            slow.reset()
        wait_until(lambda count=count: notes(client).count("stream closed") == count)


def test_errors_of_the_app(server: Process, client: httpx.Client) -> None:
    for path in ("raising", "stopping", "headless", "twice"):
        assert client.get(f"/{path}").status_code == 500, path
    for path in ("breaking", "late_error"):
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(f"/{path}")
    assert "breaking closed" in notes(client)


def test_the_head_waits_for_the_body(client: httpx.Client) -> None:
    page = client.get("/error_page")
    assert (page.status_code, page.text) == (503, "sorry")
    assert "x-second" in page.headers
    assert "x-first" not in page.headers
    answer = client.get("/written")
    assert (answer.status_code, answer.text, answer.headers["content-length"]) == (201, "hello world", "11")
    assert client.head("/written").status_code == 201
    assert client.get("/noted").headers["content-length"] == client.head("/noted").headers["content-length"]


def test_the_body_of_a_head_request_is_not_iterated(client: httpx.Client) -> None:
    assert client.head("/stream").status_code == 200
    wait_until(lambda: notes(client)[-2:] == ["part 0", "stream closed"])


def test_the_channel_layer_is_available(client: httpx.Client) -> None:
    with ThreadPoolExecutor(THREADS) as clients:
        answers = list(clients.map(lambda number: client.get(f"/bus?{number}").text, range(20)))
    assert sorted(answers, key=int) == [str(number) for number in range(20)]


def test_a_websocket_is_rejected(server: Process, client: httpx.Client) -> None:
    for _ in range(THREADS + 1):
        with pytest.raises(InvalidStatus) as rejected, ws(server, "/"):
            pass
        assert rejected.value.response.status_code == 403
    assert client.get("/").status_code == 200


def test_a_stop_finishes_running_requests(start_interface: Start) -> None:
    server = start_interface(app=APP)
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(httpx.get, f"{server.url}/wait?1", trust_env=False)
        with httpx.Client(base_url=server.url, trust_env=False) as client:
            wait_until(lambda: "waiting" in notes(client))
        server.terminate()
        assert answer.result().text == "waited"
    assert server.wait() == 0


def test_a_stop_cuts_slow_requests(
    start_redis: Callable[..., RedisServer], start_interface: Start, start_worker: Start
) -> None:
    """A stop ends a slow request, a thread that waits for its client, and a request whose body has not come."""
    url = start_redis().url
    worker = start_worker(APP, "--layer", url, "--graceful-timeout", 1)
    server = start_interface("--layer", url)
    with RawClient(server, receive_buffer=1 << 16) as slow, RawClient(server) as silent:
        slow.send(b"GET /stream HTTP/1.1\r\nHost: test\r\n\r\n")
        silent.send(b"POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n")
        assert silent.read_response().status == 100, "the worker does not wait for the body"
        silent.send(b"some")
        slow.read_head()
        worker.terminate()
        assert worker.wait(4) == 0
        assert "1 connections were not finished within 1 s and are cancelled" in worker.log(), (
            "the request without a body was cancelled, too"
        )
        assert silent.read_response().status == 503
    assert re.findall("ERROR|Traceback", worker.log()) == []
