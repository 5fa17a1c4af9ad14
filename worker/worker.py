"""The worker: claims connections from its pool, runs the app for each, and drains when it is told to stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import anyio

from asgibus.compatibility.callables import Application
from asgibus.layers.contract import Bus, ChannelLayer, Claim, Statistics, statistics_of
from asgibus.layers.errors import LayerUnavailable
from asgibus.protocol.channels import shared_channels
from asgibus.protocol.checks import ForeignVersion, read_opening
from asgibus.protocol.pacing import staggered
from asgibus.protocol.states import RunState
from asgibus.worker.base import CANCEL_SECONDS, BaseWorker
from asgibus.worker.complaints import Complaints
from asgibus.worker.sending import ClientDisconnected, Sending
from asgibus.worker.session import Session
from asgibus.worker.session_registry import Sessions
from asgibus.worker.settings import WorkerSettings
from asgibus.worker.wsgi import WSGIApplication

logger = logging.getLogger("asgibus.worker")

CLAIM_AT_ONCE = 64  # connections taken in one claim: more would take work that an idle worker could begin at once
ANNOUNCE_SECONDS = 0.005  # an app that answers within this needs no frame that only names the owner
INSIST_SECONDS = 5.0  # an app that asks for no event for as long learns from `send` that it is to hand over


class Worker(BaseWorker):
    """Runs `app` for connections of one pool.

    When it drains, WebSockets are handed over to other workers (with `resume`) or closed with 1012; requests may finish
    within the graceful timeout and are cancelled after it.
    """

    _unit = "connection"
    _loop: asyncio.AbstractEventLoop

    def __init__(self, settings: WorkerSettings, app: Application, layer: ChannelLayer) -> None:
        self._sessions = Sessions()
        super().__init__(settings, app, layer, self._sessions)
        self.resume = settings.resume
        self.acknowledge_early = settings.acknowledge == "taken"
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: list[Sending] = []
        self._complaints = Complaints()
        self._full = False
        self._slots = asyncio.Event()
        self._wsgi = app if isinstance(app, WSGIApplication) else None
        if self._wsgi is not None:
            self._wsgi.on_free = self._slots.set

    @property
    def open_sessions(self) -> int:
        """How many connections are being served."""
        return len(self._tasks)

    def counts(self) -> dict[str, int]:
        return dict(self._sessions.counts + self.layer.counts)

    def gauges(self) -> dict[str, int]:
        return {"sessions": len(self._tasks)}

    async def channels(self) -> dict[str, Statistics]:
        return await statistics_of(self.bus, shared_channels(self._settings.pool, self._settings.protocols))

    def _joined(self, bus: Bus) -> None:
        super()._joined(bus)
        self._sessions.bus = bus

    async def _work(self, stop: anyio.Event, ready: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._sessions.tick)
            tasks.start_soon(self._announce_app)
            ready()
            try:
                await self._claim(stop)
                await self._drain()
            finally:
                await self._cancel()
                await self._sessions.settle()
                tasks.cancel_scope.cancel()

    async def _announce_app(self) -> None:
        """Warn if others run another app for the same pool: who claims a connection is chance then."""
        pool, app = self._settings.pool, str(self._settings.app)
        try:
            others = await self.bus.announce(pool, app)
        except LayerUnavailable as error:
            logger.debug("the app could not be announced: %s", error)
            return
        if others:
            mailbox, other = others[0]
            logger.warning(
                "%s runs another app for the pool %r: %s, where this worker runs %s. Each serves connections that are "
                "meant for the other: give each deployment its own --prefix, or its own --pool",
                mailbox,
                pool,
                other,
                app,
            )

    def _wake(self) -> None:
        self._slots.set()

    async def _cancel(self) -> None:
        """End the sessions that are left."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            with anyio.CancelScope(shield=True):
                await asyncio.wait([*self._tasks], timeout=CANCEL_SECONDS)

    async def _claim(self, stop: anyio.Event) -> None:
        loop = self._loop
        bus = self.bus
        channels = shared_channels(self._settings.pool, self._settings.protocols)
        while True:
            free = self._free()
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
            started = [session for claim in claims if (session := self._start(claim)) is not None]
            loop.call_later(ANNOUNCE_SECONDS, self._announce, started)
            self._took(len(claims))
            # Let the apps begin, and what they answer at once be written, before Redis is asked for more: the two
            # writes then wake Redis once, and meanwhile more has gathered.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    def _free(self) -> int:
        """Return how many more connections could be served at once."""
        free = self._settings.concurrency - len(self._tasks)
        return free if self._wsgi is None else min(free, self._wsgi.free_threads(len(self._tasks)))

    def _start(self, claim: Claim) -> Session | None:
        try:
            opening = read_opening(claim.entry)
        except ForeignVersion as error:
            self._sessions.counts["foreign version"] += 1
            self.bus.release(claim, str(error))
            return None
        except ValueError as error:
            self._sessions.counts["bad opening"] += 1
            level = logging.ERROR if self._sessions.counts["bad opening"] == 1 else logging.INFO
            logger.log(level, "an entry of %s was dropped: %s", claim.channel, error)
            self.bus.done(claim)
            return None
        if self._sessions.known(opening):
            self.bus.done(claim)
            return None
        session = Session(opening, claim, self)
        self._sessions.add(session)
        session.task = task = self._loop.create_task(self._run(session))
        self._tasks.add(task)
        if session.awaits_body:
            session.announce()  # the interface server has more for us and must know where to send it
        return session

    async def _run(self, session: Session) -> None:
        error: BaseException | None = None
        try:
            if session.stale:
                await session.confirm()
                if session.lost:
                    return
            await self._app(session.scope, session.receive, session.send)
        except asyncio.CancelledError as cancelled:
            error = cancelled
            raise
        except BaseException as raised:
            error = raised
            if not isinstance(raised, Exception) and not isinstance(raised, BaseExceptionGroup):
                raise  # SystemExit and KeyboardInterrupt are for the process
            if not (session.lost and is_disconnect(raised)):
                self._complaints.raised(session, raised, self._loop.time())
        finally:
            lost = session.run in (RunState.DISCONNECTED, RunState.SUPERSEDED)
            if session.task is not None:
                self._tasks.discard(session.task)
            session.end(error)
            # Its traceback refers to this frame: what the app left open would wait for the garbage collector.
            error = None
            self._sessions.ended(session, lost=lost)
            if self._full:
                self._slots.set()

    def took(self, session: Sending) -> None:
        """See `Host`."""
        self._sessions.took(session)

    def stream_begins(self, session: Sending) -> None:
        """See `Host`."""
        assert isinstance(session, Session)
        if self._stop.is_set():
            self._loop.call_soon(session.drain)

    def hold(self, session: Sending) -> None:
        """See `Host`."""
        self._held.append(session)
        if len(self._held) == 1:
            self._loop.call_soon(self._flush)

    def keep(self, session: Sending) -> None:
        """See `Host`."""
        if session in self._held:
            self._held.remove(session)

    def _flush(self) -> None:
        held, self._held = self._held, []
        for session in held:
            session.flush()

    def _announce(self, sessions: list[Session]) -> None:
        for session in sessions:
            if session in self._sessions:
                session.announce()

    async def _drain(self) -> None:
        """Let go of WebSockets and event streams, one after another, and wait for the apps."""
        lasting = [
            session
            for session in self._sessions
            if session.task is not None and (session.is_event_stream or not session.is_http)
        ]
        patience = min(INSIST_SECONDS, self.graceful_timeout / 2)
        start = anyio.current_time()
        end = start + self.graceful_timeout
        for offset, session in staggered(lasting, min(self._settings.drain_period, self.graceful_timeout)):
            await anyio.sleep_until(start + offset)
            session.drain()
        if leaving := [session.task for session in lasting if session.task is not None]:
            await asyncio.wait(leaving, timeout=patience)
        for session in self._sessions:
            session.insist()
        if self._tasks:
            await asyncio.wait([*self._tasks], timeout=max(0.0, end - patience - anyio.current_time()))
        for session in self._sessions:
            session.warn()
        if self._tasks:
            _, late = await asyncio.wait([*self._tasks], timeout=max(0.0, end - anyio.current_time()))
            if late:
                logger.warning(
                    "%d connections were not finished within %g s and are cut",
                    len(late),
                    self.graceful_timeout,
                )


def is_disconnect(error: BaseException) -> bool:
    """Return whether an app raised only that its client is gone: our own error, or what a framework makes of it.

    The frameworks' errors are known by their names, such as Starlette's and Litestar's WebSocketDisconnect.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(is_disconnect(inner) for inner in error.exceptions)
    return isinstance(error, ClientDisconnected) or "Disconnect" in type(error).__name__
