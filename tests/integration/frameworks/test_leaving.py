"""Ends of apps, as on uvicorn: after a disconnect, after the last event, and while the server stops.

Each case runs one app on both servers, and compares the notes of the app on the end of its work and its clean-up.
 The log must be clean, unless the app itself did something wrong.
"""

import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from support.deadline import wait_until
from support.processes import Process, Processes
from support.raw import RawClient
from support.websocket import ws

UVICORN_READY = r"Uvicorn running on (http://\S+)"
COMPLAINT = re.compile(
    r"^.*\b(?:WARNING|ERROR|CRITICAL)\b.*|^(?:\w+\.)*\w*(?:Error|Exception|Disconnect(?:ed)?)\b.*", re.MULTILINE
)


@dataclass(frozen=True)
class Program:
    """An app, and its paths of each kind."""

    app: str
    works: tuple[str, ...] = ("job",)
    uploads: tuple[str, ...] = ("upload",)
    streams: tuple[str, ...] = ("stream",)
    sockets: tuple[str, ...] = ("socket",)
    listeners: tuple[str, ...] = ()
    interface: str = "asgi3"


PROGRAMS = {
    "asgi": Program("asgi_app:app"),
    "starlette": Program("starlette_app:app"),
    "starlette-middleware": Program("starlette_app:within"),
    "fastapi": Program("fastapi_app:app", uploads=("upload", "file")),
    "django": Program("django_app:http", works=("job", "thread"), sockets=()),
    "channels": Program("django_app:app", works=(), uploads=(), streams=(), sockets=("socket", "socket-in-thread")),
    "quart": Program("quart_app:app"),
    "litestar": Program("litestar_app:app", listeners=("listener",)),
    "flask": Program("flask_app:app", sockets=(), interface="wsgi"),
}


IN_DEPTH = ("asgi", "channels", "flask")
"""Programs that run by default; `--long` runs the others, too."""

EACH_PROGRAM = [pytest.param(name, marks=[] if name in IN_DEPTH else pytest.mark.long) for name in PROGRAMS]


@dataclass
class Server:
    """One program on one server. `worker` is the process with the app."""

    listener: Process
    worker: Process
    names: Iterator[str] = field(default_factory=lambda: iter(f"case{number}" for number in range(1000)))

    @property
    def folder(self) -> Path:
        return self.worker.log_path.parent

    def notes(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def wait_for_note(self, name: str, text: str) -> None:
        wait_until(lambda: text in self.notes(name), what=f"a note {text!r} of {name}")

    def release(self, name: str) -> None:
        (self.folder / f"{name}.released").touch()

    def settle(self) -> None:
        """Make a request: after its round trip, all earlier events have arrived."""
        for _ in range(2):
            with RawClient(self.listener) as client:
                assert client.request("GET", "/ready").status == 200


def start(processes: Processes, program: Program, setup: str, redis_url: str = "") -> Server:
    app = f"frameworks.leaving.{program.app}"
    if setup == "uvicorn":
        command = [sys.executable, "-m", "uvicorn", app, "--port", "0", "--interface", program.interface]
        process = processes.start(
            "uvicorn", [*command, "--timeout-graceful-shutdown", "3"], ready=UVICORN_READY, allow_traceback=True
        )
        process.url = process.wait_for(UVICORN_READY)[1]
        return Server(process, process)
    if setup == "embedded":
        process = processes.start_interface("--interface", program.interface, app=app, allow_traceback=True)
        return Server(process, process)
    bus = ("--layer", redis_url)
    worker = processes.start_worker(
        app, *bus, "--interface", program.interface, "--drain-period", "0.2", allow_traceback=True
    )
    return Server(processes.start_interface(*bus), worker)


# Cases: each takes a server, a path and the way in which the client leaves, and returns the name of the app's notes.


def leave_work(server: Server, path: str, leave: str) -> str:
    """Leave while the app works on the answer."""
    name = next(server.names)
    client = RawClient(server.listener)
    client.send(f"POST /{path}/{name} HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nab".encode())
    server.wait_for_note(name, "begun")
    client.reset() if leave == "breaks" else client.close()
    server.settle()
    server.release(name)
    server.wait_for_note(name, "cleaned up")
    return name


def leave_upload(server: Server, path: str, leave: str) -> str:
    """Leave in the middle of an upload."""
    name = next(server.names)
    client = RawClient(server.listener)
    head = f"POST /{path}/{name} HTTP/1.1\r\nHost: test\r\nContent-Length: 100000\r\n"
    form = 'Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\nContent-Disposition: form-data; name="file"; '
    client.send(f'{head}{form}filename="a"\r\n\r\nabc'.encode())
    server.settle()
    started = "begun" in server.notes(name)
    client.reset() if leave == "breaks" else client.close()
    if started:
        server.wait_for_note(name, "cleaned up")
    return name


def leave_stream(server: Server, path: str, leave: str) -> str:
    """Leave in the middle of a stream."""
    name = next(server.names)
    client = RawClient(server.listener)
    client.send(f"GET /{path}/{name} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    client.read_until(b"part")
    client.reset() if leave == "breaks" else client.close()
    server.wait_for_note(name, "cleaned up")
    return name


def leave_socket(server: Server, path: str, leave: str) -> str:
    """Leave while the app waits for messages."""
    name = next(server.names)
    with ws(server.listener, f"/{path}/{name}") as socket:
        socket.send("x")
        server.wait_for_note(name, "begun")
        server.settle()
        if leave == "breaks":
            socket.socket.shutdown(2)
        else:
            socket.close(4005)
    server.wait_for_note(name, "cleaned up")
    return name


def send_late(server: Server, path: str, leave: str) -> str:
    """Leave while the app works on a message, which the app answers afterwards."""
    name = next(server.names)
    with ws(server.listener, f"/{path}/{name}") as socket:
        socket.send("late")
        server.wait_for_note(name, "begun")
        server.settle()
        if leave == "breaks":
            socket.socket.shutdown(2)
    server.settle()
    server.release(name)
    server.wait_for_note(name, "cleaned up")
    return name


def send_behind_its_close(server: Server, path: str, leave: str) -> str:
    """Let the app send after its own close of a WebSocket, which is an error of the app."""
    name = next(server.names)
    with ws(server.listener, f"/{path}/{name}") as socket:
        socket.send("close")
        with pytest.raises(ConnectionClosed):
            socket.recv(30)
        assert socket.close_code == 4001
    server.wait_for_note(name, "cleaned up")
    return name


Case = Callable[[Server, str, str], str]
CASES: dict[str, tuple[Case, tuple[str, ...], tuple[str, ...]]] = {
    "work": (leave_work, ("works",), ("breaks", "closes")),
    "upload": (leave_upload, ("uploads",), ("breaks", "closes")),
    "stream": (leave_stream, ("streams",), ("breaks", "closes")),
    "socket": (leave_socket, ("sockets", "listeners"), ("breaks", "closes")),
    "late": (send_late, ("sockets", "listeners"), ("breaks", "closes")),
    "behind its close": (send_behind_its_close, ("sockets",), ("",)),
}
"""Cases by name: the function, its kinds of paths, and the ways in which the client leaves."""

FRAMEWORKS_OWN = {
    ("litestar", "late"),
    ("litestar", "upload"),
    *((program, "behind its close") for program in PROGRAMS),
}
"""Cases with errors in the log of both servers: Litestar logs every exception, and a send after a close is wrong."""


def explained(program: str, case: str, leave: str, ours: list[str], theirs: list[str]) -> bool:
    """Return whether the app notes the same on both servers, or the difference has a reason."""
    seen = theirs
    if program == "channels":
        # As on daphne, a message to a client that is gone is no error, and so the consumer gets its disconnect.
        theirs = [note.replace("OSError", "done") for note in theirs]
        if case == "late" and (end := [note for note in ours if note.startswith("disconnected")]):
            theirs += [*end, "begun", "done", "cleaned up"]
    if ours == theirs:
        return True
    if case == "socket" and leave == "breaks":
        # A broken connection has the code 1006, RFC 6455 section 7.1.5; uvicorn reports 1005. On the bus, the
        # close of an ended connection is no error.
        theirs = [note.replace("1005", "1006") for note in theirs]
        return ours == ([note.replace("OSError", "done") for note in theirs] if program == "asgi" else theirs)
    if case == "stream" and program in {"asgi", "flask"}:
        # These apps do not check for a disconnect. On the bus their `send` raises; on uvicorn it never does.
        ended = "OSError" if program == "asgi" else "GeneratorExit"
        return [note.replace(ended, "done") for note in ours] == theirs
    if case == "upload" and program == "flask":
        return ours == []  # a thread is given to whole requests only
    if case == "behind its close":
        # The error depends on whether the client has answered the close by then.
        return [note.replace("OSError", "RuntimeError") for note in ours] == [
            note.replace("OSError", "RuntimeError") for note in seen
        ]
    return False


@pytest.fixture(scope="module", params=EACH_PROGRAM)
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """Provide one program on both servers."""
    all_processes = {setup: Processes(tmp_path_factory.mktemp(setup)) for setup in ("embedded", "uvicorn")}
    try:
        yield {setup: start(processes, PROGRAMS[request.param], setup) for setup, processes in all_processes.items()}
    finally:
        faults = [fault for processes in all_processes.values() for fault in processes.end()]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("case", CASES)
def test_an_app_ends_as_on_uvicorn(servers: dict[str, Server], case: str, request: pytest.FixtureRequest) -> None:
    program = request.node.callspec.params["servers"]
    play, kinds, ways = CASES[case]
    for path in [path for kind in kinds for path in getattr(PROGRAMS[program], kind)]:
        for leave in ways:
            names = {}
            for setup, server in servers.items():
                server.worker.mark()
                names[setup] = play(server, path, leave)
                server.settle()

            def outcomes() -> tuple[list[str], list[str]]:
                ours, theirs = (servers[setup].notes(name) for setup, name in names.items())  # noqa: B023 -- called here
                return ours, theirs

            with suppress(AssertionError):  # the last note may come a moment later
                wait_until(lambda: explained(program, case, leave, *outcomes()), 5)  # noqa: B023 -- called here
            assert explained(program, case, leave, *outcomes()), (path, leave, *outcomes())
            complaints = COMPLAINT.findall(servers["embedded"].worker.log())
            assert not complaints or (program, case) in FRAMEWORKS_OWN, (path, leave, complaints)


def stop(server: Server, program: Program, streams: tuple[str, ...]) -> list[list[str]]:
    """Stop a server while its app works, streams and holds sockets; return the notes of the app on work and sockets."""
    works, listened, sockets = (
        [(path, next(server.names)) for path in paths] for paths in (program.works, streams, program.sockets)
    )
    with ExitStack() as stack:
        answers, listening, clients = [], [], []
        for path, name in works:
            client = stack.enter_context(RawClient(server.listener))
            client.send(f"POST /{path}/{name} HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nab".encode())
            answers.append(client)
            server.wait_for_note(name, "begun")
        for path, name in listened:
            client = stack.enter_context(RawClient(server.listener))
            client.send(f"GET /{path}/{name} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            client.read_until(b"part\n\n\r\n")
            listening.append(client)
        for path, name in sockets:
            clients.append(stack.enter_context(ws(server.listener, f"/{path}/{name}")))
            clients[-1].send("x")
            server.settle()
        server.worker.terminate()
        for _, name in (*listened, *sockets):
            server.wait_for_note(name, "cleaned up")
        for (_, name), client in zip(listened, listening, strict=True):
            assert "done" not in server.notes(name)
            while client.read_chunk():  # up to the end in good order
                pass
        for client in clients:
            with pytest.raises(ConnectionClosed):
                client.recv(30)
            assert client.close_code == 1012
        for (_, name), client in zip(works, answers, strict=True):
            server.release(name)
            assert client.read_response().body == b"worked"
            server.wait_for_note(name, "done")
    assert server.worker.wait() in (0, -signal.SIGTERM)  # uvicorn raises the signal again at its end
    return [server.notes(name) for _, name in (*works, *sockets)]


@pytest.mark.redis
@pytest.mark.parametrize("name_of_program", EACH_PROGRAM)
def test_a_stop_of_a_worker_ends_its_apps_in_order(
    name_of_program: str, processes: Processes, tmp_path_factory: pytest.TempPathFactory, redis_url: str
) -> None:
    """Running requests are answered, sockets and streams get a disconnect, and no error is logged.

    Uvicorn does the same for requests and sockets, but cuts streams off after a timeout, with an error in the log.
    """
    program = PROGRAMS[name_of_program]
    server = start(processes, program, "redis", redis_url)
    ours = stop(server, program, program.streams)
    assert server.worker.returncode == 0
    assert COMPLAINT.findall(server.worker.log()) == []
    beside = Processes(tmp_path_factory.mktemp("uvicorn"))
    try:
        theirs = stop(start(beside, program, "uvicorn"), program, ())
    finally:
        beside.end()
    assert all(explained(name_of_program, "stop", "", *pair) for pair in zip(ours, theirs, strict=True)), (ours, theirs)
