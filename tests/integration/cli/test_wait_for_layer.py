"""`--wait-for-layer`: a process that is started before its Redis."""

import signal
import socket
from collections.abc import Callable

import httpx
import pytest
from redis import Redis

from support.processes import Process
from support.redis import RedisServer

APP = "cli.simple_app:app"
Start = Callable[..., Process]
StartRedis = Callable[..., RedisServer]


@pytest.fixture(params=["worker", "interface", "embedded", "supervised"])
def start(request: pytest.FixtureRequest, start_interface: Start, start_worker: Start) -> Start:
    """Provide a function that starts a process of one kind with options, without waiting until the process is ready."""

    def start(*options: object) -> Process:
        if request.param == "worker":
            return start_worker(APP, *options, ready=False)
        if request.param == "supervised":
            return start_interface("--processes", 2, *options, ready=False)
        return start_interface(*options, app=APP if request.param == "embedded" else None, ready=False)

    return start


def test_a_process_waits_for_a_late_redis(start: Start, start_redis: StartRedis) -> None:
    server = start_redis()
    server.kill()
    process = start("--layer", server.url, "--wait-for-layer", 60)
    process.wait_for(rf"waiting up to 60 s for the channel layer: Redis at {server.url} cannot be used")
    server.start()
    process.wait_for("the channel layer is available after")
    process.wait_for("worker ready|listening on")


def test_a_missing_redis_is_an_error_in_one_line(start: Start, start_redis: StartRedis) -> None:
    server = start_redis()
    server.kill()
    process = start("--layer", server.url, "--wait-for-layer", 0.7)
    assert process.wait() == 1
    (line,) = [line for line in process.log().splitlines() if line.startswith("Error: ")]
    assert "Connection refused; waited 0.7 s for it" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait(start: Start, start_redis: StartRedis, number: int) -> None:
    """A signal ends the wait, also while Redis accepts connections and does not answer."""
    server = start_redis()
    server.pause()
    process = start("--layer", server.url, "--wait-for-layer", 60)
    process.wait_for(f"waiting up to 60 s for the channel layer: no answer yet from {server.url}")
    process.send_signal(number)
    assert process.wait(1.9) == 0
    server.resume()


def test_a_process_waits_for_a_loading_redis(start_worker: Start, start_redis: StartRedis) -> None:
    slow = ("--key-load-delay", "10000", "--loading-process-events-interval-bytes", "1024")
    server = start_redis(*slow)
    with Redis.from_url(server.url) as redis:
        redis.mset({f"key {number}": "x" * 1024 for number in range(100)})
        redis.save()
    server.kill()
    worker = start_worker(APP, "--layer", server.url, "--wait-for-layer", 60, ready=False)
    worker.wait_for("Connection refused")
    server.start()
    worker.wait_for("worker ready")


def test_the_wait_shows_at_the_admin_port(start_worker: Start, start_redis: StartRedis) -> None:
    server = start_redis()
    server.kill()
    worker = start_worker(APP, "--layer", server.url, "--wait-for-layer", 60, "--admin-port", 0, ready=False)
    admin = worker.wait_for(r"admin port on (http://\S+)")[1]
    worker.wait_for("waiting up to")
    assert httpx.get(f"{admin}/healthz", trust_env=False).status_code == 200
    answer = httpx.get(f"{admin}/readyz", trust_env=False)
    assert (answer.status_code, answer.text.partition(": ")[0]) == (503, "waiting for the channel layer")
    server.start()
    worker.wait_for("worker ready")


def test_a_reason_is_logged_once_and_in_one_sentence(start_worker: Start) -> None:
    """Redis in protected mode refuses a connection sometimes before and sometimes after the first command."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"redis://127.0.0.1:{server.getsockname()[1]}"
        worker = start_worker(APP, "--layer", url, "--wait-for-layer", 60, ready=False)
        for number in range(5):
            client, _ = server.accept()
            with client:
                if number % 2:
                    client.recv(1000)
                client.sendall(b"-DENIED Redis is running in protected mode. In this mode it serves nobody.\r\n")
        worker.kill()
    lines = [line for line in worker.log().splitlines() if "waiting up to" in line]
    assert 1 <= len(lines) <= 2
    assert all(line.endswith("DENIED Redis is running in protected mode") for line in lines)


def test_no_wait_without_the_option(start_worker: Start, start_redis: StartRedis) -> None:
    server = start_redis()
    server.kill()
    worker = start_worker(APP, "--layer", server.url, ready=False)
    assert worker.wait() == 1
    assert "Waiting" not in worker.log()
