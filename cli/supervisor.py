"""Several processes of one command: started, replaced when they die or retire, and ended together.

The supervisor runs none of the user's code. Each process is this command run afresh, with a control pipe to the
supervisor.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from enum import IntEnum

import anyio
from anyio.abc import Process, TaskGroup, TaskStatus

from asgibus.cli import control_pipe
from asgibus.cli.control_pipe import ControlPipe
from asgibus.cli.env_file import without_env_file
from asgibus.cli.reload import WatchedFiles
from asgibus.cli.run import END_MARGIN, ProcessLifecycle, on_sighup, run
from asgibus.cli.settings import ProcessSettings
from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.errors import LayerError

logger = logging.getLogger("asgibus.supervisor")

SHORT_LIFE = 10.0  # seconds; a process that dies so young is likely to die again: a start takes some of them
FIRST_PAUSE = 0.5  # seconds before the second restart in a row: about what a start costs a core
LONGEST_PAUSE = 30.0  # seconds; whoever repairs the cause waits no longer than that
LONGEST_PAUSE_SERVED = 1.0  # seconds, after a process that has served: its connections wait for the next one
START_SECONDS = 300.0  # for a new process to serve in the place of an old one: apps that load models need minutes
ANNOUNCE_SECONDS = 5.0  # the time of a lease: after that the others know by themselves
MOVE_VARIABLE = "ASGIBUS_MOVE_FD"  # in the environment of a successor: the connection to the process before it
READ_BYTES = 64 * 1024  # far more than a process reports in its life


class StartError(Exception):
    """The first processes could not start; the text says why. `trace` is the traceback of code of the app, if any."""

    def __init__(self, text: str, trace: str = "") -> None:
        super().__init__(text)
        self.trace = trace


class State(IntEnum):
    """The progress of a process. States only increase, and may be skipped."""

    STARTING = 0
    READY = 1
    RETIRING = 2
    """The process takes nothing new and finishes what it has."""
    ENDED = 3


class ManagedProcess:
    """A process with its control pipe. `run` is its whole life; the attributes stay readable afterwards."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        fds: Sequence[int] = (),
        kill_after: float,
        on_status: Callable[[str], None] = lambda text: None,
        predecessor: socket.socket | None = None,
    ) -> None:
        """Set the process up without starting it.

        Args:
            command: What to run.
            fds: File descriptors that the process inherits.
            predecessor: The connection to the process in whose place it goes on. It is closed once the process runs.
            kill_after: Seconds after which a process that retires is killed.
            on_status: Called with each status that the process reports before it is ready.

        """
        self.state = State.STARTING
        self.pid = 0
        self.was_ready = False
        self.has_retired = False
        """Whether the process ended because it wanted to, or was told to."""
        self.mailboxes: tuple[str, ...] = ()
        self.failure = ""
        """Why the process could not start, in its own words."""
        self.trace = ""
        """The traceback of that, of code of the app."""
        self.started = time.monotonic()
        self.code: int | None = None
        """The exit code; negative for a signal, None if the process never ran."""
        self._command = command
        self._fds = fds
        self._kill_after = kill_after
        self._on_status = on_status
        self._predecessor = predecessor
        self._changed = anyio.Event()
        self._pipe: socket.socket | None = None
        self._unread = b""

    async def run(self) -> None:
        """Start the process and wait for its end. If cancelled, kill it."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours:
            try:
                with theirs, self._predecessor or nullcontext():
                    process = await self._open(theirs.fileno())
            except OSError as error:
                self.failure = f"it cannot be started: {error.strerror or error}"
                self._advance(State.ENDED)
                return
            self.pid = process.pid
            self._pipe = ours
            if self.state is State.RETIRING:
                self._send_stop()
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._read_reports, ours)
                    tasks.start_soon(self._kill_late, process)
                    self.code = await process.wait()
                    tasks.cancel_scope.cancel()
            finally:
                if self.code is None:
                    _kill(process)
                    with anyio.CancelScope(shield=True):
                        self.code = await process.wait()
                self._read(ours)
                self._pipe = None
                self._advance(State.ENDED)

    def move(self, to: socket.socket) -> None:
        """Tell the process to move to its successor.

        Args:
            to: The connection to the successor.
        """
        if self._pipe is not None:
            with suppress(OSError):  # the process has ended, which `run` is about to see
                socket.send_fds(self._pipe, [control_pipe.MOVE], [to.fileno()])

    def stop(self) -> None:
        """Tell the process to finish what it has and to end. Later calls do nothing."""
        if self.state < State.RETIRING:
            self._advance(State.RETIRING)
            self._send_stop()

    async def wait_for(self, state: State) -> None:
        """Wait until the process has reached a state, or a later one."""
        while self.state < state:
            await self._changed.wait()

    @property
    def age(self) -> float:
        """The seconds since the start."""
        return time.monotonic() - self.started

    @property
    def end(self) -> str:
        """How the process ended, in words."""
        if self.failure:
            return f"failed to start: {self.failure}"
        code = self.code
        assert code is not None
        if code >= 0:
            return f"ended with code {code}"
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"

    async def _open(self, pipe: int) -> Process:
        environment = {**without_env_file(), control_pipe.VARIABLE: str(pipe)}
        fds = [pipe, *self._fds]
        if self._predecessor is not None:
            fds.append(self._predecessor.fileno())
            environment[MOVE_VARIABLE] = str(self._predecessor.fileno())
        # A session of its own: a terminal's Ctrl+C reaches the supervisor alone.
        return await anyio.open_process(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=None,
            stderr=None,
            env=environment,
            start_new_session=True,
            pass_fds=fds,
        )

    def _send_stop(self) -> None:
        if self._pipe is not None:
            with suppress(OSError):  # the process has ended, which `run` is about to see
                self._pipe.send(control_pipe.STOP)

    def _advance(self, state: State) -> None:
        if state > self.state:
            self.has_retired = self.has_retired or state is State.RETIRING
            self.state = state
            self._changed.set()
            self._changed = anyio.Event()

    async def _kill_late(self, process: Process) -> None:
        await self.wait_for(State.RETIRING)
        await anyio.sleep(self._kill_after)
        logger.error("process %d did not end within %g s and is killed", self.pid, self._kill_after)
        _kill(process)

    async def _read_reports(self, pipe: socket.socket) -> None:
        while True:
            await anyio.wait_readable(pipe)
            if not self._read(pipe):
                return

    def _read(self, pipe: socket.socket) -> bool:
        """Handle the reports that have arrived, and return whether more may come."""
        try:
            data = pipe.recv(READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode("utf-8", "replace").partition(" ")
            if word == control_pipe.STATUS:
                self._on_status(rest)
            elif word == control_pipe.READY:
                self.was_ready = True
                self.mailboxes = tuple(rest.split())
                self._advance(State.READY)
            elif word == control_pipe.RETIRING:
                self._advance(State.RETIRING)
            elif word == control_pipe.FAILED:
                self.failure, self.trace = json.loads(rest)
        return bool(data)


def _kill(process: Process) -> None:
    with suppress(ProcessLookupError):  # the process has ended, which `run` is about to see
        process.kill()


class RestartPause:
    """The pause before a process is started in the place of one that died."""

    def __init__(self) -> None:
        self._short_lives = 0

    def after(self, age: float, *, served: bool) -> float:
        """Return the pause in seconds: none the first time, then from 0.5 doubling while processes die young.

        Args:
            age: Seconds that the last process lived.
            served: Whether the last process was ready before it died: then the pause is at most 1 s, otherwise 30 s.
        """
        if age >= SHORT_LIFE:
            self._short_lives = 0
        self._short_lives += 1
        if self._short_lives == 1:
            return 0.0
        longest = LONGEST_PAUSE_SERVED if served else LONGEST_PAUSE
        return min(FIRST_PAUSE * 2.0 ** min(self._short_lives - 2, 16), longest)


def supervise(
    process: ProcessSettings,
    graceful_timeout: float,
    layer: ChannelLayer,
    control: ControlPipe,
    *,
    files: WatchedFiles | None = None,
    fd: int | None = None,
    on_ready: Callable[[], None] = lambda: None,
    moves: bool = False,
    obstacle: str | None = None,
) -> int:
    """Run this command as several processes, until a signal.

    Args:
        process: How many processes, and the admin port of the first; each further one has the next port.
        graceful_timeout: Seconds that a process has to stop.
        layer: Where the death of a process is announced.
        control: Reports to the service manager.
        files: Files whose changes replace the processes.
        fd: The socket on which each process listens, if any.
        on_ready: Called when the first process serves.
        moves: Whether SIGUSR2 moves each process to a new one.
        obstacle: Why SIGUSR2 does nothing all the same, in words.

    Returns:
        The exit code, as from `run`.

    """
    port = process.admin_port

    def command(number: int) -> list[str]:
        listen = [] if fd is None else ["--fd", str(fd)]
        admin = ["--admin-port", str(port + number)] if port else []
        return same_command("--processes", "1", *listen, *admin)

    supervisor = Supervisor(
        process.processes,
        command,
        layer,
        kill_after=graceful_timeout + END_MARGIN,
        files=files,
        fds=() if fd is None else (fd,),
        on_ready=on_ready,
        moves=moves,
        obstacle=obstacle,
    )

    async def serve(lifecycle: ProcessLifecycle) -> None:
        try:
            await supervisor.serve(lifecycle)
        finally:
            await layer.close()
        logger.info("supervisor stopped")

    return run(serve, StartError, control=control, graceful_timeout=graceful_timeout)


def same_command(*options: str) -> list[str]:
    """Return the command that runs this process, with more options, which win over the earlier ones."""
    command = [sys.executable, *sys.orig_argv[1:]]
    end = command.index("--") if "--" in command else len(command)
    return [*command[:end], *options, *command[end:]]


class Supervisor:
    """Keeps a number of processes running. `serve` is its whole life."""

    def __init__(
        self,
        count: int,
        command: Callable[[int], Sequence[str]],
        layer: ChannelLayer,
        *,
        kill_after: float,
        files: WatchedFiles | None = None,
        fds: Sequence[int] = (),
        on_ready: Callable[[], None] = lambda: None,
        moves: bool = False,
        obstacle: str | None = None,
    ) -> None:
        """Set the supervisor up.

        Args:
            count: How many processes.
            command: Returns the command of the process with a number.
            layer: Where the death of a process is announced.
            kill_after: Seconds after which a process that retires is killed.
            files: Files whose changes replace the processes. A process that cannot start waits for a change.
            fds: File descriptors that the processes inherit.
            on_ready: Called when the first process serves.
            moves: Whether SIGUSR2 moves each process to a new one.
            obstacle: Why SIGUSR2 does nothing all the same, in words.

        """
        self._moves = moves
        self._obstacle = obstacle
        self._count = count
        self._command = command
        self._layer = layer
        self._kill_after = kill_after
        self._files = files
        self._changes = 0
        self._changed = anyio.Event()
        self._fds = fds
        self._on_ready = on_ready
        self._current: dict[int, ManagedProcess] = {}
        """The process of each number; one that it has replaced may still be retiring."""
        self._running: set[ManagedProcess] = set()
        self._ready_count = 0
        self._failure: StartError | None = None
        self._signalled = anyio.Lock()  # a rolling restart would end a successor that has not taken over
        self._lifecycle: ProcessLifecycle
        self._tasks: TaskGroup

    async def serve(self, lifecycle: ProcessLifecycle) -> None:
        """Run the processes until `stop` of the lifecycle, then end them all. If cancelled, kill them.

        SIGHUP replaces them one after another.

        Raises:
            StartError: A process ended before any was ready, or the files cannot be watched.

        """
        self._lifecycle = lifecycle
        lifecycle.started()
        async with anyio.create_task_group() as ends:
            async with anyio.create_task_group() as self._tasks:
                async with anyio.create_task_group() as keepers:
                    for number in range(self._count):
                        keepers.start_soon(self._keep_running, number)
                    keepers.start_soon(on_sighup, lifecycle, self._replace_on_sighup)
                    if self._moves:
                        keepers.start_soon(self._move_on_sigusr2)
                    if self._files is not None:
                        keepers.start_soon(self._replace_on_change, self._files)
                    await lifecycle.stop.wait()
                    keepers.cancel_scope.cancel()
                await ends.start(_ignore_signals)
                for process in self._running:
                    process.stop()
            ends.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _keep_running(self, number: int) -> None:
        """Start a process with this number whenever there is none."""
        pause = RestartPause()
        changes = self._changes
        process = self._start(number)
        while True:
            await process.wait_for(State.RETIRING)
            if self._current[number] is not process:
                process = self._current[number]
                continue
            if process.state is State.RETIRING:
                logger.info("process %d retires: starting another", process.pid)
            elif self._files is not None and not process.was_ready:
                _log_end(process, "waiting for a change")
                while self._changes == changes:
                    await self._changed.wait()
            elif not self._ready_count:
                if self._failure is None:
                    reason = process.failure or f"process {process.pid} {process.end} before it was ready"
                    self._failure = StartError(reason, process.trace)
                self._lifecycle.stop.set()
                return
            else:
                seconds = pause.after(process.age, served=process.was_ready)
                when = f"in {seconds:g} s" if seconds else "now"
                _log_end(process, f"starting another {when}")
                await anyio.sleep(seconds)
                if self._current[number] is not process:
                    continue  # a rolling restart has started one meanwhile
            changes = self._changes
            process = self._start(number)

    def _start(self, number: int, *, current: bool = True, predecessor: socket.socket | None = None) -> ManagedProcess:
        process = ManagedProcess(
            self._command(number),
            fds=self._fds,
            kill_after=self._kill_after,
            on_status=self._report_status,
            predecessor=predecessor,
        )
        if current:
            self._current[number] = process
        self._running.add(process)
        self._tasks.start_soon(self._run, process)
        return process

    def _report_status(self, text: str) -> None:
        """Report the status of one of the first processes, which is likely that of all."""
        if self._ready_count < self._count:
            self._lifecycle.report(text)

    async def _run(self, process: ManagedProcess) -> None:
        self._tasks.start_soon(self._count_ready, process)
        await process.run()
        self._running.discard(process)
        if process.has_retired and process.code and self._failure is None:
            logger.error("process %d %s while it was retiring", process.pid, process.end)
        if process.code or not process.has_retired:
            self._tasks.start_soon(self._announce_death, process)

    async def _count_ready(self, process: ManagedProcess) -> None:
        await process.wait_for(State.READY)
        if not process.was_ready:
            return
        self._ready_count += 1
        if self._ready_count == 1:
            self._on_ready()
        if self._ready_count == self._count:
            pids = ", ".join(str(each.pid) for each in self._current.values())
            logger.info("supervisor ready: %d processes (%s)", self._count, pids)
            self._lifecycle.ready(f"{self._count} processes serve")

    async def _announce_death(self, process: ManagedProcess) -> None:
        """Tell the other processes, so that they need not wait for the end of the lease."""
        for mailbox in process.mailboxes:
            try:
                with anyio.fail_after(ANNOUNCE_SECONDS):
                    await self._layer.declare_dead(mailbox)
            except (LayerError, TimeoutError) as error:
                reason = str(error) or f"no answer within {ANNOUNCE_SECONDS:g} s"
                logger.error("the death of process %d could not be announced: %s", process.pid, reason)

    async def _replace_on_sighup(self) -> None:
        async with self._signalled:
            logger.info("SIGHUP: replacing one process after another")
            self._lifecycle.reloading("replacing one process after another")
            failure = await self._replace_all()
            if failure is None:
                logger.info("all processes are replaced")
            self._lifecycle.reloaded(failure or f"{self._count} processes serve, all replaced")

    async def _move_on_sigusr2(self) -> None:
        with anyio.open_signal_receiver(signal.SIGUSR2) as signals:
            async for _ in signals:
                if self._obstacle is not None:
                    logger.error("SIGUSR2: the processes are not replaced, and go on: %s", self._obstacle)
                    continue
                async with self._signalled:
                    logger.info("SIGUSR2: moving one process after another to a new one")
                    self._lifecycle.reloading("moving one process after another to a new one")
                    failure = await self._move_all()
                    if failure is None:
                        logger.info("all processes have moved")
                    self._lifecycle.reloaded(failure or f"{self._count} processes serve, all moved")

    async def _move_all(self) -> str | None:
        """Have each process move to a new one, in order. Return None, or why one could not.

        A process that is starting may have read old code. It has no sockets, and is ended.
        """
        for number, old in list(self._current.items()):
            if self._current[number] is old and old.state is State.STARTING:
                old.stop()  # `_keep_running` starts another
            if self._current[number] is not old or old.state is not State.READY:
                continue
            ours, theirs = socket.socketpair()
            new = self._start(number, predecessor=theirs)
            # The mailbox belongs to the process that goes on. If it were announced as dead, that one would be cut off.
            mailboxes, old.mailboxes = old.mailboxes, ()
            with ours:
                old.move(ours)
            with anyio.move_on_after(START_SECONDS):
                await new.wait_for(State.READY)
            if new.was_ready:
                with anyio.move_on_after(self._kill_after):
                    await old.wait_for(State.ENDED)
                continue
            new.stop()
            await new.wait_for(State.ENDED)
            old.mailboxes = mailboxes
            if self._current[number] is new:
                self._current[number] = old
            if old.code is not None:  # it has ended meanwhile
                await self._announce_death(old)
            return _log_end(new, "the old processes stay")
        return None

    async def _replace_on_change(self, files: WatchedFiles) -> None:
        """Replace all processes at every change; a further change starts over."""
        try:
            async with anyio.create_task_group() as tasks:
                scope = anyio.CancelScope()
                async for names in files.changes(self._lifecycle.stop):
                    logger.info("%s changed: reloading", ", ".join(names))
                    scope.cancel()
                    scope = anyio.CancelScope()
                    self._changes += 1
                    self._changed.set()
                    self._changed = anyio.Event()
                    tasks.start_soon(self._replace_within, scope)
        except* OSError as errors:
            self._failure = StartError(f"--reload: {errors.exceptions[0]}")
            self._lifecycle.stop.set()

    async def _replace_within(self, scope: anyio.CancelScope) -> None:
        with scope:
            await self._replace_all(at_once=True)

    async def _replace_all(self, *, at_once: bool = False) -> str | None:
        """Replace each process by a new one, in order.

        A process that is starting may have read old code, and is ended. If a new process fails or hangs, the remaining
        old ones stay.

        Args:
            at_once: Whether to go on before the old process has ended.

        Returns:
            None, or why a new process could not start.

        """
        for number, old in list(self._current.items()):
            if self._current[number] is old and old.state is State.STARTING:
                old.stop()  # `_keep_running` starts another
            if self._current[number] is not old or old.state is not State.READY:
                continue  # it has been replaced since, or is about to be
            new = self._start(number, current=False)
            try:
                with anyio.move_on_after(START_SECONDS) as start:
                    await new.wait_for(State.READY)
            except anyio.get_cancelled_exc_class():
                new.stop()
                raise
            if start.cancelled_caught:
                new.stop()
                failure = f"process {new.pid} was not ready within {START_SECONDS:g} s: the old processes stay"
                logger.error("%s", failure)
                return failure
            if not new.was_ready:
                await new.wait_for(State.ENDED)
                return _log_end(new, "the old processes stay")
            if self._current[number] is not old:
                new.stop()
                continue
            self._current[number] = new
            old.stop()
            if not at_once:
                await old.wait_for(State.ENDED)
        return None


async def _ignore_signals(*, task_status: TaskStatus[None]) -> None:
    """Ignore the signals that replace processes, while all of them end: they would end this process at once."""
    with anyio.open_signal_receiver(signal.SIGHUP, signal.SIGUSR2) as signals:
        task_status.started()
        async for number in signals:
            logger.info("%s: ignored, because all processes are about to end", number.name)


def _log_end(process: ManagedProcess, consequence: str) -> str:
    """Log how a process ended, after the traceback of code of the app, and return the text."""
    print(process.trace, end="", file=sys.stderr, flush=True)
    text = f"process {process.pid} {process.end}: {consequence}"
    logger.error("%s", text)
    return text
