"""One process that a supervisor runs, seen from the supervisor."""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import IntEnum

import anyio
from anyio.abc import Process

from asgibus.cli.env_file import without_env_file
from asgibus.cli.lifeline import DOING, FAILED, READY, RETIRING, STOP
from asgibus.cli.options import CONTROL_VARIABLE

logger = logging.getLogger("asgibus.supervisor")

LINE_LIMIT = 64 * 1024  # bytes read at once; all that a process says in its life is far less


class State(IntEnum):
    """How far a process is. It only ever goes on, and may leave out states."""

    STARTING = 0
    READY = 1
    LEAVING = 2
    """It takes nothing new and finishes what it has: by itself, or told to."""
    GONE = 3


class Child:
    """A process with its lifeline. `run` is the whole life; what is told of it afterwards stays."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        fds: Sequence[int] = (),
        kill_after: float,
        doing: Callable[[str], None] = lambda what: None,
    ) -> None:
        """`doing` is called with what the process says that it does before it is ready."""
        self.state = State.STARTING
        self.pid = 0
        self.was_ready = False
        self.left = False
        """Whether it ended because it wanted to, or was told to."""
        self.mailboxes: tuple[str, ...] = ()
        self.failure = ""
        """Why it could not start, in its own words."""
        self.trace = ""
        """The traceback of that, of code of the app."""
        self.started = time.monotonic()
        self.code: int | None = None
        """How it ended; negative for a signal, None if it never ran."""
        self._command = command
        self._fds = fds
        self._kill_after = kill_after
        self._doing = doing
        self._changed = anyio.Event()
        self._line: socket.socket | None = None
        self._unread = b""

    async def run(self) -> None:
        """Start the process and wait for its end. A process that leaves is killed if it takes `kill_after` seconds.

        Cancelled, it kills the process.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours:
            try:
                with theirs:
                    process = await self._open(theirs.fileno())
            except OSError as error:
                self.failure = f"it cannot be started: {error.strerror or error}"
                self._to(State.GONE)
                return
            self.pid = process.pid
            self._line = ours
            if self.state is State.LEAVING:
                self._send_stop()
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._listen, ours)
                    tasks.start_soon(self._kill_late, process)
                    self.code = await process.wait()
                    tasks.cancel_scope.cancel()
            finally:
                if self.code is None:
                    _kill(process)
                    with anyio.CancelScope(shield=True):
                        self.code = await process.wait()
                self._read(ours)
                self._line = None
                self._to(State.GONE)

    def stop(self) -> None:
        """Tell it to finish what it has and to end; the first call counts."""
        if self.state < State.LEAVING:
            self._to(State.LEAVING)
            self._send_stop()

    async def until(self, state: State) -> None:
        """Wait until it is as far as that, or further."""
        while self.state < state:
            await self._changed.wait()

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self.started

    @property
    def end(self) -> str:
        """How it ended, in words."""
        if self.failure:
            return f"failed at its start: {self.failure}"
        code = self.code
        assert code is not None
        if code >= 0:
            return f"ended with code {code}"
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"

    async def _open(self, line: int) -> Process:
        # A session of its own: what a terminal sends when somebody types Ctrl+C reaches the supervisor alone.
        return await anyio.open_process(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=None,
            stderr=None,
            env={**without_env_file(), CONTROL_VARIABLE: str(line)},
            start_new_session=True,
            pass_fds=(line, *self._fds),
        )

    def _send_stop(self) -> None:
        if self._line is not None:
            with suppress(OSError):  # it is about to be seen that it has ended
                self._line.send(STOP)

    def _to(self, state: State) -> None:
        if state > self.state:
            self.left = self.left or state is State.LEAVING
            self.state = state
            self._changed.set()
            self._changed = anyio.Event()

    async def _kill_late(self, process: Process) -> None:
        await self.until(State.LEAVING)
        await anyio.sleep(self._kill_after)
        logger.error("Process %d did not end within %g s and is killed", self.pid, self._kill_after)
        _kill(process)

    async def _listen(self, line: socket.socket) -> None:
        while True:
            await anyio.wait_readable(line)
            if not self._read(line):
                return

    def _read(self, line: socket.socket) -> bool:
        """Take what it has said; whether it may say more."""
        try:
            data = line.recv(LINE_LIMIT)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        *lines, self._unread = (self._unread + data).split(b"\n")
        for said in lines:
            word, _, rest = said.decode("utf-8", "replace").partition(" ")
            if word == DOING:
                self._doing(rest)
            elif word == READY:
                self.was_ready = True
                self.mailboxes = tuple(rest.split())
                self._to(State.READY)
            elif word == RETIRING:
                self._to(State.LEAVING)
            elif word == FAILED:
                self.failure, self.trace = json.loads(rest)
        return bool(data)


def _kill(process: Process) -> None:
    with suppress(ProcessLookupError):  # it has ended, and that is about to be seen
        process.kill()
