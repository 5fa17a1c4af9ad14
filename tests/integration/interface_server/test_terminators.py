"""A terminator of another package: the example of docs/terminators.md, installed as pip does."""

import os
import re
import socket
import threading
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from support.deadline import wait_until
from support.processes import APPS, Process
from support.raw import RawClient
from support.websocket import TEXT, RawWebSocket, frame

EXAMPLE = Path(__file__).parents[3] / "examples" / "lines"

Start = Callable[..., Process]
Install = Callable[..., dict[str, str]]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Provide a function that installs the example with `old` replaced by `new`, and returns the environment for it."""

    def install(old: str = "import asyncio", new: str = "import asyncio") -> dict[str, str]:
        site = tmp_path / "site"
        site.mkdir()
        for name in ("lines.py", "app.py"):
            (site / name).write_text((EXAMPLE / name).read_text().replace(old, new))
        project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
        info = site / "asgibus_lines-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n")
        points = [
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
            for group, entries in project["entry-points"].items()
        ]
        (info / "entry_points.txt").write_text("\n".join(points))
        inherited = os.environ.get("PYTHONPATH")
        paths = [str(site), str(APPS), *([inherited] if inherited else [])]
        return {"PYTHONPATH": os.pathsep.join(paths)}

    return install


@contextmanager
def client(server: Process) -> Iterator[socket.socket]:
    host, port = server.wait_for(r"listening on line://(\S+):(\d+)").groups()
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        yield connection


def read_lines(connection: socket.socket, count: int) -> list[bytes]:
    data = b""
    while data.count(b"\n") < count:
        received = connection.recv(65536)
        assert received, f"closed after {data[-200:]!r}"
        data += received
    return data.splitlines()


def start(layer: str, request: pytest.FixtureRequest, env: dict[str, str], *options: object) -> Process:
    interface, worker = (request.getfixturevalue(name) for name in ("start_interface", "start_worker"))
    options = ("--terminator", "lines=127.0.0.1:0", *options)
    if layer == "memory":
        started: Process = interface(*options, app="app:app", env=env)
    else:
        url = request.getfixturevalue("redis_url")
        worker("app:app", "--layer", url, "--protocol", "line", env=env)
        started = interface(*options, "--layer", url, env=env)
    return started


@pytest.mark.parametrize("layer", ["memory", pytest.param("redis", marks=pytest.mark.redis)])
def test_lines_are_echoed_and_an_empty_line_closes(
    request: pytest.FixtureRequest, install: Install, layer: str
) -> None:
    server = start(layer, request, install())
    with client(server) as first, client(server) as second:
        first.sendall(b"hel")
        second.sendall(b"first\nsecond\n")
        assert read_lines(second, 2) == [b"FIRST", b"SECOND"]
        first.sendall(b"lo\n")
        assert read_lines(first, 1) == [b"HELLO"]
        first.sendall(b"\n")
        assert first.recv(10) == b""
        second.sendall(b"third\n")
        assert read_lines(second, 1) == [b"THIRD"]


@pytest.mark.parametrize("layer", ["memory", pytest.param("redis", marks=pytest.mark.redis)])
def test_many_lines_keep_their_order(request: pytest.FixtureRequest, install: Install, layer: str) -> None:
    server = start(layer, request, install(), "--window", "4096")
    lines = [b"line %d %s" % (number, b"x" * (number % 500)) for number in range(5000)]
    with client(server) as connection:
        connection.setblocking(False)
        unsent, received = b"".join(line + b"\n" for line in lines), b""

        def is_complete() -> bool:
            nonlocal unsent, received
            with suppress(BlockingIOError):
                unsent = unsent[connection.send(unsent[:65536]) :]
            with suppress(BlockingIOError):
                received += connection.recv(65536)
            return received.count(b"\n") == len(lines)

        wait_until(is_complete, what="all lines")
        assert received.splitlines() == [line.upper() for line in lines]


def test_a_flood_delays_no_other_socket(start_interface: Start, install: Install) -> None:
    app = "interface_server.flood_app:app"
    server = start_interface("--terminator", "lines=127.0.0.1:0", app=app, env=install())
    with client(server) as flooding, RawWebSocket(server, "/echo") as watch, RawClient(server) as http:
        sender = threading.Thread(target=flooding.sendall, args=(b"a\n" * 100_000,))
        http.request("GET", "/longest")  # forgets what the start has taken
        sender.start()
        while sender.is_alive():
            watch.send(frame(TEXT, b"still there?"))
            assert watch.read_frame() == (TEXT, b"still there?")
            sender.join(0.002)
        longest = float(http.request("GET", "/longest").body)
    assert longest < 0.1, f"the loop was held for {longest:.3f} s of CPU time"


def test_a_killed_worker_closes_the_client(
    start_interface: Start, start_worker: Start, redis_url: str, install: Install
) -> None:
    env = install()
    workers = [start_worker("app:app", "--layer", redis_url, "--protocol", "line", env=env) for _ in range(2)]
    server = start_interface("--layer", redis_url, "--terminator", "lines=127.0.0.1:0", env=env)
    with client(server) as connection:
        connection.sendall(b"a\n")
        assert read_lines(connection, 1) == [b"A"]
        workers[0].kill()
        workers[1].terminate()
        connection.settimeout(15)
        assert connection.recv(10) == b""


def test_a_missing_worker_closes_the_client(start_interface: Start, redis_url: str, install: Install) -> None:
    server = start_interface(
        "--layer", redis_url, "--terminator", "lines=127.0.0.1:0", "--connect-timeout", "0.5", env=install()
    )
    with client(server) as connection:
        assert connection.recv(10) == b""


def test_a_stop_closes_the_clients(request: pytest.FixtureRequest, install: Install) -> None:
    server = start("memory", request, install())
    with client(server) as connection:
        connection.sendall(b"a\n")
        assert read_lines(connection, 1) == [b"A"]
        server.terminate()
        assert connection.recv(10) == b""
        assert server.wait() == 0


# Mistakes.

BREAK = """def data_received(self, data):
        if data == b"break\\n":
            {}
            return
"""


def break_at(install: Install, statement: str) -> dict[str, str]:
    """Install the example with a terminator that executes this code when a client sends "break"."""
    return install("def data_received(self, data):\n", BREAK.format(statement))


@pytest.mark.parametrize(
    "statement",
    [
        "self.deadline, self.expire = 0.0, lambda now: 1 / 0",
        "self.deadline, self.expire, self.abort = 0.0, lambda now: 1 / 0, lambda: 1 / 0",
    ],
)
def test_an_error_in_expire_ends_one_terminator(start_interface: Start, install: Install, statement: str) -> None:
    server = start_interface(
        *("--terminator", "lines=127.0.0.1:0", "--admin-port", 0),
        app="app:app",
        env=break_at(install, statement),
        allow_traceback=True,
    )
    with client(server) as other, client(server) as broken:
        broken.sendall(b"break\n")
        server.wait_for("a terminator failed, and its socket is aborted: lines.LineTerminator")
        if "abort" not in statement:
            assert broken.recv(10) == b""
        other.sendall(b"a\n")
        assert read_lines(other, 1) == [b"A"]
        admin = server.wait_for(r"admin port on (http://\S+)")[1]
        with urllib.request.urlopen(f"{admin}/metrics", timeout=30) as response:
            assert b'asgibus_events_total{kind="fault"} 1.0' in response.read()
    assert server.log().count("a terminator failed") == 1


def test_an_error_in_shut_down_ends_one_terminator(start_interface: Start, install: Install) -> None:
    env = break_at(install, "self.shut_down = lambda: 1 / 0")
    server = start_interface("--terminator", "lines=127.0.0.1:0", app="app:app", env=env, allow_traceback=True)
    with client(server) as broken, client(server) as other:
        broken.sendall(b"break\n")
        other.sendall(b"a\n")
        assert read_lines(other, 1) == [b"A"]
        server.terminate()
        assert broken.recv(10) == b""
        assert other.recv(10) == b""
        assert server.wait() == 0
    assert server.log().count("a terminator failed, and its socket is aborted: lines.LineTerminator") == 1
    assert "not done within" not in server.log()


def test_an_error_in_fail_ends_one_terminator(start_interface: Start, redis_url: str, install: Install) -> None:
    server = start_interface(
        *("--layer", redis_url, "--terminator", "lines=127.0.0.1:0", "--connect-timeout", "0.5"),
        env=install("def fail(self, status, close_code):\n", "def fail(self, status, close_code):\n        1 / 0\n"),
        allow_traceback=True,
    )
    with client(server) as first, client(server) as second:
        assert first.recv(10) == second.recv(10) == b""
        with RawClient(server) as http:
            assert http.request("GET", "/").status == 503
    assert server.log().count("a terminator failed, and its socket is aborted: lines.LineTerminator") == 2


def test_an_error_in_a_listener_stop_is_logged(start_interface: Start, install: Install) -> None:
    env = install("        self.server.close()", "        self.server.close()\n        1 / 0")
    server = start_interface("--terminator", "lines=127.0.0.1:0", app="app:app", env=env, allow_traceback=True)
    with client(server) as connection:
        connection.sendall(b"a\n")
        assert read_lines(connection, 1) == [b"A"]
        server.terminate()
        assert connection.recv(10) == b""
        assert server.wait() == 0
    server.wait_for("the listener for line failed as it was stopped")


def rejection_of(server: Process) -> str:
    assert server.wait() == 2
    (line,) = server.log().splitlines()
    return line


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("lines", "Error: --terminator lines: None is not of the form HOST:PORT"),
        ("lines=x", "Error: --terminator lines: 'x' is not of the form HOST:PORT"),
        ("line=127.0.0.1:0", "Error: --terminator: there is no terminator 'line'; installed: udp, lines"),
    ],
)
def test_an_invalid_option_value(start_interface: Start, install: Install, option: str, message: str) -> None:
    assert message in rejection_of(start_interface("--terminator", option, app="app:app", env=install(), ready=False))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("import asyncio", "import no_such_module", "cannot be loaded: ModuleNotFoundError: No module named"),
        ("class LineListener", "class Other", "cannot be loaded: AttributeError"),
        ('kind = "line"', 'kind = "http"', "'http' is not a protocol beside HTTP and WebSocket"),
        ('kind = "line"', 'kind = "A B"', "a protocol's name is"),
    ],
)
def test_a_broken_package(start_interface: Start, install: Install, old: str, new: str, message: str) -> None:
    env = install(old, new)
    server = start_interface("--terminator", "lines=127.0.0.1:0", app="app:app", env=env, ready=False)
    assert message in rejection_of(server)


def test_a_port_in_use(start_interface: Start, install: Install) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = start_interface("--terminator", f"lines=127.0.0.1:{port}", app="app:app", env=install(), ready=False)
        assert server.wait() == 1
    assert re.search(r"cannot listen for line: .*[Aa]ddress already in use", server.log())
    assert "Traceback" not in server.log()
