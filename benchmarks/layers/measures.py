"""One measure: a sender and a reader in two processes, joined by the layer of a peer, and their results."""

import json
import select
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

import psutil  # type: ignore[import-untyped]

from benchmarks.layers.rows import Row
from benchmarks.measures import busy
from benchmarks.processes import GRACE, ROOT, START_UP, BenchmarkError, Server

WARM_UP = 1.5
"""Seconds of load before the measure."""
LATE = 0.3
"""Seconds in which surplus messages are waited for."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measure of one peer.

    rate: messages, deliveries or answers a second, from the first send to the last receive. cpu_ms: CPU-ms for each, by
    process. lost, doubled: of all that were sent, the warm-up too. other_cpu: CPU time of everything else on the
    machine, in cores.
    """

    rate: float
    cpu_ms: dict[str, float]
    lost: int
    doubled: int
    other_cpu: float

    @property
    def cpu_total(self) -> float:
        return sum(self.cpu_ms.values())

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class End:
    """A process of `ends.py`. Leaving the context ends it; its layer is closed then, unless there was an error."""

    def __init__(self, end: str, row: Row, peer: str, url: str, loop: str, joined: socket.socket) -> None:
        self.name = end
        descriptor = joined.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.layers.ends", end, row.name, peer, url, loop, str(descriptor)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[descriptor],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        try:
            self._process.communicate(timeout=GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise BenchmarkError(f"the {self.name} did not end") from None

    def cpu(self) -> float:
        """Return the CPU seconds so far."""
        try:
            return float(sum(psutil.Process(self._process.pid).cpu_times()[:2]))
        except psutil.NoSuchProcess:
            raise BenchmarkError(f"the {self.name} ended") from None

    def ask(self, question: object = None, seconds: float = START_UP) -> Any:
        """Return the answer of the process to this line, or its next line. Raise BenchmarkError if there is none."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            if question is not None:
                self._process.stdin.write(f"{question}\n")
                self._process.stdin.flush()
            ready, _, _ = select.select([self._process.stdout], [], [], seconds)
            line = self._process.stdout.readline() if ready else ""
        except BrokenPipeError:
            line = ""
        if not line:
            raise BenchmarkError(f"the {self.name} ended or hangs")
        return json.loads(line)


def measure(row: Row, peer: str, redis: Server, url: str, loop: str, seconds: float) -> Sample:
    """Let one process send to another for so many seconds. Raises BenchmarkError when one of them fails."""
    with ExitStack() as stack:
        ours, theirs = (stack.enter_context(joined) for joined in socket.socketpair())
        reader = stack.enter_context(End("reader", row, peer, url, loop, ours))
        channels = reader.ask()
        sender = stack.enter_context(End("sender", row, peer, url, loop, theirs))
        sender.ask(json.dumps(channels))
        processes: dict[str, End | Server] = {"sender": sender, "reader": reader, "redis": redis}
        before = run(sender, reader, WARM_UP)
        cpu_before, busy_before = {name: process.cpu() for name, process in processes.items()}, busy()
        tally = run(sender, reader, seconds)
        cpu = {name: process.cpu() - cpu_before[name] for name, process in processes.items()}
        everything = busy() - busy_before
        # A reader reports as soon as all expected messages are there, and a duplicate may arrive later.
        sender.ask(0)
        late = reader.ask(tally["expected"], LATE + START_UP)
    count, elapsed = tally["expected"] - before["expected"] - tally["lost"], tally["ended"] - tally["began"]
    if count <= 0 or elapsed <= 0:
        raise BenchmarkError("nothing was received")
    return Sample(
        rate=count / elapsed,
        cpu_ms={name: 1000 * used / count for name, used in cpu.items()},
        lost=late["lost"],
        doubled=late["doubled"],
        other_cpu=max(0.0, everything - sum(cpu.values())) / elapsed,
    )


def run(sender: End, reader: End, seconds: float) -> dict[str, Any]:
    """Send for `seconds` and receive all messages."""
    sent = sender.ask(seconds, seconds + START_UP)
    return {**sent, **reader.ask(sent["expected"], START_UP)}
