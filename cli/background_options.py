"""The options of `asgi-worker --channel`, and which others go with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from asgibus.cli.options import COUNT, SECONDS, option
from asgibus.layers.names import require_channel
from asgibus.layers.settings import CAPACITY, EXPIRY_SECONDS
from asgibus.worker.consumer import dead_letter_channel
from asgibus.worker.settings import WorkerSettings

HEADING = "Background work"
FOR_CONNECTIONS = (
    "pool",
    "concurrency",
    "resume",
    "drain_period",
    "protocols",
    "threads",
    "wsgi_max_body_size",
    "wsgi_response_buffer",
    "wsgi_spool_size",
)
FOR_CHANNELS = ("channel_concurrency", "attempts", "dead_letter", "at_most_once", "expiry", "capacity")
FOR_ATTEMPTS = ("attempts", "dead_letter", "capacity")

F = TypeVar("F", bound=Callable[..., Any])


def _ordinary(name: str) -> str:
    try:
        require_channel(name)
    except TypeError as error:
        raise click.BadParameter(str(error)) from error
    if "!" in name:
        raise click.BadParameter(f"{name!r} is process-local: only the process that made it can receive from it")
    return name


def _channels(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(_ordinary, value)))


def _channel(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    return None if value is None else _ordinary(value)


def background_options(command: F) -> F:
    """Options for the messages of ordinary channels."""
    for decorate in (
        option(
            HEADING,
            "--capacity",
            type=COUNT,
            default=CAPACITY,
            metavar="COUNT",
            help="Dead letters that a channel holds; when it is full, a further one is lost.",
        ),
        option(
            HEADING,
            "--expiry",
            type=SECONDS,
            default=EXPIRY_SECONDS,
            metavar="SECONDS",
            help="After how long an unread message is dropped: as long as in the layer of those who send it.",
        ),
        option(
            HEADING,
            "--at-most-once",
            is_flag=True,
            help="Never handle a message twice: it is lost if the app raises or the worker dies.",
        ),
        option(
            HEADING,
            "--dead-letter",
            callback=_channel,
            metavar="CHANNEL",
            help="Where messages go that had their attempts.  [default: the channel's name with .dead behind it]",
        ),
        option(
            HEADING,
            "--attempts",
            type=COUNT,
            default=5,
            metavar="COUNT",
            help="How often a message is tried, after 1, 2, 4, ... seconds, when the app raises or its worker dies.",
        ),
        option(
            HEADING,
            "--channel-concurrency",
            type=COUNT,
            default=10,
            metavar="COUNT",
            help="Messages of a channel that are handled at once; 1 keeps their order.",
        ),
        option(
            HEADING,
            "--channel",
            "channels",
            multiple=True,
            callback=_channels,
            metavar="NAME",
            help="Run APP for the messages of this channel, with scope type channel; for no connections. Repeatable.",
        ),
    ):
        command = decorate(command)
    return command


def check_background(settings: WorkerSettings) -> None:
    """Refuse options on the command line that would mean nothing together. Raises click.UsageError."""
    if not settings.channels:
        _refuse(FOR_CHANNELS, "is for messages: it needs --channel")
        return
    _refuse(FOR_CONNECTIONS, "is for connections, and with --channel there are none")
    if settings.at_most_once:
        _refuse(FOR_ATTEMPTS, "means nothing with --at-most-once: there is one attempt")
    try:
        for channel in settings.channels:
            dead_letter_channel(channel, settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _refuse(names: tuple[str, ...], why: str) -> None:
    context = click.get_current_context()
    options = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{options[name]} {why}")
