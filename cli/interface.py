"""The command `asgi-interface`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import anyio
import click

from asgibus.cli.admin import AdminError
from asgibus.cli.descriptors import raise_limit, sockets_within
from asgibus.cli.embedded import EXPECTED, embedded_worker, serve_with_worker
from asgibus.cli.hang_ups import hang_ups
from asgibus.cli.health import ProcessHealth, admin_port
from asgibus.cli.lifeline import Lifeline
from asgibus.cli.logging import app_is_loaded, set_up_logging
from asgibus.cli.options import GroupedCommand, given, settings_from, settings_options, warn_of_unknown_variables
from asgibus.cli.run import Life, end_check, run
from asgibus.cli.settings import ALL_SETTINGS, ProcessSettings, check_processes
from asgibus.cli.sources import sources_of
from asgibus.cli.supervisor import supervise
from asgibus.cli.waiting import wait_for_layer
from asgibus.interface_server.plugins import listeners_of
from asgibus.interface_server.server import Server
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.interface_server.sockets import ListenError, describe, listening_socket
from asgibus.interface_server.tls import Tls
from asgibus.layers import open_layer
from asgibus.layers.settings import set_default_wait
from asgibus.worker.settings import WorkerSettings

logger = logging.getLogger("asgibus.interface")


# An embedded worker ends with its interface server, serves the protocols that this one terminates, and no channels.
_WORKER_ALONE = {
    "max_requests",
    "max_lifetime",
    "protocols",
    "channels",
    "channel_concurrency",
    "attempts",
    "dead_letter",
    "at_most_once",
    "expiry",
    "capacity",
}


@click.command(cls=GroupedCommand)
@click.argument("app", required=False)
@settings_options(InterfaceSettings, WorkerSettings, ProcessSettings, without=_WORKER_ALONE)
@click.version_option(package_name="asgibus")
def command(**values: Any) -> None:
    """Terminate HTTP and WebSocket, and what else it is told to, and put the connections on the bus.

    With APP (module:attribute) also run it, in this process.
    """
    lifeline = Lifeline.inherited()
    app = values["app"]
    if app == "":
        raise click.UsageError("APP is empty: give module:attribute, or leave it out")
    if app is not None and not given("layer"):
        values["layer"] = "memory://"
    settings = settings_from(InterfaceSettings, values)
    process = settings_from(ProcessSettings, values)
    in_memory = settings.layer.startswith("memory:")
    if app is None and in_memory:
        raise click.UsageError(
            "memory:// lives within one process, so no worker would ever see a connection: "
            "use a Redis URL, or give an APP to run it here"
        )
    if settings.uds is not None and settings.fd is not None and not lifeline.held:
        raise click.UsageError("--uds and --fd exclude each other")
    if settings.ssl_keyfile is not None and settings.ssl_certfile is None:
        raise click.UsageError("--ssl-keyfile needs --ssl-certfile")
    if settings.ssl_ca_certs is not None and settings.ssl_certfile is None:
        raise click.UsageError("--ssl-ca-certs needs --ssl-certfile: without a certificate there is no TLS")
    if settings.ssl_cert_reqs in ("optional", "required") and settings.ssl_ca_certs is None:
        raise click.UsageError("--ssl-cert-reqs needs --ssl-ca-certs, the authorities that sign them")
    check_processes(process, settings.layer)
    if values["resume"] and app is not None and in_memory:
        raise click.UsageError("--resume is for workers on Redis: with memory:// the sockets end with this process")
    if process.reload and app is None:
        raise click.UsageError("--reload is for apps, and here is none: give APP, or use it with asgi-worker")
    set_default_wait(settings.resume_timeout)
    try:
        listeners = listeners_of(settings)
        layer = open_layer(
            settings.layer,
            prefix=settings.prefix,
            wait=settings.resume_timeout,
            backlog=values["layer_backlog"],
            encryption_keys=settings.encryption_keys,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    app_dir = values["app_dir"]
    sources = sources_of(process, app_dir)
    supervises = (process.processes > 1 or sources is not None) and not lifeline.held and not process.check
    set_up_logging(process, app_dir, access=settings.access_log, pid=supervises or lifeline.held)
    if not lifeline.held:
        warn_of_unknown_variables(*ALL_SETTINGS)

    def tell(where: str, *mailboxes: str) -> None:
        logger.info(
            "Listening on %s (layer %s, pool %s, app %s)%s",
            where,
            getattr(layer, "address", settings.layer),
            settings.pool,
            app or "in the workers",
            _named(mailboxes),
        )

    if supervises:
        try:
            listening = listening_socket(settings)
        except ListenError as error:
            lifeline.failed(str(error))
            raise SystemExit(1) from None
        where = describe(listening, tls=settings.ssl_certfile is not None)
        raise SystemExit(
            supervise(
                process,
                settings.graceful_timeout,
                layer,
                lifeline,
                sources=sources,
                fd=listening.fileno(),
                ready=lambda: tell(where),
            )
        )
    protocols = tuple(dict.fromkeys(listener.kind for listener in listeners))
    try:
        worker = (
            embedded_worker(settings_from(WorkerSettings, values | {"protocols": protocols}), layer) if app else None
        )
        app_is_loaded()
        if process.check:
            Tls(settings).load()
            end_check(f"the options, and the app {app}" if app else "the options")
    except (ListenError, *EXPECTED) as error:
        lifeline.failed(str(error), getattr(error, "trace", ""))
        raise SystemExit(1) from None
    limit = raise_limit()
    most = sockets_within(limit)
    if most < settings.max_connections:
        logger.warning(
            "%d sockets at once, where --max-connections says %d: this process may open %d files. "
            "`ulimit -n`, or LimitNOFILE, allows more",
            most,
            settings.max_connections,
            limit,
        )
        settings = replace(settings, max_connections=most)
    server = Server(settings, layer, listeners, shared=lifeline.held)

    async def serve(life: Life) -> None:
        def ready(where: str) -> None:
            mailboxes = server.connections.bus.mailbox, *([worker.mailbox] if worker else [])
            if lifeline.held:
                logger.info("Interface server ready%s", _named(mailboxes))
            else:
                tell(where, *mailboxes)
            life.started()
            life.ready(f"listening on {where}", *mailboxes)

        async def reload_certificates() -> None:
            life.reloading("reading the certificates again")
            await server.reload_certificates()
            life.reloaded("serving")

        health = ProcessHealth(life, layer, server, *([worker] if worker else []))
        try:
            async with (
                admin_port(process, settings.graceful_timeout, health, supervised=lifeline.held),
                anyio.create_task_group() as tasks,
            ):
                if settings.ssl_certfile is not None:
                    tasks.start_soon(hang_ups, life, reload_certificates)
                if not await wait_for_layer(layer, process.wait_for_layer, life):
                    pass
                elif worker is None:
                    await server.serve(life.stop, ready)
                else:
                    await serve_with_worker(
                        worker, lambda: server.serve(life.stop, ready), life.stop, settings.graceful_timeout
                    )
                tasks.cancel_scope.cancel()
        finally:
            await layer.close()
        logger.info("Interface server stopped")

    expected = (ListenError, AdminError, *EXPECTED)
    graceful, hint = settings.graceful_timeout, "--layer names another one"
    if app is None:
        hint += "; to run an app in this process, without Redis, give APP"
    raise SystemExit(run(serve, *expected, lifeline=lifeline, graceful_timeout=graceful, layer_hint=hint))


def _named(mailboxes: Sequence[str]) -> str:
    """Return the names by which the logs of other processes speak of this one."""
    return "".join(f", mailbox {mailbox}" for mailbox in mailboxes)


def main() -> None:
    """Entry point of `asgi-interface`."""
    command(prog_name="asgi-interface")
