"""Start of the two commands, and the error line of a failed start."""

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from support.processes import Process
from support.redis import RedisServer

APP = "cli.simple_app:app"
SECRET = "s3cret"
Start = Callable[..., Process]
StartRedis = Callable[..., RedisServer]


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def refusal(process: Process, code: int = 1, *, trace: bool = False) -> str:
    """Return the error line of a process that ended, after a traceback if one is expected."""
    assert process.wait() == code, process.log()
    *above, line = [line for line in process.log().splitlines() if "INFO" not in line]
    assert bool(above) == trace, process.log()
    assert line.startswith("Error: ")
    assert SECRET not in line
    return line


def test_ready_lines_show_the_settings_without_secrets(
    start_redis: StartRedis, start_interface: Start, start_worker: Start
) -> None:
    server = start_redis("--requirepass", SECRET)
    url = f"redis://:{SECRET}@127.0.0.1:{server.port}/1"
    worker = start_worker(APP, "--layer", url, "--pool", "blue", "--concurrency", 5)
    interface = start_interface(env={"ASGIBUS_LAYER": url, "ASGIBUS_POOL": "blue"})
    shown = re.escape(f"redis://127.0.0.1:{server.port}/1")
    worker.wait_for(rf"INFO +worker ready: app {APP}, layer {shown}, pool blue, up to 5 connections")
    interface.wait_for(rf"INFO +listening on {interface.url} \(layer {shown}, pool blue, app in the workers\)")
    assert SECRET not in worker.log() + interface.log()


@pytest.mark.usefixtures("short_leases")
def test_processes_log_their_mailboxes(redis_url: str, start_interface: Start, start_worker: Start) -> None:
    interface = start_interface("--layer", redis_url)
    name = interface.wait_for(r"listening on .*, mailbox (interface\.\w+!)\n")[1]
    worker = start_worker(APP, "--layer", redis_url)
    mailbox = worker.wait_for(r"worker ready: .*, mailbox (worker\.\w+!)\n")[1]
    worker.kill()
    interface.wait_for(f"{mailbox} (was declared dead|has died)")
    other = start_worker(APP, "--layer", redis_url)
    interface.kill()
    other.wait_for(f"{name} (was declared dead|has died)")


def test_the_ready_line_with_an_embedded_worker(start_interface: Start) -> None:
    interface = start_interface(app=APP)
    interface.wait_for(rf"listening on {interface.url} \(layer memory://, pool default, app {APP}\)")


def test_a_unix_socket(start_interface: Start, tmp_path: Path) -> None:
    interface = start_interface("--uds", tmp_path / "http.sock", app=APP)
    assert interface.uds == str(tmp_path / "http.sock")
    second = start_interface("--uds", tmp_path / "http.sock", app=APP, ready=False)
    assert refusal(second) == f"Error: cannot listen on {tmp_path}/http.sock: Address already in use"


def test_a_quiet_log(start_interface: Start, free_port: int) -> None:
    """Errors are logged at every level, other lines at the level asked for."""
    process = start_interface("--log-level", "error", "--port", "70000", app=APP, ready=False)
    assert process.wait() == 2
    process = start_interface("--log-level", "critical", "--layer", f"redis://127.0.0.1:{free_port}", ready=False)
    refusal(process)


@pytest.mark.parametrize(
    ("app", "message"),
    [
        ("cli.no_such_app:app", "there is no module 'cli.no_such_app'"),
        ("cli.simple_app:nothing", "has no attribute 'nothing'"),
        ("cli.simple_app:not_an_app", "is of type int, not an app"),
    ],
)
def test_a_missing_app(start_interface: Start, start_worker: Start, app: str, message: str) -> None:
    processes = [start_worker(app, ready=False), start_interface(app=app, ready=False)]
    assert all(message in refusal(process) for process in processes)


SYNTAX_ERROR = "def app(:\n"
BROKEN = {
    SYNTAX_ERROR: "SyntaxError: invalid syntax (MODULE, line 1)",
    "import os\nos.environ['MY_SECRET']\n": "KeyError: 'MY_SECRET' (MODULE, line 2)",
    "import no_such_module.part\n": "ModuleNotFoundError: No module named 'no_such_module' (MODULE, line 1)",
    "raise ValueError('first line\\nsecond line')\n": "ValueError: first line second line (MODULE, line 1)",
}


@pytest.mark.parametrize(
    ("source", "outer", "command"),
    [
        *((source, False, "worker") for source in BROKEN),
        (SYNTAX_ERROR, True, "worker"),
        (SYNTAX_ERROR, True, "interface"),
    ],
)
def test_a_failed_import_shows_the_traceback_of_the_app(
    start_interface: Start, start_worker: Start, tmp_path: Path, source: str, outer: bool, command: str
) -> None:
    """The traceback begins in the module of the app; `outer`: the error is in a module that the app imports."""
    (tmp_path / "broken.py").write_text(source)
    (tmp_path / "outer.py").write_text("import broken\n")
    name = "outer:app" if outer else "broken:app"
    options = {"ready": False, "allow_traceback": True}
    process = start_worker(name, **options) if command == "worker" else start_interface(app=name, **options)
    message = BROKEN[source].replace("MODULE", str(tmp_path / "broken.py"))
    assert refusal(process, trace=True) == f"Error: the app '{name}' cannot be loaded: {message}"
    files = re.findall(r'  File "(.*?)", line \d+', process.log())
    assert files[0] == str(tmp_path / ("outer.py" if outer else "broken.py"))
    assert source.splitlines()[-1] in process.log()
    assert "asgibus" not in process.log().partition("Error: the app")[0]
    assert "importlib" not in process.log()


def test_a_failed_import_under_a_supervisor_shows_the_traceback(start_interface: Start, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import os\nos.environ['MY_SECRET']\n")
    process = start_interface("--reload", app="broken:app", ready=False, allow_traceback=True)
    process.wait_for("failed to start: the app 'broken:app' cannot be loaded: KeyError: 'MY_SECRET'")
    assert f'  File "{tmp_path}/broken.py", line 2, in <module>\n' in process.log()
    process.interrupt()


def test_a_factory_and_its_folder(start_interface: Start, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "site_app.py").write_text("from cli.simple_app import make\n")
    start_interface("--factory", "--app-dir", "sub", app="site_app:make")


def test_a_failed_start_up(start_redis: StartRedis, start_interface: Start, start_worker: Start) -> None:
    app = "cli.simple_app:start_up_fails"
    for process in (
        start_worker(app, "--layer", start_redis().url, ready=False),
        start_interface(app=app, ready=False),
    ):
        assert refusal(process) == "Error: the app's start-up failed: no database"
        assert "listening" not in process.log()


def test_the_lifespan_modes(start_interface: Start, tmp_path: Path) -> None:
    app = "cli.simple_app:no_lifespan"
    start_interface(app=app)
    process = start_interface("--lifespan", "on", app=app, ready=False, allow_traceback=True)
    assert re.fullmatch(
        r"Error: the app's start-up failed: ValueError: only http here \(\S+/simple_app.py, line \d+\)",
        refusal(process, trace=True),
    )
    start_interface("--lifespan", "off", app="cli.simple_app:start_up_fails")
    process = start_interface("--lifespan", "on", app=APP)
    process.terminate()
    assert process.wait() == 0
    assert (tmp_path / "shut-down").exists()


def test_a_missing_redis(start_interface: Start, start_worker: Start, free_port: int) -> None:
    url = f"redis://:{SECRET}@127.0.0.1:{free_port}"
    for process in (start_worker(APP, "--layer", url, ready=False), start_interface("--layer", url, ready=False)):
        expected = (
            f"Error: Redis at redis://127.0.0.1:{free_port} cannot be used: Connection refused (--layer names another"
        )
        assert refusal(process).startswith(expected)


def test_a_wrong_redis_password(start_redis: StartRedis, start_interface: Start, start_worker: Start) -> None:
    server = start_redis("--requirepass", "another")
    url = f"redis://:{SECRET}@127.0.0.1:{server.port}"
    for process in (start_worker(APP, "--layer", url, ready=False), start_interface("--layer", url, ready=False)):
        assert f"Redis at redis://127.0.0.1:{server.port} cannot be used: WRONGPASS" in refusal(process)


def test_a_port_in_use(start_interface: Start) -> None:
    first = start_interface(app=APP)
    second = start_interface("--port", first.port, app=APP, ready=False)
    assert refusal(second) == f"Error: cannot listen on 127.0.0.1:{first.port}: Address already in use"


@pytest.mark.parametrize("options", [[], ["--processes", 2, "--layer", "redis://127.0.0.1:1"], ["--reload"]])
def test_a_check_loads_the_app_and_serves_nothing(start_worker: Start, tmp_path: Path, options: list[object]) -> None:
    (tmp_path / "checked.py").write_text("import threading\nthreading.Thread(target=threading.Event().wait).start()\n")
    with (tmp_path / "checked.py").open("a") as file:
        file.write("from cli.simple_app import app\n")
    process = start_worker("checked:app", "--check", *options, ready=False)
    assert process.wait(10) == 0
    assert process.log() == "OK: the options, and the app checked:app\n"
    (tmp_path / "checked.py").write_text("def app(:\n")
    process = start_worker("checked:app", "--check", *options, ready=False)
    assert "SyntaxError" in refusal(process, trace=True)


def test_a_check_of_an_interface_server_reads_its_certificates(start_interface: Start, tmp_path: Path) -> None:
    (tmp_path / "chain.pem").write_text("no certificate")
    process = start_interface("--check", "--ssl-certfile", tmp_path / "chain.pem", ready=False)
    assert "there is no certificate in PEM format in it" in refusal(process)
    process = start_interface("--check", ready=False)
    assert (process.wait(), process.log()) == (0, "OK: the options\n")
