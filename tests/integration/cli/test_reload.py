"""`--reload`: the process is replaced when a file of its app changes, and sockets survive."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from asgibus.cli.reload import WatchedFiles
from support.deadline import wait_until
from support.processes import Process
from support.raw import RawClient
from support.websocket import ws

Start = Callable[..., Process]

APP = """
import os

GREETING = "{greeting}"


async def app(scope, receive, send):
    assert scope["type"] in ("http", "websocket")
    if scope["type"] == "websocket":
        await receive()
        await send({{"type": "websocket.accept"}})
        while (event := await receive())["type"] == "websocket.receive":
            await send({{"type": "websocket.send", "text": GREETING + event["text"]}})
        return
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": f"{{GREETING}} {{os.environ.get('NAME')}}".encode()}})
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Provide the module of the app, in a folder of its own without the logs of the processes."""
    folder = tmp_path / "project"
    folder.mkdir()
    path = folder / "reloaded_app.py"
    write(path, "one")
    return path


def write(path: Path, greeting: str) -> None:
    path.write_text(APP.format(greeting=greeting))


def write_in_the_same_second(path: Path, greeting: str) -> None:
    """Change a module within a second: by time and size, the earlier compiled form would still be valid."""
    before = path.stat()
    content = APP.format(greeting=greeting)
    assert len(content) == before.st_size
    copy = path.with_suffix(".new")
    copy.write_text(content)
    os.utime(copy, (before.st_mtime, before.st_mtime))
    copy.rename(path)


def answer(server: Process) -> str:
    with RawClient(server) as client:
        return client.request("GET", "/", "Connection: close").text


def ready(process: Process) -> int:
    return len(re.findall(r"worker ready|interface server ready", process.log()))


@pytest.fixture
def worker(redis_url: str, start_worker: Start, source: Path) -> Process:
    app_dir = ["--app-dir", str(source.parent)]
    worker = start_worker("reloaded_app:app", "--layer", redis_url, "--reload", "--resume", *app_dir)
    worker.wait_for("supervisor ready: 1 processes")
    return worker


@pytest.fixture
def interface(redis_url: str, start_interface: Start) -> Process:
    return start_interface("--layer", redis_url)


def test_a_socket_survives_changes_of_the_app(worker: Process, interface: Process, source: Path) -> None:
    with ws(interface, "/") as socket:
        for greeting in ("one", "two", "three"):
            write(source, greeting)
            wait_until(lambda greeting=greeting: answer(interface) == f"{greeting} None")

            def ask() -> str:
                socket.send("!")
                return str(socket.recv(5))

            wait_until(lambda greeting=greeting: ask() == f"{greeting}!")
    assert "reloaded_app.py changed: reloading" in worker.log()
    wait_until(lambda: len(worker.children()) == 1)


def test_invalid_code_keeps_the_old_process(worker: Process, interface: Process, source: Path) -> None:
    source.write_text("def app(:")
    worker.wait_for(r"failed to start: the app 'reloaded_app:app' cannot be loaded: SyntaxError: .*: the old")
    assert answer(interface) == "one None"
    write(source, "mended")
    wait_until(lambda: answer(interface) == "mended None")


def test_a_failed_start_waits_for_a_change(
    redis_url: str, start_worker: Start, interface: Process, source: Path
) -> None:
    source.write_text("1 / 0")
    options = ["--layer", redis_url, "--reload", "--app-dir", str(source.parent)]
    worker = start_worker("reloaded_app:app", *options, ready=False, allow_traceback=True)
    worker.wait_for("ZeroDivisionError: division by zero .*: waiting for a change")
    write(source, "mended")
    worker.wait_for("worker ready")
    assert answer(interface) == "mended None"


def test_an_unready_process_is_replaced(redis_url: str, start_worker: Start, interface: Process, source: Path) -> None:
    source.write_text("import time\nprint('busy', flush=True)\ntime.sleep(1000)\n")
    app_dir = ["--app-dir", str(source.parent)]
    worker = start_worker("reloaded_app:app", "--layer", redis_url, "--reload", *app_dir, ready=False)
    worker.wait_for("busy")
    write(source, "mended")
    worker.wait_for("worker ready")
    source.write_text("import time\nprint('busy again', flush=True)\ntime.sleep(1000)\n")
    worker.wait_for("busy again")
    write(source, "once more")
    wait_until(lambda: answer(interface) == "once more None")
    wait_until(lambda: len(worker.children()) == 1)


def test_only_selected_files_are_watched(redis_url: str, start_worker: Start, source: Path, tmp_path: Path) -> None:
    templates = tmp_path / "templates"
    for folder in (templates, *(source.parent / name for name in ("build", "__pycache__", "sub"))):
        folder.mkdir()
    watched = ["--reload-dir", source.parent, "--reload-dir", templates, "--reload-include", "*.html"]
    unwatched = ["--reload-exclude", "test_*", "--reload-exclude", "build"]
    env = {"ASGIBUS_APP_DIR": source.parent}
    worker = start_worker("reloaded_app:app", "--layer", redis_url, "--reload", *watched, *unwatched, env=env)
    worker.wait_for("supervisor ready")
    for name in ("notes.txt", "test_app.py", ".hidden.py", "build/made.py", "__pycache__/x.py", "sub/found.py"):
        (source.parent / name).write_text("")
    worker.wait_for(r" sub/found\.py changed: reloading")
    (templates / "page.html").write_text("")
    worker.wait_for(r" page\.html changed: reloading")
    assert len(re.findall("changed: reloading", worker.log())) == 2
    wait_until(lambda: ready(worker) >= 2)


def test_an_embedded_app_is_reloaded(start_interface: Start, source: Path) -> None:
    server = start_interface("--reload", "--app-dir", source.parent, app="reloaded_app:app")
    assert answer(server) == "one None"
    write(source, "two")
    wait_until(lambda: answer(server) == "two None")
    assert server.log().count("listening on") == 1


def test_a_change_within_the_same_second_is_seen(start_interface: Start, source: Path) -> None:
    env = {"PYTHONDONTWRITEBYTECODE": ""}
    server = start_interface("--reload", "--app-dir", source.parent, app="reloaded_app:app", env=env)
    assert answer(server) == "one None"
    assert list(source.parent.glob("__pycache__/reloaded_app.*.pyc"))
    for greeting in ("two", "six"):
        write_in_the_same_second(source, greeting)
        wait_until(lambda greeting=greeting: answer(server) == f"{greeting} None", what="the new answer")


def test_sighup_reads_the_env_file_again(
    redis_url: str, start_worker: Start, interface: Process, source: Path, tmp_path: Path
) -> None:
    env_file = tmp_path / "env"
    env_file.write_text("NAME=first\n")
    options = ["--layer", redis_url, "--processes", "1", "--reload", "--env-file", str(env_file)]
    worker = start_worker("reloaded_app:app", *options, "--app-dir", source.parent)
    worker.wait_for("supervisor ready")
    assert answer(interface) == "one first"
    env_file.write_text("NAME=second\n")
    os.kill(worker.pid, signal.SIGHUP)
    worker.wait_for("all processes are replaced")
    assert answer(interface) == "one second"


def test_ctrl_c_ends_a_watching_supervisor(worker: Process) -> None:
    worker.interrupt()
    assert worker.wait(4) == 0


def test_watched_and_unwatched_paths(tmp_path: Path) -> None:
    """Patterns apply to paths relative to the watched folder, wherever the folder is."""
    folder = tmp_path / ".hidden" / "node_modules"
    sources = WatchedFiles([str(folder), str(folder / "sub")], ["*.html", "static/*"], ["old", "sub/b*.py"])
    for name in ("a.py", "sub/a.py", "page.html", "static/style.css"):
        assert str(folder / name) in sources, name
    for name in ("a.txt", ".git/a.py", "old/a.py", "sub/__pycache__/a.py", "a.pyc", "node_modules/a.py"):
        assert str(folder / name) not in sources, name
    assert str(tmp_path / "a.py") not in sources
