"""Messages to the service manager (systemd), over the socket in NOTIFY_SOCKET."""

import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.deadline import HANG
from support.in_place import InPlace
from support.processes import Process

APP = "cli.supervised_app:app"
Start = Callable[..., Process]
Notification = dict[str, str]


class Manager:
    """The service manager's end of the protocol."""

    def __init__(self, address: str) -> None:
        self.env = {"NOTIFY_SOCKET": address}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(HANG)
        self._socket.bind(address.replace("@", "\0", 1))

    def close(self) -> None:
        self._socket.close()

    def next(self) -> Notification:
        """Return the variables of the next datagram."""
        return dict(line.split("=", 1) for line in self._socket.recv(65536).decode().split("\n"))

    def until(self, name: str) -> Notification:
        """Return the next datagram with that variable."""
        while name not in (notification := self.next()):
            pass
        return notification

    def nothing_more(self) -> bool:
        self._socket.setblocking(False)
        try:
            self._socket.recv(65536)
        except BlockingIOError:
            return True
        return False


@pytest.fixture
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """Provide a service manager whose socket is a file, or for the parameter "abstract" in the abstract namespace."""
    abstract = getattr(request, "param", "path") == "abstract"
    manager = Manager(f"@asgibus-{secrets.token_hex(8)}" if abstract else str(tmp_path / "notify"))
    yield manager
    manager.close()


@pytest.mark.parametrize("manager", ["path", "abstract"], indirect=True)
def test_the_manager_is_notified_of_start_and_end(manager: Manager, start_interface: Start) -> None:
    interface = start_interface(app=APP, env=manager.env)
    assert manager.until("READY") == {"READY": "1", "STATUS": f"listening on {interface.url}"}
    interface.terminate()
    assert manager.next()["STOPPING"] == "1"
    assert interface.wait() == 0
    assert manager.nothing_more()


def test_the_manager_is_notified_of_a_wait_for_the_layer(manager: Manager, start_worker: Start) -> None:
    options = ("--layer", "redis://127.0.0.1:1", "--wait-for-layer", 60)
    worker = start_worker(APP, *options, env=manager.env, ready=False)
    status = manager.until("STATUS")["STATUS"]
    assert status.startswith("waiting for the channel layer: Redis at redis://127.0.0.1:1 cannot be used")
    worker.terminate()


def test_a_supervisor_notifies_of_the_wait_of_its_processes(manager: Manager, start_worker: Start) -> None:
    options = ("--layer", "redis://127.0.0.1:1", "--wait-for-layer", 60, "--processes", 2)
    worker = start_worker(APP, *options, env=manager.env, ready=False)
    assert manager.until("STATUS")["STATUS"].startswith("waiting for the channel layer: Redis at redis://127.0.0.1:1")
    worker.terminate()
    assert manager.until("STOPPING")["STOPPING"] == "1"
    assert worker.wait() == 0


@pytest.mark.parametrize("version", ["a rolling restart", "a version that cannot start"])
def test_a_supervisor_notifies_for_all_of_its_processes(
    manager: Manager, redis_url: str, start_worker: Start, tmp_path: Path, version: str
) -> None:
    worker = start_worker(
        APP, "--layer", redis_url, "--processes", 2, env=manager.env, ready=False, allow_traceback=True
    )
    assert manager.until("READY")["STATUS"] == "2 processes serve"
    assert "supervisor ready" in worker.log()
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    if version == "a version that cannot start":
        (tmp_path / "import-fails").touch()
    os.kill(worker.pid, signal.SIGHUP)
    reloading = manager.next()
    assert reloading["RELOADING"] == "1"
    assert before <= int(reloading["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    ended = manager.next()
    assert ended["READY"] == "1"
    if version == "a rolling restart":
        assert ended["STATUS"] == "2 processes serve, all replaced"
    else:
        assert "a new version with a mistake" in ended["STATUS"]
        assert ended["STATUS"].endswith("the old processes stay")
    worker.terminate()
    assert manager.next()["STOPPING"] == "1"
    assert worker.wait() == 0


def test_the_manager_follows_the_process_that_goes_on(manager: Manager, redis_url: str, start_interface: Start) -> None:
    interface = start_interface("--layer", redis_url, env=manager.env)
    manager.until("READY")
    with InPlace(interface) as in_place:
        in_place.move()
        assert manager.next()["RELOADING"] == "1"
        moved = manager.until("MAINPID")
        assert moved == {"MAINPID": str(in_place.pid), "READY": "1", "STATUS": f"process {in_place.pid} serves"}
    assert manager.until("STOPPING")["STOPPING"] == "1"


def test_children_of_the_app_do_not_get_the_socket(manager: Manager, start_interface: Start, tmp_path: Path) -> None:
    (tmp_path / "nosy_app.py").write_text(
        "import os\nfrom cli.simple_app import app\nopen('found', 'w').write(str('NOTIFY_SOCKET' in os.environ))\n"
    )
    start_interface(app="nosy_app:app", env=manager.env)
    assert (tmp_path / "found").read_text() == "False"


@pytest.mark.parametrize("address", ["/no/such/socket", "relative", "vsock:2:1", "@" + "a" * 200, "/tmp"])
def test_an_unreachable_manager_is_logged_once(start_interface: Start, address: str) -> None:
    interface = start_interface(app=APP, env={"NOTIFY_SOCKET": address})
    interface.terminate()
    assert interface.wait() == 0
    assert interface.log().count(f"the service manager at {address} cannot be notified: ") == 1


def test_a_full_socket_of_the_manager_is_no_obstacle(start_interface: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
    ):
        full.bind(path)
        sender.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                sender.sendto(b"x", path)
        interface = start_interface(app=APP, env={"NOTIFY_SOCKET": path})
        interface.wait_for("cannot be notified: timed out")
