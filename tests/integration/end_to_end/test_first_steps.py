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


def test_the_chat_in_one_process(start_interface: Start) -> None:
    server = start_interface("--app-dir", EXAMPLE, app="chat:app")
    with RawClient(server) as client:
        assert b"new WebSocket" in client.request("GET").body
    with ws(server, "/ws") as first, ws(server, "/ws") as second:
        first.send("hello")
        assert [first.recv(timeout=30), second.recv(timeout=30)] == ["1: hello (run 1)"] * 2
        server.interrupt()
        with pytest.raises(ConnectionClosed):
            first.recv(timeout=30)
    assert first.close_code == 1012
    assert server.wait() == 0


def test_the_chat_survives_kills_and_a_deploy(start_interface: Start, start_worker: Start, redis_url: str) -> None:
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
        # "hello" is repeated if its workers were killed before the acknowledgement.
        reply = str(socket.recv(timeout=15))
        while "hello" in reply:
            reply = str(socket.recv(timeout=15))
        assert re.fullmatch(r"[23]: still there\? \(run [23]\)", reply)

        workers.send_signal(signal.SIGHUP)
        workers.wait_for("all processes are replaced")
        socket.send("and now?")
        assert re.match(r"[34]: and now\? \(run ", str(socket.recv(timeout=30)))
