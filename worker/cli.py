"""The command `asgi-worker`."""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import Any

import click

from asgibus.commands.admin import AdminError
from asgibus.commands.health import ProcessHealth, admin_port
from asgibus.commands.lifeline import Lifeline
from asgibus.commands.logs import set_up_logging
from asgibus.commands.options import (
    COUNT,
    DEFAULT_LAYER,
    SECONDS,
    GroupedCommand,
    app_options,
    bus_options,
    check_processes,
    option,
    process_options,
)
from asgibus.commands.run import Life, run
from asgibus.commands.supervisor import supervise
from asgibus.layers import open_layer
from asgibus.worker.application import ApplicationError, load_application
from asgibus.worker.lifespan import LifespanError
from asgibus.worker.server import Worker
from asgibus.worker.settings import WorkerSettings

logger = logging.getLogger("asgibus.worker")


@click.command(cls=GroupedCommand)
@click.argument("app")
@option(
    "Bus", "--layer", default=DEFAULT_LAYER, metavar="URL", help="The channel layer: redis://, rediss:// or unix://."
)
@bus_options
@app_options
@option(
    "Stopping",
    "--graceful-timeout",
    type=SECONDS,
    default=30.0,
    metavar="SECONDS",
    help="How long requests may finish after SIGTERM or SIGINT.",
)
@option(
    "Stopping",
    "--max-requests",
    type=COUNT,
    metavar="COUNT",
    help="Connections, HTTP or WebSocket, after which the worker stops, give or take 10 %; "
    "with --processes another takes its place.  [default: none]",
)
@option(
    "Stopping",
    "--max-lifetime",
    type=SECONDS,
    metavar="SECONDS",
    help="After how long the worker stops; with --processes another takes its place.  [default: none]",
)
@process_options
@click.version_option(package_name="asgibus")
def command(log_level: str, **options: Any) -> None:
    """Run the ASGI app APP (module:attribute) for connections that interface servers put on the bus."""
    lifeline = Lifeline.inherited()
    names = {field.name for field in fields(WorkerSettings)}
    settings = WorkerSettings(**{name: value for name, value in options.items() if name in names})
    if settings.layer.startswith("memory:"):
        raise click.UsageError(
            "memory:// lives within one process, so a worker by itself would never see a connection: "
            "use a Redis URL, or run asgi-interface with APP"
        )
    check_processes(options)
    try:
        layer = open_layer(settings.layer, prefix=settings.prefix, encryption_keys=settings.encryption_keys)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    supervises = options["processes"] > 1 and not lifeline.held
    set_up_logging(log_level, access=False, pid=supervises or lifeline.held)
    if supervises:
        raise SystemExit(supervise(options, layer))
    try:
        app = load_application(settings.app, app_dir=settings.app_dir, factory=settings.factory)
    except ApplicationError as error:
        lifeline.failed(str(error))
        raise SystemExit(1) from None
    worker = Worker(settings, app, layer)

    async def serve(life: Life) -> None:
        def ready() -> None:
            logger.info(
                "Worker ready: app %s, layer %s, pool %s, up to %d connections",
                settings.app,
                getattr(layer, "address", settings.layer),
                settings.pool,
                settings.concurrency,
            )
            life.started(worker.mailbox)

        health = ProcessHealth(life, layer, worker)
        try:
            async with admin_port(options, health, supervised=lifeline.held):
                await worker.serve(life.stop, ready, life.retiring)
        finally:
            await layer.close()
        logger.info("Worker stopped")

    expected = (LifespanError, AdminError)
    raise SystemExit(run(serve, *expected, lifeline=lifeline, graceful_timeout=settings.graceful_timeout))


def main() -> None:
    """Entry point of `asgi-worker`."""
    command(prog_name="asgi-worker")
