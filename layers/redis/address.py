"""Where Redis is and how to greet it, read from a URL by redis-py; behind Sentinel, found anew at every connection."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection, parse_url

SENTINEL_SCHEME = "redis+sentinel"
SENTINEL_PORT = 26379
CLUSTER_SCHEME = "redis+cluster"
CLUSTER_PORT = 6379
SENTINEL_SECONDS = 1.0  # for a Sentinel to answer
LOCATE_SECONDS = 1.0  # for a question to the nodes of a cluster to come to an end that nobody waits for any more
CONNECT_SECONDS = 5.0  # a host that does not answer a SYN for this long is treated as down


@dataclass(frozen=True, slots=True)
class Address:
    """One Redis server, or one service that Sentinels know. `str()` gives it without its password."""

    host: str = "127.0.0.1"
    port: int = 6379
    path: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    sentinel_tls: ssl.SSLContext | None = field(default=None, repr=False)
    nodes: tuple[tuple[str, int], ...] = ()
    """Of a cluster: those that are asked where to go."""
    tag: str = ""
    """The hash tag of all keys of that part of the cluster."""

    def __str__(self) -> str:
        if self.nodes:
            scheme = f"{CLUSTER_SCHEME}s" if self.tls else CLUSTER_SCHEME
            return f"{scheme}://" + ",".join(_host_port(*node) for node in self.nodes)
        if self.sentinels:
            hosts = ",".join(_host_port(*sentinel) for sentinel in self.sentinels)
            return f"{SENTINEL_SCHEME}://{hosts}/{self.service}" + (f"/{self.db}" if self.db else "")
        if self.path is not None:
            return f"unix://{self.path}" + (f"?db={self.db}" if self.db else "")
        scheme = "rediss" if self.tls else "redis"
        return f"{scheme}://{_host_port(self.host, self.port)}" + (f"/{self.db}" if self.db else "")

    @property
    def identity(self) -> str:
        """What this store is called among others, by every process; of a cluster and of a service it is not where."""
        if self.nodes:
            return f"cluster {self.tag}"
        return f"service {self.service} {self.db}" if self.sentinels else str(self)

    async def locate(self) -> tuple[str, int]:
        """Host and port to connect to now. Raises LayerUnavailable when no Sentinel, or no node of a cluster, knows."""
        if not self.sentinels and not self.nodes:
            return self.host, self.port
        if self.sentinels:
            from asgibus.layers.redis import sentinel  # noqa: PLC0415  # it stands on this module

            return await sentinel.locate(self)
        from asgibus.layers.redis import cluster  # noqa: PLC0415  # likewise

        finding = asyncio.create_task(cluster.locate(self), name="asgibus locate")
        try:
            return await asyncio.shield(finding)
        except asyncio.CancelledError:
            # redis-py may go on although it is cancelled, or leave a socket open: it is given time to come to an end.
            finding.add_done_callback(lambda found: found.cancelled() or found.exception())
            await asyncio.wait([finding], timeout=LOCATE_SECONDS)
            finding.cancel()
            raise

    @classmethod
    def from_url(cls, url: str) -> Address:
        """Read a `redis://`, `rediss://`, `unix://` or `redis+sentinel://` URL. Raises ValueError when it is none."""
        scheme, _, rest = url.partition("://")
        if scheme == SENTINEL_SCHEME:
            return _behind_sentinel(rest)
        if scheme in (CLUSTER_SCHEME, f"{CLUSTER_SCHEME}s"):
            return _cluster(rest, tls=scheme.endswith("s"))
        parts = urlsplit(url)
        options: dict[str, Any] = dict(parse_url(url))
        database = parts.path.strip("/")
        kind = options.get("connection_class")
        tls: ssl.SSLContext | None = None
        if isinstance(kind, type) and issubclass(kind, SSLConnection):
            tls = client_tls(options)
        path = None
        if isinstance(kind, type) and issubclass(kind, UnixDomainSocketConnection):
            path = options.get("path") or ""
            if not path:
                raise ValueError("the layer's URL names no socket: write unix:///path/to/redis.sock")
        elif database and not (database.isascii() and database.isdigit()):
            raise ValueError(f"the layer's URL names the database {database!r}: a database is a number")
        return cls(
            host=options.get("host") or "127.0.0.1",
            port=int(options.get("port") or 6379),
            path=path,
            username=options.get("username"),
            password=options.get("password"),
            db=int(options.get("db") or 0),
            tls=tls,
        )


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _behind_sentinel(rest: str) -> Address:
    """`redis+sentinel://[user:password@]host:port[,host:port...]/service[/db]`; the user is one of Redis.

    `rest` stands behind the scheme. It is no URL to Python, which knows only one host.
    """
    place, _, path = rest.partition("/")
    if "?" in path or "#" in path:  # nothing that it may hold is to be shown
        raise ValueError("a layer's URL for Sentinels takes no options: nothing may stand behind a '?' or '#'")
    credentials, _, hosts = place.rpartition("@")
    username, _, password = credentials.partition(":")
    try:
        each = [urlsplit(f"//{host}") for host in hosts.split(",")]
        sentinels = tuple((host.hostname or "", host.port or SENTINEL_PORT) for host in each)
    except ValueError:
        sentinels = ()
    service, _, database = path.strip("/").partition("/")
    if not sentinels or not all(host for host, _ in sentinels) or not service:
        raise ValueError("a layer behind Sentinel is written redis+sentinel://host:port[,host:port...]/service[/db]")
    if database and not (database.isascii() and database.isdigit()):
        raise ValueError(f"the layer's URL names the database {database!r}: a database is a number")
    return Address(
        username=unquote(username) or None,
        password=unquote(password) or None,
        db=int(database or 0),
        sentinels=sentinels,
        service=service,
    )


def _cluster(rest: str, *, tls: bool) -> Address:
    """`redis+cluster://[user:password@]host:port[,host:port...]`, or `redis+clusters` with TLS."""
    place, _, path = rest.partition("/")
    credentials, _, hosts = place.rpartition("@")
    username, _, password = credentials.partition(":")
    try:
        each = [urlsplit(f"//{host}") for host in hosts.split(",")]
        nodes = tuple((host.hostname or "", host.port or CLUSTER_PORT) for host in each)
    except ValueError:
        nodes = ()
    if path or not nodes or not all(host for host, _ in nodes):
        raise ValueError("a layer on a cluster is written redis+cluster://host:port[,host:port...]")
    return Address(
        username=unquote(username) or None,
        password=unquote(password) or None,
        tls=client_tls({}) if tls else None,
        nodes=nodes,
    )


def client_tls(options: Mapping[str, Any]) -> ssl.SSLContext:
    """The TLS settings of redis-py's options. Raises ValueError for files that cannot be used."""
    try:
        context = ssl.create_default_context(
            cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path"), cadata=options.get("ssl_ca_data")
        )
        if options.get("ssl_certfile"):
            password = options.get("ssl_keyfile_password") or options.get("ssl_password")
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"), password)
        if options.get("ssl_ciphers"):
            context.set_ciphers(options["ssl_ciphers"])
    except OSError as error:
        raise ValueError(f"the TLS files of the layer's Redis cannot be used: {error.strerror or error}") from error
    if options.get("ssl_min_version"):
        context.minimum_version = options["ssl_min_version"]
    if options.get("ssl_check_hostname") is False:
        context.check_hostname = False
    if options.get("ssl_cert_reqs", "required") in ("none", None, ssl.CERT_NONE):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
