"""The processes of a run: servers with their logs, CPU time and memory, and the load client."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
START_UP = 30.0
"""Seconds a process may take until it says that it is ready."""
GRACE = 10.0
"""Seconds a process may take to end before it is killed."""


class BenchmarkError(Exception):
    """A process of the run did not start, did not answer or did not do its work."""


class Server:
    """A server process. The log goes to a file; `ready` matches the line that the server logs when it serves."""

    def __init__(self, name: str, command: list[str], log: Path, ready: str, environment: dict[str, str] | None = None):
        self.name = name
        self._log = log
        environment = {**os.environ, **(environment or {})}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed server has bytecode
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._ready = re.compile(ready)

    def wait_ready(self) -> re.Match[str]:
        """Wait for the ready line and return its match.

        Raises BenchmarkError with the end of the log when the process ends or does not become ready in time.
        """
        deadline = time.monotonic() + START_UP
        while True:
            # Check before reading the log, or the last lines of a process that just ended could be missed.
            running = self._process.poll() is None
            log = self._log.read_text(errors="replace")
            if match := self._ready.search(log):
                return match
            if not running or time.monotonic() > deadline:
                self.stop()
                raise BenchmarkError(f"{self.name} is not ready: {log[-2000:].strip()}")
            time.sleep(0.002)  # start-up times are measured with it

    def last_line(self) -> str:
        """Return the last line of the log."""
        lines = self._log.read_text(errors="replace").split("\n")
        return next(
            (f"{self.name}: {line.strip()}" for line in reversed(lines) if line.strip()), f"{self.name}: silent"
        )

    def _tree(self) -> list[psutil.Process]:
        try:
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            raise BenchmarkError(f"{self.name} ended") from None

    def cpu(self) -> float:
        """Return the CPU seconds so far, of the process and its children, also of those that have ended."""
        return sum(self.cpu_by_process().values())

    def cpu_by_process(self) -> dict[int, float]:
        """Return the CPU seconds so far by pid, each with those of children that have ended."""
        return {process.pid: sum(process.cpu_times()[:4]) for process in self._tree()}

    def precise_cpu(self) -> float:
        """Return the CPU seconds so far of the process alone, not in steps of 10 ms as the kernel's statistics are."""
        # The id of the CPU clock of a process on Linux: clock_getcpuclockid(3), which Python has for threads only.
        return time.clock_gettime((~self._process.pid << 3) | 2)

    def memory(self) -> int:
        """Return the bytes that no other process shares (USS), of the process and its children."""
        return sum(process.memory_full_info().uss for process in self._tree())

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


class Client:
    """A load client with its sockets open and warm. Leaving the context closes them."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.clients", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The client ends at the end of its input; after an error it may hang, so it is killed.
        if kind is not None:
            self._process.kill()
        self._process.communicate(timeout=GRACE)

    def wait_ready(self) -> None:
        """Raise BenchmarkError with the reason that the client gave."""
        if (line := self._read()) != "READY":
            raise BenchmarkError(line)

    def run(self, seconds: float) -> dict[str, Any]:
        """Load the server for so long and return the tally.

        Raises BenchmarkError with the client's reason.
        """
        if not (line := self._ask(str(seconds))).startswith("{"):
            raise BenchmarkError(line)
        tally: dict[str, Any] = json.loads(line)
        return tally

    def check(self) -> None:
        """See that the idle sockets are still served.

        Raises BenchmarkError with the client's reason.
        """
        if (line := self._ask("check")) != "CHECKED":
            raise BenchmarkError(line)

    def _ask(self, question: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip().removeprefix("FAILED ") or "the load client ended"
