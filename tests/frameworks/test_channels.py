"""The layers in a project with Channels 4, in the place of its own."""

import json
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection

from support import redis as redis_support
from support.processes import Process, Processes
from support.websocket import ws

PROJECT = "end_to_end.channels_project"
APP = f"{PROJECT}.asgi:app"
LAYERS = ["memory", pytest.param("redis", marks=pytest.mark.redis)]

Environment = Callable[[str], dict[str, Any]]


@pytest.fixture
def environment(request: pytest.FixtureRequest, processes: Processes, tmp_path: Path) -> Environment:
    """Of a project with a new database and this kind of layer."""

    def environment(layer: str) -> dict[str, Any]:
        env = {"CHAT_DATABASE": tmp_path / "chat.sqlite3", "DJANGO_SETTINGS_MODULE": f"{PROJECT}.settings"}
        if layer == "redis":
            env["CHAT_REDIS"] = request.getfixturevalue("redis_url")
        migrate = [sys.executable, "-m", "django", "migrate", "--run-syncdb", "--verbosity", "0"]
        assert processes.start("migrate", migrate, ready=None, env=env).wait(30) == 0
        return env

    return environment


def start_uvicorn(processes: Processes, env: dict[str, Any]) -> Process:
    command = [sys.executable, "-m", "uvicorn", APP, "--port", "0", "--lifespan", "off"]
    server = processes.start("uvicorn", command, ready="Uvicorn running on", env=env)
    server.url = server.wait_for(r"Uvicorn running on (http://\S+)")[1]
    return server


def said(client: ClientConnection) -> Any:
    return json.loads(client.recv(timeout=5))


def chat(one: Process, other: Process) -> None:
    """Clients of both servers in one room, and a view of each that speaks to them."""
    with ws(one, "/chat/red") as first, ws(other, "/chat/red") as second, ws(one, "/chat/blue") as elsewhere:
        for client in (first, second, elsewhere):
            assert said(client) == {"earlier": []}
        first.send("hello")
        assert (said(first), said(second)) == ({"line": "hello"}, {"line": "hello"})
        second.send(b"\x00\xff")
        assert first.recv(timeout=5) == second.recv(timeout=5) == b"\x00\xff"
        for server in (one, other):
            assert get(server, "/announce/red/20").text == "announced"
            expected = [{"line": f"announcement {number}"} for number in range(20)]
            assert [said(first) for _ in range(20)] == expected
            assert [said(second) for _ in range(20)] == expected
        with ws(other, "/chat/red") as late:
            assert said(late) == {"earlier": ["hello"]}
        elsewhere.send("only here")
        assert said(elsewhere) == {"line": "only here"}
        elsewhere.send("fill")
        assert said(elsewhere) == {"sent": 3}
    filled = get(one, "/fill").json()
    assert filled == {"sent": 3, "error": "channel 'small.of-the-view' is at its capacity of 3 messages"}
    assert get(one, "/bad-name").text.startswith("channel names are 1 to 100 ASCII letters, digits, '.', '-' or '_'")


def get(server: Process, path: str) -> httpx.Response:
    return httpx.get(server.url + path, trust_env=False, timeout=10)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_project_s_own_tests(layer: str, environment: Environment, processes: Processes) -> None:
    command = [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-m", f"{PROJECT}.own_tests"]
    own = processes.start("tests", command, ready="all is well", env=environment(layer))
    assert own.wait() == 0
    assert "Warning" not in own.log()


def test_on_uvicorn_in_one_process(environment: Environment, processes: Processes) -> None:
    server = start_uvicorn(processes, environment("memory"))
    chat(server, server)


@pytest.mark.redis
def test_on_uvicorn_in_two_processes(environment: Environment, processes: Processes, tmp_path: Path) -> None:
    env = environment("redis")
    chat(start_uvicorn(processes, env), start_uvicorn(processes, env))
    with closing(sqlite3.connect(tmp_path / "chat.sqlite3")) as database:
        assert database.execute("select room, text from channels_project_line").fetchall() == [
            ("red", "hello"),
            ("blue", "only here"),
        ]


def test_on_the_bus_in_one_process(environment: Environment, processes: Processes) -> None:
    server = processes.start_interface(app=APP, env=environment("memory"))
    chat(server, server)


@pytest.mark.redis
def test_on_the_bus_in_two_processes(environment: Environment, processes: Processes, redis_url: str) -> None:
    """The servers and the project use one Redis, each under a prefix of its own."""
    env = environment("redis")
    redis_support.empty(redis_url)
    workers = [processes.start_worker(APP, "--layer", redis_url, env=env) for _ in range(2)]
    server = processes.start_interface("--layer", redis_url)
    chat(server, server)
    assert all(worker.running for worker in workers)
