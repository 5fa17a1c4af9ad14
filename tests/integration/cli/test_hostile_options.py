"""Unusable option values: the command rejects each in one sentence, without a traceback."""

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.processes import Process, Processes

Start = Callable[..., Process]

APP = "cli.simple_app:app"


@pytest.fixture(autouse=True)
def _files(tmp_path: Path) -> None:
    """Create a directory, on which no server can listen."""
    (tmp_path / "folder").mkdir()


def refusal(process: Process, code: int = 1) -> str:
    """Return the one line with which a process ended."""
    assert process.wait() == code, process.log()
    (line,) = [line for line in process.log().splitlines() if "INFO" not in line]
    assert line.startswith("Error: ")
    return line


@pytest.mark.parametrize(
    "options",
    [
        ("--host", "x" * 300),
        ("--admin-port", 0, "--admin-host", "x" * 300),
        ("--uds", "folder"),
        ("--fd", 0),
        ("--udp", "192.0.2.1:1"),
        ("--processes", 2, "--layer", "redis://127.0.0.1:1"),
    ],
    ids=lambda options: " ".join(map(str, options))[:60],
)
def test_addresses_without_a_listener(start_interface: Start, options: tuple[object, ...]) -> None:
    process = start_interface(*options, app=APP, ready=False)
    assert "cannot listen on" in refusal(process) or "cannot be used" in refusal(process)


@pytest.mark.parametrize("option", ["--port", "--admin-port"])
def test_a_port_in_use(start_interface: Start, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = start_interface(option, port, app=APP, ready=False)
        assert f"cannot listen on 127.0.0.1:{port}" in refusal(process)


def test_few_file_descriptors(processes: Processes) -> None:
    code = "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (12, 12))"
    program = f"{code}; from asgibus.cli.interface import main; main()"
    process = processes.start("few", [sys.executable, "-c", program, APP, "--port", "0"], ready=None)
    assert refusal(process) == "Error: 64 file descriptors are needed, and ulimit -n allows 12"
    code = "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (12, r.getrlimit(r.RLIMIT_NOFILE)[1]))"
    program = f"{code}; from asgibus.cli.interface import main; main()"
    processes.start("raised", [sys.executable, "-c", program, APP, "--port", "0"], ready="listening on")


@pytest.mark.parametrize("kind", ["worker", "interface", "supervised"])
def test_ctrl_c_while_the_app_is_imported(
    start_interface: Start, start_worker: Start, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "slow.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(30)\n")
    if kind == "worker":
        process = start_worker("slow:app", ready=False)
    else:
        options = ("--reload",) if kind == "supervised" else ()
        process = start_interface(*options, app="slow:app", ready=False)
    process.wait_for("importing")
    process.interrupt()
    if kind == "supervised":
        assert process.wait() == 0
    else:
        assert process.wait() == 130
        assert process.log().split() == ["importing", "Error:", "interrupted"]


def test_unknown_variables_are_logged(start_interface: Start) -> None:
    names = {
        "ASGIBUS_LAIER": ": is ASGIBUS_LAYER meant?",
        "ASGIBUS_WORKERS": ": is ASGIBUS_PROCESSES meant?",
        "ASGIBUS_CHANNNEL": ": is ASGIBUS_CHANNEL meant?",
        "ASGIBUS_QQQ": "",
    }
    process = start_interface(app=APP, env=dict.fromkeys(names, "x") | {"ASGIBUS_MAX_REQUESTS": 5})
    for name, hint in names.items():
        assert f"{name} in the environment is no option{hint}\n" in process.log()
    assert "MAX_REQUESTS" not in process.log(), "an option of the other command was reported"


@pytest.mark.parametrize("value", ["", "x", "-1", "0", "99", "9" * 30])
def test_a_control_pipe_without_a_supervisor(start_interface: Start, value: str) -> None:
    process = start_interface(app=APP, env={"ASGIBUS_CONTROL_FD": value}, ready=False)
    assert "ASGIBUS_CONTROL_FD is for processes of a supervisor alone" in refusal(process, 2)


def test_a_protocol_without_a_terminator_is_logged(redis_url: str, start_worker: Start) -> None:
    process = start_worker(APP, "--layer", redis_url, "--protocol", "udb", "--protocol", "udp")
    assert (
        "--protocol udb: no terminator of that name is installed here; is udp meant? (installed: udp" in process.log()
    )
    assert "--protocol udp:" not in process.log()


SECRET = "s3cr3t"


@pytest.mark.parametrize("command", ["asgi-worker", "asgi-interface"])
def test_a_bad_url_of_a_layer(program: Callable[[str], str], command: str) -> None:
    url = f"redis://:{SECRET}/{SECRET}@127.0.0.1"
    app = ["tests.support.bus_app:app"] if command == "asgi-worker" else []
    completed = subprocess.run(
        [program(command), *app, "--layer", url], check=False, capture_output=True, text=True, timeout=30
    )
    assert completed.returncode != 0
    assert "layer's URL" in completed.stderr
    assert "Traceback" not in completed.stderr
    assert SECRET not in completed.stderr + completed.stdout
