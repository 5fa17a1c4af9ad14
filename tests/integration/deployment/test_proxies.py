"""The files of `deploy/` for nginx and Caddy, in front of two interface servers, work as documented."""

import hashlib
import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deployment.conftest import Proxy
from support.deadline import wait_until
from support.processes import Process, Processes
from support.raw import RawClient
from support.websocket import ws

APP = "deployment.proxied_app:app"

pytestmark = pytest.mark.parametrize("name", ["nginx", "caddy"], scope="module")


class Site:
    """A proxy in front of two interface servers, and a supervisor with two workers."""

    def __init__(self, proxy: Proxy, interfaces: list[Process], workers: Process) -> None:
        self.proxy = proxy
        self.interfaces = interfaces
        self.workers = workers

    def ask(self, *headers: str) -> dict[str, Any]:
        """Return the part of the scope that the app reports for a request on a new connection."""
        with RawClient(self.proxy) as client:
            response = client.request("GET", "/", *headers)
        assert response.status == 200, response
        scope: dict[str, Any] = json.loads(response.body)
        return scope


@pytest.fixture(scope="module")
def shared_site(
    name: str, shared_redis_url: str, shared_processes: Processes, start_proxy: Callable[..., Proxy]
) -> Iterator[Site]:
    url = shared_redis_url
    workers = shared_processes.start_worker(APP, "--layer", url, "--processes", 2, "--resume", ready=False)
    interfaces = [shared_processes.start_interface("--layer", url) for _ in range(2)]
    workers.wait_for("supervisor ready")
    site = Site(start_proxy(name, *(interface.port for interface in interfaces)), interfaces, workers)
    yield site
    for process in (*site.interfaces, workers):  # the next proxy starts servers of its own
        process.terminate()
        assert process.wait() == 0


@pytest.fixture
def site(shared_site: Site) -> Site:
    for process in (*shared_site.interfaces, shared_site.workers):
        process.mark()
    return shared_site


def test_both_servers_receive_requests(site: Site) -> None:
    assert len({site.ask()["interface"] for _ in range(20)}) == 2


def test_connections_are_kept_open(site: Site) -> None:
    with RawClient(site.proxy) as client:
        assert [client.request("GET").status for _ in range(3)] == [200, 200, 200]


def test_the_scope_has_the_client_and_the_host(site: Site) -> None:
    scope = site.ask("X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https")

    # Headers that the client sends are not trusted.
    assert (scope["client"], scope["scheme"], scope["host"]) == ("127.0.0.1", "http", "test")
    assert "203.0.113.9" not in "".join(interface.log() for interface in site.interfaces)


def test_the_scope_of_a_websocket_has_the_client_and_the_host(site: Site) -> None:
    with ws(site.proxy, "/") as socket:  # type: ignore[arg-type]
        socket.send("hello")
        scope = json.loads(socket.recv(timeout=30))

    assert (scope["client"], scope["scheme"]) == ("127.0.0.1", "ws")
    assert scope["host"] == f"127.0.0.1:{site.proxy.port}"


def test_a_websocket_outlives_a_deploy_of_the_workers(site: Site) -> None:
    with ws(site.proxy, "/") as socket:  # type: ignore[arg-type]
        socket.send("before")
        before = json.loads(socket.recv(timeout=30))
        site.workers.send_signal(signal.SIGHUP)
        site.workers.wait_for("all processes are replaced")
        socket.send("after")
        after = json.loads(socket.recv(timeout=30))

    assert (before["text"], before["attempt"]) == ("before", 1)
    assert after["text"] == "after"
    assert after["attempt"] > 1
    assert after["pid"] != before["pid"]


def test_events_are_not_buffered(site: Site) -> None:
    with RawClient(site.proxy) as client:
        client.send(b"GET /events HTTP/1.1\r\nHost: test\r\n\r\n")
        read = b""
        while b"data: first" not in read:  # a TimeoutError shows that the proxy waits for more
            read += client.socket.recv(65536)


def test_a_large_upload_arrives(site: Site) -> None:
    body = bytes(range(256)) * (64 * 4096)  # 64 MiB
    with RawClient(site.proxy, timeout=20) as client:
        response = client.request("POST", "/upload", body=body)

    assert (response.status, response.text) == (200, hashlib.sha256(body).hexdigest())


def test_an_upload_is_not_buffered(site: Site) -> None:
    with RawClient(site.proxy) as client:
        client.send(b"POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: 200000\r\n\r\n" + bytes(100_000))
        site.workers.wait_for("the upload has begun")
        client.send(bytes(100_000))
        assert client.read_response().status == 200


def test_a_restart_of_one_of_two_servers_fails_no_request(
    site: Site, shared_redis_url: str, shared_processes: Processes
) -> None:
    restarted = site.interfaces[0]
    restarted.terminate()
    assert restarted.wait() == 0
    assert len({site.ask()["interface"] for _ in range(20)}) == 1

    options = ("--layer", shared_redis_url, "--host", "127.0.0.1", "--port", restarted.port)
    site.interfaces[0] = shared_processes.start_interface(*options)
    wait_until(lambda: len({site.ask()["interface"] for _ in range(4)}) == 2, what="requests at both servers")
