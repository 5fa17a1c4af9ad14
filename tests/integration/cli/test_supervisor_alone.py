"""The supervisor with stub processes, which serve nothing and start at once."""

import logging
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import psutil
import pytest

from asgibus.cli import supervisor as supervisor_module
from asgibus.cli.control_pipe import VARIABLE, ControlPipe
from asgibus.cli.run import ProcessLifecycle
from asgibus.cli.supervisor import RestartPause, StartError, Supervisor
from asgibus.layers import InMemoryChannelLayer, LayerUnavailable
from support.bus import until
from support.deadline import HANG
from support.processes import TESTS

pytestmark = pytest.mark.anyio


class Layer(InMemoryChannelLayer):
    """A layer that records the mailboxes declared dead."""

    def __init__(self) -> None:
        super().__init__()
        self.dead: list[str] = []
        self.away = False

    async def declare_dead(self, mailbox: str) -> None:
        if self.away:
            raise LayerUnavailable("the store is away")
        self.dead.append(mailbox)


class Supervised:
    """A supervisor of two stubs, which runs in this process, and its log."""

    def __init__(self, folder: Path, log: pytest.LogCaptureFixture, kill_after: float) -> None:
        self.folder = folder
        self.layer = Layer()
        self._log = log
        command = [sys.executable, "-SEs", str(TESTS / "support" / "stub_child.py"), VARIABLE, str(folder)]
        self.supervisor = Supervisor(2, lambda number: command, self.layer, kill_after=kill_after)
        self.lifecycle = ProcessLifecycle(ControlPipe(), [])

    @property
    def log(self) -> str:
        return "\n".join(self._log.messages)

    async def wait_for_log(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Wait until lines of the log match the pattern; return the last match."""
        return (await until(lambda: len(matches := [*re.finditer(pattern, self.log)]) >= times and matches))[-1]

    def pids(self) -> set[int]:
        """Return the pids of the running children."""
        found = set()
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                if child.status() != psutil.STATUS_ZOMBIE and "stub_child" in " ".join(child.cmdline()):
                    found.add(child.pid)
        return found

    def hang_up(self) -> None:
        """Ask for a rolling restart."""
        os.kill(os.getpid(), signal.SIGHUP)


@pytest.fixture
def kill_after() -> float:
    """Return the seconds after which the supervisor kills a child that does not end."""
    return HANG


@pytest.fixture
def supervised(tmp_path: Path, caplog: pytest.LogCaptureFixture, kill_after: float) -> Supervised:
    caplog.set_level(logging.DEBUG, "asgibus.supervisor")
    return Supervised(tmp_path, caplog, kill_after)


@asynccontextmanager
async def running(supervised: Supervised) -> AsyncIterator[list[int]]:
    """Run the supervisor until the context ends; yield the pids of the first two processes."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervised.supervisor.serve, supervised.lifecycle)
        match = await supervised.wait_for_log(r"supervisor ready: 2 processes \((\d+), (\d+)\)")
        yield [int(match[1]), int(match[2])]
        supervised.lifecycle.stop.set()
    assert supervised.pids() == set()


async def test_a_killed_process_is_replaced_and_announced_at_once(supervised: Supervised) -> None:
    async with running(supervised) as (victim, other):
        os.kill(victim, signal.SIGKILL)
        await supervised.wait_for_log(rf"process {victim} was killed by SIGKILL: starting another now")
        await until(lambda: supervised.layer.dead == [f"stub.{victim}!"])
        await until(lambda: len(supervised.pids()) == 2)
        assert other in supervised.pids()
    assert supervised.layer.dead == [f"stub.{victim}!"], "a requested end was announced as a death"


async def test_processes_are_restarted_while_the_layer_is_away(supervised: Supervised) -> None:
    async with running(supervised) as (victim, other):
        supervised.layer.away = True
        os.kill(victim, signal.SIGKILL)
        await supervised.wait_for_log(rf"the death of process {victim} could not be announced: the store is away")
        await until(lambda: len(supervised.pids() - {victim, other}) == 1)


async def test_a_process_stopped_by_sigterm_is_replaced(supervised: Supervised) -> None:
    """A child that gets SIGTERM is replaced, and no death is announced."""
    async with running(supervised) as (victim, other):
        os.kill(victim, signal.SIGTERM)
        await supervised.wait_for_log(rf"process {victim} retires: starting another")
        await until(lambda: len(supervised.pids() - {victim, other}) == 1)
    assert supervised.layer.dead == []


async def test_repeated_crashes_lengthen_the_restart_pause(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "FIRST_PAUSE", 0.05)
    async with running(supervised) as (victim, _):
        (supervised.folder / "crashes").touch()
        os.kill(victim, signal.SIGKILL)
        for seconds in ("0.05", "0.1", "0.2"):
            await supervised.wait_for_log(rf"was killed by SIGSEGV: starting another in {seconds} s")
        (supervised.folder / "crashes").unlink()
        await until(lambda: len(supervised.pids()) == 2)


async def test_the_pauses() -> None:
    pause = RestartPause()
    assert [pause.after(1, served=False) for _ in range(9)] == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert pause.after(1, served=True) == 1, "connections wait for a process in the place of one that has served"
    assert pause.after(60, served=True) == 0, "a long life did not reset the pause"
    assert [pause.after(1, served=True) for _ in range(4)] == [0.5, 1, 1, 1]


async def test_a_failed_start(supervised: Supervised) -> None:
    (supervised.folder / "fails").touch()
    with pytest.raises(ExceptionGroup) as raised:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(supervised.supervisor.serve, supervised.lifecycle)
    (error,) = raised.value.exceptions
    assert isinstance(error, StartError)
    assert str(error) == "a new version with a mistake"
    assert supervised.pids() == set()


@pytest.mark.parametrize("kill_after", [0.5])
async def test_an_unstoppable_process_is_killed(supervised: Supervised) -> None:
    async with running(supervised) as (first, second):
        (supervised.folder / "lingers").touch()
    for pid in (first, second):
        assert f"process {pid} did not end within 0.5 s and is killed" in supervised.log


async def test_a_rolling_restart(supervised: Supervised) -> None:
    async with running(supervised) as before:
        supervised.hang_up()
        await supervised.wait_for_log("SIGHUP: replacing one process after another")
        await supervised.wait_for_log("all processes are replaced")
        assert len(supervised.pids()) == 2
        assert not supervised.pids() & set(before)
    assert supervised.layer.dead == []


async def test_a_failed_rolling_restart_keeps_the_old_processes(supervised: Supervised) -> None:
    async with running(supervised) as before:
        (supervised.folder / "fails").touch()
        supervised.hang_up()
        await supervised.wait_for_log(r"failed to start: a new version with a mistake: the old processes stay")
        assert supervised.pids() == set(before)


async def test_a_rolling_restart_gives_up_on_a_hanging_start(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rolling restart gives up on a start-up that hangs, and the next one works."""
    monkeypatch.setattr(supervisor_module, "START_SECONDS", 0.3)
    async with running(supervised) as before:
        (supervised.folder / "hangs").touch()
        supervised.hang_up()
        match = await supervised.wait_for_log(r"process (\d+) was not ready within 0.3 s: the old processes stay")
        assert int(match[1]) not in before
        await until(lambda: supervised.pids() == set(before))
        (supervised.folder / "hangs").unlink()
        monkeypatch.setattr(supervisor_module, "START_SECONDS", 30.0)
        supervised.hang_up()
        await supervised.wait_for_log("all processes are replaced")
        assert not supervised.pids() & set(before)


async def test_a_crash_during_a_rolling_restart_is_not_replaced_twice(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that dies during its replacement is not replaced a second time."""
    monkeypatch.setattr(supervisor_module, "FIRST_PAUSE", 0.5)
    async with running(supervised) as (first, other):
        os.kill(first, signal.SIGKILL)  # the next death in this place is followed by a pause
        await until(lambda: len(supervised.pids() - {first, other}) == 1)
        (old,) = supervised.pids() - {other}
        await until((supervised.folder / f"{old} is ready").exists)
        await anyio.wait_all_tasks_blocked()  # the supervisor has read the report
        (supervised.folder / "hangs").touch()
        supervised.hang_up()
        await until(lambda: len(supervised.pids()) == 3)
        (new,) = supervised.pids() - {old, other}
        os.kill(old, signal.SIGKILL)
        await supervised.wait_for_log(rf"process {old} was killed by SIGKILL: starting another in 0.5 s")
        (supervised.folder / "hangs").unlink()
        await supervised.wait_for_log("all processes are replaced")
        await until(lambda: len(supervised.pids()) == 2)
        assert new in supervised.pids()
        os.kill(new, signal.SIGKILL)
        await supervised.wait_for_log(rf"process {new} was killed by SIGKILL: starting another")
        await until(lambda: len(supervised.pids()) == 2)


async def test_a_rolling_restart_replaces_starting_processes(supervised: Supervised) -> None:
    """A rolling restart replaces starting processes too, since they may have read the old code."""
    async with running(supervised) as before:
        (supervised.folder / "hangs").touch()
        os.kill(before[0], signal.SIGKILL)
        await until(lambda: supervised.pids() - set(before))
        (starting,) = supervised.pids() - set(before)
        supervised.hang_up()
        await supervised.wait_for_log("SIGHUP: replacing one process after another")
        (supervised.folder / "hangs").unlink()
        await supervised.wait_for_log("all processes are replaced")
        await until(lambda: len(supervised.pids()) == 2)
        assert not supervised.pids() & {*before, starting}
