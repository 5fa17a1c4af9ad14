"""A worker that cannot read the connect requests: other workers serve all clients, and the worker logs the reason."""

import sys
from collections.abc import Callable

import pytest

from chaos.conftest import APP
from chaos.crowd import Crowd
from chaos.notes import Notes
from support.admin import readiness
from support.deadline import wait_until
from support.processes import Process, Processes
from support.raw import RawClient

Figures = Callable[[object], None]

SOCKETS = 40
REQUESTS = 100
OTHER_VERSION = """
from asgibus.layers.versions import Format
from asgibus.protocol import checks
checks.CONNECT_REQUEST, checks._WRITTEN = Format("connect requests", written=4, oldest=4, newest=4), 4
from asgibus.cli.worker import main
main()
"""


def start_incompatible(kind: str, url: str, processes: Processes, notes: Notes) -> Process:
    """Return a worker with a wrong key, or of another version."""
    options = (APP, "--layer", url, "--admin-port", "0")
    if kind == "key":
        return processes.start_worker(*options, env=notes.env | {"ASGIBUS_ENCRYPTION_KEY": "wrong"})
    command = [sys.executable, "-c", OTHER_VERSION, *options]
    env = notes.env | {"ASGIBUS_ENCRYPTION_KEY": "right"}
    return processes.start("incompatible", command, ready="worker ready: ", env=env)


@pytest.mark.parametrize("kind", ["key", "version"])
def test_a_worker_that_cannot_read_requests_loses_none(
    kind: str, redis_url: str, processes: Processes, notes: Notes, figures: Figures
) -> None:
    key = {"ASGIBUS_ENCRYPTION_KEY": "right"}
    incompatible = start_incompatible(kind, redis_url, processes, notes)
    interface = processes.start_interface("--layer", redis_url, "--no-access-log", env=key)
    others = [
        processes.start_worker(APP, "--layer", redis_url, "--resume", "--admin-port", 0, env=notes.env | key)
        for _ in range(4)
    ]
    with Crowd(interface, "/echo", sockets=SOCKETS, rate=SOCKETS * 5) as crowd:
        crowd.begin()
        statuses = []
        for number in range(REQUESTS):
            with RawClient(interface) as client:
                statuses.append(client.request("POST", f"/post?name={number}", body=b"x").status)
        crowd.wait_each_answered()
        report = crowd.finish()
    figures(report)
    assert statuses == [200] * REQUESTS
    report.assert_whole()
    wait_until(lambda: readiness(incompatible)[0] == 503)
    assert [readiness(worker)[0] for worker in others] == [200] * len(others)
    assert incompatible.log().count("claims next to nothing") == 1
