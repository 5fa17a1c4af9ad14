"""Reading the URL of a layer's Redis, Sentinels or cluster.

A password that holds a `/`, a `?` or a `#` makes any part of the URL something else. So no error shows any part of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from ipaddress import IPv6Address
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

from asgibus.layers.redis.arguments import PASSED_OVER, TLS_ARGUMENTS, client_tls
from asgibus.layers.redis.config import CLUSTER_PORT, CLUSTER_SCHEME, SENTINEL_PORT, SENTINEL_SCHEME, Address

REDIS_PORT = 6379
LARGEST_DATABASE = 2**31 - 1
ESCAPES = "in a user name or a password, write '/' as %2F, '?' as %3F, '#' as %23 and '@' as %40"
# What a URL says in its options; the others are objects.
TLS_OPTIONS = tuple(name for name in TLS_ARGUMENTS if name not in ("ssl", "ssl_context"))
OPTIONS = ("db", "username", "password", *TLS_OPTIONS)
FORMS = {
    "redis": "redis://[[user]:password@]host[:port][/db]",
    "rediss": "rediss://[[user]:password@]host[:port][/db]",
    "unix": "unix://[[user]:password@]/path/to/redis.sock[?db=n]",
    SENTINEL_SCHEME: "redis+sentinel://[user:password@]host:port[,host:port...]/service[/db]",
    CLUSTER_SCHEME: "redis+cluster://[user:password@]host:port[,host:port...]",
    f"{CLUSTER_SCHEME}s": "redis+clusters://[user:password@]host:port[,host:port...]",
}
SCHEMES = tuple(FORMS)
TLS_SCHEMES = ("rediss", f"{CLUSTER_SCHEME}s")
FALSE = ("0", "F", "FALSE", "N", "NO")  # as redis-py has it
PARSERS: Mapping[str, Callable[[str], object]] = {
    "db": int,
    "ssl_check_hostname": lambda value: value.upper() not in FALSE,
    "ssl_min_version": int,
}

_HOST = re.compile(r"[\w.-]+\Z")
_SERVICE = re.compile(r"[\w.:-]+\Z")


class _Parts(NamedTuple):
    """The parts of a URL; those of the user are decoded."""

    scheme: str
    username: str | None
    password: str | None
    hosts: str
    path: str
    options: Mapping[str, Any]


def read_url(url: str) -> Address:
    """Return where a URL says that Redis is. Raises ValueError with one sentence that shows nothing of the URL."""
    parts = _split(url)
    if parts.scheme == "unix":
        return _unix(parts)
    if parts.scheme == SENTINEL_SCHEME:
        return _sentinels(parts)
    if parts.scheme.startswith(CLUSTER_SCHEME):
        return _cluster(parts)
    ((host, port),) = _hosts(parts, REDIS_PORT, most=1)
    return Address(
        host=host,
        port=port,
        username=parts.username,
        password=parts.password,
        db=_database(parts, parts.path.strip("/")),
        tls=client_tls(parts.options) if parts.scheme in TLS_SCHEMES else None,
    )


def _split(url: str) -> _Parts:
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in FORMS:
        raise ValueError(f"the URL of a layer's Redis begins with one of {', '.join(f'{each}://' for each in SCHEMES)}")
    if re.search(r"[\x00-\x20\x7f]", rest):
        raise ValueError("the layer's URL holds a space or a control character: write it as % and two digits")
    if "#" in rest:
        raise ValueError(f"the layer's URL holds a '#', which means nothing in it: {ESCAPES}")
    place, slash, behind = rest.partition("/")
    if "?" in place:
        place, _, query = rest.partition("?")
        slash = path = ""
    else:
        path, _, query = behind.partition("?")
    user, has_user, hosts = place.rpartition("@")
    if not has_user and ("@" in query or ("@" in path and scheme != "unix")):
        # Not only a password: an option may hold an '@' as it is, but then it is one that is known.
        names = [name for name, _ in parse_qsl(query, keep_blank_values=True)]
        if "@" in path or not all(name in OPTIONS for name in names):
            raise ValueError(f"the layer's URL has an '@' behind a '/' or a '?': {ESCAPES}")
    elif "@" in path and scheme != "unix":
        raise ValueError(f"the layer's URL has an '@' behind a '/': {ESCAPES}")
    options = _options(scheme, query)
    username, _, password = user.partition(":")
    return _Parts(
        scheme,
        unquote(username) or options.get("username"),
        unquote(password) or options.get("password"),
        hosts,
        slash + path,
        options,
    )


def _options(scheme: str, query: str) -> dict[str, Any]:
    """Read what stands behind the '?'. What redis-py knows and is of no use here is passed over."""
    options: dict[str, Any] = {}
    if query and scheme == SENTINEL_SCHEME:
        raise ValueError("a layer's URL for Sentinels takes no options: nothing may stand behind a '?'")
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in PASSED_OVER:
            continue
        if name not in OPTIONS:
            near = get_close_matches(name, OPTIONS, 1)
            hint = f" (perhaps {near[0]} was meant)" if near else ""
            raise ValueError(f"an option in the layer's URL is not known{hint}: there are {', '.join(OPTIONS)}")
        if name in TLS_OPTIONS and scheme not in TLS_SCHEMES:
            secure = f"{CLUSTER_SCHEME}s" if scheme == CLUSTER_SCHEME else "rediss"
            raise ValueError(
                f"the option {name} in the layer's URL is one of TLS: the URL begins with {secure}:// then"
            )
        try:
            options[name] = PARSERS.get(name, str)(value)
        except ValueError:
            raise ValueError(f"the option {name} in the layer's URL has a value that it cannot have") from None
    return options


def _hosts(parts: _Parts, default_port: int, *, most: int | None = None) -> tuple[tuple[str, int], ...]:
    names = parts.hosts.split(",")
    if most is not None and len(names) > most:
        raise ValueError(f"the layer's URL names several hosts, and is written {FORMS[parts.scheme]}")
    if names == [""] and most == 1:
        names = ["127.0.0.1"]
    return tuple(_host(parts, name, default_port) for name in names)


def _host(parts: _Parts, text: str, default_port: int) -> tuple[str, int]:
    if text.startswith("["):
        name, closed, port = text[1:].partition("]")
        name = unquote(name)
        try:
            IPv6Address(name)
        except ValueError:
            closed = ""
        sound = bool(closed) and (not port or port.startswith(":"))
        port = port[1:]
    else:
        name, _, port = text.partition(":")
        name = unquote(name)
        sound = _is_name(name) or (not name and parts.scheme in ("redis", "rediss"))
    if not sound:
        raise ValueError(f"the layer's URL names no host that can be one; it is written {FORMS[parts.scheme]}")
    if port and not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise ValueError(
            "the port in the layer's URL is no number from 1 to 65535; "
            f"the URL is written {FORMS[parts.scheme]}, and {ESCAPES}"
        )
    return name or "127.0.0.1", int(port or default_port)


def _is_name(name: str) -> bool:
    try:
        name.encode("idna")
    except UnicodeError:  # a label is too long, or empty
        return False
    return _HOST.match(name) is not None


def _database(parts: _Parts, text: str) -> int:
    number = str(parts.options["db"]) if "db" in parts.options else text or "0"
    for each in (number, text or "0"):
        if not (each.isascii() and each.isdigit() and len(each) <= 10 and int(each) <= LARGEST_DATABASE):
            raise ValueError(
                "a database is a number, and that in the layer's URL is none; "
                f"the URL is written {FORMS[parts.scheme]}, and {ESCAPES}"
            )
    return int(number)


def _unix(parts: _Parts) -> Address:
    if parts.hosts or not parts.path.strip("/") or "\0" in unquote(parts.path):
        raise ValueError(f"the layer's URL names no socket; it is written {FORMS['unix']}, and {ESCAPES}")
    return Address(
        path=unquote(parts.path),
        username=parts.username,
        password=parts.password,
        db=_database(parts, ""),
    )


def _sentinels(parts: _Parts) -> Address:
    """Read a URL whose user is one of Redis, and not of the Sentinels."""
    service, _, database = parts.path.strip("/").partition("/")
    service = unquote(service)
    if not all(parts.hosts.split(",")) or not _SERVICE.match(service):
        raise ValueError(f"a layer behind Sentinel is written {FORMS[SENTINEL_SCHEME]}, and {ESCAPES}")
    return Address(
        username=parts.username,
        password=parts.password,
        db=_database(parts, database),
        sentinels=_hosts(parts, SENTINEL_PORT),
        service=service,
    )


def _cluster(parts: _Parts) -> Address:
    if not all(parts.hosts.split(",")) or parts.path.strip("/") or parts.options.get("db"):
        raise ValueError(f"a layer on a cluster is written {FORMS[parts.scheme]}, without a database, and {ESCAPES}")
    return Address(
        username=parts.username,
        password=parts.password,
        tls=client_tls(parts.options) if parts.scheme in TLS_SCHEMES else None,
        nodes=_hosts(parts, CLUSTER_PORT),
    )
