"""Invalid values: every option rejects them with one sentence and without a traceback."""

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from asgibus.cli import run as run_module
from asgibus.cli.interface import command as interface
from asgibus.cli.options import GroupedOption
from asgibus.cli.worker import command as worker

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
    """Restore the logging and the environment, and keep commands from ending the process of the tests."""
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
def test_each_value_is_accepted_or_rejected_in_one_line(command: click.Command, option: GroupedOption) -> None:
    for value in VALUES:
        result = CliRunner().invoke(command, [APP, "--check", f"{option.opts[0]}={value}"], prog_name="command")
        context = f"{option.opts[0]}={value[:40]!r}: {result.output[:2000]!r}"
        assert result.exception is None or isinstance(result.exception, SystemExit), context
        assert result.exit_code in (0, 1, 2), context
        (line,) = [line for line in result.output.splitlines() if "WARNING" not in line] or [context]
        assert line.startswith("Error: " if result.exit_code else "OK: "), context
        assert len(line) < 700, context


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "1e300", "9" * 400, "abc", ""])
def test_invalid_numbers_are_rejected(name: str, value: str) -> None:
    for option in COMMANDS[name].params:
        if isinstance(option, GroupedOption) and isinstance(option.type, click.IntRange | click.FloatRange):
            arguments = [APP, "--check", f"{option.opts[0]}={value}"]
            assert CliRunner().invoke(COMMANDS[name], arguments).exit_code == 2, option.name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "2"], "there is no --workers here: it is called --processes"),
        (["-w", "2"], "there is no -w here: it is called --processes"),
        (["--bind", "0.0.0.0:80"], "there is no --bind here: it is called --host and --port, or --uds"),
        (["--portt", "2"], "'--port'"),
        (["--resume"], "--resume is for workers on Redis"),
        (["--ssl-ca-certs", __file__], "--ssl-ca-certs needs --ssl-certfile"),
    ],
)
def test_options_of_other_servers_get_a_hint(options: list[str], message: str) -> None:
    result = CliRunner().invoke(interface, [APP, *options], prog_name="command")
    assert result.exit_code == 2
    assert message in result.output


def test_an_empty_app() -> None:
    for command in COMMANDS.values():
        result = CliRunner().invoke(command, ["", "--check"], prog_name="command")
        assert result.exit_code in (1, 2)
        assert result.output.startswith("Error: ")
