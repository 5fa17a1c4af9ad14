"""Start-up: the time from the start of a process to its first answer, and the CPU time until then."""

import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.clients.connection import Connection
from benchmarks.measures import Row, Sample
from benchmarks.peers import APPS, Launcher, interface_command, start, start_redis, uvicorn_command, worker_command
from benchmarks.processes import Server

STARTS = 7
REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def measure_starts(row: Row, name: str, launcher: Launcher) -> Sample:
    """Start a peer some times, one after another, and return the medians."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="asgibus-benchmark-")))
        port = None
        if name == "uvicorn":
            command, ready = uvicorn_command(launcher.python, APPS["plain"][1])
        elif row.name == "start-up":
            command, ready = interface_command(launcher.python, APPS["plain"][0])
        else:
            _, url = start_redis(stack, directory / "redis.log")
            interface = start(
                stack, "interface", *interface_command(launcher.python, "--layer", url), directory / "interface.log"
            )
            port = int(interface.wait_ready()[1])
            command, ready = worker_command(launcher.python, APPS["plain"][0], "--layer", url)
        once(command, ready, directory, port)  # the first one writes bytecode
        found = [once(command, ready, directory, port) for _ in range(STARTS)]
    seconds = statistics.median(each for each, _ in found)
    cpu = statistics.median(each for _, each in found)
    return Sample(rate=1 / seconds, cpu_us={name: 1e6 * cpu}, p50_ms=1000 * seconds)


def once(command: list[str], ready: str, directory: Path, port: int | None) -> tuple[float, float]:
    """Start a process and return its seconds and CPU seconds until it has answered a request.

    Args:
        command: The command.
        ready: What the process logs when it is ready; the first group is its port.
        directory: Where its log goes.
        port: The port of the interface server before a worker. The request waits there for the worker.
    """
    begin = time.perf_counter()
    if port is not None:
        waiting = Connection(port)
        waiting.socket.sendall(REQUEST)
    server = Server("start", command, directory / "start.log", ready)
    try:
        match = server.wait_ready()
        if port is None:
            waiting = Connection(int(match[1]))
            waiting.socket.sendall(REQUEST)
        waiting.read_response()
        return time.perf_counter() - begin, server.precise_cpu()
    finally:
        server.stop()
