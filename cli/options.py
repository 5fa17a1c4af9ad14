"""click, with option groups in `--help` and one environment variable for every option."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from asgibus.cli.descriptors import raise_limit
from asgibus.cli.env_file import load_env_file
from asgibus.cli.logging import LEVELS
from asgibus.compatibility.interfaces import INTERFACES
from asgibus.layers.settings import BACKLOG_BYTES, LONGEST_SECONDS
from asgibus.protocol.channels import require_pool

DEFAULT_LAYER = "redis://127.0.0.1:6379"
ENVIRONMENT_PREFIX = "ASGIBUS"
INTERRUPTED = 130  # the exit code of a shell for a program that SIGINT has ended
FEWEST_DESCRIPTORS = 64  # for the event loop, Redis, the admin port, the app's files, and some clients
LONGEST_MESSAGE = 500  # characters: values may be of any length

ELSEWHERE = {
    "--workers": "--processes",
    "-w": "--processes",
    "--bind": "--host and --port, or --uds",
    "-b": "--host and --port, or --uds",
    "-p": "--port",
    "--unix-socket": "--uds",
    "-u": "--uds",
    "--limit-max-requests": "--max-requests",
    "--timeout": "--http-timeout",
    "--chdir": "--app-dir",
    "--redis": "--layer",
    "--certfile": "--ssl-certfile",
    "--keyfile": "--ssl-keyfile",
    "--h11-max-incomplete-event-size": "--max-head-size",
    "--application-close-timeout": "--graceful-timeout",
}
"""Options of uvicorn, Gunicorn, Hypercorn and Daphne, and what they are called here."""

F = TypeVar("F", bound=Callable[..., Any])


class GroupedOption(click.Option):
    """An option that belongs to a heading of `--help`."""

    def __init__(self, *args: Any, heading: str = "General", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heading = heading

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Return the value as the option's type. Text that is not UTF-8 is refused: no name may be written with it."""
        found = super().type_cast_value(ctx, value)
        for text in found if isinstance(found, tuple) else (found,):
            if isinstance(text, str) and not isinstance(self.type, click.Path) and not _is_text(text):
                raise click.BadParameter(f"{text!r} is not UTF-8", ctx=ctx, param=self)
        return found


class GroupedCommand(click.Command):
    """A command whose `--help` lists its options under their headings, and that tells a mistake in one line."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run it and exit: with 2 and one line on standard error if it was called wrongly."""
        try:
            _need_descriptors()
            code = super().main(*args, **(kwargs | {"standalone_mode": False}))
        except click.ClickException as error:
            hint = " (--help lists all options)" if isinstance(error, click.UsageError) else ""
            _tell(f"{self._message(error)}{hint}")
            code = error.exit_code
        except click.Abort:  # Ctrl+C before there is anything that could stop gracefully, such as in an app's import
            _tell("interrupted")
            code = INTERRUPTED
        sys.exit(code)

    def _message(self, error: click.ClickException) -> str:
        text = " ".join(error.format_message().split())
        name = getattr(error, "option_name", "") if isinstance(error, click.NoSuchOption) else ""
        ours = ELSEWHERE.get(name.replace("_", "-"))
        if ours is not None and any(ours.partition(" ")[0] in parameter.opts for parameter in self.params):
            text = f"there is no {name} here: it is called {ours}"
        return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}…"

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                heading = parameter.heading if isinstance(parameter, GroupedOption) else "General"
                groups.setdefault(heading, []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def _tell(text: str) -> None:
    # What was typed may hold bytes that are no text, which the stream may not take.
    print(f"Error: {text}".encode(errors="backslashreplace").decode(), file=sys.stderr)


def _is_text(value: str) -> bool:
    """Return whether a value of the command line or the environment was UTF-8: Python replaces what is not."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _need_descriptors() -> None:
    """Raise click.ClickException if so few files may be open that the process would not even start."""
    if (limit := raise_limit()) < FEWEST_DESCRIPTORS:
        raise click.ClickException(f"{FEWEST_DESCRIPTORS} file descriptors are needed, and ulimit -n allows {limit}")


def option(heading: str, *names: str, **kwargs: Any) -> Callable[[F], F]:
    """A click option under a heading, with its default and its environment variable shown.

    The variable is called as the option's first name: `--http-timeout` is ASGIBUS_HTTP_TIMEOUT.
    """
    kwargs.setdefault("show_default", True)
    name = names[0].partition("/")[0].removeprefix("--").replace("-", "_").upper()
    return click.option(
        *names, cls=GroupedOption, heading=heading, envvar=f"{ENVIRONMENT_PREFIX}_{name}", show_envvar=True, **kwargs
    )


def pool_name(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """Click callback: refuse what cannot be the name of a pool."""
    try:
        return require_pool(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def encryption_keys(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Click callback: put the lines of a file in the place of `@/path/to/file`. No message shows a key."""
    keys: list[str] = []
    for value in values:
        if not value.startswith("@"):
            keys.append(value)
            continue
        try:
            lines = Path(value[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise click.BadParameter(f"the file {value[1:]!r} cannot be read: {reason}") from error
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise click.BadParameter(f"the file {value[1:]!r} holds no key")
        keys += found
    if not all(key.strip() for key in keys):
        raise click.BadParameter("a key must not be empty")
    return tuple(keys)


def not_empty(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Click callback: refuse an empty text, as a variable that was never set leaves it."""
    if value is not None and not value.strip():
        raise click.BadParameter("it is empty")
    return value


def folder(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """Click callback: refuse what is no folder; nothing stands for the folder of the process."""
    if value and not os.path.isdir(value):  # noqa: PTH112 - of a name that is too long, Path raises
        raise click.BadParameter(f"{value!r} is no folder")
    return value


def folders(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Click callback: refuse what is no folder."""
    return tuple(folder(ctx, parameter, value) for value in values)


class Seconds(click.FloatRange):
    """A length of time: more than nothing, and not for ever."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        if seconds > LONGEST_SECONDS:
            self.fail(f"{value} seconds are more than ten years", param, ctx)
        return seconds


LARGEST_COUNT = 2**31 - 1  # what the kernel, and all else that counts, takes
LARGEST_SIZE = 2**53  # bytes; up to there a number is exact wherever it goes
MOST_PROCESSES = 1000  # more than any machine has cores for
SECONDS = Seconds(min=0, min_open=True)
SECONDS_OR_NONE = Seconds(min=0)
COUNT = click.IntRange(min=1, max=LARGEST_COUNT)
SIZE = click.IntRange(min=1, max=LARGEST_SIZE)
LAST_PORT = 65535
PORT = click.IntRange(0, LAST_PORT)
FILE = click.Path(exists=True, dir_okay=False)


def bus_options(command: F) -> F:
    """Options of both commands: which layer, which pool, how to log."""
    for decorate in (
        option("Logging", "--log-level", type=click.Choice(LEVELS), default="info", help="Log this and what is worse."),
        option(
            "Bus",
            "--pool",
            default="default",
            callback=pool_name,
            metavar="NAME",
            help="Connections of a pool go to the workers of that pool only.",
        ),
        option(
            "Bus",
            "--encryption-key",
            "encryption_keys",
            multiple=True,
            callback=encryption_keys,
            show_default=False,
            metavar="SECRET",
            help="Encrypt what goes through Redis; @FILE reads a key from each line. Repeatable: the first encrypts, "
            "all decrypt.",
        ),
        option(
            "Bus",
            "--wait-for-layer",
            type=SECONDS_OR_NONE,
            default=0.0,
            metavar="SECONDS",
            help="How long to wait at the start for a layer that cannot be used yet; 0 ends with an error at once.",
        ),
        option(
            "Bus",
            "--prefix",
            default="asgibus",
            callback=not_empty,
            metavar="TEXT",
            help="Starts every key in Redis.",
        ),
    ):
        command = decorate(command)
    return command


def app_options(command: F) -> F:
    """Options that say how the app is loaded and run."""
    for decorate in (
        option(
            "Application",
            "--lifespan",
            type=click.Choice(("auto", "on", "off")),
            default="auto",
            help="Run the app's start-up and shut-down: if it has one, always, or never.",
        ),
        option(
            "Application",
            "--concurrency",
            type=COUNT,
            default=10_000,
            metavar="COUNT",
            help="Connections that a worker serves at once.",
        ),
        option(
            "Stopping", "--resume", is_flag=True, help="WebSockets outlive this worker: the app runs again elsewhere."
        ),
        option(
            "Bus",
            "--layer-backlog",
            type=COUNT,
            default=BACKLOG_BYTES,
            metavar="BYTES",
            help="How much of what the app sends to groups and channels waits at once for a layer that is away; "
            "whoever sends more waits in turn.",
        ),
        option(
            "Stopping",
            "--acknowledge",
            type=click.Choice(["done", "taken"]),
            default="done",
            help="A client's event counts as dealt with when the app is done with it (it asks for the next one, or "
            "returns), or already when the app has taken it. What does not count when a worker dies is given to the "
            "next run.",
        ),
        option(
            "Stopping",
            "--drain-period",
            type=SECONDS_OR_NONE,
            default=5.0,
            metavar="SECONDS",
            help="Over how long, at most, a process that stops hands its WebSockets over, or closes them.",
        ),
        option("Application", "--factory", is_flag=True, help="APP is a function that gives the app."),
        option(
            "Application",
            "--app-dir",
            default="",
            type=click.Path(),
            callback=folder,
            metavar="DIR",
            help="Look for APP here first.  [default: .]",
        ),
        option(
            "Application",
            "--threads",
            type=COUNT,
            default=10,
            metavar="COUNT",
            help="Requests that a WSGI app runs at once.",
        ),
        option(
            "Application",
            "--wsgi-max-body-size",
            type=SIZE,
            default=1024**3,
            metavar="BYTES",
            help="Largest body of a request to a WSGI app, which gets it when it is whole; a larger one is a 413.",
        ),
        option(
            "Application",
            "--wsgi-response-buffer",
            type=COUNT,
            default=16 * 1024**2,
            metavar="BYTES",
            help="How much of a response a WSGI app may write before a slow client has read it; then its thread waits.",
        ),
        option(
            "Application",
            "--wsgi-spool-size",
            type=SIZE,
            default=4 * 1024**3,
            metavar="BYTES",
            help="Disk space, in TMPDIR, for bodies of a WSGI app that wait for it or for a client, in each worker.",
        ),
        option(
            "Application",
            "--interface",
            type=click.Choice(("auto", *INTERFACES)),
            default="auto",
            help="How APP is called: found out from its arguments, or as it is said here.",
        ),
    ):
        command = decorate(command)
    return command


def reload_options(command: F) -> F:
    """Options for development: the app is loaded again when its files change."""
    for decorate in (
        option(
            "Development",
            "--reload-exclude",
            "reload_excludes",
            multiple=True,
            metavar="GLOB",
            help="Leave these files out, by name or path. Repeatable.",
        ),
        option(
            "Development",
            "--reload-include",
            "reload_includes",
            multiple=True,
            metavar="GLOB",
            help="Watch these files too, by name or path. Repeatable.  [default: *.py]",
        ),
        option(
            "Development",
            "--reload-dir",
            "reload_dirs",
            type=click.Path(exists=True),
            callback=folders,
            multiple=True,
            metavar="DIR",
            help="Watch this folder. Repeatable.  [default: . and --app-dir]",
        ),
        option("Development", "--reload", is_flag=True, help="Replace the process when a file of the app changes."),
    ):
        command = decorate(command)
    return command


def process_options(command: F) -> F:
    """Options of both commands: how many processes, and where they tell how they are."""
    for decorate in (
        option(
            "Processes",
            "--admin-port",
            type=PORT,
            metavar="PORT",
            help="Serve /healthz, /readyz and /metrics there; 0 takes a free port. "
            "With several processes, each has the next port.  [default: none]",
        ),
        option(
            "Processes",
            "--admin-host",
            default="127.0.0.1",
            callback=not_empty,
            metavar="HOST",
            help="Address of the admin port.",
        ),
        option(
            "Processes",
            "--processes",
            type=click.IntRange(1, MOST_PROCESSES),
            default=1,
            metavar="COUNT",
            help="Run so many processes, and start one again that dies.",
        ),
        option(
            "Processes",
            "--check",
            is_flag=True,
            help="Look whether the options are good and APP can be loaded, then end: with 0 if so. Nothing is served.",
        ),
        option(
            "Logging",
            "--log-config",
            type=FILE,
            metavar="FILE",
            help="Logging as a .json or .yaml file (dictConfig) or any other (fileConfig) says.  [default: none]",
        ),
        option(
            "Application",
            "--env-file",
            type=FILE,
            is_eager=True,  # what it holds may be options, too
            callback=load_env_file,
            metavar="FILE",
            help="Add the variables of this file to the environment, before all else.  [default: none]",
        ),
    ):
        command = decorate(command)
    return command


def check_processes(options: Mapping[str, Any]) -> None:
    """Refuse several processes where there can be only one. Raises click.UsageError."""
    processes, port = options["processes"], options["admin_port"]
    if processes > 1 and options["layer"].startswith("memory:"):
        raise click.UsageError("memory:// lives within one process: with --processes use a Redis URL as --layer")
    if port and port + processes - 1 > LAST_PORT:
        raise click.UsageError(f"--admin-port {port} leaves no ports for {processes} processes")
