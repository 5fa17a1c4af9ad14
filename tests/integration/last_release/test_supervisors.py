"""A supervisor keeps the code that it was started with, and its children have that of the release installed since."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

import asgibus
from last_release.test_mixed_servers import APP, TROUBLE
from support.deadline import wait_until
from support.processes import Process, environment
from support.raw import RawClient
from support.websocket import ws

TODAY = Path(asgibus.__file__).parent


class Installation:
    """A folder with one release of asgibus at a time, which is put before all others."""

    def __init__(self, folder: Path) -> None:
        self._link = folder / "asgibus"
        folder.mkdir()
        self.env = {"PYTHONPATH": f"{folder}:{environment()['PYTHONPATH']}"}

    def install(self, release: Path) -> None:
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(release)


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path / "installed")


@pytest.fixture
def last_release(last_release_python: Path) -> Path:
    """Return the folder of the package of the last release."""
    (package,) = last_release_python.parent.parent.glob("lib/python*/site-packages/asgibus")
    return package


def published(redis_url: str) -> int:
    """Return how many processes have published their release, which the last one does not do."""
    with redis.Redis.from_url(redis_url) as admin:
        return int(admin.hlen("asgibus:releases"))


@pytest.mark.parametrize("upgrade", [True, False], ids=["upgrade", "roll back"])
def test_children_of_another_release(
    start_interface: Callable[..., Process],
    start_worker: Callable[..., Process],
    installation: Installation,
    last_release: Path,
    redis_url: str,
    *,
    upgrade: bool,
) -> None:
    before, after = (last_release, TODAY) if upgrade else (TODAY, last_release)
    options = ("--layer", redis_url, "--processes", 2)
    installation.install(before)
    worker = start_worker(APP, *options, "--resume", env=installation.env, ready=False)
    interface = start_interface(*options, "--no-access-log", env=installation.env)
    for supervisor in (worker, interface):
        supervisor.wait_for("supervisor ready")
    first = {supervisor: supervisor.children() for supervisor in (worker, interface)}
    assert published(redis_url) == (0 if upgrade else 4)
    installation.install(after)
    with ws(interface, "/echo") as socket:
        socket.send("before")
        assert socket.recv(30) == "before"
        worker.send_signal(signal.SIGHUP)
        worker.wait_for("all processes are replaced")
        socket.send("after")
        assert socket.recv(30) == "after"
    interface.send_signal(signal.SIGHUP)
    interface.wait_for("all processes are replaced")
    for supervisor in (worker, interface):
        wait_until(lambda supervisor=supervisor: len(supervisor.children()) == 2)
        assert not set(supervisor.children()) & set(first[supervisor])
    wait_until(lambda: published(redis_url) == (4 if upgrade else 0))
    with RawClient(interface) as client:
        assert client.request("GET", "/bytes?size=10").body == bytes(10)
    for supervisor in (worker, interface):
        supervisor.terminate()
        assert supervisor.wait() == 0
        assert not TROUBLE.findall(supervisor.whole_log())
