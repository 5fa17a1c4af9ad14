"""The command `asgi-interface`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import anyio
import click
from anyio.abc import TaskStatus

from asgibus.cli.admin_port import admin_port
from asgibus.cli.control_pipe import ControlPipe
from asgibus.cli.descriptors import raise_limit, sockets_within
from asgibus.cli.embedded import embedded_worker, serve_with_worker
from asgibus.cli.health import AdminError, ProcessHealth
from asgibus.cli.logging import complete_app_logging, set_up_logging
from asgibus.cli.options import (
    GroupedCommand,
    given,
    given_on_command_line,
    settings_from,
    settings_options,
    warn_of_unknown_variables,
)
from asgibus.cli.reload import WatchedFiles, watched_files
from asgibus.cli.run import ProcessLifecycle, exit_after_check, on_sighup, run, wait_for_layer
from asgibus.cli.settings import ALL_SETTINGS, ProcessSettings, check_processes
from asgibus.cli.successor import Moves, inherited_channel
from asgibus.cli.version import version_option
from asgibus.interface_server.move import MoveChannel, MoveError
from asgibus.interface_server.plugins import listeners_of
from asgibus.interface_server.server import Server
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.interface_server.sockets import ListenError, describe, listening_socket
from asgibus.interface_server.tls import Tls
from asgibus.layers import open_layer
from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.settings import StreamLimits, set_default_wait
from asgibus.worker.lifespan import LifespanError
from asgibus.worker.loader import ApplicationError
from asgibus.worker.settings import WorkerSettings
from asgibus.worker.worker import Worker

logger = logging.getLogger("asgibus.interface")

APP_ERRORS = (ApplicationError, LifespanError)
# An embedded worker ends with its interface server, serves the protocols that this one terminates, and no channels.
WORKER_ALONE = {
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
HOLDS_APP = "the app runs in the same process, and would end; run it with asgi-worker to move the sockets alone"


@click.command(cls=GroupedCommand)
@click.argument("app", required=False)
@settings_options(InterfaceSettings, WorkerSettings, ProcessSettings, without=WORKER_ALONE)
@version_option
def command(**values: Any) -> None:
    """Terminate HTTP and WebSocket, and further protocols, and put the connections on the bus.

    With APP (module:attribute), also run that app in this process.
    """
    control = ControlPipe.inherited()
    predecessor = inherited_channel()
    if values["app"] is not None and not given("layer"):
        values["layer"] = "memory://"
    settings = settings_from(InterfaceSettings, values)
    process = settings_from(ProcessSettings, values)
    _check(settings, process, control, resume=values["resume"])
    set_default_wait(settings.resume_timeout)
    try:
        listeners = listeners_of(settings)
        layer = open_layer(
            settings.layer,
            prefix=settings.prefix,
            wait=settings.resume_timeout,
            backlog=values["layer_backlog"],
            encryption_keys=settings.encryption_keys,
            stream_limits={"*": StreamLimits(values["stream_entries"], values["stream_bytes"], values["stream_kept"])},
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    app_dir = values["app_dir"]
    files = watched_files(process, app_dir)
    supervises = (process.processes > 1 or files is not None) and not control.is_supervised and not process.check
    set_up_logging(process, app_dir, access=settings.access_log, pid=supervises or control.is_supervised)
    if not control.is_supervised:
        warn_of_unknown_variables(*ALL_SETTINGS)
    if supervises:
        raise SystemExit(_supervise(settings, process, control, layer, files))
    worker = None
    try:
        if settings.app is not None:
            protocols = tuple(dict.fromkeys(listener.kind for listener in listeners))
            worker = embedded_worker(settings_from(WorkerSettings, values | {"protocols": protocols}), layer)
        complete_app_logging()
        if process.check:
            Tls(settings).load()
            exit_after_check(f"the options, and the app {settings.app}" if worker else "the options")
    except (ListenError, *APP_ERRORS) as error:
        control.failed(str(error), getattr(error, "trace", ""))
        raise SystemExit(1) from None
    settings = _within_file_limit(settings)
    server = Server(settings, layer, listeners, shared=control.is_supervised)
    raise SystemExit(_run(settings, process, control, layer, server, worker, predecessor))


def _check(settings: InterfaceSettings, process: ProcessSettings, control: ControlPipe, *, resume: bool) -> None:
    """Raise click.UsageError for options that contradict each other."""
    app, in_memory = settings.app, settings.layer.startswith("memory:")
    if app == "":
        raise click.UsageError("APP is empty: give module:attribute, or leave it out")
    if app is None and in_memory:
        raise click.UsageError(
            "memory:// lives within one process, so no worker would ever see a connection: "
            "use a Redis URL, or give an APP to run it here"
        )
    if settings.uds is not None and settings.fd is not None and not control.is_supervised:
        raise click.UsageError("--uds and --fd exclude each other")
    if settings.ssl_keyfile is not None and settings.ssl_certfile is None:
        raise click.UsageError("--ssl-keyfile needs --ssl-certfile")
    if settings.ssl_ca_certs is not None and settings.ssl_certfile is None:
        raise click.UsageError("--ssl-ca-certs needs --ssl-certfile: without a certificate there is no TLS")
    if settings.ssl_cert_reqs in ("optional", "required") and settings.ssl_ca_certs is None:
        raise click.UsageError("--ssl-cert-reqs needs --ssl-ca-certs, the authorities that sign them")
    # The environment may be that of a worker, or of several servers: a key there needs no --streams.
    if settings.streams is None and (given_on_command_line("streams_keys") or settings.streams_unsigned):
        raise click.UsageError("--streams-key and --streams-unsigned need --streams, the path of the streams")
    if settings.streams is not None and bool(settings.streams_keys) is settings.streams_unsigned:
        raise click.UsageError(
            "--streams-key and --streams-unsigned exclude each other"
            if settings.streams_unsigned
            else "--streams needs --streams-key, which signs names; --streams-unsigned is for development"
        )
    check_processes(process, settings.layer)
    if resume and app is not None and in_memory:
        raise click.UsageError("--resume is for workers on Redis: with memory:// the sockets end with this process")
    if process.reload and app is None:
        raise click.UsageError("--reload is for apps, and here is none: give APP, or use it with asgi-worker")


def _supervise(
    settings: InterfaceSettings,
    process: ProcessSettings,
    control: ControlPipe,
    layer: ChannelLayer,
    files: WatchedFiles | None,
) -> int:
    """Bind the socket of all processes, supervise them, and return the exit code."""
    from asgibus.cli.supervisor import supervise  # noqa: PLC0415  # its processes need none of it

    try:
        listening = listening_socket(settings)
    except ListenError as error:
        control.failed(str(error))
        return 1
    address = describe(listening, tls=settings.ssl_certfile is not None)
    return supervise(
        process,
        settings.graceful_timeout,
        layer,
        control,
        files=files,
        fd=listening.fileno(),
        moves=True,
        obstacle=None if settings.app is None else HOLDS_APP,
        on_ready=lambda: _log_listening(address, settings, layer),
    )


def _run(
    settings: InterfaceSettings,
    process: ProcessSettings,
    control: ControlPipe,
    layer: ChannelLayer,
    server: Server,
    worker: Worker | None,
    predecessor: MoveChannel | None,
) -> int:
    """Run the server, and the worker if there is one, and return the exit code."""
    # The process that goes on here may still have the admin port.
    shares_port = control.is_supervised or predecessor is not None
    obstacle = None if worker is None else HOLDS_APP

    async def serve(lifecycle: ProcessLifecycle) -> None:
        def ready(address: str) -> None:
            mailboxes = server.connections.bus.mailbox, *([worker.mailbox] if worker else [])
            if control.is_supervised:
                logger.info("interface server ready%s", _mailboxes(mailboxes))
            else:
                _log_listening(address, settings, layer, *mailboxes)
            lifecycle.started()
            lifecycle.ready(f"listening on {address}", *mailboxes)

        async def reload_certificates() -> None:
            lifecycle.reloading("reading the certificates again")
            server.reload_certificates()
            lifecycle.reloaded("serving")

        health = ProcessHealth(lifecycle, layer, server, *([worker] if worker else []))
        admin_end = anyio.Event()

        async def serve_admin_port(*, task_status: TaskStatus[None]) -> None:
            async with admin_port(process, settings.graceful_timeout, health, supervised=shares_port):
                task_status.started()
                await admin_end.wait()

        moves = Moves(server, lifecycle, control, obstacle=obstacle, on_moved=admin_end.set)
        try:
            async with anyio.create_task_group() as admin, anyio.create_task_group() as tasks:
                await admin.start(serve_admin_port)
                tasks.start_soon(moves.at_signal)
                moves.at_request(tasks)
                if settings.ssl_certfile is not None:
                    tasks.start_soon(on_sighup, lifecycle, reload_certificates)
                if not await wait_for_layer(layer, process.wait_for_layer, lifecycle):
                    pass
                elif worker is None:
                    await server.serve(lifecycle.stop, ready, predecessor)
                else:
                    await serve_with_worker(
                        worker, lambda: server.serve(lifecycle.stop, ready), lifecycle.stop, settings.graceful_timeout
                    )
                admin_end.set()
                tasks.cancel_scope.cancel()
        finally:
            if worker is not None:
                lifecycle.suspended += worker.suspended
            await layer.close()
        logger.info("interface server stopped")

    hint = "--layer names another one"
    if worker is None:
        hint += "; to run an app in this process, without Redis, give APP"
    expected = (ListenError, AdminError, MoveError, *APP_ERRORS)
    return run(serve, *expected, control=control, graceful_timeout=settings.graceful_timeout, layer_hint=hint)


def _within_file_limit(settings: InterfaceSettings) -> InterfaceSettings:
    """Return the settings with no more connections than the process may open files for."""
    limit = raise_limit()
    most = sockets_within(limit)
    if most >= settings.max_connections:
        return settings
    logger.warning(
        "%d sockets at once, where --max-connections says %d: this process may open %d files. "
        "`ulimit -n`, or LimitNOFILE, allows more",
        most,
        settings.max_connections,
        limit,
    )
    return replace(settings, max_connections=most)


def _log_listening(address: str, settings: InterfaceSettings, layer: ChannelLayer, *mailboxes: str) -> None:
    logger.info(
        "listening on %s (layer %s, pool %s, app %s)%s",
        address,
        getattr(layer, "address", settings.layer),
        settings.pool,
        settings.app or "in the workers",
        _mailboxes(mailboxes),
    )


def _mailboxes(mailboxes: Sequence[str]) -> str:
    """Return the mailboxes in words: the logs of other processes name this one by them."""
    return "".join(f", mailbox {mailbox}" for mailbox in mailboxes)


def main() -> None:
    """Run the command."""
    command(prog_name="asgi-interface")


if __name__ == "__main__":
    main()
