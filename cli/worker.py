"""The command `asgi-worker`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import click

from asgibus.cli.admin_port import admin_port
from asgibus.cli.control_pipe import ControlPipe
from asgibus.cli.health import AdminError, ProcessHealth
from asgibus.cli.logging import complete_app_logging, set_up_logging
from asgibus.cli.options import (
    GroupedCommand,
    given_on_command_line,
    settings_from,
    settings_options,
    warn_of_unknown_variables,
)
from asgibus.cli.reload import watched_files
from asgibus.cli.run import ProcessLifecycle, exit_after_check, run, wait_for_layer
from asgibus.cli.settings import ALL_SETTINGS, ProcessSettings, check_processes
from asgibus.cli.version import version_option
from asgibus.layers import open_layer
from asgibus.layers.settings import set_default_wait
from asgibus.protocol.channels import TERMINATORS
from asgibus.worker.background import BackgroundWorker, dead_letter_channel
from asgibus.worker.lifespan import LifespanError
from asgibus.worker.loader import ApplicationError, load_app
from asgibus.worker.settings import WorkerSettings
from asgibus.worker.worker import Worker

logger = logging.getLogger("asgibus.worker")


FOR_CONNECTIONS = (
    "pool",
    "concurrency",
    "resume",
    "handover",
    "resume_rate",
    "drain_period",
    "protocols",
    "threads",
    "wsgi_max_body_size",
    "wsgi_response_buffer",
    "wsgi_spool_size",
)
FOR_CHANNELS = ("channel_concurrency", "attempts", "dead_letter", "at_most_once", "expiry", "capacity")
FOR_ATTEMPTS = ("attempts", "dead_letter", "capacity")


@click.command(cls=GroupedCommand)
@click.argument("app")
@settings_options(WorkerSettings, ProcessSettings)
@version_option
def command(**values: Any) -> None:
    """Run the ASGI app APP (module:attribute) for connections that interface servers put on the bus.

    With --channel, run it for the messages of channels instead: then it serves no connections.
    """
    control = ControlPipe.inherited()
    settings = settings_from(WorkerSettings, values)
    process = settings_from(ProcessSettings, values)
    if settings.layer.startswith("memory:"):
        hint = "" if settings.channels else ", or run asgi-interface with APP"
        raise click.UsageError(
            "memory:// lives within one process, so a worker by itself would never see a connection or a message: "
            f"use a Redis URL{hint}"
        )
    _check_background(settings)
    check_processes(process, settings.layer)
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
            stream_limits={"*": settings.stream_limits},
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    files = watched_files(process, settings.app_dir)
    supervises = (process.processes > 1 or files is not None) and not control.is_supervised and not process.check
    set_up_logging(process, settings.app_dir, access=False, pid=supervises or control.is_supervised)
    if not control.is_supervised:
        warn_of_unknown_variables(*ALL_SETTINGS)
        _warn_of_unknown_protocols(settings.protocols)
    if supervises:
        from asgibus.cli.supervisor import supervise  # noqa: PLC0415  # its processes need none of it

        raise SystemExit(supervise(process, settings.graceful_timeout, layer, control, files=files))
    try:
        app, settings = load_app(settings)
    except ApplicationError as error:
        control.failed(str(error), error.trace)
        raise SystemExit(1) from None
    complete_app_logging()
    if process.check:
        exit_after_check(f"the options, and the app {settings.app}")
    worker = (BackgroundWorker if settings.channels else Worker)(settings, app, layer)

    async def serve(lifecycle: ProcessLifecycle) -> None:
        def ready() -> None:
            logger.info(
                "worker ready: app %s%s, layer %s, %s, mailbox %s",
                settings.app,
                "" if settings.interface == "asgi3" else f" ({settings.interface})",
                getattr(layer, "address", settings.layer),
                _work(settings),
                worker.mailbox,
            )
            lifecycle.started()
            lifecycle.ready("serving", worker.mailbox)

        health = ProcessHealth(lifecycle, layer, worker)
        try:
            async with admin_port(process, settings.graceful_timeout, health, supervised=control.is_supervised):
                if await wait_for_layer(layer, process.wait_for_layer, lifecycle):
                    await worker.serve(lifecycle.stop, ready, lifecycle.retiring)
        finally:
            lifecycle.suspended += worker.suspended
            await layer.close()
        logger.info("worker stopped")

    expected = (LifespanError, AdminError)
    graceful, hint = settings.graceful_timeout, "--layer names another one"
    raise SystemExit(run(serve, *expected, control=control, graceful_timeout=graceful, layer_hint=hint))


def _check_background(settings: WorkerSettings) -> None:
    """Refuse options on the command line that would mean nothing together. Raises click.UsageError."""
    if not settings.channels:
        _refuse(FOR_CHANNELS, "is for messages: it needs --channel")
        if not settings.resume:
            _refuse(("handover", "resume_rate"), "is for WebSockets that outlive this worker: it needs --resume")
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
        if given_on_command_line(name):
            raise click.UsageError(f"{options[name]} {why}")


def _warn_of_unknown_protocols(protocols: Sequence[str]) -> None:
    """Log a warning for each protocol without a terminator here. An interface server elsewhere may have one."""
    if set(protocols) <= {"udp"}:
        return
    from importlib.metadata import entry_points  # noqa: PLC0415  # with its parser of e-mail, it takes 5 ms

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
    """Return what the worker takes, in words."""
    if not settings.channels:
        protocols = "".join(f", {name}" for name in settings.protocols)
        threads = f" in {settings.threads} threads" if settings.interface == "wsgi" else ""
        return f"pool {settings.pool}{protocols}, up to {settings.concurrency} connections{threads}"
    channels = ", ".join(settings.channels)
    return f"no connections, up to {settings.channel_concurrency} messages at once of each channel: {channels}"


def main() -> None:
    """Run the command."""
    command(prog_name="asgi-worker")


if __name__ == "__main__":
    main()
