"""Values that no option means: each is told in one sentence, whatever the option, and never with a traceback."""

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from asgibus.cli import run as run_module
from asgibus.cli.interface import command as interface
from asgibus.cli.options import GroupedOption
from asgibus.cli.worker import command as worker
from support.processes import Process, Processes

Start = Callable[..., Process]

APP = "cli.simple_app:app"
COMMANDS = {"asgi-interface": interface, "asgi-worker": worker}
OPTIONS = [
    pytest.param(command, option, id=f"{name} {option.opts[0]}")
    for name, command in COMMANDS.items()
    for option in command.params
    if isinstance(option, GroupedOption) and not option.is_flag
]
NUMBERS = ("-1", "0", "nan", "inf", "-inf", "1e300", "99999999999999", "9" * 400, "-0.5", "1_000", "0x10")
TEXTS = ("", " ", "\n", "%s", "{", "[", "=", "/=x", "a b", "ü", "\udcff", "x" * 5000, "::1", "256.1.1.1")
PATHS = ("/no/such/file", "folder", "text", "bytes", "unreadable", "@folder", "/dev/null", "@/dev/null")
VALUES = (*NUMBERS, *TEXTS, *PATHS)


@pytest.fixture(autouse=True)
def _process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Leave the logging, the environment and the life of the tests' process as they are."""
    for name in [name for name in os.environ if name.startswith("ASGIBUS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(run_module, "_exit_within", lambda seconds, code: None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)
    monkeypatch.setattr(logging.getLogger("asgibus"), "propagate", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("text\n")
    (tmp_path / "bytes").write_bytes(bytes(range(256)))
    (tmp_path / "unreadable").touch(0o000)
    loggers = [logging.getLogger(name) for name in ("", "asgibus", "asgibus.access")]
    before = [(logger, logger.level, [*logger.handlers]) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_each_value_is_taken_or_refused_in_one_line(command: click.Command, option: GroupedOption) -> None:
    for value in VALUES:
        result = CliRunner().invoke(command, [APP, "--check", f"{option.opts[0]}={value}"], prog_name="command")
        said = f"{option.opts[0]}={value[:40]!r}: {result.output[:2000]!r}"
        assert result.exception is None or isinstance(result.exception, SystemExit), said
        assert result.exit_code in (0, 1, 2), said
        (line,) = [line for line in result.output.splitlines() if "WARNING" not in line] or [said]
        assert line.startswith("Error: " if result.exit_code else "OK: "), said
        assert len(line) < 700, said


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "1e300", "9" * 400, "abc", ""])
def test_no_number_is_taken_for_another(name: str, value: str) -> None:
    for option in COMMANDS[name].params:
        if isinstance(option, GroupedOption) and isinstance(option.type, click.IntRange | click.FloatRange):
            arguments = [APP, "--check", f"{option.opts[0]}={value}"]
            assert CliRunner().invoke(COMMANDS[name], arguments).exit_code == 2, option.name


def refusal(process: Process, code: int = 1) -> str:
    """Return the one line with which a process ended."""
    assert process.wait() == code, process.log()
    (line,) = [line for line in process.log().splitlines() if "INFO" not in line]
    assert line.startswith("Error: ")
    return line


@pytest.mark.parametrize(
    "options",
    [
        *(("--host", host) for host in ("no.such.host.invalid", "256.1.1.1", "x" * 300, "a..b", "[::1]", "192.0.2.1")),
        ("--admin-port", 0, "--admin-host", "no.such.host.invalid"),
        ("--admin-port", 0, "--admin-host", "x" * 300),
        *(("--uds", path) for path in ("x" * 300, "/no/such/folder/socket", "folder", "text")),
        *(("--fd", number) for number in (0, 99, 2147483647)),
        ("--udp", "192.0.2.1:1"),
        ("--processes", 2, "--layer", "redis://127.0.0.1:1"),
    ],
    ids=lambda options: " ".join(map(str, options))[:60],
)
def test_what_cannot_be_listened_on(start_interface: Start, options: tuple[object, ...]) -> None:
    process = start_interface(*options, app=APP, ready=False)
    assert "cannot listen on" in refusal(process) or "cannot be used" in refusal(process)


@pytest.mark.parametrize("taken", ["--port", "--admin-port"])
def test_a_port_that_is_taken(start_interface: Start, taken: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = start_interface(taken, port, app=APP, ready=False)
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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--workers", "2"], "there is no --workers here: it is called --processes"),
        (["-w", "2"], "there is no -w here: it is called --processes"),
        (["--bind", "0.0.0.0:80"], "there is no --bind here: it is called --host and --port, or --uds"),
        (["--portt", "2"], "'--port'"),
        (["--resume"], "--resume is for workers on Redis"),
        (["--ssl-ca-certs", __file__], "--ssl-ca-certs needs --ssl-certfile"),
    ],
)
def test_options_that_mean_something_else(options: list[str], said: str) -> None:
    result = CliRunner().invoke(interface, [APP, *options], prog_name="command")
    assert result.exit_code == 2
    assert said in result.output


def test_an_empty_app() -> None:
    for command in COMMANDS.values():
        result = CliRunner().invoke(command, ["", "--check"], prog_name="command")
        assert result.exit_code in (1, 2)
        assert result.output.startswith("Error: ")


def test_unknown_variables_are_told(start_interface: Start) -> None:
    names = {
        "ASGIBUS_LAIER": ": is ASGIBUS_LAYER meant?",
        "ASGIBUS_WORKERS": ": is ASGIBUS_PROCESSES meant?",
        "ASGIBUS_CHANNNEL": ": is ASGIBUS_CHANNEL meant?",
        "ASGIBUS_QQQ": "",
    }
    process = start_interface(app=APP, env=dict.fromkeys(names, "x") | {"ASGIBUS_MAX_REQUESTS": 5})
    for name, hint in names.items():
        assert f"{name} in the environment is no option{hint}\n" in process.log()
    assert "MAX_REQUESTS" not in process.log(), "the other command has it"


@pytest.mark.parametrize("value", ["", "x", "-1", "0", "99", "9" * 30])
def test_a_control_pipe_that_no_supervisor_has_made(start_interface: Start, value: str) -> None:
    process = start_interface(app=APP, env={"ASGIBUS_CONTROL_FD": value}, ready=False)
    assert "ASGIBUS_CONTROL_FD is for processes of a supervisor alone" in refusal(process, 2)


def test_a_protocol_without_a_terminator_is_told(redis_url: str, start_worker: Start) -> None:
    process = start_worker(APP, "--layer", redis_url, "--protocol", "udb", "--protocol", "udp")
    assert (
        "--protocol udb: no terminator of that name is installed here; is udp meant? (installed: udp" in process.log()
    )
    assert "--protocol udp:" not in process.log()
