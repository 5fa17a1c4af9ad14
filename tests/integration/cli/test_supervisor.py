"""`--processes`: dead children are replaced and announced, and no child outlives the supervisor."""

import http.client
import os
import pty
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import psutil
import pytest

from asgibus.layers import open_layer
from asgibus.layers.contract import Frame
from asgibus.layers.frames import DEAD
from asgibus.layers.offers import Claim
from support.bus import until
from support.deadline import wait_until
from support.processes import Process, Processes
from support.redis import RedisServer

APP = "cli.supervised_app:app"
REPLACED = "all processes are replaced"
Start = Callable[..., Process]


def children(process: Process) -> list[int]:
    """Return the present children of a supervisor."""
    return process.children()


def running(pids: Sequence[int]) -> list[int]:
    alive = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                alive.append(pid)
    return alive


def get(server: Process, path: str = "/", port: int | None = None) -> tuple[int, str]:
    """Return (status, body), or (0, error) without an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port or server.port, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return 0, repr(error)
    finally:
        connection.close()


@pytest.fixture
def workers(redis_url: str, start_worker: Start) -> Process:
    """Provide a supervisor of two workers, both ready."""
    return supervised(start_worker(APP, "--layer", redis_url, "--processes", 2))


@pytest.fixture
def interfaces(redis_url: str, start_interface: Start) -> Process:
    """Provide a supervisor of two interface servers, both ready."""
    return supervised(start_interface("--layer", redis_url, "--processes", 2))


@pytest.fixture(params=["workers", "interfaces", "both in one"])
def supervisor(request: pytest.FixtureRequest, start_interface: Start) -> Process:
    if request.param == "both in one":
        url = request.getfixturevalue("redis_url")
        return supervised(start_interface("--layer", url, "--processes", 2, app=APP))
    process: Process = request.getfixturevalue(request.param)
    return process


def supervised(process: Process, count: int = 2) -> Process:
    process.wait_for(f"supervisor ready: {count} processes")
    assert len(children(process)) == count
    return process


def ready_pids(process: Process) -> list[int]:
    """Return the pids of the processes that have logged that they are ready, in order."""
    return [int(pid) for pid in re.findall(r"\[(\d+)\] (?:worker|interface server) ready", process.log())]


@pytest.fixture
def load(interfaces: Process) -> Iterator[list[tuple[int, str]]]:
    """Send requests one after another, from four clients, during the context; yield the answers."""
    answers: list[tuple[int, str]] = []
    over = Event()

    def ask() -> None:
        while not over.wait(0.01):  # the processes that start need the processor, too
            answers.append(get(interfaces))

    with ThreadPoolExecutor(4) as clients:
        for _ in range(4):
            clients.submit(ask)
        yield answers
        over.set()


def test_the_log_of_a_start(interfaces: Process, workers: Process) -> None:
    for process, message in ((interfaces, "interface server ready"), (workers, "worker ready: ")):
        pids = children(process)
        assert sorted(ready_pids(process)) == sorted(pids)
        assert process.log().count(message) == 2
        process.wait_for(rf"INFO +\[{process.pid}\] supervisor ready: 2 processes \((\d+), (\d+)\)")
    assert interfaces.log().count("listening on http://127.0.0.1:") == 1
    assert {get(interfaces)[1] for _ in range(40)} == {str(pid) for pid in children(workers)}


@pytest.mark.parametrize("supervisor", ["both in one"], indirect=True)
def test_a_killed_process_is_replaced_at_once(supervisor: Process) -> None:
    victim, other = children(supervisor)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(ready_pids(supervisor)) == 3, what="another ready process")
    supervisor.wait_for(rf"ERROR +\[{supervisor.pid}\] process {victim} was killed by SIGKILL: starting another now")
    assert set(children(supervisor)) == {other, ready_pids(supervisor)[-1]}


class DeadRecorder:
    """A handler on the bus that records processes declared dead."""

    def __init__(self) -> None:
        self.dead: list[str] = []

    def batch(self, sender: str, frames: Sequence[Frame]) -> None:
        self.dead += [frame[1] for frame in frames if frame[0] == DEAD]

    def undelivered(self, mailbox: str) -> None: ...
    def interrupted(self) -> None: ...
    def orphaned(self, claim: Claim) -> None: ...


@pytest.mark.anyio
@pytest.mark.parametrize("supervisor", ["workers", "interfaces"], indirect=True)
async def test_a_death_is_announced_at_once(redis_url: str, supervisor: Process) -> None:
    """The supervisor announces a death at once, long before the lease of 5 s ends."""
    layer = open_layer(redis_url)
    recorder = DeadRecorder()
    async with layer.bus("test", recorder):
        os.kill(children(supervisor)[0], signal.SIGKILL)
        await until(lambda: recorder.dead, 2.4, "the announcement")
    await layer.close()
    assert recorder.dead[0].endswith("!")


@pytest.mark.parametrize("supervisor", ["workers", "both in one"], indirect=True)
def test_children_end_with_a_killed_supervisor(supervisor: Process) -> None:
    pids = children(supervisor)
    supervisor.kill()
    wait_until(lambda: not running(pids), what="the end of all processes")
    for pid in pids:
        supervisor.wait_for(rf"\[{pid}\] the supervisor is gone: stopping\n")
        supervisor.wait_for(rf"\[{pid}\] (worker|interface server) stopped")


def test_starting_children_end_with_a_killed_supervisor(redis_url: str, start_worker: Start, tmp_path: Path) -> None:
    (tmp_path / "start-up-hangs").touch()
    process = start_worker(APP, "--layer", redis_url, "--processes", 2, ready=False)
    wait_until((tmp_path / "starting").exists, what="the app's start-up")
    pids = children(process)
    process.kill()
    wait_until(lambda: not running(pids), what="the end of all processes")


def test_a_signal_ends_all_processes(supervisor: Process) -> None:
    pids = children(supervisor)
    supervisor.terminate()
    assert supervisor.wait() == 0
    assert not running(pids)
    for pid in pids:
        supervisor.wait_for(rf"\[{pid}\] stop requested by the supervisor: stopping\n")
    assert supervisor.log().splitlines()[-1].endswith("supervisor stopped")
    assert "ERROR" not in supervisor.log()


def test_a_signal_to_every_process_is_one_stop(workers: Process, tmp_path: Path) -> None:
    """SIGTERM to the supervisor and all children at once, as systemd sends the signal, counts as one signal."""
    pids = children(workers)
    for pid in [*pids, workers.pid]:
        os.kill(pid, signal.SIGTERM)
    assert workers.wait() == 0
    assert "at once" not in workers.log().replace("a second signal stops at once", "")
    assert set(pids) <= {int(pid) for pid in (tmp_path / "shut-down").read_text().split()}


def test_a_second_sigterm_kills(redis_url: str, start_interface: Start, workers: Process, tmp_path: Path) -> None:
    interface = start_interface("--layer", redis_url)
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(get, interface, "/stubborn")
        wait_until((tmp_path / "held").exists, what="the app's run")
        pids = children(workers)
        workers.terminate()
        workers.wait_for("stop requested by the supervisor")
        workers.send_signal(signal.SIGHUP)
        workers.wait_for("SIGHUP: ignored")
        workers.terminate()
        assert workers.wait(3) == 1
        wait_until(lambda: not running(pids), 1, "the end of all processes")
        interface.kill()
        answer.result(30)


IN_TERMINAL = (
    "import os, sys; os.open(sys.argv[1], os.O_RDWR); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
)


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """Yield the descriptor of a keyboard and the name of its terminal."""
    keyboard, screen = pty.openpty()
    yield keyboard, os.ttyname(screen)
    for end in (keyboard, screen):
        with suppress(OSError):  # the test has closed the terminal
            os.close(end)


@pytest.mark.parametrize("action", ["Ctrl+C", "close"])
def test_a_terminal(redis_url: str, processes: Processes, terminal: tuple[int, str], action: str) -> None:
    """Ctrl+C, or the end of the terminal, stops the supervisor and its children."""
    keyboard, name = terminal
    arguments = [APP, "--layer", redis_url, "--processes", "2"]
    process = processes.start(
        "worker",
        [sys.executable, "-c", IN_TERMINAL, name, "-m", "asgibus.cli.worker", *arguments],
        ready="supervisor ready",
    )
    pids = children(process)
    if action == "close":
        os.close(keyboard)
    else:
        os.write(keyboard, b"\x03")
    assert process.wait() == 0
    process.wait_for("the terminal is closed: stopping" if action == "close" else "SIGINT: stopping")
    assert not running(pids)
    assert process.log().count("stop requested by the supervisor: stopping") == 2
    assert process.log().count("worker stopped") == 2


def test_children_are_restarted_while_redis_is_away(
    start_redis: Callable[..., RedisServer], start_worker: Start
) -> None:
    redis = start_redis()
    workers = supervised(start_worker(APP, "--layer", redis.url, "--processes", 2))
    redis.kill()
    victim = children(workers)[0]
    os.kill(victim, signal.SIGKILL)
    workers.wait_for(rf"the death of process {victim} could not be announced: ")
    workers.wait_for(r"failed to start: Redis at \S+ cannot be used: Connection refused: starting another in 0.5 s")
    redis.start()
    wait_until(lambda: len(ready_pids(workers)) == 3, what="another ready process")


def test_a_failed_start(redis_url: str, start_worker: Start, start_interface: Start, tmp_path: Path) -> None:
    """A failed start logs one traceback and one clear line, whatever the number of processes."""
    (tmp_path / "import-fails").touch()
    options = {"ready": False, "allow_traceback": True}
    arguments = ("--layer", redis_url, "--processes", 2)
    for process in (start_worker(APP, *arguments, **options), start_interface(*arguments, app=APP, **options)):
        assert process.wait() == 1
        *trace, line = [line for line in process.log().splitlines() if "INFO" not in line]
        assert trace[0] == "Traceback (most recent call last):"
        assert trace[-1] == "ValueError: a new version with a mistake"
        assert len(trace) == 4
        assert line.startswith(f"Error: the app {APP!r} cannot be loaded: ValueError: a new version with a mistake")


def test_a_port_in_use(redis_url: str, interfaces: Process, start_interface: Start) -> None:
    second = start_interface("--layer", redis_url, "--processes", 2, "--port", interfaces.port, ready=False)
    assert second.wait() == 1
    assert second.log() == f"Error: cannot listen on 127.0.0.1:{interfaces.port}: Address already in use\n"


def test_a_rolling_restart_under_load(load: list[tuple[int, str]], interfaces: Process, workers: Process) -> None:
    """Each process is replaced by a new one that was ready before, so no request fails."""
    before = {process.pid: children(process) for process in (interfaces, workers)}
    wait_until(lambda: len(load) > 20, what="answers")
    for process in (workers, interfaces):
        process.send_signal(signal.SIGHUP)
        process.wait_for("SIGHUP: replacing one process after another")
        process.wait_for("all processes are replaced")
        assert not set(children(process)) & set(before[process.pid])
        assert len(children(process)) == 2
    count = len(load)
    wait_until(lambda: len(load) > count + 20, what="more answers")
    assert {status for status, _ in load} == {200}, [answer for answer in load if answer[0] != 200]
    assert "ERROR" not in interfaces.log() + workers.log()


def test_requests_of_a_worker_are_bounded(redis_url: str, start_worker: Start, interfaces: Process) -> None:
    workers = supervised(start_worker(APP, "--layer", redis_url, "--processes", 2, "--max-requests", 20))
    answers = [get(interfaces) for _ in range(100)]
    assert {status for status, _ in answers} == {200}
    counts = [[pid for _, pid in answers].count(pid) for pid in {pid for _, pid in answers}]
    assert max(counts) <= 22, "more than 10 % and one claim above the limit"
    assert len(counts) >= 4
    workers.wait_for(r"process \d+ retires: starting another")
    assert "ERROR" not in workers.log()


def test_the_lifetime_of_a_worker_is_bounded(redis_url: str, start_worker: Start) -> None:
    workers = start_worker(APP, "--layer", redis_url, "--processes", 2, "--max-lifetime", 1)
    # Of the log, as by now one of them may have retired, and another be starting.
    first = {int(pid) for pid in workers.wait_for(r"supervisor ready: 2 processes \((\d+), (\d+)\)").groups()}
    wait_until(lambda: not first & set(children(workers)), what="the end of the first two")
    assert "ERROR" not in workers.log()


def two_free_ports() -> int:
    """Return the first of two adjacent ports that are free."""
    while True:
        with socket.socket() as first, socket.socket() as second, suppress(OSError, OverflowError):
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            second.bind(("127.0.0.1", port + 1))
            return port


def test_every_process_has_an_admin_port(redis_url: str, start_worker: Start) -> None:
    port = two_free_ports()
    workers = supervised(start_worker(APP, "--layer", redis_url, "--processes", 2, "--admin-port", port))
    for number in (port, port + 1):
        wait_until(lambda number=number: get(workers, "/readyz", number) == (200, "ready\n"), what="readiness")
        assert "asgibus_sessions 0.0" in get(workers, "/metrics", number)[1]
    old = children(workers)
    workers.send_signal(signal.SIGHUP)
    workers.wait_for("all processes are replaced")
    for number in (port, port + 1):
        wait_until(lambda number=number: get(workers, "/readyz", number)[0] == 200, what="the new process's port")
    assert not set(old) & set(children(workers))


def test_a_unix_socket_survives_a_rolling_restart(redis_url: str, start_interface: Start, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    interfaces = supervised(start_interface("--layer", redis_url, "--processes", 2, "--uds", path))
    assert interfaces.uds == str(path)
    interfaces.send_signal(signal.SIGHUP)
    interfaces.wait_for("all processes are replaced")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"nonsense\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 ")


def test_the_app_does_not_see_the_control_pipe(interfaces: Process, workers: Process) -> None:
    assert get(interfaces, "/environment") == (200, "[]")


def test_one_process_has_no_supervisor(redis_url: str, start_worker: Start) -> None:
    worker = start_worker(APP, "--layer", redis_url, "--processes", 1)
    assert children(worker) == []
    assert "supervisor" not in worker.log()


@pytest.mark.parametrize("embedded", [False, True])
def test_sigterm_ends_a_start_up(
    request: pytest.FixtureRequest, start_worker: Start, start_interface: Start, tmp_path: Path, embedded: bool
) -> None:
    (tmp_path / "start-up-hangs").touch()
    process: Any = (
        start_interface(app=APP, ready=False)
        if embedded
        else start_worker(APP, "--layer", request.getfixturevalue("redis_url"), ready=False)
    )
    wait_until((tmp_path / "starting").exists, what="the app's start-up")
    process.terminate()
    assert process.wait(3) == 0
    assert "ready" not in process.log()
    assert "listening" not in process.log()
