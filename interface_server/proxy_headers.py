"""The headers X-Forwarded-For and X-Forwarded-Proto of trusted proxies."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from asgibus.protocol.connect_request import Address

_SCHEMES = {b"http": "http", b"https": "https", b"ws": "http", b"wss": "https"}


class TrustedProxies:
    """The addresses and networks whose forwarding headers are trusted."""

    def __init__(self, allowed: str) -> None:
        """Parse a list of proxies.

        Args:
            allowed: `*` for all, or a comma-separated list of addresses, networks and `unix`. A client without an
                address, on a unix socket, is trusted if the list has `*` or `unix`.

        Raises:
            ValueError: An entry is neither an address nor a network.
        """
        names = [name.strip() for name in allowed.split(",") if name.strip()]
        self._all = "*" in names
        self._trusts_unix = "unix" in names
        self._networks = [ipaddress.ip_network(name, strict=False) for name in names if name not in ("*", "unix")]
        self._known: dict[str, bool] = {}

    def trusts(self, host: str | None) -> bool:
        """Return whether the peer at an address is a trusted proxy; None stands for a unix socket."""
        if self._all:
            return True
        if host is None:
            return self._trusts_unix
        known = self._known.get(host)
        if known is None:
            try:
                address = ipaddress.ip_address(host)
            except ValueError:
                return False
            if isinstance(address, ipaddress.IPv6Address):  # how a listener for both sees an IPv4 peer
                address = address.ipv4_mapped or address
            known = any(address in network for network in self._networks)
            if len(self._known) < 1024:  # proxies are few; a flood of clients must not fill the memory
                self._known[host] = known
        return known

    def trusts_peer(self, client: Address | None) -> bool:
        """Return whether the client of a socket is a trusted proxy."""
        return self.trusts(client[0] if client and client[1] is not None else None)

    def forwarded(
        self, headers: Sequence[tuple[bytes, bytes]], client: Address | None, scheme: str
    ) -> tuple[Address | None, str]:
        """Return the client and the scheme that the headers of a trusted proxy report.

        Of several addresses, the last one that is not a trusted proxy is the client: the client could have written the
        ones before it. Of several schemes, the one counts that the proxy next to the client has added.

        Args:
            headers: The headers of the request, with names in lower case.
            client: The client if the headers report none, or one that is not an IP address.
            scheme: The scheme if the headers report none.
        """
        hosts: list[bytes] = []
        schemes: list[bytes] = []
        for name, value in headers:
            if name == b"x-forwarded-for":
                hosts += _entries(value)
            elif name == b"x-forwarded-proto":
                schemes += _entries(value)
        hops = 1
        if hosts:
            while hops < len(hosts) and (self._all or self._is_proxy(hosts[-hops])):
                hops += 1
            client = _address(hosts[-hops]) or client
        if schemes:  # there may be fewer, as a proxy may replace the header
            scheme = _SCHEMES.get(schemes[-min(hops, len(schemes))].lower(), scheme)
        return client, scheme

    def _is_proxy(self, entry: bytes) -> bool:
        address = _address(entry)
        return address is not None and self.trusts(address[0])


def _entries(value: bytes) -> list[bytes]:
    return [entry for each in value.split(b",") if (entry := each.strip())]


def _address(text: bytes) -> Address | None:
    """Return the address of an entry, or None if the entry is not an IP address, such as `unknown`.

    An entry is `1.2.3.4`, `1.2.3.4:port`, `v6`, `[v6]` or `[v6]:port`. Without a port, the port is 0.
    """
    host = text.decode("latin-1")
    port = ""
    if host.startswith("[") and "]" in host:
        host, _, rest = host[1:].partition("]")
        if rest and not rest.startswith(":"):
            return None
        port = rest[1:]
    elif host.count(":") == 1:
        host, _, port = host.partition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        host = socket.inet_ntop(family, socket.inet_pton(family, host))
    except (OSError, ValueError):  # ValueError for a NUL
        return None
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
    return host, number if number <= 65535 else 0
