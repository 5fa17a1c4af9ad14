"""An interface server moves, at SIGUSR2, to a process of another release: an upgrade in place, and the way back.

What is new today is absent in the state of the last release, and ignored by it.
"""

import json
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from asgibus.layers.versions import RELEASE
from end_to_end.test_event_streams import APP as EVENTS
from end_to_end.test_event_streams import Reader
from last_release.installation import TODAY, Installation, releases
from last_release.test_mixed_servers import APP, TROUBLE
from support.deadline import wait_until
from support.in_place import InPlace
from support.last_release import NAME
from support.processes import Process
from support.raw import RawClient
from support.websocket import ws

Start = Callable[..., Process]


@pytest.mark.parametrize("workers", ["last", "today"])
def test_an_interface_server_moves_to_the_other_release_and_back(
    start_interface: Start,
    start_worker: Start,
    redis_url: str,
    installation: Installation,
    last_release: Path,
    last_release_python: Path,
    workers: str,
) -> None:
    python = last_release_python if workers == "last" else None
    layer = ("--layer", redis_url)
    worker = start_worker(APP, *layer, "--resume", python=python)
    events = start_worker(EVENTS, *layer, "--resume", "--pool", "events", python=python)
    installation.install(last_release)
    options = ("--route", "/numbers=events", "--affinity", "/bytes=query:room")
    interface = start_interface(*layer, *options, "--no-access-log", env=installation.env)
    (mailbox,) = [each for each in releases(redis_url) if each.startswith("interface.")]
    with ExitStack() as stack:
        in_place = stack.enter_context(InPlace(interface))
        run = stack.enter_context(ws(interface, "/run"))
        one, two = [stack.enter_context(ws(interface, "/room", query={"room": "r"})) for _ in range(2)]
        reader = Reader(stack.enter_context(RawClient(interface)))
        idle = stack.enter_context(RawClient(interface))
        received = []
        for release in (TODAY, last_release, TODAY):
            received.append(f"before move {len(received)}")
            run.send(received[-1])
            assert json.loads(run.recv(30))["received"] == received
            one.send("on its way")
            installation.install(release)
            in_place.move()
            name = RELEASE if release == TODAY else NAME
            wait_until(lambda name=name: releases(redis_url)[mailbox] == name, what=f"the release {name}")  # type: ignore[misc]
            assert one.recv(30) == two.recv(30) == "on its way"
            two.send("to the room")
            assert one.recv(30) == two.recv(30) == "to the room"
            assert idle.request("GET", "/bytes?size=10&room=r").body == bytes(10)
            count = len(reader.events) + 5
            reader.read_until(lambda events, least=count: len(events) >= least)
        run.send("last")
        known = json.loads(run.recv(30))
        assert (known["attempt"], known["received"]) == (1, [*received, "last"])
        numbers = [number for _, number in reader.events]
        assert numbers == list(range(1, len(numbers) + 1)), "every event once, in order"
    for process in (interface, worker, events):
        assert not TROUBLE.findall(process.whole_log()), process


def test_a_supervisor_of_the_last_release_moves_its_children_to_this_one(
    start_interface: Start, start_worker: Start, redis_url: str, installation: Installation, last_release: Path
) -> None:
    layer = ("--layer", redis_url)
    worker = start_worker(APP, *layer, "--resume")
    installation.install(last_release)
    interface = start_interface(*layer, "--processes", 2, "--no-access-log", env=installation.env)
    interface.wait_for("supervisor ready")
    with ws(interface, "/run") as run, ws(interface, "/room", query={"room": "r"}) as member:
        run.send("before")
        run.recv(30)
        installation.install(TODAY)
        os.kill(interface.pid, signal.SIGUSR2)
        interface.wait_for("all processes have moved")
        assert {*releases(redis_url).values()} == {RELEASE}
        run.send("after")
        known = json.loads(run.recv(30))
        assert (known["attempt"], known["received"]) == (1, ["before", "after"])
        member.send("still here")
        assert member.recv(30) == "still here"
    for process in (interface, worker):
        assert not TROUBLE.findall(process.whole_log()), process
