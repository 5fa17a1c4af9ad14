"""Health answers of the admin port while a server drains."""

import json
import socket
import time
from collections.abc import Callable

from chaos.notes import Notes
from support.deadline import wait_until
from support.processes import Process
from support.raw import RawClient

Start = Callable[..., Process]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ask(port: int, path: str) -> int:
    with RawClient(("127.0.0.1", port)) as client:
        return client.request("GET", path).status


def test_a_draining_server_is_not_ready(start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes) -> None:
    worker_port, interface_port = free_port(), free_port()
    worker = start_chaos_worker("--admin-port", worker_port, "--graceful-timeout", 10)
    interface = start_chaos_interface("--admin-port", interface_port, "--graceful-timeout", 10)
    for port in (worker_port, interface_port):
        assert ask(port, "/readyz") == ask(port, "/healthz") == 200
    with RawClient(interface) as client:
        client.send(b"GET /slow?gate=open HTTP/1.1\r\nHost: test\r\n\r\n")
        notes.wait("request")
        for process, port in ((worker, worker_port), (interface, interface_port)):
            process.terminate()
            wait_until(lambda port=port: ask(port, "/readyz") == 503)  # type: ignore[misc]
            assert ask(port, "/healthz") == 200
            time.sleep(0.2)  # /readyz stays at 503 during the drain
            assert ask(port, "/readyz") == 503
        notes.open_gate("open")
        response = client.read_response()
        assert response.status == 200
        assert json.loads(response.body)["pid"] == worker.pid
    assert worker.wait() == interface.wait() == 0
