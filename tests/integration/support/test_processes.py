"""Faults of processes that fail a test at its end."""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import processes as processes_support
from support.forks import Fork
from support.processes import LISTENING, Process, Processes

Start = Callable[..., Process]

SAY = "import os, signal, sys, time; print('listening on http://127.0.0.1:1', flush=True)\n"


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Processes]:
    group = Processes(tmp_path)
    yield group
    group.end()


@pytest.fixture
def start(group: Processes) -> Start:
    def start(code: str, **options: object) -> Process:
        return group.start("program", [sys.executable, "-c", SAY + code], ready=LISTENING, **options)

    return start


def test_a_normal_end_is_no_fault(group: Processes, start: Start) -> None:
    start("signal.sigwait({signal.SIGTERM})")
    assert group.end() == []


def test_a_paused_process_is_ended(group: Processes, start: Start) -> None:
    process = start("time.sleep(60)")
    process.pause()
    assert group.end() == []
    assert process.returncode == -signal.SIGTERM


def test_an_unexpected_end_is_a_fault(group: Processes, start: Start) -> None:
    process = start("print('bye', flush=True); sys.exit(3)")
    process._popen.wait(5)
    assert group.end() == ["program-1 ended by itself with code 3"]


def test_an_awaited_end_is_not_a_fault(group: Processes, start: Start) -> None:
    assert start("sys.exit(3)").wait() == 3
    assert group.end() == []


def test_a_wrong_exit_code_is_a_fault(group: Processes, start: Start) -> None:
    start("signal.signal(signal.SIGTERM, lambda *_: sys.exit(4)); print('set', flush=True); time.sleep(60)").wait_for(
        "set"
    )
    assert group.end() == ["program-1 ended with code 4 after SIGTERM"]


def test_an_unstoppable_process_is_killed_and_a_fault(
    group: Processes, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start("signal.signal(signal.SIGTERM, signal.SIG_IGN); print('set', flush=True); time.sleep(60)")
    process.wait_for("set")
    monkeypatch.setattr(processes_support, "END_TIMEOUT", 0.3)
    assert group.end() == ["program-1 did not end within 0.3 s of SIGTERM and was killed"]
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("announced", [False, True])
def test_a_traceback_is_a_fault_unless_announced(group: Processes, start: Start, announced: bool) -> None:
    process = start(
        "import traceback\ntry: 1/0\nexcept ArithmeticError: traceback.print_exc()\nprint('done', flush=True)\n"
        "time.sleep(60)",
        allow_traceback=announced,
    )
    process.wait_for("done")
    faults = group.end()
    assert [fault.partition(":")[0] for fault in faults] == (
        [] if announced else ["program-1 logged trouble that the test did not announce"]
    )


def test_a_wait_ends_with_the_process(group: Processes, start: Start) -> None:
    process = start("sys.exit('final output')")
    with pytest.raises(AssertionError, match=r"ended with code 1 before it wrote 'nothing'[^$]*final output"):
        process.wait_for("nothing", timeout=30)


def test_a_wait_ends_at_its_deadline(group: Processes, start: Start) -> None:
    process = start("time.sleep(60)")
    with pytest.raises(AssertionError, match=r"did not write 'nothing' within 0\.1 s"):
        process.wait_for("nothing", timeout=0.1)


def test_a_failure_shows_the_end_of_a_log_without_the_access_log(start: Start) -> None:
    process = start(
        "for n in range(100): print(f'INFO note {n}'); print(f'INFO     1.2.3.4:5 - \"GET /{n} HTTP/1.1\" 200')\n"
        "print('x' * 9000, flush=True); time.sleep(60)"
    )
    process.wait_for("x{9000}")
    first, *lines = process.last_lines().splitlines()
    assert first.startswith("(42 earlier lines and 100 of the access log are left out: ")
    assert len(lines) == 60
    assert lines[-2:] == ["INFO note 99", "x" * 500]


@pytest.mark.parametrize("fork", [False, True], ids=["started", "forked"])
def test_a_command_ends_the_same_as_a_fork(request: pytest.FixtureRequest, tmp_path: Path, fork: bool) -> None:
    group = Processes(tmp_path, fork=fork)
    request.addfinalizer(group.end)
    wrong = group.start_worker("no_such_app:app", ready=False)
    assert wrong.wait() == 1
    assert "no_such_app" in wrong.log()
    killed = group.start_interface(app="interface_server.http_app:app", env={"ASGIBUS_POOL": "other"})
    assert "pool other" in killed.log()
    killed.kill()
    assert killed.returncode == -signal.SIGKILL
    assert group.end() == []
    assert isinstance(killed._popen, Fork) is fork
