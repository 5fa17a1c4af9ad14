"""The rows of the table: the load of each on a peer, and the readings of the peer before and after."""

import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks.peers import Launcher, Peer
from benchmarks.processes import BenchmarkError, Client

SETTLE = 10.0
"""Seconds that a peer may take to come to rest."""
ALONE = ("http", "echo")
"""Kinds of load that are also measured with a single connection."""
ALONE_SHARE = 3
"""The load of a single connection takes one in so many of the seconds."""
WITHOUT_CHANNELS = ("bus", "compiled", "uvicorn")


@dataclass(frozen=True, slots=True)
class Row:
    """One measure: its name on the command line, its title in the table, what runs, and the client's arguments."""

    name: str
    title: str
    kind: str
    count: int
    window: int = 1
    path: str = "/"
    app: str = "plain"
    workers: int = 1
    peers: tuple[str, ...] = WITHOUT_CHANNELS

    def load(self, port: int, count: int) -> Client:
        """Return a load client for the port of a peer, with this many connections."""
        return Client(self.kind, str(port), str(count), str(self.window), self.path)


ITEM = "/items/7"
EVERY = (*WITHOUT_CHANNELS, "channels")
ROWS = {
    row.name: row
    for row in (
        Row("http-64", "HTTP, 64 connections", "http", 64, peers=EVERY),
        Row("fastapi-64", "FastAPI, 64 connections", "http", 64, path=ITEM, app="fastapi"),
        Row("fastapi-64-2", "FastAPI, 64 connections, two workers", "http", 64, path=ITEM, app="fastapi", workers=2),
        Row("django-64", "Django, 64 connections", "http", 64, path=ITEM, app="django"),
        Row("django-64-2", "Django, 64 connections, two workers", "http", 64, path=ITEM, app="django", workers=2),
        Row("upload", "4 uploads at once, MB", "upload", 4),
        Row("download", "4 downloads at once, MB", "download", 4),
        Row("echo-64", "WebSocket echo, 64 sockets", "echo", 64, peers=EVERY),
        Row("fanout-1", "Fan-out to 1000 sockets, 1 in flight", "fanout", 1000, 1, peers=EVERY),
        Row("fanout-8", "Fan-out to 1000 sockets, 8 in flight", "fanout", 1000, 8, peers=EVERY),
        Row("connect", "Open 5000 WebSockets, 64 at once", "connect", 5000, 64, peers=EVERY),
        Row("even-30", "Open 30 WebSockets at once, two workers", "even", 30, workers=2),
        Row("even-400", "Open 400 WebSockets at once, eight workers", "even", 400, workers=8),
        Row("start-up", "Start with an app until the first answer", "start", 1),
        Row("start-up-worker", "Start a worker until the first answer", "start", 1),
    )
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One measure of one peer.

    rate: requests, messages, deliveries, sockets, starts or MB a second. cpu_us: CPU time for each in µs, by process.
    busiest: the CPU time of the process that has most of it, in cores; its name. p50_ms, p99_ms: waits (of a fan-out:
    trigger to last delivery; of a start: the time). alone_ms: the median wait of a single connection. fullest: the part
    of all sockets that the worker with most of them has. memory_kb: USS for each open socket, by process. client_cpu,
    other_cpu: CPU time of the load client and of everything else on the machine, in cores.
    """

    rate: float
    cpu_us: dict[str, float]
    busiest: float = 0.0
    busiest_name: str = ""
    client_cpu: float = 0.0
    other_cpu: float = 0.0
    p50_ms: float | None = None
    p99_ms: float | None = None
    alone_ms: float | None = None
    fullest: float | None = None
    memory_kb: dict[str, float] | None = None

    @property
    def cpu_total(self) -> float:
        return sum(self.cpu_us.values())

    @property
    def memory_total(self) -> float | None:
        return None if self.memory_kb is None else sum(self.memory_kb.values())

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(row: Row, launcher: Launcher, seconds: float) -> Sample:
    """Start a peer, and load it for so many seconds.

    Each measure has fresh processes: memory that earlier sockets have left would serve new ones.

    Raises BenchmarkError when the peer fails under the load, with the last line of each of its logs.
    """
    with (
        tempfile.TemporaryDirectory(prefix="asgibus-benchmark-") as directory,
        launcher.start(Path(directory), row.app, row.workers) as peer,
    ):
        try:
            return undisturbed(row, peer, seconds)
        except BenchmarkError as error:
            raise BenchmarkError("; ".join([str(error), *(server.last_line() for server in peer.servers)])) from error


def undisturbed(row: Row, peer: Peer, seconds: float) -> Sample:
    """Measure one row of one running peer."""
    alone_ms = None
    if row.kind in ALONE:
        with row.load(peer.port, 1) as client:
            client.wait_ready()
            alone_ms = client.run(seconds / ALONE_SHARE)["p50_ms"]
    wait_quiet(peer)
    with row.load(peer.port, row.count) as client:
        client.wait_ready()
        memory_before = settled_memory(peer) if row.kind == "connect" else {}
        cpu_before, busy_before = peer.cpu(), busy()
        tally = client.run(seconds)
        cpu_after, busy_after = peer.cpu(), busy()
        memory_after = settled_memory(peer) if row.kind == "connect" else {}
        if row.kind == "connect":
            client.check()
    count, elapsed = tally["count"], tally["seconds"]
    cpu = {process: after - cpu_before.get(process, 0.0) for process, after in cpu_after.items()}
    by_name: defaultdict[str, float] = defaultdict(float)
    for (name, _), spent in cpu.items():
        by_name[name] += spent
    grown = {name: memory_after[name] - before for name, before in memory_before.items()}
    busiest = max(cpu, key=cpu.__getitem__)
    return Sample(
        rate=count / elapsed,
        # Too little happens in `even` for statistics that count in steps of 10 ms.
        cpu_us={name: 1e6 * spent / count for name, spent in by_name.items() if row.kind != "even"},
        busiest=cpu[busiest] / elapsed,
        busiest_name=busiest[0],
        client_cpu=tally["client_cpu"] / elapsed,
        other_cpu=max(0.0, busy_after - busy_before - tally["client_cpu"] - sum(cpu.values())) / elapsed,
        p50_ms=tally["p50_ms"],
        p99_ms=tally["p99_ms"],
        alone_ms=alone_ms,
        fullest=tally["fullest"],
        memory_kb={name: size / count / 1024 for name, size in grown.items()} or None,
    )


def busy() -> float:
    """Return the CPU seconds of the whole machine so far, with those that a hypervisor took."""
    times = psutil.cpu_times()._asdict()
    return float(sum(times.get(kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal")))


def wait_quiet(peer: Peer) -> None:
    """Wait until the peer uses less than a tenth of a core: until earlier sockets are closed and forgotten."""
    deadline = time.monotonic() + SETTLE
    cpu = sum(peer.cpu().values())
    while True:
        time.sleep(0.2)
        before, cpu = cpu, sum(peer.cpu().values())
        if cpu - before <= 0.02 or time.monotonic() > deadline:
            return


def settled_memory(peer: Peer) -> dict[str, int]:
    """Return the memory by process, once two readings half a second apart agree within 0.2 % or the time is over."""
    deadline = time.monotonic() + SETTLE
    memory = peer.memory()
    while True:
        time.sleep(0.5)
        before, memory = sum(memory.values()), peer.memory()
        if abs(sum(memory.values()) - before) <= before / 500 or time.monotonic() > deadline:
            return memory
