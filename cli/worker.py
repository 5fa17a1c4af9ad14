"""The command `asgi-worker`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any

import click

from asgibus.cli.admin import AdminError
from asgibus.cli.background_options import background_options, check_background
from asgibus.cli.environment import warn_of_unknown_variables
from asgibus.cli.health import ProcessHealth, admin_port
from asgibus.cli.lifeline import Lifeline
from asgibus.cli.logging import app_is_loaded, set_up_logging
from asgibus.cli.options import (
    COUNT,
    DEFAULT_LAYER,
    SECONDS,
    GroupedCommand,
    app_options,
    bus_options,
    check_processes,
    option,
    process_options,
    reload_options,
)
from asgibus.cli.run import Life, end_check, run
from asgibus.cli.sources import sources_of
from asgibus.cli.supervisor import supervise
from asgibus.cli.waiting import wait_for_layer
from asgibus.layers import open_layer
from asgibus.layers.settings import set_default_wait
from asgibus.protocol.channels import TERMINATORS, require_protocol
from asgibus.worker.background import BackgroundWorker
from asgibus.worker.lifespan import LifespanError
from asgibus.worker.loader import ApplicationError, application_of
from asgibus.worker.settings import WorkerSettings
from asgibus.worker.worker import Worker

logger = logging.getLogger("asgibus.worker")


def _protocols(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tuple(dict.fromkeys(require_protocol(value) for value in values))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command(cls=GroupedCommand)
@click.argument("app")
@option(
    "Bus",
    "--layer",
    default=DEFAULT_LAYER,
    metavar="URL",
    help="The channel layer: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://.",
)
@bus_options
@app_options
@option(
    "Stopping",
    "--graceful-timeout",
    type=SECONDS,
    default=30.0,
    metavar="SECONDS",
    help="How long requests and messages may finish after SIGTERM or SIGINT.",
)
@option(
    "Stopping",
    "--max-requests",
    type=COUNT,
    metavar="COUNT",
    help="Connections, HTTP or WebSocket, or messages, after which the worker stops, give or take 10 %; "
    "with --processes another takes its place.  [default: none]",
)
@option(
    "Stopping",
    "--max-lifetime",
    type=SECONDS,
    metavar="SECONDS",
    help="After how long the worker stops; with --processes another takes its place.  [default: none]",
)
@option(
    "Bus",
    "--resume-timeout",
    type=SECONDS,
    default=60.0,
    metavar="SECONDS",
    help="How long what the app sends to groups and channels waits for a layer that is away.",
)
@background_options
@option(
    "Application",
    "--protocol",
    "protocols",
    multiple=True,
    callback=_protocols,
    metavar="NAME",
    help="Serve connections of this protocol, too, such as udp; an interface server must have a terminator for it. "
    "Repeatable.",
)
@process_options
@reload_options
@click.version_option(package_name="asgibus")
def command(log_level: str, **options: Any) -> None:
    """Run the ASGI app APP (module:attribute) for connections that interface servers put on the bus.

    With --channel, run it for the messages of channels instead: then it serves no connections.
    """
    lifeline = Lifeline.inherited()
    names = {field.name for field in fields(WorkerSettings)}
    settings = WorkerSettings(**{name: value for name, value in options.items() if name in names})
    if settings.layer.startswith("memory:"):
        hint = "" if settings.channels else ", or run asgi-interface with APP"
        raise click.UsageError(
            "memory:// lives within one process, so a worker by itself would never see a connection or a message: "
            f"use a Redis URL{hint}"
        )
    check_background(settings)
    check_processes(options)
    set_default_wait(settings.resume_timeout)
    try:
        layer = open_layer(
            settings.layer,
            prefix=settings.prefix,
            expiry=settings.expiry,
            capacity=settings.capacity,
            wait=settings.resume_timeout,
            backlog=settings.layer_backlog,
            encryption_keys=settings.encryption_keys,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    sources = sources_of(options)
    supervises = (options["processes"] > 1 or sources is not None) and not lifeline.held and not options["check"]
    set_up_logging(log_level, options, access=False, pid=supervises or lifeline.held)
    if not lifeline.held:
        warn_of_unknown_variables()
        _warn_of_unknown_protocols(settings.protocols)
    if supervises:
        raise SystemExit(supervise(options, layer, lifeline, sources=sources))
    try:
        app, settings = application_of(settings)
    except ApplicationError as error:
        lifeline.failed(str(error), error.trace)
        raise SystemExit(1) from None
    app_is_loaded()
    if options["check"]:
        end_check(f"the options, and the app {settings.app}")
    worker = (BackgroundWorker if settings.channels else Worker)(settings, app, layer)

    async def serve(life: Life) -> None:
        def ready() -> None:
            logger.info(
                "Worker ready: app %s%s, layer %s, %s, mailbox %s",
                settings.app,
                "" if settings.interface == "asgi3" else f" ({settings.interface})",
                getattr(layer, "address", settings.layer),
                _work(settings),
                worker.mailbox,
            )
            life.started()
            life.ready("serving", worker.mailbox)

        health = ProcessHealth(life, layer, worker)
        try:
            async with admin_port(options, health, supervised=lifeline.held):
                if await wait_for_layer(layer, options["wait_for_layer"], life):
                    await worker.serve(life.stop, ready, life.retiring)
        finally:
            await layer.close()
        logger.info("Worker stopped")

    expected = (LifespanError, AdminError)
    graceful, hint = settings.graceful_timeout, "--layer names another one"
    raise SystemExit(run(serve, *expected, lifeline=lifeline, graceful_timeout=graceful, layer_hint=hint))


def _warn_of_unknown_protocols(protocols: Sequence[str]) -> None:
    """Log a warning for each protocol without a terminator here. An interface server elsewhere may have one."""
    if set(protocols) <= {"udp"}:
        return
    known = ["udp", *(point.name for point in entry_points(group=TERMINATORS))]
    for name in protocols:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            logger.warning(
                "--protocol %s: no terminator of that name is installed here%s (installed: %s)",
                name,
                f"; is {near[0]} meant?" if near else "",
                ", ".join(known),
            )


def _work(settings: WorkerSettings) -> str:
    """What it takes, in words."""
    if not settings.channels:
        protocols = "".join(f", {name}" for name in settings.protocols)
        threads = f" in {settings.threads} threads" if settings.interface == "wsgi" else ""
        return f"pool {settings.pool}{protocols}, up to {settings.concurrency} connections{threads}"
    channels = ", ".join(settings.channels)
    return f"no connections, up to {settings.channel_concurrency} messages at once of each channel: {channels}"


def main() -> None:
    """Entry point of `asgi-worker`."""
    command(prog_name="asgi-worker")
