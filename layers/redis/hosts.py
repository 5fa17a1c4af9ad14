"""The hosts of a layer, in the forms in which users of Channels write them.

A URL; a pair of host and port; a dict of redis-py's connection arguments, with or without `address`, which holds one of
the two; or a dict with `sentinels` and `master_name`. And, which is ours, a dict with `cluster_nodes`.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from redis import SSLConnection
from redis.asyncio import SSLConnection as AsyncSSLConnection

from asgibus.layers.redis.arguments import PASSED_OVER, TLS_ARGUMENTS, client_tls
from asgibus.layers.redis.cluster import parts
from asgibus.layers.redis.config import SENTINEL_PORT, Address
from asgibus.layers.redis.url import read_url

DEFAULT_HOST = "redis://127.0.0.1:6379"

Host = str | tuple[str, int] | Mapping[str, Any]
Hosts = str | Sequence[Host]

SSL_CLASSES = (SSLConnection, AsyncSSLConnection)
KNOWN = {"host", "port", "path", "unix_socket_path", "username", "password", "db", *TLS_ARGUMENTS, *PASSED_OVER}


def addresses(hosts: Hosts | None) -> list[Address]:
    """Where the layer's stores are. Raises ValueError, saying what is wrong, for hosts that cannot be read."""
    if hosts is None:
        hosts = DEFAULT_HOST
    if isinstance(hosts, str):
        hosts = [hosts]
    if isinstance(hosts, Mapping | bytes) or not isinstance(hosts, Sequence):
        raise ValueError(f"hosts is a list of hosts, not a {type(hosts).__name__}")
    if not hosts:
        raise ValueError("hosts is an empty list: name at least one Redis")
    stores = [_address(host) for host in hosts]
    return [store for each in stores for store in (parts(each) if each.nodes else [each])]


def _address(host: Host) -> Address:
    if isinstance(host, str):
        return read_url(host)
    if isinstance(host, Mapping):
        if "cluster_nodes" in host:
            return _in_cluster(host)
        return _behind_sentinels(host) if "sentinels" in host or "master_name" in host else _from_arguments(host)
    return Address(*_pair(host))


def _pair(host: object) -> tuple[str, int]:
    if isinstance(host, tuple | list) and len(host) == 2 and isinstance(host[0], str) and host[0]:
        return host[0], _number("port", host[1], 1, 65535)
    raise ValueError("a host is a URL, a pair of a name and a port, or a dict of arguments, and this is none of them")


def _from_arguments(arguments: Mapping[str, Any]) -> Address:
    rest = dict(arguments)
    address = Address()
    if "address" in rest:
        given = rest.pop("address")
        if isinstance(given, Mapping):
            raise ValueError("a host's 'address' is a URL or a pair; the other arguments stand beside it")
        address = _address(given)
    return _with_arguments(address, rest)


def _behind_sentinels(arguments: Mapping[str, Any]) -> Address:
    rest = dict(arguments)
    sentinels, service = rest.pop("sentinels", None), rest.pop("master_name", None)
    if not isinstance(sentinels, list | tuple) or not sentinels or not isinstance(service, str) or not service:
        raise ValueError("a host behind Sentinel needs 'sentinels', a list of pairs, and 'master_name'")
    of_sentinels = rest.pop("sentinel_kwargs", None) or {}
    if not isinstance(of_sentinels, Mapping):
        raise ValueError("a host's 'sentinel_kwargs' is a dict of arguments")
    address = Address(
        sentinels=tuple(_pair(each if not isinstance(each, str) else (each, SENTINEL_PORT)) for each in sentinels),
        service=service,
        sentinel_username=_text("username", of_sentinels.get("username")),
        sentinel_password=_text("password", of_sentinels.get("password")),
        sentinel_tls=_tls(of_sentinels) or None,
    )
    return _with_arguments(address, rest)


def _in_cluster(arguments: Mapping[str, Any]) -> Address:
    rest = dict(arguments)
    nodes = rest.pop("cluster_nodes")
    if not isinstance(nodes, list | tuple) or not nodes:
        raise ValueError("a host's 'cluster_nodes' is a list of pairs")
    return _with_arguments(Address(nodes=tuple(_pair(node) for node in nodes)), rest)


def _with_arguments(address: Address, arguments: Mapping[str, Any]) -> Address:
    unknown = sorted(str(name) for name in set(arguments) - KNOWN)
    if unknown:
        raise ValueError(f"a host has arguments that are not known: {', '.join(unknown)}")
    changes: dict[str, Any] = {
        name: _text(name, arguments[name]) for name in ("username", "password") if name in arguments
    }
    if "host" in arguments:
        changes["host"] = _text("host", arguments["host"] or 0)
    if "port" in arguments:
        changes["port"] = _number("port", arguments["port"], 1, 65535)
    if "db" in arguments:
        changes["db"] = _number("db", arguments["db"] or 0, 0, 2**31)
    if path := arguments.get("unix_socket_path") or arguments.get("path"):
        changes["path"] = str(path)
    if (tls := _tls(arguments)) is not None:
        changes["tls"] = tls or None
    return replace(address, **changes)


def _tls(arguments: Mapping[str, Any]) -> ssl.SSLContext | Literal[False] | None:
    """False if it is refused, None if nothing is said."""
    for name in ("ssl_context", "ssl"):
        if isinstance(context := arguments.get(name), ssl.SSLContext):
            return context
    if arguments.get("ssl_context") is not None:
        raise ValueError("a host's 'ssl_context' is an ssl.SSLContext")
    kind = arguments.get("connection_class")
    wanted = arguments.get("ssl", True if isinstance(kind, type) and issubclass(kind, SSL_CLASSES) else None)
    if wanted is None and any(name in arguments for name in TLS_ARGUMENTS):
        wanted = True
    return client_tls(arguments) if wanted else False if wanted is False else None


def _text(name: str, value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise ValueError(f"a host's {name!r} is a text, not a {type(value).__name__}")


def _number(name: str, value: object, least: int, most: int) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    raise ValueError(f"a host's {name!r} is a number from {least} to {most}")
