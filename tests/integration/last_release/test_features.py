"""Features of today beside processes of the last release: they may be absent, and nothing else may break."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from last_release.test_mixed_servers import APP, TROUBLE
from support.deadline import wait_until
from support.processes import Process
from support.raw import RawClient
from support.websocket import ws

Start = Callable[..., Process]


def assert_quiet(*processes: Process) -> None:
    """Assert that no process has reported what it does not understand, or anything else."""
    for process in processes:
        assert not TROUBLE.findall(process.whole_log()), process


@pytest.mark.parametrize("old", ["interface", "neither"])
def test_affinity_with_workers_of_both_releases(
    start_interface: Start, start_worker: Start, redis_url: str, last_release_python: Path, old: str
) -> None:
    layer = ("--layer", redis_url)
    workers = [start_worker(APP, *layer, "--resume", python=python) for python in (last_release_python, None)]
    python = last_release_python if old == "interface" else None
    interface = start_interface(*layer, "--affinity", "query:room", "--no-access-log", python=python)
    homes: list[int] = []

    def open_room() -> bool:
        """Open another room. Return whether both workers have some."""
        pids = set()
        with ExitStack() as stack:
            for _ in range(3):
                socket = stack.enter_context(ws(interface, "/run", query={"room": f"r{len(homes)}"}))
                socket.send("hello")
                pids.add(json.loads(socket.recv(30))["pid"])
        homes.extend(pids)
        assert len(pids) == 1
        return {*homes} == {worker.pid for worker in workers}

    wait_until(open_room)
    assert_quiet(interface, *workers)


@pytest.mark.parametrize("old", ["interface", "worker"])
def test_a_broadcast_that_excludes_its_sender(
    start_interface: Start, start_worker: Start, redis_url: str, last_release_python: Path, old: str
) -> None:
    layer = ("--layer", redis_url)
    python = {old: last_release_python}
    worker = start_worker(APP, *layer, python=python.get("worker"))
    interface = start_interface(*layer, "--no-access-log", python=python.get("interface"))
    with ws(interface, "/excluding", query={"room": "r"}) as one, ws(interface, "/room", query={"room": "r"}) as two:
        two.send("reply channel")
        two.recv(30)
        one.send("to others")
        assert two.recv(30) == "to others"
        two.send("to all")
        assert two.recv(30) == one.recv(30) == "to all"
    assert_quiet(interface, worker)


def test_workers_that_are_killed_without_a_supervisor(
    start_interface: Start, start_worker: Start, redis_url: str, last_release_python: Path
) -> None:
    """Each end notices the death of a worker of the other release by the end of its lease, at the latest."""
    pythons = (None, last_release_python)
    buses = []
    with ExitStack() as stack:
        for number, python in enumerate(pythons):
            layer = ("--layer", redis_url, "--prefix", f"bus{number}")
            killed = start_worker(APP, *layer, "--resume", python=pythons[1 - number])
            interface = start_interface(*layer, "--no-access-log", python=python)
            socket = stack.enter_context(ws(interface, "/run"))
            socket.send("before")
            assert json.loads(socket.recv(30))["pid"] == killed.pid
            start_worker(APP, *layer, "--resume", python=python)
            buses.append((killed, socket))
        for killed, _ in buses:
            killed.kill()
        for _, socket in buses:
            socket.send("after")
            known = json.loads(socket.recv(30))
            assert (known["attempt"], known["resumed"], known["received"]) == (2, True, ["before", "after"])


def test_background_work_of_a_killed_worker(
    start_interface: Start, start_worker: Start, redis_url: str, last_release_python: Path, tmp_path: Path
) -> None:
    """A worker of each release handles what a worker of the other one has left."""
    pythons = (None, last_release_python)
    buses = []
    with ExitStack() as stack:
        for number, python in enumerate(pythons):
            layer = ("--layer", redis_url, "--prefix", f"bus{number}")
            start_worker(APP, *layer)
            interface = start_interface(*layer, "--no-access-log")
            killed = start_worker(APP, *layer, "--channel", "work", python=python)
            socket = stack.enter_context(ws(interface, "/echo"))
            socket.send("reply channel")
            reply = str(socket.recv(30)).replace("!", "%21")
            with RawClient(interface) as client:
                assert client.request("POST", f"/job?number=7&reply={reply}&held=job{number}").status == 200
            wait_until((tmp_path / f"job{number}.begun").exists)
            start_worker(APP, *layer, "--channel", "work", python=pythons[1 - number])
            buses.append((killed, socket))
        for killed, _ in buses:
            killed.kill()
        for _, socket in buses:
            assert socket.recv(30) == "done 7"


@pytest.mark.parametrize("old", ["interface", "neither"])
def test_hand_overs_in_silence_to_the_last_release_and_back(
    start_interface: Start, start_worker: Start, redis_url: str, last_release_python: Path, old: str
) -> None:
    layer = ("--layer", redis_url)
    silent = ("--resume", "--handover", "silent")
    suspend = ("--resume", "--handover", "suspend")
    interface = start_interface(*layer, "--no-access-log", python=last_release_python if old == "interface" else None)
    worker = start_worker(APP, *layer, *suspend)
    stopped = []
    received = []
    with ws(interface, "/run") as socket:
        for python in (last_release_python, None):
            received.append(f"message {len(received)}")
            socket.send(received[-1])
            assert json.loads(socket.recv(30))["received"] == received
            before, worker = worker, start_worker(APP, *layer, *silent, python=python)
            before.terminate()
            assert before.wait() == 0
            stopped.append(before)
        socket.send("last")
        known = json.loads(socket.recv(30))
        assert (known["pid"], known["attempt"], known["received"]) == (worker.pid, 3, [*received, "last"])
    assert_quiet(interface, worker, *stopped)
