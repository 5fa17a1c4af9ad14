"""An interface server whose process is replaced in place, again and again."""

import os
import re
import signal
from contextlib import suppress
from typing import Self

import psutil

from support.deadline import wait_until
from support.processes import Process

GOES_ON = re.compile(r"process (\d+) goes on after [\d.]+ s, for ([\d.]+) s of which clients waited: (.*)")
FAILED = re.compile(r"the move to a new process has failed, and this one goes on: (.*)")


class InPlace:
    """The present process of an interface server. Use it as a context: it ends that process."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.pid = process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pid == self.process.pid:
            return
        with suppress(psutil.NoSuchProcess):
            present = psutil.Process(self.pid)
            present.terminate()
            present.wait(30)

    def moves(self) -> list[tuple[str, str, str]]:
        """Return each move so far: the new process, for how long clients waited, and what has moved."""
        return GOES_ON.findall(self.process.whole_log())

    def failures(self) -> list[str]:
        """Return why moves have failed."""
        return FAILED.findall(self.process.whole_log())

    def signal(self) -> None:
        """Ask the present process to move."""
        os.kill(self.pid, signal.SIGUSR2)

    def move(self) -> tuple[float, str]:
        """Have the present process move. Return for how many seconds clients waited, and what has moved."""
        before, failed, old = len(self.moves()), len(self.failures()), self.pid
        self.signal()
        wait_until(lambda: len(self.moves()) > before or len(self.failures()) > failed, None, "the move")
        assert len(self.failures()) == failed, self.failures()
        pid, seconds, what = self.moves()[-1]
        self.pid = int(pid)
        if old == self.process.pid:
            assert self.process.wait() == 0
        return float(seconds), what
