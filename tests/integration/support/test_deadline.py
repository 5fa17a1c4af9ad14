"""A test that finds a promised time not kept is run once more; any other failure is believed at once."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.deadline import TooLate, in_time, wait_until

ROOT = Path(__file__).resolve().parents[3]


def test_in_time() -> None:
    in_time(0.9, 1)
    with pytest.raises(TooLate, match=r"the answer took 1\.500 s, and 1 s are promised"):
        in_time(1.5, 1, "the answer")


def test_a_condition_that_does_not_come_true(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TooLate, match=r"the answer did not come true within 0\.02 s"):
        wait_until(lambda: False, 0.02, "the answer")
    monkeypatch.setattr("support.deadline.HANG", 0.02)
    with pytest.raises(AssertionError, match=r"the answer did not come true within 0\.02 s") as raised:
        wait_until(lambda: False, what="the answer")
    assert not isinstance(raised.value, TooLate)


def test_who_is_run_once_more(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    (tmp_path / "test_times.py").write_text(
        """
import asyncio, pytest
from support.deadline import in_time
runs = []


def test_late_once():
    runs.append("once")
    in_time(len(runs) == 1, 1)

def test_late_ever():
    runs.append("ever")
    in_time(2, 1)

def test_wrong():
    runs.append("wrong")
    assert False

@pytest.mark.anyio
async def test_late_among_tasks():
    runs.append("task")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(check(len(runs) == 6))

async def check(late):
    in_time(late, 1)

def test_runs():
    assert runs == ["once", "once", "ever", "ever", "wrong", "task", "task"]
"""
    )
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "-n0", "-p", "no:cacheprovider", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert "2 failed, 3 passed, 3 rerun" in done.stdout, done.stdout + done.stderr
