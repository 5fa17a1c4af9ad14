"""The hosts of a layer, in the forms in which users of Channels write them.

A URL; a pair of host and port; a dict of redis-py's connection arguments, with or without `address`, which holds one of
the two; or a dict with `sentinels` and `master_name`.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from asgibus.layers.redis.address import SENTINEL_PORT, Address, client_tls

DEFAULT_HOST = "redis://127.0.0.1:6379"

Host = str | tuple[str, int] | Mapping[str, Any]
Hosts = str | Sequence[Host]

# Of redis-py's arguments: those that say where Redis is and who we are, and those of TLS. What else it has (timeouts,
# retries, pools, health checks) is about connections that are made here in another way, and is passed over.
TLS_ARGUMENTS = (
    *("ssl", "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_cert_reqs", "ssl_certfile", "ssl_keyfile"),
    *("ssl_keyfile_password", "ssl_password", "ssl_check_hostname", "ssl_context", "ssl_min_version", "ssl_ciphers"),
)
PASSED_OVER = (
    *("socket_timeout", "socket_connect_timeout", "socket_keepalive", "socket_keepalive_options", "socket_read_size"),
    *("retry", "retry_on_timeout", "retry_on_error", "health_check_interval", "max_connections", "timeout"),
    *("client_name", "lib_name", "lib_version", "driver_info", "protocol", "encoding", "encoding_errors"),
    *("decode_responses", "single_connection_client", "auto_close_connection_pool", "connection_class", "parser_class"),
    *("min_other_sentinels", "sentinel_kwargs", "is_master", "check_connection", "connection_pool"),
)
KNOWN = {"host", "port", "path", "unix_socket_path", "username", "password", "db", *TLS_ARGUMENTS, *PASSED_OVER}


def addresses(hosts: Hosts) -> list[Address]:
    """Where the layer's stores are. Raises ValueError, saying what is wrong, for hosts that cannot be read."""
    if isinstance(hosts, str):
        return [_address(hosts)]
    if isinstance(hosts, Mapping) or not isinstance(hosts, Sequence):
        raise ValueError(f"hosts is a list of hosts, not a {type(hosts).__name__}")
    if not hosts:
        raise ValueError("hosts is an empty list: name at least one Redis")
    return [_address(host) for host in hosts]


def _address(host: Host) -> Address:
    if isinstance(host, str):
        return Address.from_url(host)
    if isinstance(host, Mapping):
        return _behind_sentinels(host) if "sentinels" in host else _from_arguments(host)
    return Address(*_pair(host))


def _pair(host: object) -> tuple[str, int]:
    if isinstance(host, tuple | list) and len(host) == 2:
        name, port = host
        if isinstance(name, str) and name and isinstance(port, int) and 0 < port < 65536:
            return name, port
    raise ValueError("a host is a URL, a pair of a name and a port, or a dict of arguments, and this is none of them")


def _from_arguments(arguments: Mapping[str, Any]) -> Address:
    rest = dict(arguments)
    address = _address(rest.pop("address")) if "address" in rest else Address()
    return _with_arguments(address, rest)


def _behind_sentinels(arguments: Mapping[str, Any]) -> Address:
    rest = dict(arguments)
    sentinels = tuple(
        _pair(each if not isinstance(each, str) else (each, SENTINEL_PORT)) for each in rest.pop("sentinels")
    )
    service = rest.pop("master_name", None)
    if not sentinels or not service:
        raise ValueError("a host behind Sentinel needs 'sentinels', a list of pairs, and 'master_name'")
    of_sentinels = rest.pop("sentinel_kwargs", None) or {}
    address = Address(
        sentinels=sentinels,
        service=str(service),
        sentinel_username=of_sentinels.get("username"),
        sentinel_password=of_sentinels.get("password"),
    )
    return _with_arguments(address, rest)


def _with_arguments(address: Address, arguments: Mapping[str, Any]) -> Address:
    unknown = sorted(set(arguments) - KNOWN)
    if unknown:
        raise ValueError(f"a host has arguments that are not known: {', '.join(unknown)}")
    changes: dict[str, Any] = {name: arguments[name] for name in ("host", "username", "password") if name in arguments}
    changes |= {name: int(arguments[name]) for name in ("port", "db") if name in arguments}
    path = arguments.get("unix_socket_path") or arguments.get("path")
    if path:
        changes["path"] = str(path)
    context = arguments.get("ssl_context")
    if isinstance(context, ssl.SSLContext):
        changes["tls"] = context
    elif arguments.get("ssl") or any(name in arguments for name in TLS_ARGUMENTS if name not in ("ssl", "ssl_context")):
        changes["tls"] = client_tls(arguments)
    return replace(address, **changes)
