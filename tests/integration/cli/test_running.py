"""Signals, a lost Redis, and the distribution of requests over workers."""

import http.client
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from support.deadline import in_time, wait_until
from support.processes import Process
from support.redis import RedisServer

APP = "cli.simple_app:app"
Start = Callable[..., Process]
StartRedis = Callable[..., RedisServer]


def get(server: Process, path: str) -> tuple[int, str]:
    """Return (status, body), or (0, error) without an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return 0, repr(error)
    finally:
        connection.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as pool:
        yield pool


@pytest.fixture
def hold(threads: ThreadPoolExecutor, tmp_path: Path) -> Iterator[Callable[..., Future[tuple[int, str]]]]:
    """Provide a function that sends a request and waits until the app runs; the file `release` ends the app's wait."""

    def hold(server: Process, path: str = "/hold") -> Future[tuple[int, str]]:
        answer = threads.submit(get, server, path)
        wait_until((tmp_path / "held-").exists, what="the app's run")
        return answer

    yield hold
    (tmp_path / "release").touch()


Hold = Callable[..., Future[tuple[int, str]]]


Stopped = tuple[Process, Process, list[Process]]


@pytest.fixture(params=["interface", "worker", "embedded"])
def stopped(request: pytest.FixtureRequest, start_interface: Start, start_worker: Start) -> Stopped:
    """Return the process to stop, the process with the socket, and the other processes."""
    graceful = ("--graceful-timeout", 1.5)
    if request.param == "embedded":
        interface = start_interface(*graceful, app=APP)
        return interface, interface, []
    url = request.getfixturevalue("redis_url")
    worker = start_worker(APP, "--layer", url, *graceful)
    interface = start_interface("--layer", url, *graceful)
    return (interface, interface, [worker]) if request.param == "interface" else (worker, interface, [interface])


@pytest.mark.parametrize("signal", ["terminate", "interrupt"])
def test_a_stop_finishes_running_requests(stopped: Stopped, hold: Hold, tmp_path: Path, signal: str) -> None:
    process, interface, _ = stopped
    answer = hold(interface)
    getattr(process, signal)()
    process.wait_for("stopping; a second signal stops at once")
    assert process.running
    assert not answer.done()
    (tmp_path / "release").touch()
    assert answer.result(30)[0] == 200
    assert process.wait() == 0
    process.wait_for("stopped")


def test_a_stop_cuts_requests_at_the_graceful_timeout(stopped: Stopped, hold: Hold) -> None:
    process, interface, _ = stopped
    answer = hold(interface)
    started = time.monotonic()
    process.terminate()
    assert process.wait() == 0
    in_time(time.monotonic() - started, 2.8)  # 1.5 s are the graceful timeout
    process.wait_for("and are (?:aborted|cancelled)")
    assert answer.result(30)[0] != 200


def test_a_second_signal_stops_at_once(stopped: Stopped, hold: Hold) -> None:
    """A second signal stops the process even if the app refuses cancellation."""
    process, interface, _ = stopped
    answer = hold(interface, "/stubborn")
    process.terminate()
    process.wait_for("SIGTERM: stopping")
    started = time.monotonic()
    process.interrupt()
    assert process.wait() == 1
    in_time(time.monotonic() - started, 2.5)
    process.wait_for("SIGINT again: stopping at once")
    for other in stopped[2]:
        other.kill()
    answer.result(30)


def test_a_stubborn_app_does_not_prevent_the_end(start_interface: Start, hold: Hold) -> None:
    interface = start_interface("--graceful-timeout", "0.2", app=APP)
    answer = hold(interface, "/stubborn")
    interface.terminate()
    assert interface.wait(15) == 0
    answer.result(30)


def test_a_normal_stop_is_no_death(start_interface: Start, tmp_path: Path) -> None:
    """An app that continues after its response loses no client when its embedding interface server stops."""
    interface = start_interface(app=APP)
    assert get(interface, "/after")[0] == 200
    wait_until((tmp_path / "held-").exists)
    interface.terminate()
    interface.wait_for("stopping")
    (tmp_path / "release").touch()
    assert interface.wait() == 0
    assert "WARNING" not in interface.log()


def test_a_lost_redis_is_waited_for(
    start_redis: StartRedis, start_interface: Start, start_worker: Start, threads: ThreadPoolExecutor
) -> None:
    server = start_redis()
    worker = start_worker(APP, "--layer", server.url)
    interface = start_interface("--layer", server.url, "--connect-timeout", 1)
    assert get(interface, "/")[0] == 200
    server.kill()
    for process in (worker, interface):
        process.wait_for("Redis at .* is gone")
    assert get(interface, "/")[0] == 503
    server.start()
    for process in (worker, interface):
        process.wait_for(r"Redis at \S+ is back")
    wait_until(lambda: get(interface, "/")[0] == 200, what="an answer")
    assert [get(interface, "/")[0] for _ in range(5)] == [200] * 5
    for process in (worker, interface):
        assert process.log().count("is gone") == 1


def test_stopping_without_redis(start_redis: StartRedis, start_interface: Start, start_worker: Start) -> None:
    server = start_redis()
    worker = start_worker(APP, "--layer", server.url)
    interface = start_interface("--layer", server.url)
    assert get(interface, "/")[0] == 200
    server.kill()
    for process in (worker, interface):
        process.wait_for("is gone")
        process.terminate()
    for process in (worker, interface):
        assert process.wait(9) == 0


def test_concurrency_bounds_running_requests(
    redis_url: str,
    start_interface: Start,
    start_worker: Start,
    threads: ThreadPoolExecutor,
    tmp_path: Path,
) -> None:
    url = redis_url
    start_worker(APP, "--layer", url, "--concurrency", 2)
    interface = start_interface("--layer", url)
    answers = [threads.submit(get, interface, f"/hold?{number}") for number in range(6)]
    wait_until(lambda: len(list(tmp_path.glob("held-*"))) == 2)
    (tmp_path / "release").touch()
    assert [answer.result(30)[0] for answer in answers] == [200] * 6
    assert get(interface, "/most") == (200, "2")


def test_two_workers_share_the_requests(
    redis_url: str,
    start_interface: Start,
    start_worker: Start,
    threads: ThreadPoolExecutor,
    tmp_path: Path,
) -> None:
    url = redis_url
    workers = [start_worker(APP, "--layer", url, "--concurrency", 2) for _ in range(2)]
    interface = start_interface("--layer", url)
    answers = [threads.submit(get, interface, f"/hold?{number}") for number in range(4)]
    wait_until(lambda: len(list(tmp_path.glob("held-*"))) == 4)
    (tmp_path / "release").touch()
    assert Counter(answer.result(30)[1] for answer in answers) == {str(worker.pid): 2 for worker in workers}
    served = Counter(get(interface, "/")[1] for _ in range(60))
    assert set(served) == {str(worker.pid) for worker in workers}


def test_pools_and_routes(redis_url: str, start_interface: Start, start_worker: Start) -> None:
    url = redis_url
    default = start_worker(APP, "--layer", url)
    chat = start_worker(APP, "--layer", url, "--pool", "chat")
    interface = start_interface(
        "--layer", url, "--route", "/chat=chat", "--route", "/none=none", "--connect-timeout", 1
    )
    assert get(interface, "/") == (200, str(default.pid))
    assert get(interface, "/chat/room") == (200, str(chat.pid))
    assert get(interface, "/none")[0] == 503
