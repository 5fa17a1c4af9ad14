"""Limits of size, time and number, and the graceful stop."""

import json
import time
from collections.abc import Callable, Iterator

import pytest

from support.deadline import wait_until
from support.processes import Process
from support.raw import RawClient
from support.servers import serving
from support.websocket import read_notes, wait_for_note

APP = "interface_server.http_app:app"
GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
Start = Callable[..., Process]

HEAD_TIMEOUT = 0.6
KEEP_ALIVE_TIMEOUT = 0.5
HTTP_TIMEOUT = 0.8
MAX_HEAD = 4096


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[Process]:
    """Provide a server with a small limit of the head, and long timeouts."""
    with serving(request, APP, "--max-head-size", MAX_HEAD, layer="memory") as servers:
        yield servers.interfaces[0]


@pytest.fixture(scope="module")
def strict_server(request: pytest.FixtureRequest) -> Iterator[Process]:
    """Provide a server with short timeouts."""
    options = (
        "--head-timeout",
        HEAD_TIMEOUT,
        "--keep-alive-timeout",
        KEEP_ALIVE_TIMEOUT,
        "--http-timeout",
        HTTP_TIMEOUT,
    )
    with serving(request, APP, *options, layer="memory") as servers:
        yield servers.interfaces[0]


@pytest.fixture
def strict_client(strict_server: Process) -> Iterator[RawClient]:
    """Provide a client of the server with short timeouts."""
    with RawClient(strict_server) as client:
        yield client


# The size of the head.


def test_a_head_of_the_limit_is_read(client: RawClient) -> None:
    rest = MAX_HEAD - len("/") - len("host: test\r\n") - len("a: \r\n")
    assert client.request("GET", "/", "A: " + "x" * rest).status == 200


@pytest.mark.parametrize(
    "wire",
    [
        b"GET / HTTP/1.1\r\nHost: test\r\nA: " + b"x" * MAX_HEAD + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: test\r\n" + b"A: b\r\n" * (MAX_HEAD // 5) + b"\r\n",
        b"GET /" + b"x" * MAX_HEAD + b" HTTP/1.1\r\nHost: test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: test\r\nA: " + b"x" * MAX_HEAD,
        b"GET / HTTP/1.1\r\n" + b"x" * MAX_HEAD,
        b"GET /" + b"x" * MAX_HEAD,
    ],
    ids=["value", "lines", "target", "endless value", "endless name", "endless target"],
)
@pytest.mark.parametrize("piece", [100_000, 1000])
def test_a_larger_head_is_refused(client: RawClient, wire: bytes, piece: int) -> None:
    client.send_pieces([wire[start : start + piece] for start in range(0, len(wire), piece)])
    response = client.read_response()
    assert (response.status, response.get("connection")) == (431, "close")
    assert client.read_until_close() == b""


@pytest.mark.parametrize("piece", [100_000, 100])
@pytest.mark.parametrize("end", [b"\r\n", b""], ids=["whole", "endless"])
def test_too_many_headers_are_refused(client: RawClient, end: bytes, piece: int) -> None:
    """The number of headers is limited, since each costs far more memory than its bytes."""
    allowed = b"GET / HTTP/1.1\r\nHost: test\r\n" + b"a:b\r\n" * 127
    client.send(allowed + b"\r\n")
    assert client.read_response().status == 200
    wire = allowed + b"a:b\r\n" * 2 + end
    client.send_pieces([wire[start : start + piece] for start in range(0, len(wire), piece)])
    response = client.read_response()
    assert (response.status, response.get("connection")) == (431, "close")
    assert client.read_until_close() == b""


def test_the_number_of_headers_is_an_option(start_interface: Start) -> None:
    server = start_interface("--max-headers", 2, app=APP)
    with RawClient(server) as client:
        assert client.request("GET", "/", "A: b").status == 200
        assert client.request("GET", "/", "A: b", "C: d").status == 431


def test_endless_trailers_are_refused(server: Process, client: RawClient, name: str) -> None:
    head = f"POST /torn-body?name={name} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
    client.send(head.encode() + b"1\r\na\r\n")
    wait_for_note(server, name, "reading")
    client.send_pieces([b"0\r\nTrailer: ", b"x" * MAX_HEAD])
    assert client.read_response().status == 431
    wait_for_note(server, name, "disconnect")


def test_the_end_of_a_body_is_not_counted_as_head(client: RawClient) -> None:
    body = bytes(3 * MAX_HEAD)
    head = b"POST /count HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(body)
    client.send_pieces([head, body + GET[:10], GET[10:]])
    assert client.read_response().body == b"%d" % len(body)
    assert client.read_response().status == 200


# Time for the head.


def test_a_silent_client_is_closed(strict_client: RawClient) -> None:
    began = time.monotonic()
    assert strict_client.read_until_close() == b""
    assert time.monotonic() - began > HEAD_TIMEOUT / 2


def test_empty_lines_do_not_keep_a_silent_client_open(strict_client: RawClient) -> None:
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        strict_client.send_pieces([b"\r\n"] * 200, pause=HEAD_TIMEOUT / 20)


def test_half_a_head_is_answered_408(strict_client: RawClient) -> None:
    strict_client.send(GET[:-2])
    response = strict_client.read_response()
    assert (response.status, response.get("connection")) == (408, "close")
    assert strict_client.read_until_close() == b""


def test_a_dripping_head_is_answered_408(strict_client: RawClient) -> None:
    drip = [b"GET / HTTP/1.1\r\n", *[b"A: b\r\n"] * 8]
    strict_client.send_pieces(drip, pause=HEAD_TIMEOUT / 8)
    assert strict_client.read_response().status == 408


def test_pipelined_requests_wait_until_the_client_reads(server: Process, name: str) -> None:
    """Pipelined requests wait for the client to read, since each response has a window of its own."""
    count, size = 300, 60_000
    with RawClient(server, receive_buffer=4096) as client:
        client.send(f"GET /large?size={size}&name={name} HTTP/1.1\r\nHost: test\r\n\r\n".encode() * count)
        time.sleep(1.0)  # all have long been answered by then, if they do not wait
        assert 0 < read_notes(server, name).count("over") < count / 2
        assert [len(client.read_response().body) for _ in range(count)] == [size] * count
        assert client.request("GET", "/").status == 200
        assert read_notes(server, name).count("over") == count


def test_an_idle_connection_is_closed(strict_client: RawClient) -> None:
    assert strict_client.request("GET").status == 200
    began = time.monotonic()
    assert strict_client.read_until_close() == b""
    assert time.monotonic() - began > KEEP_ALIVE_TIMEOUT / 2


def test_half_a_pipelined_head_is_answered_408(strict_client: RawClient) -> None:
    strict_client.send(GET + GET[:-2])
    assert strict_client.read_response().status == 200
    assert strict_client.read_response().status == 408


# Time for the whole.


def test_a_late_response_is_a_503(strict_server: Process, strict_client: RawClient, name: str) -> None:
    response = strict_client.request("GET", f"/sleepy?name={name}")
    assert (response.status, response.get("retry-after"), response.get("connection")) == (503, "1", "close")
    assert strict_client.read_until_close() == b""
    wait_for_note(strict_server, name, "over")
    assert read_notes(strict_server, name) == ["waiting", "http.disconnect", "over"]


def test_an_overlong_response_is_cut(strict_server: Process, strict_client: RawClient, name: str) -> None:
    strict_client.send(f"GET /sleepy?start=1&name={name} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    with pytest.raises(EOFError):
        strict_client.read_response()
    wait_for_note(strict_server, name, "over")
    assert read_notes(strict_server, name) == ["waiting", "http.disconnect", "over"]


def test_a_missing_request_body_is_cut_off(strict_server: Process, strict_client: RawClient, name: str) -> None:
    strict_client.send(f"POST /torn-body?name={name} HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\n1234".encode())
    assert strict_client.read_response().status == 503
    wait_for_note(strict_server, name, "disconnect")


# Numbers.


def test_more_connections_than_allowed_are_refused(start_interface: Start) -> None:
    server = start_interface("--max-connections", 2, app=APP)
    with RawClient(server) as first, RawClient(server) as second:
        assert first.request("GET").status == second.request("GET").status == 200
        for _ in range(3):
            with RawClient(server) as third:
                third.send(GET)
                response = third.read_response()
                assert (response.status, response.get("retry-after"), response.get("connection")) == (503, "1", "close")
                assert third.read_until_close() == b""
        assert first.request("GET").status == second.request("GET").status == 200
        first.close()
        server.wait_for("listening")
        deadline = time.monotonic() + 5
        while True:
            with RawClient(server) as fourth:
                fourth.send(GET)
                if fourth.read_response().status == 200:
                    break
            assert time.monotonic() < deadline, "the place of the first was never free"


def test_no_worker_is_a_503_within_the_connect_timeout(start_interface: Start, redis_url: str) -> None:
    server = start_interface("--layer", redis_url, "--connect-timeout", 0.5)
    with RawClient(server) as client:
        client.send(GET + GET)
        response = client.read_response()
        assert (response.status, response.get("retry-after"), response.get("connection")) == (503, "1", "close")
        assert client.read_until_close() == b""


def test_a_worker_started_in_time_serves_waiting_requests(
    start_interface: Start, start_worker: Start, redis_url: str
) -> None:
    server = start_interface("--layer", redis_url)
    body = bytes(1_000_000)
    with RawClient(server) as client, RawClient(server) as abandoned:
        client.send(b"POST /body HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(body))
        client.socket.setblocking(False)
        sent = client.socket.send(body)  # without a worker the server reads no more than the window
        abandoned.send(b"GET /gone?name=gone HTTP/1.1\r\nHost: test\r\n\r\n")
        abandoned.close()
        start_worker(APP, "--layer", redis_url)
        client.send(body[sent:])
        assert client.read_response().body == body


def test_a_killed_worker_is_a_cut_or_a_502(start_interface: Start, start_worker: Start, redis_url: str) -> None:
    """A killed worker ends its request with 502 or 503, and the next worker serves."""
    server = start_interface("--layer", redis_url, "--http-timeout", 1)
    worker = start_worker(APP, "--layer", redis_url)
    with RawClient(server) as client:
        client.send(b"GET /sleepy?name=x HTTP/1.1\r\nHost: test\r\n\r\n")
        wait_for_note(server, "x", "waiting")
        worker.kill()
        assert client.read_response().status in {502, 503}
        assert client.read_until_close() == b""
    start_worker(APP, "--layer", redis_url)
    with RawClient(server) as client:
        assert client.request("GET").status == 200


# The graceful stop.


def test_a_graceful_stop_finishes_running_requests(start_interface: Start) -> None:
    server = start_interface("--graceful-timeout", 5, app=APP)
    with RawClient(server) as busy, RawClient(server) as idle, RawClient(server) as uploading:
        assert idle.request("GET").status == 200
        busy.send(b"GET /wait?name=n&gate=g HTTP/1.1\r\nHost: test\r\n\r\n")
        wait_for_note(server, "n", "waiting")
        uploading.send(b"POST /stream-back HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        assert uploading.read_head()[1] == 200
        assert uploading.read_chunk() == b"a"
        with RawClient(server) as opener:
            opener.send(b"POST /open-gate?gate=g HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n")
            server.terminate()
            assert idle.read_until_close() == b""
            opener.send(b"\r\n")
            assert opener.read_response().status == 200  # the server did not wait for the body
            with pytest.raises(ConnectionRefusedError):
                RawClient(server)
        response = busy.read_response()
        assert (response.status, response.text, response.get("connection")) == (200, "g", "close")
        assert busy.read_until_close() == b""
        uploading.send(b"1\r\nb\r\n0\r\n\r\n")
        assert (uploading.read_chunk(), uploading.read_chunk()) == (b"b", b"")
    assert server.wait() == 0


def test_a_graceful_stop_reads_the_rest_of_a_body(start_interface: Start) -> None:
    server = start_interface("--graceful-timeout", 5, app=APP)
    with RawClient(server) as client:
        client.send(b"POST /unread HTTP/1.1\r\nHost: test\r\nContent-Length: 200000\r\n\r\n")
        assert client.read_response().status == 413
        server.terminate()
        server.wait_for("SIGTERM")
        client.assert_silent(0.3)
        client.send(bytes(200_000))
        assert client.socket.recv(1) == b""
    assert server.wait() == 0


def test_a_graceful_stop_ends_at_its_timeout(start_interface: Start) -> None:
    server = start_interface("--graceful-timeout", 0.5, app=APP)
    with RawClient(server) as client:
        client.send(b"GET /sleepy?name=n&start=1 HTTP/1.1\r\nHost: test\r\n\r\n")
        wait_for_note(server, "n", "waiting")
        server.terminate()
        with pytest.raises((EOFError, ConnectionResetError)):
            client.read_response()
    assert server.wait() == 0


def test_the_access_log(start_interface: Start) -> None:
    server = start_interface(app=APP, allow_traceback=True)
    with RawClient(server) as client:
        client.request("GET", "/a%20b?q=%0A")
        client.request("GET", "/boom/1", "X-Forwarded-For: 203.0.113.7:99")
        client.send(b"nonsense\r\n\r\n")
        client.read_until_close()
    server.wait_for(r'127\.0\.0\.1:\d+ - "GET /a%20b\?q=%0A HTTP/1\.1" 200')
    server.wait_for(r'203\.0\.113\.7:99 - "GET /boom/1 HTTP/1\.1" 500')
    server.wait_for(r'127\.0\.0\.1:\d+ - "- - HTTP/-" 501')


def test_the_access_log_can_be_turned_off(start_interface: Start) -> None:
    server = start_interface("--no-access-log", app=APP)
    with RawClient(server) as client:
        assert json.loads(client.request("GET", "/quiet").body)["path"] == "/quiet"
    server.terminate()
    assert server.wait() == 0
    assert "/quiet" not in server.log()


def test_a_paused_server_does_not_time_clients_out(strict_server: Process, strict_client: RawClient) -> None:
    """Requests that arrive while the server is paused are answered: the client was not idle."""
    assert strict_client.request("GET", "/").status == 200
    strict_server.pause()
    try:
        strict_client.send(GET)
        paused = time.monotonic()
        wait_until(lambda: time.monotonic() > paused + KEEP_ALIVE_TIMEOUT + 1.5)
    finally:
        strict_server.resume()
    assert strict_client.read_response().status == 200
