"""A process under a wall clock of its own sees its steps, and only there."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import clocks

SAY = "import time\nwhile input(): print(time.time(), time.monotonic(), flush=True)"


def test_a_step_while_it_runs(tmp_path: Path) -> None:
    if clocks.library() is None:
        pytest.skip("libfaketime is not installed")
    clock = clocks.WallClock(tmp_path / "clock")
    with subprocess.Popen(
        [sys.executable, "-c", SAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clock.env
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for step in (0, 3600, -7200):
            clock.step(step)
            process.stdin.write("now\n")
            process.stdin.flush()
            wall, monotonic = map(float, process.stdout.readline().split())
            assert wall - time.time() == pytest.approx(step, abs=5)
            assert monotonic == pytest.approx(time.monotonic(), abs=5)
        process.stdin.write("\n")
        process.stdin.flush()
