"""The interface server's settings: one field per option of `asgi-interface`, with its default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote_to_bytes

from asgibus.protocol.stream import WINDOW

SlowClient = Literal["close", "skip"]
MAX_HEADERS = 128
ClientCertificates = Literal["none", "optional", "required"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceSettings:
    """How an interface server runs. Times in seconds, sizes in bytes."""

    app: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    uds_mode: str = "666"
    """Octal: who may connect to the unix socket: by default a proxy that runs as another user, as in uvicorn."""
    fd: int | None = None
    udp: tuple[str, ...] = ()
    """Addresses, HOST:PORT, whose datagrams become events of scope type `udp`."""
    terminators: tuple[str, ...] = ()
    """NAME or NAME=VALUE: further protocols, of installed packages."""
    backlog: int = 2048
    """Connections that the kernel holds until they are accepted; what uvicorn uses."""
    layer: str = "redis://127.0.0.1:6379"
    prefix: str = "asgibus"
    encryption_keys: tuple[str, ...] = field(default=(), repr=False)
    """Secrets: the first encrypts what goes through Redis, all decrypt."""
    pool: str = "default"
    routes: tuple[tuple[str, str], ...] = ()
    """(path prefix, pool), first match wins."""
    root_path: str = ""
    proxy_headers: bool = True
    forwarded_allow_ips: str = "127.0.0.1"
    proxy_protocol: bool = False
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_keyfile_password: str | None = None
    ssl_ca_certs: str | None = None
    ssl_cert_reqs: ClientCertificates | None = None
    """None: required if there are `ssl_ca_certs`."""
    server_header: bool = True
    date_header: bool = True
    access_log: bool = True

    http_timeout: float | None = None
    """From the end of the request's head to the end of the response; None: no limit."""
    websocket_timeout: float = 86400.0
    """How long a WebSocket may stay open, as Daphne has it."""
    connect_timeout: float = 10.0
    """How long a connection waits for a worker: longer than a worker needs to start, shorter than people wait."""
    resume_timeout: float = 60.0
    """How long an open WebSocket waits for another worker: longer than a deploy leaves none."""
    keep_alive_timeout: float = 5.0
    head_timeout: float = 10.0
    ping_interval: float = 20.0
    ping_timeout: float = 20.0
    graceful_timeout: float = 30.0
    drain_period: float = 5.0
    """Over how long WebSockets are closed when the server stops, so that their clients do not all come back at once."""
    udp_timeout: float = 60.0
    """How long a UDP peer may be silent: longer than most clients pause, as short as most NATs forget them."""

    max_head_size: int = 64 * 1024
    max_headers: int = MAX_HEADERS
    """Lines of a request's head: browsers send twenty; each costs more memory than its bytes."""
    min_body_rate: int = 240
    """Bytes per second below which a request's body is too slow; the usual defence against a dripping client."""
    max_connections: int = 10_000
    websocket_max_message_size: int = 16 * 1024 * 1024
    """The limit of uvicorn, and of what the bus carries to clients."""
    websocket_compression: bool = False
    window: int = WINDOW
    max_unclaimed: int = 32 * 1024 * 1024
    """Bytes of connections that wait for a worker in the channel layer: half of it for first parts of bodies. A small
    Redis has room for the offers of several interface servers, and the offers for thousands of requests without a body.
    """
    udp_max_peers: int = 1000
    """Remote addresses with a run of the app, for each UDP address; senders' addresses can be forged."""
    slow_client_buffer: int = 1024 * 1024
    """Unsent bytes past which a client is slow, for broadcasts and for messages to its reply channel."""
    slow_client: SlowClient = "close"

    def pool_of(self, raw_path: bytes) -> str:
        """The pool whose workers serve a path."""
        if self.routes:
            path = unquote_to_bytes(raw_path)  # as the app sees it: one path may be written in many ways
            for prefix, pool in self.routes:
                if path.startswith(prefix.encode()):
                    return pool
        return self.pool
