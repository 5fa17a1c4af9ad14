"""An interface server of today with workers of the last release, and the other way round, on one bus.

To run them, which installs the last release first, in a quarter of a minute:

    scripts/test tests/integration/last_release tests/chaos/test_upgrade.py

A failure here is mostly a change of what goes over the bus: CONTRIBUTING.md says how to make one.
"""

import hashlib
import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from support.processes import Process, Processes
from support.raw import RawClient
from support.websocket import ws

APP = "last_release.mixed_app:app"
TROUBLE = re.compile(r"^.* (?:WARNING|ERROR|CRITICAL) .*$", re.MULTILINE)
JOINED = ("/echo", "/room")
LARGE = 300_000
"""Bytes of a message or a body: more than a window, so that acknowledgements are needed in both directions."""


@dataclass(frozen=True)
class Mix:
    """An interface server, and workers of the other release."""

    interface: Process
    worker: Process
    """Supervises two workers with `--resume`."""
    background: Process
    """A worker of the channel "work", of the release of the interface server."""

    @property
    def all(self) -> list[Process]:
        return [self.interface, self.worker, self.background]


@pytest.fixture(scope="module", params=["worker", "interface"])
def servers(
    request: pytest.FixtureRequest, shared_processes: Processes, last_release_python: Path, shared_redis_url: str
) -> Mix:
    """Provide servers on one bus; the parameter is the one of the last release."""
    layer = ("--layer", shared_redis_url, "--prefix", f"last-{request.param}")
    old = {request.param: last_release_python}
    worker = shared_processes.start_worker(
        APP, *layer, "--resume", "--processes", 2, python=old.get("worker"), ready=False
    )
    worker.wait_for("supervisor ready")
    interface = shared_processes.start_interface(*layer, "--no-access-log", python=old.get("interface"))
    background = shared_processes.start_worker(APP, *layer, "--channel", "work", python=old.get("interface"))
    return Mix(interface, worker, background)


@pytest.fixture
def mix(servers: Mix) -> Iterator[Mix]:
    """Provide the servers. Fail a test in which one has logged a warning: what it does not understand, it reports."""
    for process in servers.all:
        process.mark()
    yield servers
    for process in servers.all:
        assert not TROUBLE.findall(process.log()), process


def test_the_releases_differ(mix: Mix, last_release_python: Path) -> None:
    pythons = {process.command[0] for process in mix.all}
    assert len(pythons) == 2
    assert str(last_release_python) in pythons


def test_an_upload(mix: Mix) -> None:
    body = os.urandom(LARGE)
    with RawClient(mix.interface) as client:
        for _ in range(2):
            assert client.request("POST", "/digest", body=body).text == hashlib.sha256(body).hexdigest()


def test_a_download(mix: Mix) -> None:
    with RawClient(mix.interface) as client:
        for size in (0, 10, 4 * LARGE):
            assert client.request("GET", f"/bytes?size={size}").body == bytes(size)


def test_an_event_stream(mix: Mix) -> None:
    with RawClient(mix.interface) as client:
        response = client.request("GET", "/events?count=10")
    assert response.get("content-type") == "text/event-stream"
    events = [line for line in response.text.splitlines() if line.startswith("data:")]
    assert events == [f"data: event {number}" for number in range(10)]


def test_an_event_stream_whose_client_leaves(mix: Mix) -> None:
    with RawClient(mix.interface) as client:
        client.send(b"GET /events?count=1000000 HTTP/1.1\r\nHost: test\r\n\r\n")
        assert client.read_head()[1] == 200
        client.read_chunk()
    test_a_download(mix)


@pytest.mark.parametrize("path", JOINED)
def test_a_websocket(mix: Mix, path: str) -> None:
    with ws(mix.interface, path, query={"room": "alone"}, subprotocols=["chat"], max_size=None) as socket:
        assert socket.subprotocol == "chat"
        for message in ("text", b"bytes", "", "\u00fc" * LARGE, bytes(LARGE), "last"):
            socket.send(message)
            assert socket.recv(30) == message


def test_a_websocket_that_is_denied(mix: Mix) -> None:
    with pytest.raises(InvalidStatus) as raised:
        ws(mix.interface, "/denied")
    assert (raised.value.response.status_code, raised.value.response.body) == (418, b"no coffee")


def test_a_room(mix: Mix) -> None:
    with ws(mix.interface, "/room", query={"room": "r"}) as one, ws(mix.interface, "/room", query={"room": "r"}) as two:
        two.send("reply channel")
        two.recv(30)  # it has joined
        for number in range(100):
            one.send(f"message {number}")
        for socket in (one, two):
            assert [socket.recv(30) for _ in range(100)] == [f"message {number}" for number in range(100)]


def test_background_work(mix: Mix) -> None:
    """The message is sent by one release, handled by the other, and its result returns to the first."""
    with ws(mix.interface, "/echo") as socket, RawClient(mix.interface) as client:
        socket.send("reply channel")
        reply = str(socket.recv(30))
        for number in range(20):
            assert client.request("POST", f"/job?number={number}&reply={reply.replace('!', '%21')}").status == 200
        assert {socket.recv(30) for _ in range(20)} == {f"done {number}" for number in range(20)}


def test_a_rolling_restart(mix: Mix) -> None:
    with ws(mix.interface, "/run") as run, ws(mix.interface, "/room", query={"room": "s"}) as member:
        run.send("before")
        run.recv(30)
        mix.worker.send_signal(signal.SIGHUP)
        mix.worker.wait_for("all processes are replaced")
        run.send("after")
        known = json.loads(run.recv(30))
        assert known["attempt"] >= 2
        assert known["resumed"]
        assert known["received"] == ["before", "after"]
        member.send("still here")
        assert member.recv(30) == "still here"


def test_a_worker_that_is_killed(servers: Mix) -> None:
    for process in servers.all:
        process.mark()
    with ws(servers.interface, "/run") as run:
        run.send("before")
        before = json.loads(run.recv(30))
        os.kill(before["pid"], signal.SIGKILL)
        run.send("after")
        known = json.loads(run.recv(30))
        assert (known["attempt"], known["received"]) == (before["attempt"] + 1, ["before", "after"])
    for process in servers.all:
        process.wait_for("declared dead|starting another")
