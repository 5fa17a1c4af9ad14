"""The rows of the table: the load of each on a peer, and the readings of the peer before and after."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks.peers import Peer
from benchmarks.processes import BenchmarkError, Client

IDLE_SOCKETS = 5000
SETTLE = 10.0
"""Seconds that a peer may take to come to rest."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measure: its name on the command line, its title in the table, the load client's arguments."""

    name: str
    title: str
    kind: str
    count: int
    window: int = 1


ROWS = {
    row.name: row
    for row in (
        Row("http-64", "HTTP, 64 connections", "http", 64),
        Row("http-1", "HTTP, 1 connection", "http", 1),
        Row("echo-64", "WebSocket echo, 64 sockets", "echo", 64),
        Row("echo-1", "WebSocket echo, 1 socket", "echo", 1),
        Row("fanout-1", "Fan-out to 1000 sockets, 1 in flight", "fanout", 1000, 1),
        Row("fanout-8", "Fan-out to 1000 sockets, 8 in flight", "fanout", 1000, 8),
        Row("idle", f"Idle, {IDLE_SOCKETS} sockets", "idle", IDLE_SOCKETS),
    )
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One measure of one peer.

    rate: requests, messages or deliveries a second. cpu_ms: CPU-ms for each, by process. p50_ms, p99_ms: waits (of a
    fan-out: trigger to last delivery). memory_kb: USS for each open socket, by process. client_cpu, other_cpu: CPU time
    of the load client and of everything else on the machine, in cores.
    """

    rate: float
    cpu_ms: dict[str, float]
    client_cpu: float
    other_cpu: float
    p50_ms: float | None
    p99_ms: float | None
    memory_kb: dict[str, float] | None

    @property
    def cpu_total(self) -> float:
        return sum(self.cpu_ms.values())

    @property
    def memory_total(self) -> float | None:
        return None if self.memory_kb is None else sum(self.memory_kb.values())

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(row: Row, peer: Peer, seconds: float) -> Sample:
    """Load the peer for so many seconds.

    Raises BenchmarkError when the peer fails under the load, with the last line of each of its logs.
    """
    try:
        return undisturbed(row, peer, seconds)
    except BenchmarkError as error:
        raise BenchmarkError("; ".join([str(error), *(server.last_line() for server in peer.servers)])) from error


def undisturbed(row: Row, peer: Peer, seconds: float) -> Sample:
    """Measure one row of one peer."""
    wait_quiet(peer)
    with Client(row.kind, str(peer.port), str(row.count), str(row.window)) as client:
        client.wait_ready()
        memory_before = settled_memory(peer) if row.kind == "idle" else {}
        cpu_before, busy_before = peer.cpu(), busy()
        tally = client.run(seconds)
        cpu_after, busy_after = peer.cpu(), busy()
        memory_after = settled_memory(peer) if row.kind == "idle" else {}
        if row.kind == "idle":
            client.check()
    grown = {name: memory_after[name] - before for name, before in memory_before.items()}
    count, elapsed = tally["count"], tally["seconds"]
    ours = tally["client_cpu"] + sum(cpu_after.values()) - sum(cpu_before.values())
    return Sample(
        rate=count / elapsed,
        cpu_ms={name: 1000 * (cpu_after[name] - before) / count for name, before in cpu_before.items()},
        client_cpu=tally["client_cpu"] / elapsed,
        other_cpu=max(0.0, busy_after - busy_before - ours) / elapsed,
        p50_ms=tally["p50_ms"],
        p99_ms=tally["p99_ms"],
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
