"""Declare the settings of both servers, each as one dataclass field: name, default, help text and rule.

The command line, its environment variables and the page of options are made from these fields.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from asgibus.protocol.channels import require_pool

T = TypeVar("T")

OPTION = "option"  # the key of an `Option` in a field's metadata
DEFAULT_LAYER = "redis://127.0.0.1:6379"


class Heading(Enum):
    """Sections of `--help`, in order."""

    LISTENING = "Listening"
    BUS = "Bus"
    LOGGING = "Logging"
    APPLICATION = "Application"
    STOPPING = "Stopping"
    BACKGROUND = "Background work"
    PROXY = "Behind a proxy"
    TLS = "TLS"
    TIMES = "Time limits (seconds)"
    SIZES = "Size limits"
    GROUPS = "Groups"
    STREAMS = "Streams"
    PROCESSES = "Processes"
    DEVELOPMENT = "Development"


class Kind(Enum):
    """The kind of values that a setting has. The value of a member is the placeholder in `--help`."""

    TEXT = "TEXT"
    """Any text; for fields of type `str` without another kind."""
    SECONDS = "SECONDS"
    """A length of time; for fields of type `float`."""
    COUNT = "COUNT"
    """A number of things; for fields of type `int` without another kind."""
    BYTES = "BYTES"
    PORT = "PORT"
    PATH = "PATH"
    FILE = "FILE"
    """An existing file."""
    FOLDER = "DIR"
    """An existing folder."""
    SECRET = "SECRET"  # noqa: S105  # no password
    """A secret, or @FILE for each line of a file."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Option:
    """The form of a setting on the command line and in the environment."""

    heading: Heading
    help: str
    kind: Kind | None
    """The kind of values, if the type of the field does not tell it."""
    names: tuple[str, ...]
    """Names on the command line; empty for one name that is derived from the field's."""
    zero: bool
    """Whether a number may be 0."""
    most: int | None
    """The largest number; None for the largest of its kind."""
    metavar: str
    """The placeholder in `--help`; empty for that of the kind."""
    shown_default: str
    """The default in `--help`, where the value does not say it."""
    parse: Callable[[Any], Any] | None
    """Convert a value, or raise ValueError with a sentence for people."""
    eager: bool
    """Whether the option is read before all others."""


def setting(
    default: T,
    heading: Heading,
    help: str,  # noqa: A002  # as click calls it
    *,
    kind: Kind | None = None,
    names: tuple[str, ...] = (),
    zero: bool = False,
    most: int | None = None,
    metavar: str = "",
    shown_default: str = "",
    parse: Callable[[Any], Any] | None = None,
    eager: bool = False,
) -> T:
    """Declare a dataclass field that is an option, too. See `Option` for the arguments."""
    option = Option(
        heading=heading,
        help=help,
        kind=kind,
        names=names,
        zero=zero,
        most=most,
        metavar=metavar,
        shown_default=shown_default,
        parse=parse,
        eager=eager,
    )
    declared: T = field(default=default, metadata={OPTION: option}, repr=kind is not Kind.SECRET)
    return declared


def not_empty(value: str | None) -> str | None:
    """Return the text. Raises ValueError if it is empty, as a variable that was never set leaves it."""
    if value is not None and not value.strip():
        raise ValueError("it is empty")
    return value


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ServerSettings:
    """Settings that an interface server and a worker have in common."""

    layer: str = setting(
        DEFAULT_LAYER,
        Heading.BUS,
        "The channel layer: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://.",
        metavar="URL",
    )
    prefix: str = setting("asgibus", Heading.BUS, "Beginning of every key in Redis.", parse=not_empty)
    encryption_keys: tuple[str, ...] = setting(
        (),
        Heading.BUS,
        "Encrypt everything in Redis; @FILE reads a key from each line. Repeatable: the first encrypts, all decrypt.",
        kind=Kind.SECRET,
    )
    pool: str = setting(
        "default",
        Heading.BUS,
        "Connections of a pool go to the workers of that pool only.",
        metavar="NAME",
        parse=require_pool,
    )
    # A drain takes some time, so that the clients do not all come back at once.
    drain_period: float = setting(
        5.0,
        Heading.STOPPING,
        "Longest time over which a stopping process hands over or closes its WebSockets and event streams.",
        zero=True,
    )
