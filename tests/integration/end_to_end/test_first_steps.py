"""Chat of the page "First steps": one process, killed workers, and a deploy."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from support.processes import Process
from support.raw import RawClient
from support.websocket import ws

EXAMPLE = Path(__file__).parents[3] / "examples" / "first_steps"

Start = Callable[..., Process]


def test_in_one_process(start_interface: Start) -> None:
    server = start_interface("--app-dir", EXAMPLE, app="chat:app")
    with RawClient(server) as client:
        assert b"new WebSocket" in client.request("GET").body
    with ws(server, "/ws") as one, ws(server, "/ws") as two:
        one.send("hello")
        assert [one.recv(timeout=30), two.recv(timeout=30)] == ["1: hello (run 1)"] * 2
        server.interrupt()
        with pytest.raises(ConnectionClosed):
            one.recv(timeout=30)
    assert one.close_code == 1012
    assert server.wait() == 0


def test_workers_are_killed_and_deployed(start_interface: Start, start_worker: Start, redis_url: str) -> None:
    server = start_interface("--layer", redis_url)
    workers = start_worker(
        *("chat:app", "--app-dir", EXAMPLE, "--layer", redis_url, "--resume", "--processes", 2), ready=False
    )
    pids = workers.wait_for(r"supervisor ready: 2 processes \((\d+), (\d+)\)").groups()
    with ws(server, "/ws") as socket:
        socket.send("hello")
        assert socket.recv(timeout=30) == "1: hello (run 1)"

        for pid in pids:
            os.kill(int(pid), signal.SIGKILL)
        workers.wait_for("was killed by SIGKILL: starting another")
        socket.send("still there?")
        # "hello" comes again if its workers were killed before they acknowledged it.
        heard = str(socket.recv(timeout=15))
        while "hello" in heard:
            heard = str(socket.recv(timeout=15))
        assert re.fullmatch(r"[23]: still there\? \(run [23]\)", heard)

        workers.send_signal(signal.SIGHUP)
        workers.wait_for("all processes are replaced")
        socket.send("and now?")
        assert re.match(r"[34]: and now\? \(run ", str(socket.recv(timeout=30)))
