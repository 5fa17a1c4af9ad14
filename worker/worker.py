"""The worker: it claims connections of its pool, runs the app for each, and drains when it is told to stop."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Final

import anyio

from asgibus.compatibility.callables import Application
from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.contract import Bus, Statistics, statistics_of
from asgibus.layers.offers import Claim
from asgibus.layers.versions import ForeignVersion
from asgibus.protocol.channels import shared_channel, shared_channels
from asgibus.protocol.checks import read_request
from asgibus.protocol.connect_request import HTTP, WEBSOCKET, is_taken_over
from asgibus.protocol.counted_log import CountedLog
from asgibus.protocol.levelling import Levelling
from asgibus.protocol.pacing import staggered
from asgibus.protocol.states import RunState
from asgibus.worker.announcer import Announcer
from asgibus.worker.base import CANCEL_SECONDS, BaseWorker, run_beside
from asgibus.worker.claim_limit import ClaimLimit
from asgibus.worker.fair_claims import FairClaims
from asgibus.worker.resume_pace import ResumePace
from asgibus.worker.session import ClientDisconnected, Session
from asgibus.worker.session_registry import SessionRegistry
from asgibus.worker.settings import WorkerSettings

if TYPE_CHECKING:
    from asgibus.worker.wsgi import WSGIApplication

logger = logging.getLogger("asgibus.worker")

ANNOUNCE_SECONDS = 0.005  # an app that answers within this time needs no frame that only names the owner
FORCE_SECONDS = 5.0  # an app that calls no `receive` for this long learns of the stop from `send`

_CLIENT_GONE: Final = (RunState.DISCONNECTED, RunState.SUPERSEDED)


class Worker(BaseWorker):
    """Runs the app for the connections of one pool.

    When it drains, it hands WebSockets over to other workers (with `resume`) or closes them with 1012. Requests may
    finish within the graceful timeout, and are cancelled after it.

    Args:
        settings: The settings of the worker.
        app: The ASGI 3 application.
        layer: The channel layer.
    """

    _unit = "connection"
    _loop: asyncio.AbstractEventLoop

    def __init__(self, settings: WorkerSettings, app: Application, layer: ChannelLayer) -> None:
        self._sessions = SessionRegistry()
        super().__init__(settings, app, layer, self._sessions)
        self.resume = settings.resume
        self.silent = settings.resume and settings.handover != "tell"
        self.suspends = settings.handover == "suspend"
        self.acknowledge_early = settings.acknowledge == "taken"
        # The sessions of this worker call the registry through their host.
        self.schedule_ack = self._sessions.schedule_ack
        self.on_dropped = self._sessions.on_dropped
        self.forget = self._sessions.forget
        self._tasks: set[asyncio.Task[None]] = set()
        self._lasting: set[Session] = set()  # those of WebSockets, of event streams, and of other protocols
        self._held: list[Session] = []  # the sessions to flush in this iteration of the event loop
        # The sessions that were started lately, and those to announce at the next call of `_announce`.
        self._started: list[Session] = []
        self._to_announce: list[Session] = []
        # Anyone can send a datagram that makes the app raise: the protocols other than HTTP and WebSocket are counted.
        self._errors = CountedLog(Counter(), logger, monotonic)
        self._limit = ClaimLimit()
        self._resume_pace = ResumePace(settings.resume_rate)
        self._announcer = Announcer(settings.pool, str(settings.app), self._announced_sessions, self._level)
        self._levelling = Levelling(settings.resume_rate)
        self._movable: set[Session] = set()  # WebSockets that were offered to all workers, and that others may resume
        self._continued = 0  # those of the last claims whose client was accepted by an earlier run
        self._channels = shared_channels(settings.pool, settings.protocols)
        self._full = False
        # An event of asyncio, because it is set and cleared again for every wait for a free slot; anyio's is set once.
        self._slots = asyncio.Event()
        self._wsgi: WSGIApplication | None = None
        if settings.interface == "wsgi":
            from asgibus.worker.wsgi import WSGIApplication  # noqa: PLC0415  # for such apps alone

            if isinstance(app, WSGIApplication):  # in tests, another app may be around it
                self._wsgi = app
                app.on_free = self._slots.set

    def counts(self) -> dict[str, int]:
        """Return the repaired, lost and dropped items by kind."""
        return dict(self._sessions.counts + self.layer.counts)

    def gauges(self) -> dict[str, int]:
        """Return the current numbers of sessions, and of streams that are written and read."""
        return {"sessions": len(self._tasks), **self.layer.gauges()}

    async def channels(self) -> dict[str, Statistics]:
        """Return the statistics of the channels that this worker claims from."""
        pool, own = self._settings.pool, self.bus.own_channel
        channels = shared_channels(pool, self._settings.protocols)
        statistics = await statistics_of(self.bus, (*channels, own) if own else channels)
        if own in statistics:
            statistics[f"affinity.{pool}"] = statistics.pop(own)  # not a name for each worker that there ever was
        return statistics

    def _on_bus(self, bus: Bus) -> None:
        super()._on_bus(bus)
        self._sessions.on_bus(bus)

    async def _work(self, stop: anyio.Event, ready: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        services = self._sessions.run_ticks, partial(self._announcer.run, self.bus)
        await run_beside(services, ready, partial(self._claim, stop), self._drain, self._end)

    def _announced_sessions(self) -> int | None:
        """Return the number of sessions that last, for the other workers; None while this one claims nothing."""
        return None if self._full or self._stop.is_set() else len(self._lasting)

    def _wake(self) -> None:
        self._resume_pace.release()
        self._slots.set()
        self._announcer.announce_soon()

    # Claims.

    async def _claim(self, stop: anyio.Event) -> None:
        """Claim connections and start their sessions until `stop` is set."""
        loop = self._loop
        bus = self.bus
        requests = shared_channel(HTTP, self._settings.pool)
        fair = FairClaims(bus, self._channels, requests, self._announcer, self._lasting.__len__)
        while True:
            free = self._free()
            self._full = free <= 0
            if self._full:
                self._slots.clear()
                await self._slots.wait()
                if stop.is_set():
                    return
                continue
            claims = await fair.claim(self._limit.connections, free)
            if not claims:
                if stop.is_set():
                    return
                continue
            loop.call_soon(self._limit.on_begin)  # what the event loop does until then says nothing about the apps
            started = [session for claim in claims if (session := self._start(claim)) is not None]
            self._announce_later(started)
            bus.write_soon()  # behind the first steps of the apps
            self._count_work(len(claims) - self._continued)
            self._continued = 0
            # Let the apps begin, and write their first answers, before the next claim. Both writes then wake the store
            # once, and meanwhile more offers arrive.
            await asyncio.sleep(0)
            self._limit.on_begun(len(claims))

    def _free(self) -> int:
        """Return the number of further connections that could be served now."""
        free = self._settings.concurrency - len(self._tasks)
        return free if self._wsgi is None else min(free, self._wsgi.free_threads(len(self._tasks)))

    def _start(self, claim: Claim) -> Session | None:
        """Start the session of a claim. Return it if it is to be announced soon."""
        try:
            request = read_request(claim.entry)
        except ForeignVersion as foreign:
            self._sessions.counts["foreign version"] += 1
            self.bus.release(claim, str(foreign))
            return None
        except ValueError as error:
            self._sessions.drop_entry(claim, error)
            return None
        if self._sessions.drop_duplicate(request):
            self.bus.done(claim)
            return None
        session = Session(request, claim, self)
        self._sessions.add(session)
        # A task of the event loop, because every request needs one: anyio's task group takes 11 µs more.
        paced = False
        if request.resumed:
            self._continued += 1
            paced = is_taken_over(request)
        session.task = task = self._loop.create_task(self._run(session, paced))
        self._tasks.add(task)
        if not session.is_http:
            self._lasting.add(session)
            # A run cannot be suspended in a process that lives on.
            if self.resume and not self.suspends and claim.channel in self._channels:
                self._movable.add(session)
        if session.awaits_body:
            session.announce()  # the interface server must know where to send the rest of the body
        return None if paced else session

    def _announce_later(self, sessions: list[Session]) -> None:
        """Have these sessions announced after one to two times `ANNOUNCE_SECONDS`.

        A timer for each claim would wake the process for requests that are answered long since.
        """
        if not self._started and not self._to_announce:
            self._loop.call_later(ANNOUNCE_SECONDS, self._announce)
        self._started += sessions

    def _announce(self) -> None:
        for session in self._to_announce:
            session.announce()
        self._to_announce, self._started = self._started, []
        if self._to_announce:
            self._loop.call_later(ANNOUNCE_SECONDS, self._announce)

    async def _run(self, session: Session, paced: bool) -> None:
        """Run the app for a session.

        Args:
            session: The session.
            paced: Whether the run waits for its turn, and is announced then: an interface server has few wait at once.
        """
        error: BaseException | None = None
        try:
            if session.stale and not await session.confirm():
                return
            if paced:
                await self._resume_pace.wait_for_turn()
                if self._stop.is_set() and session.pass_on():
                    return
                session.announce()
            if session.silent_run is None:
                await self._app(session.scope, session.receive, session.send)
            else:
                await session.silent_run.call(self._app, session.scope, session.receive, session.send)
        except asyncio.CancelledError as cancelled:
            error = cancelled
            raise
        except BaseException as raised:
            error = raised
            if not isinstance(raised, Exception) and not isinstance(raised, BaseExceptionGroup):
                raise  # SystemExit and KeyboardInterrupt end the process
            if not (session.closed and is_disconnect(raised)):
                self._log_error(session, raised)
        finally:
            client_gone = session.run in _CLIENT_GONE
            if session.task is not None:
                self._tasks.discard(session.task)
            self._lasting.discard(session)
            self._movable.discard(session)
            session.end(error)
            # The traceback refers to this frame. With the reference, what the app left open would wait for the garbage
            # collector.
            error = None
            self._sessions.on_ended(session, client_gone=client_gone)
            if self._full:
                self._slots.set()

    def _log_error(self, session: Session, error: BaseException) -> None:
        """Log an exception of the app."""
        text, kind, level = "the app raised on %s %r", session.kind, logging.ERROR
        if kind == HTTP or kind == WEBSOCKET:
            logger.error(text, kind, session.target, exc_info=error)
        else:
            self._errors.count(kind, text, kind, session.target, level=level, error=error)

    # Called by sessions, which also call `schedule_ack`, `on_dropped` and `forget`.

    @property
    def draining(self) -> bool:
        """See `SessionHost`."""
        return self._stop.is_set()

    def on_event_stream(self, session: Session) -> None:
        """See `SessionHost`."""
        self._lasting.add(session)
        if self._stop.is_set():
            self._loop.call_soon(session.drain)

    def schedule_flush(self, session: Session) -> None:
        """See `SessionHost`."""
        self._held.append(session)
        if len(self._held) == 1:
            self._loop.call_soon(self._flush)

    def cancel_flush(self, session: Session) -> None:
        """See `SessionHost`."""
        if session in self._held:
            self._held.remove(session)

    def _flush(self) -> None:
        held, self._held = self._held, []
        for session in held:
            session.flush()

    def _level(self) -> None:
        """Hand a few WebSockets over that are at rest, if this worker has many more than the others of its pool."""
        if self._stop.is_set() or not self._movable:
            return
        own = len(self._lasting)
        count = self._levelling.step(own, self._announcer.shares.excess(own), monotonic())
        if count:
            resting = list(islice((session for session in self._movable if session.is_at_rest), count))
            self._levelling.moved(own, len(resting))
            self._sessions.counts["levelled"] += len(resting)
            for session in resting:
                session.drain()

    # The end.

    async def _drain(self) -> None:
        """End WebSockets and event streams, one after another, and wait for the apps."""
        lasting = [session for session in self._sessions.serving() if session.is_event_stream or not session.is_http]
        force_after = min(FORCE_SECONDS, self.graceful_timeout / 2)
        start = anyio.current_time()
        end = start + self.graceful_timeout
        for offset, session in staggered(lasting, min(self._settings.drain_period, self.graceful_timeout)):
            await anyio.sleep_until(start + offset)
            session.drain()
        if draining := [session.task for session in lasting if session.task is not None]:
            await asyncio.wait(draining, timeout=force_after)
        for session in self._sessions.serving():
            session.force_disconnect()
        if self._tasks:
            await asyncio.wait([*self._tasks], timeout=max(0.0, end - force_after - anyio.current_time()))
        for session in self._sessions.serving():
            session.warn()
        if self._tasks:
            _, late = await asyncio.wait([*self._tasks], timeout=max(0.0, end - anyio.current_time()))
            if late:
                logger.warning(
                    "%d connections were not finished within %g s and are cancelled",
                    len(late),
                    self.graceful_timeout,
                )

    async def _end(self) -> None:
        """Cancel the sessions that are left, and wait until the last events are acknowledged."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            with anyio.CancelScope(shield=True):
                await asyncio.wait([*self._tasks], timeout=CANCEL_SECONDS)
        await self._sessions.settle()


def is_disconnect(error: BaseException) -> bool:
    """Return whether an exception of an app says only that its client is gone.

    That is `ClientDisconnected` and what frameworks make of it. The frameworks' errors are known by their names, such
    as WebSocketDisconnect of Starlette and Litestar.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(is_disconnect(inner) for inner in error.exceptions)
    return isinstance(error, ClientDisconnected) or "Disconnect" in type(error).__name__
