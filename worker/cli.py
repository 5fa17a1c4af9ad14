"""The command `asgi-worker`."""

from __future__ import annotations

import logging
import sys
from typing import Any

import anyio
import click

from asgibus.commands.logs import set_up_logging
from asgibus.commands.options import (
    DEFAULT_LAYER,
    SECONDS,
    GroupedCommand,
    app_options,
    bus_options,
    option,
)
from asgibus.commands.run import run, started
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
@click.version_option(package_name="asgibus")
def command(log_level: str, **options: Any) -> None:
    """Run the ASGI app APP (module:attribute) for connections that interface servers put on the bus."""
    settings = WorkerSettings(**options)
    if settings.layer.startswith("memory:"):
        raise click.UsageError(
            "memory:// lives within one process, so a worker by itself would never see a connection: "
            "use a Redis URL, or run asgi-interface with APP"
        )
    try:
        layer = open_layer(settings.layer, prefix=settings.prefix)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    set_up_logging(log_level, access=False)
    try:
        app = load_application(settings.app, app_dir=settings.app_dir, factory=settings.factory)
    except ApplicationError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    worker = Worker(settings, app, layer)

    def ready() -> None:
        started()
        logger.info(
            "Worker ready: app %s, layer %s, pool %s, up to %d connections",
            settings.app,
            getattr(layer, "address", settings.layer),
            settings.pool,
            settings.concurrency,
        )

    async def serve(stop: anyio.Event) -> None:
        try:
            await worker.serve(stop, ready)
        finally:
            await layer.close()
        logger.info("Worker stopped")

    raise SystemExit(run(serve, LifespanError))


def main() -> None:
    """Entry point of `asgi-worker`."""
    command(prog_name="asgi-worker")
