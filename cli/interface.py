"""The command `asgi-interface`."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import anyio
import click

from asgibus.cli.admin import AdminError
from asgibus.cli.descriptors import raise_limit, sockets_within
from asgibus.cli.embedded import EXPECTED, embedded_worker, serve_with_worker
from asgibus.cli.environment import warn_of_unknown_variables
from asgibus.cli.hang_ups import hang_ups
from asgibus.cli.health import ProcessHealth, admin_port
from asgibus.cli.lifeline import Lifeline
from asgibus.cli.logging import app_is_loaded, set_up_logging
from asgibus.cli.options import (
    COUNT,
    DEFAULT_LAYER,
    LARGEST_COUNT,
    LARGEST_SIZE,
    PORT,
    SECONDS,
    SIZE,
    GroupedCommand,
    app_options,
    bus_options,
    check_processes,
    not_empty,
    option,
    process_options,
    reload_options,
)
from asgibus.cli.run import Life, end_check, run
from asgibus.cli.sources import sources_of
from asgibus.cli.supervisor import supervise
from asgibus.cli.waiting import wait_for_layer
from asgibus.interface_server.plugins import listeners_of
from asgibus.interface_server.proxy_headers import TrustedProxies
from asgibus.interface_server.server import Server
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.interface_server.sockets import ListenError, describe, listening_socket
from asgibus.interface_server.tls import Tls
from asgibus.layers import open_layer
from asgibus.layers.settings import set_default_wait
from asgibus.protocol.channels import require_pool

logger = logging.getLogger("asgibus.interface")


def _routes(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    routes = []
    for value in values:
        prefix, mark, pool = value.rpartition("=")
        if not mark or not prefix.startswith("/"):
            raise click.BadParameter(f"{value!r} is not of the form /path/prefix=pool")
        try:
            routes.append((prefix, require_pool(pool)))
        except ValueError as error:
            raise click.BadParameter(str(error)) from error
    return tuple(routes)


def _root_path(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """Return the path without a slash at its end: the paths of requests begin with one."""
    path = value.rstrip("/")
    if path and not path.startswith("/"):
        raise click.BadParameter(f"{value!r} does not begin with a slash: write it as /{path}")
    return path


def _mode(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    if not re.fullmatch("0?[0-7]{3}", value):
        raise click.BadParameter(f"{value!r} is not three octal digits, such as 660")
    return value


def _trusted(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        TrustedProxies(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}: give IP addresses or networks, 'unix', or '*'") from error
    return value


_LISTEN = "Listening"
_PROXY = "Behind a proxy"
_TLS = "TLS"
_TIMES = "Time limits (seconds)"
_LIMITS = "Size limits"
_GROUPS = "Groups"
_FILE = click.Path(exists=True, dir_okay=False)


@click.command(cls=GroupedCommand)
@click.argument("app", required=False)
@option(_LISTEN, "--host", default="127.0.0.1", callback=not_empty, help="Address to listen on.")
@option(_LISTEN, "--port", type=PORT, default=8000, help="Port to listen on; 0 takes a free one.")
@option(_LISTEN, "--uds", type=click.Path(), callback=not_empty, help="Listen on a unix socket instead.")
@option(
    _LISTEN,
    "--uds-mode",
    metavar="OCTAL",
    default="666",
    callback=_mode,
    help="Permissions of the unix socket; 660 is for its user and group alone.",
)
@option(
    _LISTEN, "--fd", type=click.IntRange(0, LARGEST_COUNT), help="Listen on a socket that was passed in, by its number."
)
@option(_LISTEN, "--backlog", type=COUNT, default=2048, help="Connections that may wait to be accepted.")
@option(
    _LISTEN,
    "--udp",
    multiple=True,
    metavar="HOST:PORT",
    help="Turn datagrams to this address into events, for workers with --protocol udp. Repeatable.",
)
@option(
    _LISTEN,
    "--terminator",
    "terminators",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="Serve a further protocol, whose terminator is installed under this name. Repeatable.",
)
@option("Bus", "--layer", metavar="URL", help=f"The channel layer.  [default: {DEFAULT_LAYER}; memory:// with APP]")
@option(
    "Bus",
    "--route",
    "routes",
    multiple=True,
    callback=_routes,
    metavar="PREFIX=POOL",
    help="Send paths that begin with PREFIX to another pool; the first match wins. Repeatable.",
)
@bus_options
@app_options
@option(
    _PROXY,
    "--root-path",
    default="",
    callback=_root_path,
    help="ASGI root_path: where a proxy has mounted the app.",
)
@option(
    _PROXY,
    "--proxy-headers/--no-proxy-headers",
    default=True,
    help="Believe X-Forwarded-For and -Proto of trusted peers.",
)
@option(
    _PROXY,
    "--forwarded-allow-ips",
    default="127.0.0.1",
    callback=_trusted,
    metavar="LIST",
    help="Trusted peers: addresses, networks, 'unix', or '*'.",
)
@option(_PROXY, "--server-header/--no-server-header", default=True, help="Send a Server header.")
@option(_PROXY, "--date-header/--no-date-header", default=True, help="Send a Date header.")
@option(
    _PROXY,
    "--proxy-protocol/--no-proxy-protocol",
    default=False,
    help="Expect a PROXY header (v1, v2) on each connection, before TLS too; only trusted peers may connect then.",
)
@option(_TLS, "--ssl-certfile", type=_FILE, help="Certificate chain; turns TLS on.")
@option(_TLS, "--ssl-keyfile", type=_FILE, help="Private key, if it is not in the certificate file.")
@option(_TLS, "--ssl-keyfile-password", show_default=False, help="Password of the private key.")
@option(_TLS, "--ssl-ca-certs", type=_FILE, help="Require client certificates of these authorities.")
@option(
    _TLS,
    "--ssl-cert-reqs",
    type=click.Choice(("none", "optional", "required")),
    help="Client certificates: none, optional or required.  [default: required with --ssl-ca-certs]",
)
@option(
    _TIMES,
    "--http-timeout",
    type=SECONDS,
    help="From the head of a request to the end of its response.  [default: none]",
)
@option(_TIMES, "--websocket-timeout", type=SECONDS, default=86400.0, help="How long a WebSocket may stay open.")
@option(_TIMES, "--connect-timeout", type=SECONDS, default=10.0, help="How long a connection waits for a worker.")
@option(
    _TIMES, "--resume-timeout", type=SECONDS, default=60.0, help="How long an open WebSocket waits for another worker."
)
@option(
    _TIMES, "--ping-interval", "--ws-ping-interval", "ping_interval", type=SECONDS, default=20.0, help="Between pings."
)
@option(
    _TIMES,
    "--ping-timeout",
    "--ws-ping-timeout",
    "ping_timeout",
    type=SECONDS,
    default=20.0,
    help="For the answer to a ping.",
)
@option(
    _TIMES,
    "--keep-alive-timeout",
    "--timeout-keep-alive",
    "keep_alive_timeout",
    type=SECONDS,
    default=5.0,
    help="How long an idle connection is kept.",
)
@option(_TIMES, "--head-timeout", type=SECONDS, default=10.0, help="For the head of a request to come.")
@option(
    _TIMES,
    "--graceful-timeout",
    "--timeout-graceful-shutdown",
    "graceful_timeout",
    type=SECONDS,
    default=30.0,
    help="How long requests may finish after SIGTERM or SIGINT.",
)
@option(_TIMES, "--udp-timeout", type=SECONDS, default=60.0, help="How long a UDP peer may be silent.")
@option(
    _LIMITS,
    "--max-connections",
    "--limit-concurrency",
    "max_connections",
    type=COUNT,
    default=10_000,
    help="Open sockets.",
)
@option(_LIMITS, "--max-head-size", type=SIZE, default=64 * 1024, help="Request line and headers, in bytes.")
@option(_LIMITS, "--max-headers", type=COUNT, default=128, help="Headers of a request; more are answered with 431.")
@option(
    _LIMITS,
    "--min-body-rate",
    type=click.IntRange(0, LARGEST_SIZE),
    default=240,
    help="Slowest request body, in bytes a second.",
)
@option(
    _LIMITS,
    "--websocket-max-message-size",
    "--ws-max-size",
    "websocket_max_message_size",
    type=SIZE,
    default=16 * 1024 * 1024,
    help="Message from a client, in bytes.",
)
@option(
    _LIMITS,
    "--websocket-compression/--no-websocket-compression",
    default=False,
    help="Compress WebSocket messages, each by itself; the size limit is for what comes out.",
)
@option(_LIMITS, "--window", type=SIZE, default=256 * 1024, help="Bytes under way per connection and direction.")
@option(
    _LIMITS,
    "--max-unclaimed",
    type=COUNT,
    default=32 * 1024 * 1024,
    help="Bytes of connections that wait for a worker in the layer; past half of it bodies wait here, past all of it "
    "new connections get 503 at once.",
)
@option(
    _LIMITS,
    "--udp-max-peers",
    type=COUNT,
    default=1000,
    help="UDP peers at once; datagrams of further ones are dropped.",
)
@option(
    _GROUPS, "--slow-client-buffer", type=SIZE, default=1024 * 1024, help="Unsent bytes past which a client is slow."
)
@option(
    _GROUPS,
    "--slow-client",
    type=click.Choice(("close", "skip")),
    default="close",
    help="A slow client is closed with 1013, or misses what is sent to its groups or its reply channel.",
)
@process_options
@reload_options
@option("Logging", "--access-log/--no-access-log", default=True, help="Log every request.")
@click.version_option(package_name="asgibus")
def command(log_level: str, **options: Any) -> None:
    """Terminate HTTP and WebSocket, and what else it is told to, and put the connections on the bus.

    With APP (module:attribute) also run it, in this process.
    """
    lifeline = Lifeline.inherited()
    app = options["app"]
    if app == "":
        raise click.UsageError("APP is empty: give module:attribute, or leave it out")
    if options["layer"] is None:
        options["layer"] = "memory://" if app else DEFAULT_LAYER
    if app is None and options["layer"].startswith("memory:"):
        raise click.UsageError(
            "memory:// lives within one process, so no worker would ever see a connection: "
            "use a Redis URL, or give an APP to run it here"
        )
    if options["uds"] is not None and options["fd"] is not None and not lifeline.held:
        raise click.UsageError("--uds and --fd exclude each other")
    if options["ssl_keyfile"] is not None and options["ssl_certfile"] is None:
        raise click.UsageError("--ssl-keyfile needs --ssl-certfile")
    if options["ssl_ca_certs"] is not None and options["ssl_certfile"] is None:
        raise click.UsageError("--ssl-ca-certs needs --ssl-certfile: without a certificate there is no TLS")
    if options["ssl_cert_reqs"] in ("optional", "required") and options["ssl_ca_certs"] is None:
        raise click.UsageError("--ssl-cert-reqs needs --ssl-ca-certs, the authorities that sign them")
    check_processes(options)
    if options["resume"] and app is not None and options["layer"].startswith("memory:"):
        raise click.UsageError("--resume is for workers on Redis: with memory:// the sockets end with this process")
    if options["reload"] and app is None:
        raise click.UsageError("--reload is for apps, and here is none: give APP, or use it with asgi-worker")
    names = {field.name for field in fields(InterfaceSettings)}
    settings = InterfaceSettings(**{name: value for name, value in options.items() if name in names})
    set_default_wait(settings.resume_timeout)
    try:
        listeners = listeners_of(settings)
        layer = open_layer(
            settings.layer,
            prefix=settings.prefix,
            wait=settings.resume_timeout,
            backlog=options["layer_backlog"],
            encryption_keys=settings.encryption_keys,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    sources = sources_of(options)
    supervises = (options["processes"] > 1 or sources is not None) and not lifeline.held and not options["check"]
    set_up_logging(log_level, options, access=settings.access_log, pid=supervises or lifeline.held)
    if not lifeline.held:
        warn_of_unknown_variables()

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
            supervise(options, layer, lifeline, sources=sources, fd=listening.fileno(), ready=lambda: tell(where))
        )
    protocols = tuple(dict.fromkeys(listener.kind for listener in listeners))
    try:
        worker = embedded_worker({**options, "protocols": protocols}, layer) if app else None
        app_is_loaded()
        if options["check"]:
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
            async with admin_port(options, health, supervised=lifeline.held), anyio.create_task_group() as tasks:
                if settings.ssl_certfile is not None:
                    tasks.start_soon(hang_ups, life, reload_certificates)
                if not await wait_for_layer(layer, options["wait_for_layer"], life):
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
