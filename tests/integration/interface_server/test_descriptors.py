"""Shortage of file descriptors and socket places: clients get an answer, and the log reports it."""

import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.certificates import Authority
from support.deadline import wait_until
from support.processes import LISTENING, Process, Processes
from support.raw import RawClient

APP = "interface_server.flood_app:app"
GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
Start = Callable[..., Process]


@pytest.fixture
def start_limited(processes: Processes) -> Callable[..., Process]:
    """Start an interface server with `ulimit` and these arguments, and an admin port."""

    def start(ulimit: str, *arguments: object) -> Process:
        command = [sys.executable, "-m", "asgibus.cli.interface", *map(str, arguments), "--admin-port", "0"]
        shell = ["sh", "-c", f'ulimit {ulimit}; exec "$@"', "sh", *command, "--port", "0"]
        process = processes.start("interface", shell, ready=LISTENING)
        process.url = process.wait_for(LISTENING)["url"]
        return process

    return start


def admin(server: Process, path: str) -> tuple[int, str]:
    port = int(server.wait_for(r"admin port on http://127\.0\.0\.1:(\d+)")[1])
    with RawClient(("127.0.0.1", port)) as client:
        response = client.request("GET", path)
        return response.status, response.text


def count_rejected(server: Process, kind: str = "too many connections") -> int:
    match = re.search(rf'asgibus_events_total{{kind="{kind}"}} (\d+)', admin(server, "/metrics")[1])
    return int(match[1]) if match else 0


def test_more_clients_than_descriptors(
    start_limited: Callable[..., Process], start_worker: Start, redis_url: str
) -> None:
    start_worker(APP, "--layer", redis_url)
    server = start_limited("-n 1024", "--layer", redis_url)
    assert "896 sockets at once, where --max-connections says 10000" in server.log()
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server)) for _ in range(1200)]
        for client in clients:
            client.send(GET)
        answers = [client.read_response().status for client in clients]
        assert answers.count(200) >= 800
        assert set(answers) == {200, 503}, "a connection was closed without a response"
        assert count_rejected(server) == answers.count(503)
        assert admin(server, "/healthz") == (200, "ok\n")
        assert admin(server, "/readyz") == (200, "ready\n")
        served = clients[answers.index(200)]
        assert served.request("GET").status == 200
    lines = re.findall(r"a connection was rejected: \d+ sockets are open, and --max-connections is 896", server.log())
    assert 1 <= len(lines) <= 3, "the log line is not throttled"

    def has_room() -> bool:
        with RawClient(server) as client:
            return client.request("GET").status == 200

    wait_until(has_room)


def test_the_soft_limit_is_raised(start_limited: Callable[..., Process]) -> None:
    server = start_limited("-Sn 200", APP)
    (limits,) = [line for line in Path(f"/proc/{server.pid}/limits").read_text().splitlines() if "open files" in line]
    soft, hard = limits.split()[3:5]
    assert soft == hard == str(resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def test_a_failed_accept_is_logged_and_counted(start_limited: Callable[..., Process]) -> None:
    server = start_limited("-n 256", APP)
    with RawClient(server) as client:
        assert client.request("GET", "/exhaust").status == 200
        with RawClient(server) as waiting:
            waiting.send(GET)
            server.wait_for("connections cannot be accepted for a moment: Too many open files")
            assert client.request("GET", "/release").status == 200
            assert waiting.read_response().status == 200
    assert count_rejected(server, "accept failed") >= 1


@pytest.fixture(params=["TLS", "PROXY"])
def beginning(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[list[object], Authority | None]]:
    """Return options of a server whose connections begin with a handshake or a header, and its authority."""
    if request.param == "PROXY":
        yield ["--proxy-protocol"], None
    else:
        authority = Authority(tmp_path)
        yield ["--ssl-certfile", authority.issue("server.pem")], authority


def test_silent_connections_count_for_the_limit(
    start_interface: Start, beginning: tuple[list[object], Authority | None]
) -> None:
    options, authority = beginning
    server = start_interface("--max-connections", 2, *options, app=APP)
    tls = authority.client() if authority else None
    header = b"" if authority else b"PROXY UNKNOWN\r\n"
    with RawClient(server) as first, RawClient(server) as second:
        with RawClient(server, tls=tls, before_tls=header) as third:
            third.send(GET)
            assert third.read_response().status == 503
        server.wait_for("a connection was rejected: 2 sockets are open, and --max-connections is 2")
        first.close()
        second.close()

    def has_room() -> bool:
        with RawClient(server, tls=tls, before_tls=header) as client:
            return client.request("GET").status == 200

    wait_until(has_room)


def test_excess_connections_are_all_answered_503(start_interface: Start) -> None:
    server = start_interface("--max-connections", 1, app=APP)
    with ExitStack() as stack:
        first, *others = [stack.enter_context(RawClient(server)) for _ in range(200)]
        for client in others:
            client.send(GET)
        assert {client.read_response().status for client in others} == {503}
        assert first.request("GET").status == 200
