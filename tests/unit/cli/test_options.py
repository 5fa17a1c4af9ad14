"""The options of both commands: help, environment, and errors."""

import os
import platform
import sys
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from asgibus.cli.interface import command as interface
from asgibus.cli.options import GroupedCommand, GroupedOption
from asgibus.cli.settings import ProcessSettings
from asgibus.cli.worker import command as worker
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.worker.settings import WorkerSettings

INTERFACE_FIELDS = {field.name for field in fields(InterfaceSettings)}
WORKER_FIELDS = {field.name for field in fields(WorkerSettings)}
PROCESS_FIELDS = {field.name for field in fields(ProcessSettings)}
# Options of a worker but not of an interface server with APP, which cannot close its sockets to renew the app.
WORKER_ALONE = {"max_requests", "max_lifetime"}
# Likewise: messages of channels are for workers that serve no connections.
WORKER_ALONE |= {"channels", "channel_concurrency", "attempts", "dead_letter", "at_most_once", "expiry", "capacity"}
# An embedded worker serves the protocols that its interface server terminates.
WORKER_ALONE |= {"protocols"}
COMMANDS = {"asgi-interface": interface, "asgi-worker": worker}
OPTIONS = [
    pytest.param(command, option, id=f"{name}-{option.name}")
    for name, command in COMMANDS.items()
    for option in command.params
    if isinstance(option, GroupedOption)
]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ASGIBUS_")]:
        monkeypatch.delenv(name)


def run(command: click.Command, *args: str) -> Result:
    return CliRunner().invoke(command, args, prog_name="command")


def variable(option: GroupedOption) -> str:
    return "ASGIBUS_" + option.opts[0].removeprefix("--").replace("-", "_").upper()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_grouped_and_names_the_environment(name: str) -> None:
    result = run(COMMANDS[name], "--help")
    assert result.exit_code == 0
    headings = [line for line in result.stdout.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert {"General:", "Bus:", "Application:", "Logging:"} <= set(headings)
    words = " ".join(result.stdout.split())
    for option in COMMANDS[name].params:
        if isinstance(option, GroupedOption):
            assert option.opts[0] in words
            assert f"[env var: {variable(option)}" in words, f"{option.name} does not name {variable(option)}"
            assert option.help


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_help_names_units(command: click.Command, option: GroupedOption) -> None:
    """The help of each option names its unit: seconds, bytes or a count."""
    text = f"{option.heading} {option.help} {option.metavar}".lower()
    if isinstance(option.type, click.FloatRange):
        assert "second" in text
    if option.name and ("size" in option.name or option.name in ("window", "slow_client_buffer", "min_body_rate")):
        assert "byte" in text


def test_every_option_is_a_setting_and_every_setting_an_option() -> None:
    def names(command: click.Command) -> set[str]:
        return {str(parameter.name) for parameter in command.params} - {"version", "help"}

    assert names(worker) == WORKER_FIELDS | PROCESS_FIELDS
    assert names(interface) == WORKER_FIELDS - WORKER_ALONE | INTERFACE_FIELDS | PROCESS_FIELDS


def sample(option: GroupedOption, default: Any, folder: Path) -> tuple[str, Any]:
    """Return a value other than the default, as text and as the parsed value."""
    special = {
        "routes": ("/ws=chat /api=x", (("/ws", "chat"), ("/api", "x"))),
        "affinity": ("path:/ws/{room} /x=cookie:id", ("path:/ws/{room}", "/x=cookie:id")),
        "udp": ("127.0.0.1:1 [::1]:2", ("127.0.0.1:1", "[::1]:2")),
        "terminators": ("a b=c", ("a", "b=c")),
        "protocols": ("udp line", ("udp", "line")),
        "channels": ("thumbnails mails", ("thumbnails", "mails")),
        "encryption_keys": ("one two", ("one", "two")),
        "forwarded_allow_ips": ("10.0.0.0/8",) * 2,
        "streams": ("/other/", "/other"),
        "streams_keys": ("a-key-of-16-bytes another-of-16-bytes", ("a-key-of-16-bytes", "another-of-16-bytes")),
        "root_path": ("/other", "/other"),
        "uds_mode": ("660", "660"),
        "app_dir": (str(folder), str(folder)),
        "reload_dirs": (str(folder), (str(folder),)),
        "reload_includes": ("*.html *.css", ("*.html", "*.css")),
        "reload_excludes": ("build test_*", ("build", "test_*")),
    }
    if option.name in special:
        return special[str(option.name)]
    if option.is_flag:
        return ("0", False) if default else ("1", True)
    if isinstance(option.type, click.FloatRange):
        return "2.5", 2.5
    if isinstance(option.type, click.IntRange):
        return "7", 7
    if isinstance(option.type, click.Choice):
        return (str(option.type.choices[-1]),) * 2
    if isinstance(option.type, click.Path):
        path = folder / "file"
        path.touch()
        return (str(path),) * 2
    return "other", "other"


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_every_option_has_an_environment_variable(
    command: GroupedCommand, option: GroupedOption, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = command.make_context("command", ["app"]).params[str(option.name)]
    text, value = sample(option, default, tmp_path)
    monkeypatch.setenv(variable(option), text)
    assert command.make_context("command", ["app"]).params[str(option.name)] == value != default
    if not option.is_flag and not option.multiple:
        parsed = command.make_context("command", ["app", option.opts[0], str(default)] if default else ["app"])
        assert parsed.params[str(option.name)] == (default or value), "the command line wins"


def rejection_of(result: Result) -> str:
    """Return the error line of a command with invalid arguments."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--nonsense"], "--nonsense"),
        (["--port", "x"], "'x' is not a valid integer"),
        (["--port", "65536"], "65536"),
        (["--http-timeout", "0"], "0.0 is not in the range x>0"),
        (["--http-timeout", "-1"], "-1"),
        (["--http-timeout", "nan"], "not a number of seconds"),
        (["--http-timeout", "inf"], "not a number of seconds"),
        (["--max-connections", "0"], "0 is not in the range"),
        (["--log-level", "loud"], "loud"),
        (["--pool", "a!b"], "a pool's name is"),
        (["--root-path", "mount"], "'mount' does not begin with a slash: write it as /mount"),
        (["--pool", ""], "a pool's name is"),
        (["--route", "chat"], "'chat' is not of the form /path/prefix=pool"),
        (["--route", "chat=chat"], "is not of the form"),
        (["--route", "/chat="], "a pool's name is"),
        (["--route", "/chat=a b"], "a pool's name is"),
        (["--affinity", "room"], "'room' is not of the form [/path/prefix=]KEY"),
        (["--affinity", "/ws=room"], "is not of the form"),
        (["--affinity", "/ws"], "is not of the form"),
        (["--affinity", "body:room"], "is not of the form"),
        (["--affinity", "learn:path:/ws/{room}"], "is not of the form"),
        (["--affinity", "learn:sticky:room"], "is not of the form"),
        (["--affinity", "cookie:a b"], "'a b' in 'cookie:a b' is not a name"),
        (["--affinity", "path:/ws"], "'/ws' is not a pattern such as /ws/{room}"),
        (["--affinity", "path:ws/{room}"], "is not a pattern"),
        (["--affinity", "path:/{a}/{a}"], "has two parameters of one name"),
        (["--forwarded-allow-ips", "everybody"], "everybody"),
        (["--forwarded-allow-ips", "10.0.0.0/99"], "10.0.0.0/99"),
        (["--ssl-certfile", "/no/such/file"], "/no/such/file"),
        (["--ssl-keyfile", __file__], "--ssl-keyfile needs --ssl-certfile"),
        (["--ssl-cert-reqs", "some"], "some"),
        (["--ssl-cert-reqs", "optional"], "--ssl-cert-reqs needs --ssl-ca-certs"),
        (["--uds", "x", "--fd", "3"], "--uds and --fd exclude each other"),
        (["--streams", "log", "--streams-unsigned"], "'log' is not a path such as /streams"),
        (["--streams", "/", "--streams-unsigned"], "'/' is not a path such as /streams"),
        (["--streams", "/log"], "--streams needs --streams-key, which signs names"),
        (["--streams-unsigned"], "need --streams, the path of the streams"),
        (["--streams-key", "a-key-of-16-bytes"], "need --streams, the path of the streams"),
        (["--streams", "/log", "--streams-key", "secret"], "at least 16 bytes, and this one 6"),
        (
            ["--streams", "/log", "--streams-key", "a-key-of-16-bytes", "--streams-unsigned"],
            "--streams-key and --streams-unsigned exclude each other",
        ),
        (["--uds", "x", "--uds-mode", "888"], "'888' is not three octal digits"),
        (["--slow-client", "wait"], "wait"),
        (["--layer", "http://host"], "a layer's URL begins with one of memory://"),
        (["--layer", "redis://host memory://"], "cannot be one of several stores"),
        (["--layer", "redis+cluster://"], "a layer on a cluster is written redis+cluster://"),
        (["--layer", "redis://host/database"], "the database in the layer's URL is not a number"),
        (["--layer", "memory://"], "no worker would ever see a connection"),
        (["app", "another"], "another"),
        (["app", "--processes", "2"], "memory:// lives within one process: with --processes use a Redis URL"),
        (["--admin-port", "65535", "--processes", "2"], "--admin-port 65535 leaves no ports for 2 processes"),
        (["--processes", "0"], "0 is not in the range"),
        (["--encryption-key", "@/no/such/file"], "the file '/no/such/file' cannot be read: No such file"),
        (["--encryption-key", ""], "a key must not be empty"),
        (["app", "--max-requests", "5"], "--max-requests"),
        (["--reload"], "--reload is for apps, and here is none: give APP, or use it with asgi-worker"),
        *(
            (["--udp", value], f"--udp: {value!r} is not of the form HOST:PORT")
            for value in ("", "9000", ":9000", "host", "host:", "host:x", "host:65536", "::1:9000", "[]:1", "[host]:1")
        ),
        (["--udp-timeout", "0"], "0.0 is not in the range x>0"),
        (["--udp-max-peers", "0"], "0 is not in the range"),
        (["--terminator", "udp"], "--terminator udp: '' is not of the form HOST:PORT"),
        (["--terminator", "gopher=1"], "there is no terminator 'gopher'; installed: udp"),
    ],
)
def test_a_wrong_call_of_the_interface(args: list[str], message: str) -> None:
    assert message in rejection_of(run(interface, *args))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "APP"),
        (["app", "--nonsense"], "--nonsense"),
        (["app", "--port", "1"], "--port"),
        (["app", "--concurrency", "0"], "0 is not in the range"),
        (["app", "--graceful-timeout", "soon"], "soon"),
        (["app", "--max-requests", "0"], "0 is not in the range"),
        (["app", "--drain-period", "-1"], "-1"),
        (["app", "--processes", "2", "--layer", "memory://"], "memory:// lives within one process"),
        (["app", "--lifespan", "maybe"], "maybe"),
        (["app", "--pool", "a\n"], "a pool's name is"),
        (["app", "--layer", "memory://"], "would never see a connection"),
        (["app", "--channel", "work", "--layer", "memory://"], "a connection or a message: use a Redis URL"),
        (["app", "--channel", "a b"], "channel names are"),
        (["app", "--channel", ""], "channel names are"),
        (["app", "--channel", "own.1!x"], "only the process that made it can receive from it"),
        (["app", "--channel", "work", "--dead-letter", "a!b"], "is process-local"),
        (["app", "--channel", "a", "--channel", "b", "--dead-letter", "b"], "which this worker handles itself"),
        (["app", "--channel", "a" * 96], "more than 100 characters: name another"),
        (["app", "--channel", "work", "--pool", "chat"], "--pool is for connections"),
        (["app", "--channel", "work", "--resume"], "--resume is for connections"),
        (["app", "--channel", "work", "--protocol", "udp"], "--protocol is for connections"),
        (["app", "--protocol", "http"], "'http' is not a protocol beside HTTP and WebSocket"),
        (["app", "--protocol", "a b"], "a protocol's name is"),
        (["app", "--attempts", "3"], "--attempts is for messages: it needs --channel"),
        (["app", "--channel", "work", "--at-most-once", "--attempts", "3"], "--attempts means nothing"),
        (["app", "--channel", "work", "--channel-concurrency", "0"], "0 is not in the range"),
        (["app", "--layer", "http://:s3cret@host"], "a layer's URL begins with one of memory://"),
        (["app", "--interface", "wsgi3"], "wsgi3"),
        (["app", "--threads", "0"], "0 is not in the range"),
        (["app", "--reload", "--reload-dir", "/no/such/folder"], "/no/such/folder"),
        (["app", "--env-file", "/no/such/file"], "/no/such/file"),
        (["app", "--log-config", "/no/such/file"], "/no/such/file"),
    ],
)
def test_a_wrong_call_of_the_worker(args: list[str], message: str) -> None:
    line = rejection_of(run(worker, *args))
    assert message in line
    assert "s3cret" not in line


def test_a_wrong_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASGIBUS_CONCURRENCY", "many")
    assert "ASGIBUS_CONCURRENCY" in rejection_of(run(worker, "app"))


def test_a_key_of_streams_in_the_environment_needs_no_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASGIBUS_STREAMS_KEY", "a-key-of-16-bytes")
    assert run(interface, "--check", "--layer", "redis://127.0.0.1:1").exit_code == 0


@pytest.mark.parametrize(
    ("package", "options", "message"),
    [
        ("watchfiles", ["--reload"], "--reload needs watchfiles: pip install 'asgibus[reload]'"),
        ("dotenv", ["--env-file", "log.yaml"], "--env-file needs python-dotenv: pip install 'asgibus[env-file]'"),
        ("yaml", ["--log-config", "log.yaml"], "--log-config needs PyYAML for YAML: pip install 'asgibus[yaml]'"),
    ],
)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_error_names_the_required_option(
    command: GroupedCommand,
    package: str,
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.yaml").touch()
    assert message in rejection_of(run(command, "app", *options))


@pytest.mark.parametrize(("value", "root"), [("/", ""), ("//", ""), ("/mount/", "/mount"), ("/a/b", "/a/b"), ("", "")])
def test_the_trailing_slash_of_a_root_path_is_removed(value: str, root: str) -> None:
    assert interface.make_context("command", ["--root-path", value]).params["root_path"] == root


@pytest.mark.parametrize("name", COMMANDS)
def test_the_version(name: str) -> None:
    result = run(COMMANDS[name], "--version")
    assert result.exit_code == 0
    forms = ("compiled", "pure Python")
    version, python = metadata.version("asgibus"), platform.python_version()
    assert result.stdout in [f"asgibus {version} ({form}), Python {python}\n" for form in forms]


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_encryption_keys_are_read_from_files(
    command: GroupedCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text("new key\n\n  old\r\n")
    args = ["app", "--encryption-key", "first", "--encryption-key", f"@{file}"]
    assert command.make_context("command", args).params["encryption_keys"] == ("first", "new key", "old")
    monkeypatch.setenv("ASGIBUS_ENCRYPTION_KEY", f"@{file} last")
    assert command.make_context("command", ["app"]).params["encryption_keys"] == ("new key", "old", "last")


@pytest.mark.parametrize(("content", "message"), [(b"\n \n", "holds no key"), (b"s3cret\xff", "it is not text")])
def test_a_file_without_keys_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    line = rejection_of(run(worker, "app", "--encryption-key", f"@{file}"))
    assert message in line
    assert "s3cret" not in line


def test_settings_do_not_show_encryption_keys() -> None:
    assert "s3cret" not in repr(WorkerSettings(app="", encryption_keys=("s3cret",)))
    assert "s3cret" not in repr(InterfaceSettings(encryption_keys=("s3cret",)))
