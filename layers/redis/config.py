"""Where the stores of a layer are: read from URLs, pairs of host and port, or redis-py's connection arguments.

A URL is turned into the same arguments as a dict has, so both are checked in one place. A password that contains `/`,
`?` or `#` shifts the parts of a URL, so no error shows any part of a URL.
"""

from __future__ import annotations

import logging
import re
import ssl
from binascii import crc_hqx
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from ipaddress import IPv6Address
from itertools import count
from typing import Any
from urllib.parse import parse_qsl, unquote

logger = logging.getLogger("asgibus.layers")

DEFAULT_HOST = "redis://127.0.0.1:6379"
REDIS_PORT = 6379
SENTINEL_PORT = 26379
SENTINEL_SCHEME = "redis+sentinel"
CLUSTER_SCHEME = "redis+cluster"
LARGEST_DATABASE = 2**31 - 1

HASH_SLOTS = 16384  # of a Redis Cluster
CLUSTER_SHARDS = 16  # further nodes get nothing; a process has at most one connection for writing to each shard

ESCAPES = "in a user name or a password, write '/' as %2F, '?' as %3F, '#' as %23 and '@' as %40"
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

TLS_OPTIONS = (
    *("ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_cert_reqs", "ssl_certfile", "ssl_keyfile"),
    *("ssl_keyfile_password", "ssl_password", "ssl_check_hostname", "ssl_min_version", "ssl_ciphers"),
)
URL_OPTIONS = ("db", "username", "password", *TLS_OPTIONS)
ARGUMENTS = (
    *("address", "host", "port", "path", "unix_socket_path", "ssl", "ssl_context"),
    *("sentinels", "master_name", "sentinel_kwargs", "cluster_nodes"),
    *URL_OPTIONS,
)
LIKELY_TYPO = 0.85  # similarity to a known name from which an unknown one is an error instead of being ignored
FALSE = ("0", "F", "FALSE", "N", "NO")  # as redis-py reads them
PARSERS: Mapping[str, Callable[[str], object]] = {
    "db": int,
    "ssl_check_hostname": lambda value: value.upper() not in FALSE,
    "ssl_min_version": int,
}
CERTIFICATE_REQUIREMENTS = ("none", "optional", "required", None, *ssl.VerifyMode)

_HOST = re.compile(r"[\w.-]+\Z")
_SERVICE = re.compile(r"[\w.:-]+\Z")

Host = str | tuple[str, int] | Mapping[str, Any]
Hosts = str | Sequence[Host]
Arguments = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Address:
    """One Redis server, one service of Sentinels, or one shard of a cluster. `str()` leaves the password out."""

    host: str = "127.0.0.1"
    port: int = REDIS_PORT
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
    """Nodes of a cluster that are asked which node has a slot."""
    tag: str = ""
    """Hash tag of all keys of this shard of a cluster."""

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
        """A name for this store that is the same in every process.

        Clusters and Sentinel services are named by hash tag or service, because their hosts change.
        """
        if self.nodes:
            return f"cluster {self.tag}"
        return f"service {self.service} {self.db}" if self.sentinels else str(self)


def read_hosts(hosts: Hosts | None) -> list[Address]:
    """Return the addresses of a layer's stores; a cluster is several.

    Raises:
        ValueError: The hosts cannot be read. The message says why, and shows no part of a URL.
    """
    if hosts is None:
        hosts = DEFAULT_HOST
    if isinstance(hosts, str):
        hosts = [hosts]
    if isinstance(hosts, Mapping | bytes) or not isinstance(hosts, Sequence):
        raise ValueError(f"hosts is a list of hosts, not a {type(hosts).__name__}")
    if not hosts:
        raise ValueError("hosts is an empty list: name at least one Redis")
    return [shard for host in hosts for shard in _cluster_shards(_from_arguments(_arguments(host)))]


def hash_slot(tag: str) -> int:
    """Return the slot of a Redis Cluster for keys with this hash tag."""
    return crc_hqx(tag.encode(), 0) % HASH_SLOTS


def _first_tag(shard: int) -> str:
    """Return the first number whose slot lies in that part of all slots, which spreads the shards over the nodes."""
    width = HASH_SLOTS // CLUSTER_SHARDS
    return next(str(number) for number in count() if hash_slot(str(number)) // width == shard)


CLUSTER_TAGS = tuple(_first_tag(shard) for shard in range(CLUSTER_SHARDS))


def _cluster_shards(address: Address) -> list[Address]:
    return [replace(address, tag=tag) for tag in CLUSTER_TAGS] if address.nodes else [address]


# Arguments, as redis-py has them, and `cluster_nodes`.


def _arguments(host: Host) -> Arguments:
    if isinstance(host, str):
        return _from_url(host)
    if not isinstance(host, Mapping):
        name, port = _pair(host)
        return {"host": name, "port": port}
    arguments = dict(host)
    _check_names(arguments)
    if "address" not in arguments:
        return arguments
    address = arguments.pop("address")
    if isinstance(address, Mapping):
        raise ValueError("a host's 'address' is a URL or a pair; the other arguments stand beside it")
    return {**_arguments(address), **arguments}


def _check_names(arguments: Mapping[str, Any]) -> None:
    """Warn about arguments that are not used here. Raises ValueError for one that is probably misspelt."""
    unknown = sorted(str(name) for name in arguments if name not in ARGUMENTS)
    for name in unknown:
        if near := get_close_matches(name, ARGUMENTS, 1, LIKELY_TYPO):
            raise ValueError(f"a host has no argument {name!r}: perhaps {near[0]!r} was meant")
    if "connection_class" in unknown:  # it may be one with TLS, which must not get lost
        raise ValueError("a host's 'connection_class' is not supported: write 'ssl': True for a connection with TLS")
    if unknown:
        logger.warning("connection arguments that asgibus does not use are ignored: %s", ", ".join(unknown))


def _from_arguments(arguments: Mapping[str, Any]) -> Address:
    common: Arguments = {
        "username": _text("username", arguments.get("username")),
        "password": _text("password", arguments.get("password")),
        "db": _number("db", arguments.get("db") or 0, 0, LARGEST_DATABASE),
        "tls": _tls(arguments),
    }
    if "cluster_nodes" in arguments:
        return Address(nodes=_pairs("cluster_nodes", arguments["cluster_nodes"]), **common)
    if "sentinels" in arguments or "master_name" in arguments:
        service = arguments.get("master_name")
        if not isinstance(service, str) or not service:
            raise ValueError("a host behind Sentinel needs 'sentinels', a list of pairs, and 'master_name'")
        of_sentinels = arguments.get("sentinel_kwargs") or {}
        if not isinstance(of_sentinels, Mapping):
            raise ValueError("a host's 'sentinel_kwargs' is a dict of arguments")
        _check_names(of_sentinels)
        return Address(
            sentinels=_pairs("sentinels", arguments.get("sentinels"), SENTINEL_PORT),
            service=service,
            sentinel_username=_text("username", of_sentinels.get("username")),
            sentinel_password=_text("password", of_sentinels.get("password")),
            sentinel_tls=_tls(of_sentinels),
            **common,
        )
    if path := arguments.get("unix_socket_path") or arguments.get("path"):
        return Address(path=str(path), **common)
    host = arguments.get("host", "127.0.0.1")
    if not isinstance(host, str) or not host:
        raise ValueError("a host's 'host' is a text that is not empty")
    return Address(host=host, port=_number("port", arguments.get("port", REDIS_PORT), 1, 65535), **common)


def _pair(host: object) -> tuple[str, int]:
    if isinstance(host, tuple | list) and len(host) == 2 and isinstance(host[0], str) and host[0]:
        return host[0], _number("port", host[1], 1, 65535)
    raise ValueError("a host is a URL, a pair of a name and a port, or a dict of arguments, and this is none of them")


def _pairs(name: str, value: object, default_port: int | None = None) -> tuple[tuple[str, int], ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"a host's {name!r} is a list of pairs of a name and a port")
    return tuple(_pair((each, default_port) if default_port and isinstance(each, str) else each) for each in value)


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


def _tls(arguments: Mapping[str, Any]) -> ssl.SSLContext | None:
    for name in ("ssl_context", "ssl"):
        if isinstance(context := arguments.get(name), ssl.SSLContext):
            return context
    if arguments.get("ssl_context") is not None:
        raise ValueError("a host's 'ssl_context' is an ssl.SSLContext")
    wanted = arguments.get("ssl")
    if wanted is None:
        wanted = any(name in arguments for name in TLS_OPTIONS)
    return _tls_context(arguments) if wanted else None


def _tls_context(options: Mapping[str, Any]) -> ssl.SSLContext:
    """Return the TLS settings of redis-py's arguments. Raises ValueError in a sentence that holds no secret."""
    if options.get("ssl_cert_reqs", "required") not in CERTIFICATE_REQUIREMENTS:
        raise ValueError("the ssl_cert_reqs of the layer's Redis is none of 'required', 'optional' and 'none'")
    try:
        context = ssl.create_default_context(
            cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path"), cadata=options.get("ssl_ca_data")
        )
        if options.get("ssl_certfile"):
            # Without a password OpenSSL would ask for one at the terminal.
            password = options.get("ssl_keyfile_password") or options.get("ssl_password") or ""
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"), password)
    except (OSError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ValueError(f"the TLS files of the layer's Redis cannot be used: {reason}") from None
    try:
        if options.get("ssl_ciphers"):
            context.set_ciphers(options["ssl_ciphers"])
    except (OSError, TypeError):
        raise ValueError("OpenSSL does not know the ssl_ciphers of the layer's Redis") from None
    try:
        if options.get("ssl_min_version"):
            context.minimum_version = options["ssl_min_version"]
    except (TypeError, ValueError, OverflowError):
        raise ValueError("the ssl_min_version of the layer's Redis is not an ssl.TLSVersion") from None
    if options.get("ssl_check_hostname") is False:
        context.check_hostname = False
    if options.get("ssl_cert_reqs", "required") in ("none", None, ssl.CERT_NONE):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


# URLs.


def _from_url(url: str) -> Arguments:
    """Return the arguments that a URL stands for."""
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in FORMS:
        raise ValueError(f"the URL of a layer's Redis begins with one of {', '.join(f'{each}://' for each in SCHEMES)}")
    if re.search(r"[\x00-\x20\x7f]", rest):
        raise ValueError("the layer's URL holds a space or a control character: write it as % and two digits")
    if "#" in rest:
        raise ValueError(f"the layer's URL holds a '#', which means nothing in it: {ESCAPES}")
    place, slash, tail = rest.partition("/")
    if "?" in place:
        place, _, query = rest.partition("?")
        path = ""
    else:
        path, _, query = tail.partition("?")
        path = slash + path
    user, has_user, hosts = place.rpartition("@")
    if not has_user and ("@" in query or ("@" in path and scheme != "unix")):
        # A known option may contain an '@'; anything else is part of a password that was not escaped.
        names = [name for name, _ in parse_qsl(query, keep_blank_values=True)]
        if "@" in path or not all(name in URL_OPTIONS for name in names):
            raise ValueError(f"the layer's URL has an '@' behind a '/' or a '?': {ESCAPES}")
    elif "@" in path and scheme != "unix":
        raise ValueError(f"the layer's URL has an '@' behind a '/': {ESCAPES}")
    arguments = _url_options(scheme, query)
    username, _, password = user.partition(":")
    if username:
        arguments["username"] = unquote(username)
    if password:
        arguments["password"] = unquote(password)
    if scheme in TLS_SCHEMES:
        arguments["ssl"] = True
    return {**arguments, **_url_place(scheme, hosts, path, arguments)}


def _url_options(scheme: str, query: str) -> Arguments:
    options: Arguments = {}
    if query and scheme == SENTINEL_SCHEME:
        raise ValueError("a layer's URL for Sentinels takes no options: nothing may stand behind a '?'")
    ignored = False
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in URL_OPTIONS:
            if near := get_close_matches(name, URL_OPTIONS, 1, LIKELY_TYPO):
                raise ValueError(f"an option in the layer's URL is not known: perhaps {near[0]} was meant")
            ignored = True
            continue
        if name in TLS_OPTIONS and scheme not in TLS_SCHEMES:
            secure = f"{CLUSTER_SCHEME}s" if scheme == CLUSTER_SCHEME else "rediss"
            raise ValueError(
                f"the option {name} in the layer's URL is one of TLS: the URL begins with {secure}:// then"
            )
        try:
            options[name] = PARSERS.get(name, str)(value)
        except ValueError:
            raise ValueError(f"the option {name} in the layer's URL has an invalid value") from None
    if ignored:
        logger.warning("options in the layer's URL are ignored: asgibus uses only %s", ", ".join(URL_OPTIONS))
    return options


def _url_place(scheme: str, hosts: str, path: str, options: Arguments) -> Arguments:
    """Return the arguments for the host and path of a URL."""
    form = FORMS[scheme]
    if scheme == "unix":
        if hosts or not path.strip("/") or "\0" in unquote(path):
            raise ValueError(f"the layer's URL names no socket; it is written {form}, and {ESCAPES}")
        return {"unix_socket_path": unquote(path), "db": _url_database(form, options, "")}
    if scheme == SENTINEL_SCHEME:
        service, _, database = path.strip("/").partition("/")
        service = unquote(service)
        if not all(hosts.split(",")) or not _SERVICE.match(service):
            raise ValueError(f"a layer behind Sentinel is written {form}, and {ESCAPES}")
        sentinels = [_url_host(form, each, SENTINEL_PORT) for each in hosts.split(",")]
        return {"sentinels": sentinels, "master_name": service, "db": _url_database(form, options, database)}
    if scheme.startswith(CLUSTER_SCHEME):
        if not all(hosts.split(",")) or path.strip("/") or options.get("db"):
            raise ValueError(f"a layer on a cluster is written {form}, without a database, and {ESCAPES}")
        return {"cluster_nodes": [_url_host(form, each, REDIS_PORT) for each in hosts.split(",")]}
    if "," in hosts:
        raise ValueError(f"the layer's URL names several hosts, and is written {form}")
    host, port = _url_host(form, hosts, REDIS_PORT, default_host="127.0.0.1")
    return {"host": host, "port": port, "db": _url_database(form, options, path.strip("/"))}


def _url_host(form: str, text: str, default_port: int, *, default_host: str = "") -> tuple[str, int]:
    if text.startswith("["):
        name, closed, port = text[1:].partition("]")
        name = unquote(name)
        try:
            IPv6Address(name)
        except ValueError:
            closed = ""
        valid = bool(closed) and (not port or port.startswith(":"))
        port = port[1:]
    else:
        name, _, port = text.partition(":")
        name = unquote(name) or default_host
        valid = _is_host_name(name)
    if not valid:
        raise ValueError(f"the layer's URL names no valid host; it is written {form}")
    if port and not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise ValueError(
            f"the port in the layer's URL is no number from 1 to 65535; the URL is written {form}, and {ESCAPES}"
        )
    return name, int(port or default_port)


def _is_host_name(name: str) -> bool:
    try:
        name.encode("idna")
    except UnicodeError:  # a label is too long, or empty
        return False
    return _HOST.match(name) is not None


def _url_database(form: str, options: Arguments, text: str) -> int:
    """Return the database: that of the option, or that of the path."""
    number = str(options["db"]) if "db" in options else text or "0"
    for each in (number, text or "0"):
        if not (each.isascii() and each.isdigit() and len(each) <= 10 and int(each) <= LARGEST_DATABASE):
            raise ValueError(
                f"the database in the layer's URL is not a number; the URL is written {form}, and {ESCAPES}"
            )
    return int(number)


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
