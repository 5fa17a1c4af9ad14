"""Several processes of one command: started, replaced when they die or retire, and ended together.

The supervisor runs none of the user's code. Each process is this command run afresh, with a lifeline to the supervisor.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence

import anyio
from anyio.abc import TaskGroup

from asgibus.cli.child import Child, State
from asgibus.cli.hang_ups import hang_ups
from asgibus.cli.lifeline import Lifeline
from asgibus.cli.run import END_MARGIN, Life, run
from asgibus.cli.settings import ProcessSettings
from asgibus.cli.sources import Sources
from asgibus.layers.contract import ChannelLayer
from asgibus.layers.errors import LayerError

logger = logging.getLogger("asgibus.supervisor")

SHORT_LIFE = 10.0  # seconds; what dies so young is likely to die again: a start takes some, a rare fault more
FIRST_PAUSE = 0.5  # seconds before the second restart in a row: about what a start costs a core
LONGEST_PAUSE = 30.0  # seconds; whoever mends the cause waits no longer than that
START_SECONDS = 300.0  # for a new process to serve in the place of an old one: apps that load models need minutes
ANNOUNCE_SECONDS = 5.0  # a lease's life: after that the others know by themselves


class StartError(Exception):
    """The first processes could not start; the text says why. `trace` is the traceback of code of the app, if any."""

    def __init__(self, text: str, trace: str = "") -> None:
        super().__init__(text)
        self.trace = trace


class Pause:
    """How long to wait before a process is started in the place of one that died."""

    def __init__(self) -> None:
        self._short_lives = 0

    def after(self, age: float) -> float:
        """Seconds: none the first time, then from 0.5 doubling up to 30 while processes die young."""
        if age >= SHORT_LIFE:
            self._short_lives = 0
        self._short_lives += 1
        if self._short_lives == 1:
            return 0.0
        return min(FIRST_PAUSE * 2.0 ** min(self._short_lives - 2, 16), LONGEST_PAUSE)


def supervise(
    process: ProcessSettings,
    graceful_timeout: float,
    layer: ChannelLayer,
    lifeline: Lifeline,
    *,
    sources: Sources | None = None,
    fd: int | None = None,
    ready: Callable[[], None] = lambda: None,
) -> int:
    """Run this command as several processes, until a signal; returns the exit code, as `run` does.

    Each process listens on the socket `fd` if there is one, and has the admin port
    behind the one before. `ready` is called when the first process serves. When `sources` change, the processes are
    replaced.
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
        sources=sources,
        fds=() if fd is None else (fd,),
        ready=ready,
    )

    async def serve(life: Life) -> None:
        try:
            await supervisor.serve(life)
        finally:
            await layer.close()
        logger.info("Supervisor stopped")

    return run(serve, StartError, lifeline=lifeline, graceful_timeout=graceful_timeout)


def same_command(*options: str) -> list[str]:
    """The command that runs this process, with more options, which win over those before."""
    command = [sys.executable, *sys.orig_argv[1:]]
    end = command.index("--") if "--" in command else len(command)
    return [*command[:end], *options, *command[end:]]


class Supervisor:
    """Keeps `count` processes running. `serve` is the whole life.

    `command(number)` is what the process in that place runs. `ready` is called when the first of all serves. With
    `sources` they are replaced when these change, and what cannot start is started again no sooner.
    """

    def __init__(
        self,
        count: int,
        command: Callable[[int], Sequence[str]],
        layer: ChannelLayer,
        *,
        kill_after: float,
        sources: Sources | None = None,
        fds: Sequence[int] = (),
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._count = count
        self._command = command
        self._layer = layer
        self._kill_after = kill_after
        self._sources = sources
        self._changes = 0
        self._changed = anyio.Event()
        self._fds = fds
        self._ready = ready
        self._places: dict[int, Child] = {}
        """Who has each place; whoever had it before may still be leaving."""
        self._running: set[Child] = set()
        self._greeted = 0
        self._failure: StartError | None = None
        self._life: Life
        self._tasks: TaskGroup

    async def serve(self, life: Life) -> None:
        """Run the processes until `life.stop`, then tell all to end and wait for them. Cancelled, it kills them.

        SIGHUP replaces one after another by a new process. Raises StartError if one ends before any was ready, and if
        the sources cannot be watched.
        """
        self._life = life
        life.started()
        async with anyio.create_task_group() as self._tasks:
            async with anyio.create_task_group() as keepers:
                for number in range(self._count):
                    keepers.start_soon(self._keep, number, life)
                keepers.start_soon(hang_ups, life, self._hung_up)
                if self._sources is not None:
                    keepers.start_soon(self._reload, self._sources, life)
                await life.stop.wait()
                keepers.cancel_scope.cancel()
            for child in self._running:
                child.stop()
        if self._failure is not None:
            raise self._failure

    async def _keep(self, number: int, life: Life) -> None:
        """Have a process in this place at all times."""
        pause = Pause()
        changes = self._changes
        child = self._start(number)
        while True:
            await child.until(State.LEAVING)
            if self._places[number] is not child:
                child = self._places[number]
                continue
            if child.state is State.LEAVING:
                logger.info("Process %d retires: starting another", child.pid)
            elif self._sources is not None and not child.was_ready:
                _tell_end(child, "waiting for a change")
                while self._changes == changes:
                    await self._changed.wait()
            elif not self._greeted:
                if self._failure is None:
                    why = child.failure or f"process {child.pid} {child.end} before it was ready"
                    self._failure = StartError(why, child.trace)
                life.stop.set()
                return
            else:
                seconds = pause.after(child.age)
                then = f"in {seconds:g} s" if seconds else "now"
                _tell_end(child, f"starting another {then}")
                await anyio.sleep(seconds)
                if self._places[number] is not child:
                    continue  # a rolling restart has filled it meanwhile
            changes = self._changes
            child = self._start(number)

    def _start(self, number: int, *, takes_place: bool = True) -> Child:
        child = Child(self._command(number), fds=self._fds, kill_after=self._kill_after, doing=self._tell_doing)
        if takes_place:
            self._places[number] = child
        self._running.add(child)
        self._tasks.start_soon(self._run, child)
        return child

    def _tell_doing(self, what: str) -> None:
        """Tell what one of the first processes does, which all of them are likely to do."""
        if self._greeted < self._count:
            self._life.tell(what)

    async def _run(self, child: Child) -> None:
        self._tasks.start_soon(self._greet, child)
        await child.run()
        self._running.discard(child)
        if child.left and child.code and self._failure is None:
            logger.error("Process %d %s while it was leaving", child.pid, child.end)
        if child.code or not child.left:
            self._tasks.start_soon(self._announce, child)

    async def _greet(self, child: Child) -> None:
        await child.until(State.READY)
        if not child.was_ready:
            return
        self._greeted += 1
        if self._greeted == 1:
            self._ready()
        if self._greeted == self._count:
            pids = ", ".join(str(child.pid) for child in self._places.values())
            logger.info("Supervisor ready: %d processes (%s)", self._count, pids)
            self._life.ready(f"{self._count} processes serve")

    async def _announce(self, child: Child) -> None:
        """Tell the others at once that it is dead: they need not wait for its lease to end."""
        for mailbox in child.mailboxes:
            try:
                with anyio.fail_after(ANNOUNCE_SECONDS):
                    await self._layer.declare_dead(mailbox)
            except (LayerError, TimeoutError) as error:
                reason = str(error) or f"no answer within {ANNOUNCE_SECONDS:g} s"
                logger.error("The death of process %d could not be announced: %s", child.pid, reason)

    async def _hung_up(self) -> None:
        logger.info("SIGHUP: replacing one process after another")
        self._life.reloading("replacing one process after another")
        failure = await self._roll()
        if failure is None:
            logger.info("All processes are replaced")
        self._life.reloaded(failure or f"{self._count} processes serve, all replaced")

    async def _reload(self, sources: Sources, life: Life) -> None:
        """Replace all processes at every change; one that comes meanwhile begins anew."""
        try:
            async with anyio.create_task_group() as rolls:
                roll = anyio.CancelScope()
                async for names in sources.changes(life.stop):
                    logger.info("%s changed: reloading", ", ".join(names))
                    roll.cancel()
                    roll = anyio.CancelScope()
                    self._changes += 1
                    self._changed.set()
                    self._changed = anyio.Event()
                    rolls.start_soon(self._roll_within, roll)
        except* OSError as errors:
            self._failure = StartError(f"--reload: {errors.exceptions[0]}")
            life.stop.set()

    async def _roll_within(self, scope: anyio.CancelScope) -> None:
        with scope:
            await self._roll(at_once=True)

    async def _roll(self, *, at_once: bool = False) -> str | None:
        """Put a new process in each place. Return None, or why one cannot start, or hangs: then the old ones stay.

        One that is starting may have read the old code: it is ended. `at_once`: do not wait for the old ones to end.
        """
        for number, old in list(self._places.items()):
            if self._places[number] is old and old.state is State.STARTING:
                old.stop()  # whoever keeps the place starts another
            if self._places[number] is not old or old.state is not State.READY:
                continue  # it was replaced since, or is about to be
            new = self._start(number, takes_place=False)
            try:
                with anyio.move_on_after(START_SECONDS) as start:
                    await new.until(State.READY)
            except anyio.get_cancelled_exc_class():
                new.stop()
                raise
            if start.cancelled_caught:
                new.stop()
                failure = f"Process {new.pid} was not ready within {START_SECONDS:g} s: the old processes stay"
                logger.error("%s", failure)
                return failure
            if not new.was_ready:
                await new.until(State.GONE)
                return _tell_end(new, "the old processes stay")
            if self._places[number] is not old:
                new.stop()
                continue
            self._places[number] = new
            old.stop()
            if not at_once:
                await old.until(State.GONE)
        return None


def _tell_end(child: Child, then: str) -> str:
    """Log how a process has ended and what happens then, behind the traceback of code of the app. Return the text."""
    print(child.trace, end="", file=sys.stderr, flush=True)
    text = f"Process {child.pid} {child.end}: {then}"
    logger.error("%s", text)
    return text
