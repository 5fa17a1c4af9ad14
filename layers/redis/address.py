"""Where Redis is and how to greet it, read from a URL by redis-py."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection, parse_url

CONNECT_SECONDS = 5.0  # a host that does not answer a SYN for this long is treated as down


@dataclass(frozen=True, slots=True)
class Address:
    """One Redis server. `str()` gives it without its password."""

    host: str = "127.0.0.1"
    port: int = 6379
    path: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix://{self.path}" + (f"?db={self.db}" if self.db else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}" + (f"/{self.db}" if self.db else "")

    @classmethod
    def from_url(cls, url: str) -> Address:
        """Read a `redis://`, `rediss://` or `unix://` URL. Raises ValueError when it is none."""
        options: dict[str, Any] = dict(parse_url(url))
        database = urlsplit(url).path.strip("/")
        kind = options.get("connection_class")
        tls: ssl.SSLContext | None = None
        if isinstance(kind, type) and issubclass(kind, SSLConnection):
            tls = _tls(options)
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


def _tls(options: dict[str, Any]) -> ssl.SSLContext:
    """The TLS settings of redis-py's URL options: `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`, `ssl_cert_reqs`."""
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if options.get("ssl_certfile"):
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    except OSError as error:
        raise ValueError(f"the TLS files in the layer's URL cannot be used: {error.strerror or error}") from error
    if str(options.get("ssl_cert_reqs", "required")) == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
