"""The successor of an interface server: a process with the same command, started at SIGUSR2 to go on in its place.

The two are connected by a socket, whose number the environment of the successor names. Without a supervisor, the old
process starts its successor itself; otherwise the supervisor does, and passes the other end on.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio
import click
from anyio.abc import TaskGroup

from asgibus.cli.control_pipe import ControlPipe
from asgibus.cli.env_file import without_env_file
from asgibus.cli.run import ProcessLifecycle
from asgibus.cli.supervisor import MOVE_VARIABLE, same_command
from asgibus.interface_server.move import MoveChannel, MoveError
from asgibus.interface_server.server import Server

logger = logging.getLogger("asgibus.interface")

FIRST_PROCESS = 1
FIRST_PROCESS_NAME = Path("/proc/1/comm")
# First processes of a container that start one command and end with it.
SMALL_INITS = frozenset({"catatonit", "docker-init", "dumb-init", "podman-init", "tini", "tini-static"})
END_SECONDS = 5.0  # for a process to end that is killed


def inherited_channel() -> MoveChannel | None:
    """Return the connection to the process in whose place this one goes on; None for an ordinary start.

    Raises:
        click.UsageError: The environment names something else.
    """
    number = os.environ.pop(MOVE_VARIABLE, None)
    if number is None:
        return None
    try:
        end = socket.socket(fileno=int(number))
    except (ValueError, OSError, OverflowError):
        raise click.UsageError(
            f"{MOVE_VARIABLE} is for the successor of an interface server alone: take it out of the environment"
        ) from None
    end.set_inheritable(False)
    return MoveChannel(end)


def ends_a_container() -> bool:
    """Return whether this process is the command of a container, which ends with it."""
    parent = os.getppid()
    if parent != FIRST_PROCESS:
        return parent == 0  # the first process, or one that was started from outside: Kubernetes' shared namespaces
    try:
        return FIRST_PROCESS_NAME.read_text().strip() in SMALL_INITS
    except OSError:  # no Linux
        return False


class Moves:
    """Moves the server of this process to a successor, at SIGUSR2 or when the supervisor asks for it."""

    def __init__(
        self,
        server: Server,
        lifecycle: ProcessLifecycle,
        control: ControlPipe,
        *,
        obstacle: str | None,
        on_moved: Callable[[], None],
    ) -> None:
        """Prepare.

        Args:
            server: The server.
            lifecycle: Is told of progress, and stops the process afterwards.
            control: The connection to the supervisor.
            obstacle: Why this process cannot be replaced, in words; None if it can.
            on_moved: Called when the successor serves.
        """
        self._server = server
        self._lifecycle = lifecycle
        self._control = control
        self._obstacle = obstacle
        self._on_moved = on_moved
        self._successor = 0  # the process that serves in the place of this one

    async def at_signal(self) -> None:
        """Move at SIGUSR2. Afterwards, and until it is cancelled, keep the signal from ending this process early."""
        with anyio.open_signal_receiver(signal.SIGUSR2) as signals:
            async for _ in signals:
                obstacle = self._find_obstacle()
                if self._successor:
                    logger.info("SIGUSR2: process %d serves in the place of this one already", self._successor)
                elif obstacle is not None:
                    logger.error("SIGUSR2: this process is not replaced, and goes on: %s", obstacle)
                else:
                    await self._move_to_new_process()

    def at_request(self, tasks: TaskGroup) -> None:
        """Move when the supervisor asks for it. `tasks` runs the move."""
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()

        def move(end: socket.socket) -> None:  # in the thread of the control pipe
            with suppress(RuntimeError):  # the event loop has ended, and so does the process
                loop.call_soon_threadsafe(lambda: tasks.start_soon(self._move, MoveChannel(end)), context=context)

        self._control.on_move(move)

    def _find_obstacle(self) -> str | None:
        if self._control.is_supervised:
            return "send SIGUSR2 to the supervisor, which replaces its processes one after another"
        if ends_a_container():
            return "its container would end with it; use --processes"
        return self._obstacle

    async def _move_to_new_process(self) -> None:
        logger.info("SIGUSR2: starting a new process, to which this one moves its sockets")
        self._lifecycle.reloading("moving to a new process")
        ours, theirs = socket.socketpair()
        service = self._control.manager.environment()
        environment = {**without_env_file(), **service, MOVE_VARIABLE: str(theirs.fileno())}
        try:
            with theirs:
                # Not by the event loop, which would kill its children at its end.
                process = subprocess.Popen(  # noqa: ASYNC220, S603
                    same_command(), env=environment, pass_fds=(theirs.fileno(),)
                )
        except OSError as error:
            ours.close()
            logger.error("the new process cannot be started, and this one goes on: %s", error.strerror or error)
            self._lifecycle.reloaded("serving; the new process could not be started")
            return
        await self._move(MoveChannel(ours))
        if not self._successor:
            await _end(process)
            self._lifecycle.reloaded("serving; the move to a new process has failed")

    async def _move(self, channel: MoveChannel) -> None:
        """Move, or log why the successor does not serve."""
        begun = anyio.current_time()
        stop = self._lifecycle.stop
        try:
            if self._obstacle is not None:
                raise MoveError(self._obstacle)
            departure = await self._server.move(channel, stop)
        except MoveError as error:
            logger.error("the move to a new process has failed, and this one goes on: %s", error)
            return
        finally:
            channel.close()
        logger.info(
            "process %d goes on after %.2f s, for %.2f s of which clients waited: %s",
            departure.pid,
            anyio.current_time() - begun,
            departure.frozen_seconds,
            departure.summary,
        )
        self._successor = departure.pid
        if stop.is_set() and not self._control.is_supervised:
            os.kill(departure.pid, signal.SIGTERM)
        self._lifecycle.moved(departure.pid, f"process {departure.pid} serves")
        self._on_moved()


async def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that does not go on, and reap it."""
    process.kill()
    with anyio.move_on_after(END_SECONDS):
        await anyio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
