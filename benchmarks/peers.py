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

APPS = {
    "plain": ("benchmarks.apps:bus", "benchmarks.apps:in_process"),
    "fastapi": ("benchmarks.fastapi_app:app", "benchmarks.fastapi_app:app"),
    "django": ("benchmarks.django_app:app", "benchmarks.django_app:app"),
}
"""Each app as the bus and as a server with the app in process loads it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A running peer: the port that clients connect to, and all processes that serve."""

    port: int
    servers: tuple[Server, ...]

    def cpu(self) -> dict[tuple[str, int], float]:
        """Return the CPU seconds so far, by name and pid of each process."""
        return {(server.name, pid): cpu for server in self.servers for pid, cpu in server.cpu_by_process().items()}

    def memory(self) -> dict[str, int]:
        """Return the USS in bytes, by name."""
        return {server.name: server.memory() for server in self.servers}


@dataclass(frozen=True, slots=True)
class Launcher:
    """The start of a peer: its interpreter, its directory for logs, its app and its number of workers."""

    python: str
    _start: Callable[[str, Path, str, int], AbstractContextManager[Peer]]

    def start(self, directory: Path, app: str = "plain", workers: int = 1) -> AbstractContextManager[Peer]:
        """Return a context in which the peer runs."""
        return self._start(self.python, directory, app, workers)


def launchers(compiled: Path | None) -> dict[str, Launcher]:
    """Return the peers by name.

    Args:
        compiled: The interpreter of an environment with a compiled asgibus, if there is one.
    """
    found = {"bus": Launcher(sys.executable, bus)}
    if compiled is not None:
        found["compiled"] = Launcher(str(compiled), bus)
    return found | {"uvicorn": Launcher(sys.executable, uvicorn), "channels": Launcher(sys.executable, channels)}


@contextmanager
def bus(python: str, directory: Path, app: str, workers: int) -> Iterator[Peer]:
    """Start one interface server and the workers, joined by a private Redis."""
    with ExitStack() as stack:
        redis, url = start_redis(stack, directory / "bus-redis.log")
        interface = start(stack, "interface", *interface_command(python, "--layer", url), directory / "interface.log")
        processes = [] if workers == 1 else ["--processes", str(workers)]
        command, ready = worker_command(python, APPS[app][0], "--layer", url, *processes)
        ready = ready if workers == 1 else f"supervisor ready: {workers} processes"
        worker = start(stack, "worker", command, ready, directory / "worker.log")
        yield Peer(int(interface.wait_ready()[1]), (interface, worker, redis))


@contextmanager
def uvicorn(python: str, directory: Path, app: str, workers: int) -> Iterator[Peer]:
    """Run the same app in the processes that hold the sockets."""
    with ExitStack() as stack:
        command, ready = uvicorn_command(python, APPS[app][1], "--workers", str(workers))
        if workers > 1:
            # The parent names the port before its children serve.
            ready += "(?s:.*Application startup complete)" * workers
        server = start(stack, "uvicorn", command, ready, directory / "uvicorn.log")
        yield Peer(int(server.wait_ready()[1]), (server,))


@contextmanager
def channels(python: str, directory: Path, app: str, workers: int) -> Iterator[Peer]:
    """Start Channels 4 consumers in uvicorn, with groups through channels_redis and a private Redis."""
    with ExitStack() as stack:
        redis, url = start_redis(stack, directory / "channels-redis.log")
        command, ready = uvicorn_command(python, "benchmarks.channels_app:app")
        log = directory / "channels.log"
        server = start(stack, "uvicorn", command, ready, log, {"BENCHMARK_REDIS": url})
        yield Peer(int(server.wait_ready()[1]), (server, redis))


def interface_command(python: str, *arguments: str) -> tuple[list[str], str]:
    """Return the command of an interface server, and what it logs when it is ready; the first group is the port."""
    command = [str(Path(python).with_name("asgi-interface")), *arguments, "--host", "127.0.0.1", "--port", "0"]
    return [*command, "--no-access-log", "--ping-interval", HOUR], r"listening on http://\S+:(\d+)"


def worker_command(python: str, app: str, *arguments: str) -> tuple[list[str], str]:
    """Return the command of a worker, and what it logs when it is ready."""
    command = [str(Path(python).with_name("asgi-worker")), app, "--app-dir", str(ROOT), *arguments]
    return command, "worker ready: "


def uvicorn_command(python: str, app: str, *arguments: str) -> tuple[list[str], str]:
    """Return the command of uvicorn with its fastest parts, and what it logs with its port."""
    command = [python, "-m", "uvicorn", app, "--host", "127.0.0.1", "--port", "0", "--no-access-log", *arguments]
    command += ["--loop", "uvloop", "--http", "httptools", "--ws-ping-interval", HOUR, "--no-use-colors"]
    return command, r"Uvicorn running on http://\S+:(\d+)"


def start_redis(stack: ExitStack, log: Path) -> tuple[Server, str]:
    """Start a Redis without persistence and return it with its URL."""
    # redis-server cannot choose a free port itself; the moment between finding and taking one is accepted.
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    redis = start(stack, "redis", command, "Ready to accept connections", log)
    return redis, f"redis://127.0.0.1:{port}"


def start(
    stack: ExitStack, name: str, command: list[str], ready: str, log: Path, environment: dict[str, str] | None = None
) -> Server:
    """Start a server that ends with the stack, and wait until it is ready."""
    try:
        server = Server(name, command, log, ready, environment)
    except FileNotFoundError as error:
        raise BenchmarkError(f"{name} cannot be started: {error}") from None
    stack.callback(server.stop)
    server.wait_ready()
    return server
