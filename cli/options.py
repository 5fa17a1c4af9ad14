"""Command-line options, with an environment variable each, made from the fields of settings."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import Field, fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

from asgibus.cli.descriptors import raise_limit
from asgibus.layers.settings import LONGEST_SECONDS
from asgibus.protocol.settings import OPTION, Heading, Kind, Option

logger = logging.getLogger("asgibus")

ENVIRONMENT_PREFIX = "ASGIBUS"
INTERRUPTED = 130  # the exit code of a shell for a program that SIGINT has ended
FEWEST_DESCRIPTORS = 64  # for the event loop, Redis, the admin port, the app's files, and some clients
LONGEST_MESSAGE = 500  # characters: values may be of any length

LARGEST_COUNT = 2**31 - 1  # what the kernel, and all else that counts, takes
LARGEST_SIZE = 2**53  # bytes; up to there a number is exact wherever it goes
LAST_PORT = 65535

BUILD_VARIABLES = ("ASGIBUS_COMPILED", "ASGIBUS_PURE")  # of setup.py; they may be set where the commands run, too
OTHER_NAMES = {
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
"""Options of uvicorn, Gunicorn, Hypercorn and Daphne, with their names here."""

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S")


class GroupedOption(click.Option):
    """A click option with a heading in `--help`."""

    def __init__(self, *args: Any, heading: str, shown_default: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heading = heading
        self.shown_default = shown_default

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Return the value as the option's type. Raises click.BadParameter for text that is not UTF-8."""
        found = super().type_cast_value(ctx, value)
        for text in found if isinstance(found, tuple) else (found,):
            if isinstance(text, str) and not isinstance(self.type, click.Path) and not _is_text(text):
                raise click.BadParameter(f"{text!r} is not UTF-8", ctx=ctx, param=self)
        return found


class GroupedCommand(click.Command):
    """A click command with option groups in `--help` and one-line errors."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command and exit: with 2 and one line on standard error if it was called wrongly."""
        try:
            _require_descriptors()
            code = super().main(*args, **(kwargs | {"standalone_mode": False}))
        except click.ClickException as error:
            hint = " (--help lists all options)" if isinstance(error, click.UsageError) else ""
            _print_error(f"{self._message(error)}{hint}")
            code = error.exit_code
        except click.Abort:  # Ctrl+C before there is anything that could stop gracefully, such as in an app's import
            _print_error("interrupted")
            code = INTERRUPTED
        sys.exit(code)

    def _message(self, error: click.ClickException) -> str:
        text = " ".join(error.format_message().split())
        name = getattr(error, "option_name", "") if isinstance(error, click.NoSuchOption) else ""
        ours = OTHER_NAMES.get(name.replace("_", "-"))
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


def settings_options(*classes: type, without: Collection[str] = ()) -> Callable[[F], F]:
    """Return a decorator that gives a command an option for each setting of the classes.

    Args:
        classes: Dataclasses with fields made by `setting`. A field of one class hides those of its name in later ones.
        without: Names of fields that are no options of this command.

    """
    declared: dict[str, tuple[Field[Any], Any]] = {}
    for each in classes:
        annotations = get_type_hints(each)
        for field, _ in _declared(each):
            if field.name not in without:
                declared.setdefault(field.name, (field, annotations[field.name]))
    headings = list(Heading)
    ordered = sorted(declared.values(), key=lambda found: headings.index(found[0].metadata[OPTION].heading))

    def decorate(command: F) -> F:
        for field, annotation in reversed(ordered):  # click has the option of the last decorator first
            command = _click_option(field, annotation)(command)
        return command

    return decorate


def settings_from(settings: type[S], values: Mapping[str, Any]) -> S:
    """Return settings of a class with those of a command's values that it has."""
    return settings(**{field.name: values[field.name] for field in fields(settings) if field.name in values})  # type: ignore[arg-type]


def variable(name: str) -> str:
    """Return the environment variable of an option: `--http-timeout` is ASGIBUS_HTTP_TIMEOUT."""
    return f"{ENVIRONMENT_PREFIX}_{name.partition('/')[0].lstrip('-').replace('-', '_').upper()}"


def given(name: str) -> bool:
    """Return whether an option of the running command was given, by whatever means."""
    return click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT


def given_on_command_line(name: str) -> bool:
    """Return whether an option of the running command was given, and not by the environment."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def warn_of_unknown_variables(*classes: type) -> None:
    """Log a warning for each ASGIBUS_ variable that is no setting of the classes, with the nearest name."""
    start = f"{ENVIRONMENT_PREFIX}_"
    given = sorted(name for name in os.environ if name.startswith(start))
    if not given:
        return
    known = {variable(_names(field, option)[0]) for each in classes for field, option in _declared(each)}
    others = {variable(name): variable(ours) for name, ours in OTHER_NAMES.items() if ours.startswith("--")}
    for name in given:
        if name in known or name in BUILD_VARIABLES or name.startswith(f"{start}TEST_"):
            continue
        found = get_close_matches(name.removeprefix(start), [each.removeprefix(start) for each in known], n=1)
        near = others.get(name) or (start + found[0] if found else "")
        logger.warning("%s in the environment is no option%s", name, f": is {near} meant?" if near else "")


def _declared(settings: type) -> Iterator[tuple[Field[Any], Option]]:
    for field in fields(settings):
        option = field.metadata.get(OPTION)
        if option is not None:
            yield field, option


def _names(field: Field[Any], option: Option) -> tuple[str, ...]:
    if option.names:
        return option.names
    # A setting with several values has a name in the plural, and an option for each value.
    name = (field.name.removesuffix("s") if isinstance(field.default, tuple) else field.name).replace("_", "-")
    return (f"--{name}/--no-{name}" if field.default is True else f"--{name}",)


def _click_option(field: Field[Any], annotation: Any) -> Callable[[F], F]:
    option: Option = field.metadata[OPTION]
    names = _names(field, option)
    choices = _without_none(annotation)
    attributes: dict[str, Any] = {}
    if annotation is bool:
        attributes["is_flag"] = True
    elif get_origin(choices) is Literal:
        attributes["type"] = click.Choice(get_args(choices))
    else:
        kind = option.kind or _KINDS.get(choices, Kind.TEXT)
        attributes["type"] = _value_type(option, kind)
        attributes["metavar"] = option.metavar or kind.value
    return click.option(
        *names,
        field.name,
        cls=GroupedOption,
        heading=option.heading.value,
        help=option.help,
        default=field.default,
        show_default=option.shown_default or True,
        shown_default=option.shown_default,
        envvar=variable(names[0]),
        show_envvar=True,
        multiple=isinstance(field.default, tuple),
        is_eager=option.eager,
        callback=_callback(option),
        **attributes,
    )


def _without_none(annotation: Any) -> Any:
    """Return the type of a setting that may be None."""
    members = [member for member in get_args(annotation) if member is not NoneType]
    return members[0] if NoneType in get_args(annotation) else annotation


_KINDS = {float: Kind.SECONDS, int: Kind.COUNT}


def _value_type(option: Option, kind: Kind) -> click.ParamType[Any]:
    least = 0 if option.zero else 1
    match kind:
        case Kind.SECONDS:
            return Seconds(min=0, min_open=not option.zero)
        case Kind.COUNT:
            return click.IntRange(least, option.most or LARGEST_COUNT)
        case Kind.BYTES:
            return click.IntRange(least, option.most or LARGEST_SIZE)
        case Kind.PORT:
            return click.IntRange(0, LAST_PORT)
        case Kind.FILE:
            return click.Path(exists=True, dir_okay=False)
        case Kind.PATH | Kind.FOLDER:
            return click.Path()
    return click.STRING


class Seconds(click.FloatRange):
    """A length of time, at most ten years."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        if seconds > LONGEST_SECONDS:
            self.fail(f"{value} seconds are more than ten years", param, ctx)
        return seconds


def _callback(option: Option) -> Callable[[click.Context, click.Parameter, Any], Any] | None:
    steps = [step for step in (_PARSERS.get(option.kind), option.parse) if step is not None]
    if not steps:
        return None

    def convert(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
        try:
            for step in steps:
                value = step(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error
        return value

    return convert


def _secrets(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the secrets, with the lines of a file in place of `@/path/to/file`. No error shows a secret."""
    secrets: list[str] = []
    for value in values:
        if not value.startswith("@"):
            secrets.append(value)
            continue
        try:
            lines = Path(value[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise ValueError(f"the file {value[1:]!r} cannot be read: {reason}") from error
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise ValueError(f"the file {value[1:]!r} holds no key")
        secrets += found
    if not all(secret.strip() for secret in secrets):
        raise ValueError("a key must not be empty")
    return tuple(secrets)


def _folders(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Return the value. Raises ValueError for a name that is no folder; an empty one is the working directory."""
    for name in value if isinstance(value, tuple) else (value,):
        if name and not os.path.isdir(name):  # noqa: PTH112 - of a name that is too long, Path raises
            raise ValueError(f"{name!r} is no folder")
    return value


_PARSERS: dict[Kind | None, Callable[[Any], Any]] = {Kind.SECRET: _secrets, Kind.FOLDER: _folders}


def _print_error(text: str) -> None:
    # The command line may hold bytes that are no text, which the stream may not take.
    print(f"Error: {text}".encode(errors="backslashreplace").decode(), file=sys.stderr)


def _is_text(value: str) -> bool:
    """Return whether a value of the command line or the environment was UTF-8: Python replaces other bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _require_descriptors() -> None:
    """Raise click.ClickException if the process may open so few files that it would not even start."""
    if (limit := raise_limit()) < FEWEST_DESCRIPTORS:
        raise click.ClickException(f"{FEWEST_DESCRIPTORS} file descriptors are needed, and ulimit -n allows {limit}")
