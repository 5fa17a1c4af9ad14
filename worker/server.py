"""The worker: claims connections from its pool, runs the app for each, and drains when it is told to stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import anyio

from asgibus.layers.contract import Bus, ChannelLayer, Claim, Frame
from asgibus.protocol.channels import shared_channels
from asgibus.protocol.frames import ACK, EVENT, RESEND, RESET
from asgibus.protocol.opening import read_opening
from asgibus.worker.application import Application
from asgibus.worker.lifespan import lifespan
from asgibus.worker.session import ClientDisconnected, Session
from asgibus.worker.settings import WorkerSettings

logger = logging.getLogger("asgibus.worker")

CLAIM_AT_ONCE = 64  # connections taken in one claim: more would take work that an idle worker could begin at once
ANNOUNCE_SECONDS = 0.005  # an app that answers within this needs no frame that only names the owner
ACK_SECONDS = 1.0  # what was taken and not acknowledged with an event is acknowledged this often
CANCEL_SECONDS = 5.0  # for an app to end when it is cancelled; one that refuses must not keep the process
SERVICE_RESTART = 1012  # close code: the service restarts, the client may come back


class Worker:
    """Runs `app` for connections of one pool. `serve` is the whole life."""

    _loop: asyncio.AbstractEventLoop

    def __init__(self, settings: WorkerSettings, app: Application, layer: ChannelLayer) -> None:
        self._settings = settings
        self.graceful_timeout = settings.graceful_timeout
        self._app = app
        self._layer = layer
        self._sessions: dict[tuple[str, int], Session] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: list[Session] = []
        self._full = False
        self._slots = asyncio.Event()
        self._bus: Bus | None = None
        self._lifespan_state: dict[str, Any] = {}

    @property
    def open_sessions(self) -> int:
        """How many connections are being served."""
        return len(self._sessions)

    async def serve(self, stop: anyio.Event, ready: Callable[[], None]) -> None:
        """Start the app, call `ready`, serve until `stop` is set, then drain.

        Draining: nothing more is claimed, WebSockets are closed with 1012, requests may finish within the graceful
        timeout and are cancelled after it. Raises LifespanError, LayerUnavailable (at the start only).
        """
        async with self._layer.bus("worker", self) as bus, lifespan(self._app, self._settings.lifespan) as state:
            self._bus = bus
            self._loop = asyncio.get_running_loop()
            self._lifespan_state = state
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._acknowledge, bus)
                tasks.start_soon(self._stop_claiming, bus, stop)
                ready()
                try:
                    await self._claim(bus, stop)
                    await self._drain()
                finally:
                    await self._cancel()
                    tasks.cancel_scope.cancel()
            with anyio.move_on_after(CANCEL_SECONDS):  # a layer that is away must not keep the process
                await bus.drain()

    async def _stop_claiming(self, bus: Bus, stop: anyio.Event) -> None:
        await stop.wait()
        bus.stop_claiming()
        self._slots.set()

    async def _cancel(self) -> None:
        """End the sessions that are left."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            with anyio.CancelScope(shield=True):
                await asyncio.wait([*self._tasks], timeout=CANCEL_SECONDS)

    async def _claim(self, bus: Bus, stop: anyio.Event) -> None:
        loop = self._loop
        channels = shared_channels(self._settings.pool)
        while True:
            free = self._settings.concurrency - len(self._tasks)
            self._full = free <= 0
            if self._full:
                self._slots.clear()
                await self._slots.wait()
                if stop.is_set():
                    return
                continue
            claims = await bus.claim(channels, min(free, CLAIM_AT_ONCE))
            if not claims:
                return
            started = [session for claim in claims if (session := self._start(bus, claim)) is not None]
            loop.call_later(ANNOUNCE_SECONDS, self._announce, started)
            # Let the apps begin, and what they answer at once be written, before Redis is asked for more: the two
            # writes then wake Redis once, and meanwhile more has gathered.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    def _start(self, bus: Bus, claim: Claim) -> Session | None:
        try:
            opening = read_opening(claim.entry)
        except ValueError as error:
            logger.error("an entry of %s was dropped: %s", claim.channel, error)
            bus.done(claim)
            return None
        known = self._sessions.get((opening.interface, opening.connection))
        if known is not None and known.attempt >= opening.attempt:
            bus.done(claim)  # its offer was written twice, over a connection that broke
            return None
        session = Session(opening, claim, bus, self._layer, self._lifespan_state, self._hold)
        self._sessions[opening.interface, opening.connection] = session
        session.task = task = self._loop.create_task(self._run(session))
        self._tasks.add(task)
        if session.awaits_body:
            session.announce()  # the interface server has more for us and must know where to send it
        return session

    async def _run(self, session: Session) -> None:
        error: BaseException | None = None
        try:
            await self._app(session.scope, session.receive, session.send)
        except asyncio.CancelledError as cancelled:
            error = cancelled
            raise
        except BaseException as raised:
            error = raised
            if not isinstance(raised, Exception) and not isinstance(raised, BaseExceptionGroup):
                raise  # SystemExit and KeyboardInterrupt are for the process
            if not (session.lost and _is_disconnect(raised)):
                path = session.scope["path"]
                logger.error("the app raised on %s %r", session.scope["type"], path, exc_info=raised)
        finally:
            wrong = session.finish(error)
            if wrong:
                logger.error("the app %s on %s %r", wrong, session.scope["type"], session.scope["path"])
            self._forget(session)

    def _hold(self, session: Session) -> None:
        """Call the session's `flush` at the end of this turn of the event loop."""
        self._held.append(session)
        if len(self._held) == 1:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        held, self._held = self._held, []
        for session in held:
            session.flush()

    def _forget(self, session: Session) -> None:
        key = session.interface, session.number
        if self._sessions.get(key) is session:
            del self._sessions[key]
        if session.task is not None:
            self._tasks.discard(session.task)
        session.release()
        if self._full:
            self._slots.set()

    def _announce(self, sessions: list[Session]) -> None:
        for session in sessions:
            if (session.interface, session.number) in self._sessions:
                session.announce()

    async def _acknowledge(self, bus: Bus) -> None:
        while True:
            await anyio.sleep(ACK_SECONDS)
            for session in self._sessions.values():
                if session.untold and not session.lost:
                    bus.post(session.interface, session.ack())

    async def _drain(self) -> None:
        for session in self._sessions.values():
            if not session.is_http:
                session.close(SERVICE_RESTART, "")
        if self._tasks:
            _, late = await asyncio.wait([*self._tasks], timeout=self.graceful_timeout)
            if late:
                logger.warning(
                    "%d connections were not finished within %g s and are cut",
                    len(late),
                    self.graceful_timeout,
                )

    # Handler of the mailbox.

    def batch(self, sender: str, epoch: str, frames: Sequence[Frame]) -> None:
        """Frames of an interface server for its sessions here."""
        for frame in frames:
            try:
                self._frame(sender, frame)
            except Exception:  # a fault in one session must not reach the others of the batch
                logger.exception("a frame of kind %r from %s was dropped", frame[0], sender)

    def _frame(self, sender: str, frame: Frame) -> None:
        kind = frame[0]
        session = self._sessions.get((sender, frame[1]))
        if session is None or session.attempt != frame[2]:
            if kind == EVENT:
                assert self._bus is not None
                self._bus.post(sender, (RESET, frame[1], frame[2]))
        elif kind == EVENT:
            session.event(frame)
        elif kind == ACK:
            session.acknowledgement(frame[3])
        elif kind == RESET:
            session.disconnected(1006)
        elif kind == RESEND:
            session.repeat(frame[3])
        else:
            logger.error("a frame of unknown kind %r from %s was dropped", kind, sender)

    def unreachable(self, mailbox: str) -> None:
        """An interface server is gone: its clients are, too."""
        for (interface, _), session in list(self._sessions.items()):
            if interface == mailbox:
                session.disconnected(1006)


def _is_disconnect(error: BaseException) -> bool:
    """Whether an app raised only what our `send` raised into it."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_disconnect(inner) for inner in error.exceptions)
    return isinstance(error, ClientDisconnected)
