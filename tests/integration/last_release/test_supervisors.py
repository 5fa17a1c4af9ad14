"""A supervisor keeps the code that it was started with, and its children have that of the release installed since."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from asgibus.layers.versions import RELEASE
from last_release.installation import TODAY, Installation, releases
from last_release.test_mixed_servers import APP, TROUBLE
from support.deadline import wait_until
from support.last_release import NAME
from support.processes import Process
from support.raw import RawClient
from support.websocket import ws


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
    first_name, second_name = (NAME, RELEASE) if upgrade else (RELEASE, NAME)
    options = ("--layer", redis_url, "--processes", 2)
    installation.install(before)
    worker = start_worker(APP, *options, "--resume", env=installation.env, ready=False)
    interface = start_interface(*options, "--no-access-log", env=installation.env)
    for supervisor in (worker, interface):
        supervisor.wait_for("supervisor ready")
    first = {supervisor: supervisor.children() for supervisor in (worker, interface)}
    assert [*releases(redis_url).values()] == 4 * [first_name]
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
    wait_until(lambda: [*releases(redis_url).values()] == 4 * [second_name])
    with RawClient(interface) as client:
        assert client.request("GET", "/bytes?size=10").body == bytes(10)
    for supervisor in (worker, interface):
        supervisor.terminate()
        assert supervisor.wait() == 0
        assert not TROUBLE.findall(supervisor.whole_log())
