"""The peers and the processes that each starts. All listen on 127.0.0.1 and end with the context."""

import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import ROOT, BenchmarkError, Server

HOUR = "3600"
"""Seconds between pings, for every peer: the client counts bytes and cannot distinguish a ping from a message."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A running peer: its name, the port that clients connect to, all processes that serve."""

    name: str
    port: int
    servers: tuple[Server, ...]

    def cpu(self) -> dict[str, float]:
        """Return the CPU seconds so far, by process."""
        return {server.name: server.cpu() for server in self.servers}

    def memory(self) -> dict[str, int]:
        """Return the USS in bytes, by process."""
        return {server.name: server.memory() for server in self.servers}


@contextmanager
def bus(directory: Path) -> Iterator[Peer]:
    """Start one interface server and one worker, joined by a private Redis."""
    with ExitStack() as stack:
        redis, url = start_redis(stack, directory / "bus-redis.log")
        layer = ["--layer", url]
        command = [sys.executable, "-m", "asgibus.cli.interface", *layer, "--host", "127.0.0.1", "--port", "0"]
        command += ["--no-access-log", "--ping-interval", HOUR]
        interface = start(stack, "interface", command, directory / "interface.log", r"listening on http://\S+:(\d+)")
        command = [sys.executable, "-m", "asgibus.cli.worker", "benchmarks.apps:bus", "--app-dir", str(ROOT), *layer]
        worker = start(stack, "worker", command, directory / "worker.log", r"worker ready: ")
        yield Peer("bus", int(interface.wait_ready()[1]), (interface, worker, redis))


@contextmanager
def uvicorn(directory: Path) -> Iterator[Peer]:
    """Run the same app in the process that holds the sockets."""
    with ExitStack() as stack:
        server = start_uvicorn(stack, "benchmarks.apps:in_process", directory / "uvicorn.log", {})
        yield Peer("uvicorn", int(server.wait_ready()[1]), (server,))


@contextmanager
def channels(directory: Path) -> Iterator[Peer]:
    """Start Channels 4 consumers in uvicorn, with groups through channels_redis and a private Redis."""
    with ExitStack() as stack:
        redis, url = start_redis(stack, directory / "channels-redis.log")
        log = directory / "channels.log"
        server = start_uvicorn(stack, "benchmarks.channels_app:app", log, {"BENCHMARK_REDIS": url})
        yield Peer("channels", int(server.wait_ready()[1]), (server, redis))


PEERS: dict[str, Callable[[Path], AbstractContextManager[Peer]]] = {
    "bus": bus,
    "uvicorn": uvicorn,
    "channels": channels,
}


def start_uvicorn(stack: ExitStack, app: str, log: Path, environment: dict[str, str]) -> Server:
    """Start uvicorn with the fastest parts it has."""
    command = [sys.executable, "-m", "uvicorn", app, "--host", "127.0.0.1", "--port", "0", "--no-access-log"]
    command += ["--loop", "uvloop", "--http", "httptools", "--ws-ping-interval", HOUR, "--no-use-colors"]
    return start(stack, "uvicorn", command, log, r"Uvicorn running on http://\S+:(\d+)", environment)


def start_redis(stack: ExitStack, log: Path) -> tuple[Server, str]:
    """Start a Redis without persistence and return it with its URL."""
    # redis-server cannot choose a free port itself; the moment between finding and taking one is accepted.
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    redis = start(stack, "redis", command, log, r"Ready to accept connections")
    return redis, f"redis://127.0.0.1:{port}"


def start(
    stack: ExitStack, name: str, command: list[str], log: Path, ready: str, environment: dict[str, str] | None = None
) -> Server:
    """Start a server that ends with the stack, and wait until it is ready."""
    try:
        server = Server(name, command, log, ready, environment)
    except FileNotFoundError as error:
        raise BenchmarkError(f"{name} cannot be started: {error}") from None
    stack.callback(server.stop)
    server.wait_ready()
    return server
