"""The settings of an interface server."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from asgibus.interface_server.affinity import parse_rules
from asgibus.interface_server.proxy_headers import TrustedProxies
from asgibus.protocol.channels import require_pool
from asgibus.protocol.settings import DEFAULT_LAYER, Heading, Kind, ServerSettings, not_empty, setting
from asgibus.protocol.stream import WINDOW
from asgibus.protocol.stream_names import require_key

UserLimit = Literal["oldest", "newest"]
SlowClient = Literal["close", "skip"]
ClientCertificates = Literal["none", "optional", "required"]
MAX_HEADERS = 128  # browsers send twenty; each costs more memory than its bytes


def _octal_mode(value: str) -> str:
    if not re.fullmatch("0?[0-7]{3}", value):
        raise ValueError(f"{value!r} is not three octal digits, such as 660")
    return value


def _routes(values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return (path prefix, pool) for each `/path/prefix=pool`."""
    routes = []
    for value in values:
        prefix, mark, pool = value.rpartition("=")
        if not mark or not prefix.startswith("/"):
            raise ValueError(f"{value!r} is not of the form /path/prefix=pool")
        routes.append((prefix, require_pool(pool)))
    return tuple(routes)


def _affinity(values: tuple[str, ...]) -> tuple[str, ...]:
    parse_rules(values)
    return values


def _root_path(value: str) -> str:
    """Return the path without a slash at its end: the paths of requests begin with one."""
    path = value.rstrip("/")
    if path and not path.startswith("/"):
        raise ValueError(f"{value!r} does not begin with a slash: write it as /{path}")
    return path


def _streams_path(value: str | None) -> str | None:
    """Return the path without a slash at its end."""
    path = None if value is None else value.rstrip("/")
    if path is not None and not re.fullmatch(r"(?:/[A-Za-z0-9._~-]+)+", path):
        raise ValueError(f"{value!r} is not a path such as /streams")
    return path


def _streams_keys(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        require_key(value)
    return values


def _proxies(value: str) -> str:
    try:
        TrustedProxies(value)
    except ValueError as error:
        raise ValueError(f"{error}: give IP addresses or networks, 'unix', or '*'") from error
    return value


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class InterfaceSettings(ServerSettings):
    """The settings of an interface server. Times in seconds, sizes in bytes."""

    app: str | None = None
    """The app that runs in the same process, as `module:attribute`; None if workers run it."""

    host: str = setting("127.0.0.1", Heading.LISTENING, "Address to listen on.", parse=not_empty)
    port: int = setting(8000, Heading.LISTENING, "Port to listen on; 0 takes a free one.", kind=Kind.PORT)
    uds: str | None = setting(
        None, Heading.LISTENING, "Listen on a unix socket instead.", kind=Kind.PATH, parse=not_empty
    )
    # By default a proxy that runs as another user may connect, as with uvicorn.
    uds_mode: str = setting(
        "666",
        Heading.LISTENING,
        "Permissions of the unix socket; 660 is for its user and group alone.",
        metavar="OCTAL",
        parse=_octal_mode,
    )
    fd: int | None = setting(
        None, Heading.LISTENING, "Listen on an inherited socket, by its file descriptor.", zero=True, metavar="NUMBER"
    )
    # As uvicorn has it.
    backlog: int = setting(2048, Heading.LISTENING, "Connections that may wait to be accepted.")
    udp: tuple[str, ...] = setting(
        (),
        Heading.LISTENING,
        "Turn datagrams to this address into events, for workers with --protocol udp. Repeatable.",
        metavar="HOST:PORT",
    )
    terminators: tuple[str, ...] = setting(
        (),
        Heading.LISTENING,
        "Serve another protocol with the terminator that is installed under this name. Repeatable.",
        metavar="NAME[=VALUE]",
    )

    layer: str = setting(
        DEFAULT_LAYER,
        Heading.BUS,
        "The channel layer.",
        metavar="URL",
        shown_default=f"{DEFAULT_LAYER}; memory:// with APP",
    )
    routes: tuple[tuple[str, str], ...] = setting(
        (),
        Heading.BUS,
        "Send paths that begin with PREFIX to another pool; the first match wins. Repeatable.",
        metavar="PREFIX=POOL",
        parse=_routes,
    )
    affinity: tuple[str, ...] = setting(
        (),
        Heading.BUS,
        "Connections with one KEY go to one worker: path:/ws/{room}, cookie:NAME, header:NAME or query:NAME; "
        "with learn: before these three, an id that the app makes; sticky:NAME, a cookie that is set. With PREFIX, a "
        "key is for paths that begin so. The first key that is found counts. Repeatable.",
        metavar="[PREFIX=]KEY",
        parse=_affinity,
    )
    streams: str | None = setting(
        None,
        Heading.STREAMS,
        "Let HTTP clients read streams at PATH/NAME, with the Durable Streams protocol.",
        metavar="PATH",
        shown_default="none",
        parse=_streams_path,
    )
    streams_keys: tuple[str, ...] = setting(
        (),
        Heading.STREAMS,
        "Check the signatures of --streams with this key; @FILE reads a key from each line. Repeatable: a signature of "
        "any of them is valid.",
        kind=Kind.SECRET,
        parse=_streams_keys,
    )
    streams_unsigned: bool = setting(
        False, Heading.STREAMS, "Let anybody read every stream, without a signature. For development."
    )
    # Shorter than the time after which proxies give up, which is often 30 s.
    streams_poll_timeout: float = setting(
        20.0, Heading.STREAMS, "How long a long poll waits for something new, in seconds."
    )
    affinity_expiry: float = setting(
        3600.0, Heading.TIMES, "How long a key of --affinity stays with its worker without a connection."
    )

    access_log: bool = setting(True, Heading.LOGGING, "Log every request.")

    root_path: str = setting(
        "", Heading.PROXY, "ASGI root_path: the path at which a proxy mounts the app.", parse=_root_path
    )
    proxy_headers: bool = setting(True, Heading.PROXY, "Trust X-Forwarded-For and X-Forwarded-Proto of trusted peers.")
    forwarded_allow_ips: str = setting(
        "127.0.0.1",
        Heading.PROXY,
        "Trusted peers: addresses, networks, 'unix', or '*'.",
        metavar="LIST",
        parse=_proxies,
    )
    server_header: bool = setting(True, Heading.PROXY, "Send a Server header.")
    date_header: bool = setting(True, Heading.PROXY, "Send a Date header.")
    proxy_protocol: bool = setting(
        False,
        Heading.PROXY,
        "Require a PROXY protocol header (v1, v2) on each connection, before TLS; only trusted peers may connect then.",
        names=("--proxy-protocol/--no-proxy-protocol",),
    )

    ssl_certfile: str | None = setting(None, Heading.TLS, "Certificate chain; turns TLS on.", kind=Kind.FILE)
    ssl_keyfile: str | None = setting(
        None, Heading.TLS, "Private key, if it is not in the certificate file.", kind=Kind.FILE
    )
    ssl_keyfile_password: str | None = setting(None, Heading.TLS, "Password of the private key.")
    ssl_ca_certs: str | None = setting(
        None, Heading.TLS, "Require client certificates that are signed by these authorities.", kind=Kind.FILE
    )
    ssl_cert_reqs: ClientCertificates | None = setting(
        None,
        Heading.TLS,
        "Client certificates: none, optional or required.",
        shown_default="required with --ssl-ca-certs",
    )

    http_timeout: float | None = setting(
        None, Heading.TIMES, "Time from the head of a request to the end of its response.", shown_default="none"
    )
    # As Daphne has it.
    websocket_timeout: float = setting(86400.0, Heading.TIMES, "How long a WebSocket may stay open.")
    # Longer than a worker needs to start, shorter than people wait.
    connect_timeout: float = setting(10.0, Heading.TIMES, "How long a connection waits for a worker.")
    # Longer than a deploy leaves no worker.
    resume_timeout: float = setting(
        60.0, Heading.TIMES, "How long an open WebSocket, or an event stream, waits for another worker."
    )
    ping_interval: float = setting(
        20.0,
        Heading.TIMES,
        "Time between pings to a WebSocket client.",
        names=("--ping-interval", "--ws-ping-interval"),
    )
    ping_timeout: float = setting(
        20.0, Heading.TIMES, "Time for a client to answer a ping.", names=("--ping-timeout", "--ws-ping-timeout")
    )
    keep_alive_timeout: float = setting(
        5.0,
        Heading.TIMES,
        "How long an idle HTTP connection is kept open.",
        names=("--keep-alive-timeout", "--timeout-keep-alive"),
    )
    # Proxies end a silent response after 60 s, some after 30.
    stream_keep_alive: float = setting(
        15.0, Heading.TIMES, "Silence after which the event stream of a followed stream gets a comment."
    )
    head_timeout: float = setting(10.0, Heading.TIMES, "Time for the head of a request to arrive.")
    graceful_timeout: float = setting(
        30.0,
        Heading.TIMES,
        "How long requests may finish after SIGTERM or SIGINT.",
        names=("--graceful-timeout", "--timeout-graceful-shutdown"),
    )
    # Longer than most clients pause, as short as most NATs forget them.
    udp_timeout: float = setting(60.0, Heading.TIMES, "How long a UDP peer may be silent.")

    max_connections: int = setting(
        10_000, Heading.SIZES, "Maximum number of open sockets.", names=("--max-connections", "--limit-concurrency")
    )
    max_head_size: int = setting(
        64 * 1024, Heading.SIZES, "Maximum size of request line and headers, in bytes.", kind=Kind.BYTES
    )
    max_headers: int = setting(
        MAX_HEADERS, Heading.SIZES, "Maximum number of headers of a request; more are answered with 431."
    )
    # The usual defence against a client that sends a byte now and then.
    min_body_rate: int = setting(
        240, Heading.SIZES, "Minimum rate of a request body, in bytes per second.", kind=Kind.BYTES, zero=True
    )
    # The limit of uvicorn, and of a message to a client on the bus.
    websocket_max_message_size: int = setting(
        16 * 1024 * 1024,
        Heading.SIZES,
        "Maximum size of a message from a client, in bytes.",
        kind=Kind.BYTES,
        names=("--websocket-max-message-size", "--ws-max-size"),
    )
    websocket_compression: bool = setting(
        False,
        Heading.SIZES,
        "Compress WebSocket messages, each by itself; the size limit applies to decompressed messages.",
        names=("--websocket-compression/--no-websocket-compression",),
    )
    window: int = setting(WINDOW, Heading.SIZES, "Bytes in flight per connection and direction.", kind=Kind.BYTES)
    # A small Redis has room for the offers of several interface servers, and this for thousands of requests without a
    # body.
    max_unclaimed: int = setting(
        32 * 1024 * 1024,
        Heading.SIZES,
        "Bytes of unclaimed connections in the layer; above half of it request bodies wait in this process, above all "
        "of it new connections get 503 at once.",
        kind=Kind.BYTES,
    )
    # For each UDP address: the addresses of senders can be forged.
    udp_max_peers: int = setting(
        1000, Heading.SIZES, "Maximum number of UDP peers; datagrams of further ones are dropped."
    )

    # A template and an offset each; a page of a chat with a hundred answers.
    max_follows: int = setting(100, Heading.GROUPS, "Maximum number of streams that one connection follows.")
    # Longer than a browser reloads a page.
    presence_grace: float = setting(
        3.0,
        Heading.GROUPS,
        "How long a user without connections stays in a group: one who comes back meanwhile has not left.",
        zero=True,
    )
    # Each join is told to each member: 200 members who come at once are 40,000 messages.
    presence_events: int = setting(
        200, Heading.GROUPS, "Users of a group above which it is not told who joins and leaves.", zero=True
    )
    max_connections_per_user: int | None = setting(
        None, Heading.GROUPS, "Maximum number of connections of one user.", shown_default="none"
    )
    user_limit: UserLimit = setting(
        "oldest", Heading.GROUPS, "Which connection of a user that has too many is closed with 4429."
    )
    slow_client_buffer: int = setting(
        1024 * 1024, Heading.GROUPS, "Unsent bytes above which a client is slow.", kind=Kind.BYTES
    )
    slow_client: SlowClient = setting(
        "close",
        Heading.GROUPS,
        "A slow client is closed with 1013, or misses messages to its groups and its reply channel.",
    )
