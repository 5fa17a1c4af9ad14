"""Source of the Redis of the tests, and a Redis that a test may kill."""

import gc
import os
import shutil
import signal
import socket
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

import redis

from support.deadline import wait_until

URL_VARIABLE = "ASGIBUS_TEST_REDIS_URL"
IMAGE = "redis:7"
START_TIMEOUT = 20.0
DATABASES = 64


@dataclass(frozen=True)
class Source:
    """The best Redis that this machine offers."""

    kind: Literal["url", "binary", "container", "none"]
    detail: str

    @property
    def real(self) -> bool:
        return self.kind != "none"

    def __str__(self) -> str:
        return {
            "url": f"{URL_VARIABLE}={_without_password(self.detail)}",
            "binary": f"private server, {self.detail}",
            "container": f"container of {self.detail}",
            "none": f"none ({self.detail})",
        }[self.kind]


def find() -> Source:
    """Return the URL that ASGIBUS_TEST_REDIS_URL names, else a server binary, else a container, else none."""
    if url := os.environ.get(URL_VARIABLE):
        return Source("url", url)
    for name in ("redis-server", "valkey-server"):
        if binary := shutil.which(name):
            return Source("binary", binary)
    reason = _why_no_docker()
    if reason is None:
        return Source("container", IMAGE)
    return Source("none", f"no {URL_VARIABLE}, no redis-server binary, no Docker because {reason}")


class RedisServer:
    """A private `redis-server` on 127.0.0.1. Over restarts it keeps its port and loses its data."""

    def __init__(self, binary: str, folder: Path, *options: str, env: Mapping[str, str] | None = None) -> None:
        """`env`: additions to the environment of the server."""
        self._env = env
        self._binary = binary
        self._folder = folder
        self._options = options
        self._popen: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Return whether the server was started and has not ended."""
        return self._popen is not None

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    @property
    def log_path(self) -> Path:
        return self._folder / f"redis-{self.port}.log"

    def start(self) -> None:
        """Start it (again) and wait until it answers."""
        assert self._popen is None, "it is running"
        first = self.port == 0
        for _ in range(10):
            if first:
                self.port = free_port()
            self._popen = subprocess.Popen(
                [
                    self._binary,
                    *("--bind", "127.0.0.1", "--port", str(self.port)),
                    *("--save", "", "--appendonly", "no", "--databases", str(DATABASES)),
                    *("--dir", str(self._folder), "--logfile", str(self.log_path)),
                    *self._options,
                ],
                env=None if self._env is None else {**os.environ, **self._env},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            wait_until(lambda: self._answers() or not self._alive(), START_TIMEOUT, "redis-server's answer")
            if self._alive():
                return
            self._popen = None
        raise AssertionError(f"redis-server does not start; its log:\n{self.log_path.read_text()}")

    def kill(self) -> None:
        """Send SIGKILL: connections break, data is lost."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM and wait for the shutdown."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Send SIGSTOP: connections stay open without answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Kill it if it runs."""
        if self._popen is not None:
            self.kill()

    def _end(self, number: signal.Signals) -> None:
        assert self._popen is not None, "it is not running"
        self._popen.send_signal(number)
        self._popen.wait(START_TIMEOUT)
        self._popen = None

    def _alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def _answers(self) -> bool:
        """Return whether this server answers on the port, with or without asking for a password."""
        if not self._alive():
            return False
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


@contextmanager
def real_server(source: Source, folder: Path, worker_number: int) -> Iterator[str]:
    """Provide the URL of a Redis for this test process alone: an own server, or an own database of the given one."""
    if source.kind == "binary":
        server = RedisServer(source.detail, folder)
        try:
            yield server.url
        finally:
            server.close()
    elif source.kind == "container":
        with _container() as url:
            yield url
    else:
        assert source.kind == "url"
        yield _with_database(source.detail, worker_number)


def empty(url: str) -> None:
    """Drop every key of the URL's database."""
    with redis.Redis.from_url(url, protocol=2, socket_timeout=10) as client:
        client.flushdb()


@contextmanager
def _container() -> Iterator[str]:
    import docker

    client = docker.from_env()
    try:
        container = client.containers.run(
            IMAGE,
            ["redis-server", "--save", "", "--appendonly", "no"],
            detach=True,
            ports={"6379/tcp": ("127.0.0.1", None)},
        )
        try:
            container.reload()
            port = container.attrs["NetworkSettings"]["Ports"]["6379/tcp"][0]["HostPort"]
            url = f"redis://127.0.0.1:{port}"
            wait_until(lambda: _pings(url), START_TIMEOUT, f"{IMAGE}'s answer")
            yield url
        finally:
            container.remove(force=True, v=True)
    finally:
        client.close()


def _why_no_docker() -> str | None:
    """Return None if a container can be started, else the reason: no engine answers, or the image is not available."""
    try:
        import docker
    except ImportError:
        return "the docker package is not installed"
    with warnings.catch_warnings():
        # The package leaves its socket to the garbage collector when nothing listens.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            client = docker.from_env()
        except docker.errors.DockerException:
            client = None
        gc.collect()
    if client is None:
        return "its engine does not answer"
    try:
        client.images.get(IMAGE)
    except docker.errors.ImageNotFound:
        try:
            client.images.pull(*IMAGE.split(":"))
        except docker.errors.DockerException:
            return f"it can not pull {IMAGE}"
    finally:
        client.close()
    return None


def _pings(url: str) -> bool:
    try:
        with redis.Redis.from_url(url, protocol=2, socket_timeout=1) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False


def free_port(*, below: int = 65536) -> int:
    """Return a port on which nothing listens."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < below:
            return port


def _with_database(url: str, offset: int) -> str:
    """Return the same server, `offset` databases further, so that parallel test processes do not meet."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        if offset:
            warnings.warn(f"{URL_VARIABLE} is a unix socket: run the tests in one process", stacklevel=2)
        return url
    database = int(parts.path.strip("/") or 0) + offset
    return urlunsplit(parts._replace(path=f"/{database}"))


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=host))
