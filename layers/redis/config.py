"""Where Redis is and how to greet it; behind Sentinel and in a cluster, found anew at every connection."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

SENTINEL_SCHEME = "redis+sentinel"
SENTINEL_PORT = 26379
CLUSTER_SCHEME = "redis+cluster"
CLUSTER_PORT = 6379
SENTINEL_SECONDS = 1.0  # for a Sentinel to answer
CONNECT_SECONDS = 5.0  # a host that does not answer a SYN for this long is treated as down


@dataclass(frozen=True, slots=True)
class Address:
    """One Redis server, or one service that Sentinels know. `str()` gives it without its password."""

    host: str = "127.0.0.1"
    port: int = 6379
    path: str | None = None
    username: str | None = field(default=None, repr=False)  # some write the password there
    password: str | None = field(default=None, repr=False)
    db: int = 0
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""
    sentinel_username: str | None = field(default=None, repr=False)
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

        return await cluster.locate(self)


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
