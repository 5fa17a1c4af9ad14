"""The registry of sessions. It handles the mailbox of the worker."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Any

import anyio

from asgibus.layers.contract import Bus, Frame, Handler
from asgibus.layers.frames import ABANDONED, DEAD, DECLINED
from asgibus.layers.offers import Claim
from asgibus.layers.versions import ForeignVersion
from asgibus.protocol.checks import FROM_CLIENT, BadFrame, read_request
from asgibus.protocol.connect_request import ConnectRequest, unpack_request
from asgibus.protocol.counted_log import CountedLog
from asgibus.protocol.router import StreamRouter
from asgibus.worker.outbox import Outbox
from asgibus.worker.session import Session

logger = logging.getLogger("asgibus.worker")

TICK_SECONDS = 0.1  # until the events that a WebSocket's app has handled are acknowledged: a crash repeats later ones
RECENT_SECONDS = 2.5  # an answered request is kept for one to two times as long: see `RecentResponses`
SETTLE_SECONDS = 2.0  # for the interface servers to acknowledge the last events

# The usual bound of each generation has room for the responses of some milliseconds, which may be on their way. A
# larger one would cost each request a fifth of the worker's time, because it exceeds the caches of the processor.
USUAL_BYTES = 256 * 1024
MOST_BYTES = 8 * 1024 * 1024
SESSION_BYTES = 1024  # of a session, beside its response


class RecentResponses:
    """The sessions of answered requests, kept for a moment because the store may lose a response on its way.

    An interface server does not acknowledge a whole response, which would cost a frame for each request. It requests
    the response again, or is probed, when the store has lost its data.

    There are two generations of sessions. The older one is forgotten as a whole.
    """

    def __init__(self) -> None:
        self._young: dict[tuple[str, int], Session] = {}
        self._old: dict[tuple[str, int], Session] = {}
        self._bytes = 0
        self._limit = USUAL_BYTES

    def __iter__(self) -> Iterator[Session]:
        return iter([*self._old.values(), *self._young.values()])

    def add(self, session: Session) -> None:
        """Add the session of a request."""
        self._young[session.peer, session.number] = session
        self._bytes += session.stream.in_flight + SESSION_BYTES
        if self._bytes > self._limit:
            self._start_generation()

    def raise_limit(self) -> None:
        """Raise the bound until the next call of `rotate`, because responses are being lost."""
        self._limit = MOST_BYTES

    def rotate(self) -> None:
        """Forget the sessions that were here at the last call."""
        self._start_generation()
        self._limit = USUAL_BYTES

    def _start_generation(self) -> None:
        self._old, self._young, self._bytes = self._young, {}, 0

    def find(self, interface: str, number: int) -> Session | None:
        """Return the session of a connection, or None."""
        key = (interface, number)
        return self._young.get(key) or self._old.get(key)

    def forget(self, session: Session) -> None:
        """Remove a session, whose response has arrived or need not arrive."""
        key = (session.peer, session.number)
        for sessions in (self._young, self._old):
            if sessions.get(key) is session:
                del sessions[key]


class SessionRegistry(Handler):
    """The sessions of a worker, by their connections, including those that may have to repeat their last events."""

    bus: Bus
    """The place on the bus; set by `on_bus`."""

    def __init__(self) -> None:
        self._sessions: dict[tuple[str, int], Session] = {}
        self._unacked: dict[Session, None] = {}  # ended WebSockets whose last events are not acknowledged
        self._recent = RecentResponses()
        self._settled = asyncio.Event()  # asyncio's, because it is cleared before each wait
        self._ack_soon: list[Outbox] = []
        self._rotate_at = 0.0
        self.counts: Counter[str] = Counter()
        """Repaired, lost and dropped items by kind; exported as metrics."""
        self.log = CountedLog(self.counts, logger, monotonic)
        """Counts what should not happen, and logs it at a limited rate."""
        self._router = StreamRouter(self, FROM_CLIENT, self.log)

    def on_bus(self, bus: Bus) -> None:
        """Take a place on the bus."""
        self.bus = self._router.bus = bus

    def __iter__(self) -> Iterator[Session]:
        return iter([*self._sessions.values(), *self._recent])

    def __contains__(self, session: Session) -> bool:
        return self._sessions.get((session.peer, session.number)) is session

    def serving(self) -> list[Session]:
        """Return the sessions whose apps are running."""
        return [session for session in self._sessions.values() if session.task is not None]

    def drop_duplicate(self, request: ConnectRequest) -> bool:
        """Check a new request against the known sessions, and supersede an earlier run of its connection.

        Returns:
            Whether the run that is requested, or a later one, is known already: its offer was repeated.
        """
        key = (request.interface, request.connection)
        known = self._sessions.get(key) or self._recent.find(*key)
        if known is None:
            return False
        if known.attempt < request.attempt:
            known.on_superseded()  # the interface server has given that run up
            return False
        # A probe names the owner and finds other lost frames. A run without its client is to be given up.
        stream = known.stream
        self.bus.post(known.peer, stream.reset_frame() if known.is_disconnected else stream.probe_frame())
        return True

    def add(self, session: Session) -> None:
        """Add the session of a run that begins."""
        self._sessions[session.peer, session.number] = session
        if session.stream.attempt > 1:
            self.counts["further run"] += 1

    def on_ended(self, session: Session, *, client_gone: bool) -> None:
        """Handle that a run has ended.

        Args:
            session: Its session.
            client_gone: Whether the client was gone before, so that the last events need not arrive.
        """
        if client_gone and session.end_awaited:
            session.stream.consume(0, session.stream.expected)
            self.bus.post(session.peer, session.stream.ack_frame())
        if client_gone or not session.stream.in_flight:
            self.forget(session)
        elif session.is_http:
            self.forget(session)
            self._recent.add(session)
        else:
            self._unacked[session] = None

    def schedule_ack(self, outbox: Outbox) -> None:
        """See `OutboxHost`."""
        self._ack_soon.append(outbox)

    def on_dropped(self, kind: str) -> None:
        """See `SessionHost`. A close or an accept is part of a clean-up, and nothing is lost with it."""
        if not kind.endswith((".close", ".accept")):
            text = "the app sent %r to a client that was handed over in silence before: it is dropped"
            self.log.count("late message", text, kind, level=logging.INFO)

    def forget(self, session: Session) -> None:
        """See `SessionHost`."""
        if session in self:
            del self._sessions[session.peer, session.number]
        else:
            self._recent.forget(session)
        if self._unacked:
            self._unacked.pop(session, None)
            if not self._unacked:
                self._settled.set()

    async def settle(self) -> None:
        """Wait until the last events of all WebSockets are acknowledged, since they may have to be repeated."""
        with anyio.move_on_after(SETTLE_SECONDS, shield=True):
            while self._unacked:
                self._settled.clear()
                await self._settled.wait()

    # Time.

    async def run_ticks(self) -> None:
        """Call `tick` until cancelled."""
        while True:
            await anyio.sleep(TICK_SECONDS)
            self.tick(anyio.current_time())

    def tick(self, now: float) -> None:
        """Acknowledge handled events, probe the peers that frames may have failed to reach, and forget old responses.

        Args:
            now: The time of the event loop in seconds.
        """
        outboxes, self._ack_soon = self._ack_soon, []
        for outbox in outboxes:
            outbox.acknowledge()
        self._router.tick(now)
        if not self.bus.available:
            self._rotate_at = now + RECENT_SECONDS  # while the store is away, no response can arrive
        elif now >= self._rotate_at:
            self._rotate_at = now + RECENT_SECONDS
            self._recent.rotate()

    # Handler of the mailbox.

    def batch(self, sender: str, frames: Sequence[Frame]) -> None:
        """See `Handler`."""
        self._router.batch(sender, frames)

    def accept(self, sender: str, number: int, attempt: int) -> Session | None:
        """See `Endpoints`."""
        session = self._sessions.get((sender, number)) or self._recent.find(sender, number)
        return session if session is not None and session.stream.attempt == attempt else None

    def is_superseded(self, sender: str, number: int) -> bool:
        """See `Endpoints`: an interface server begins a further run itself, and need not be told."""
        return False

    def on_other_frame(self, sender: str, frame: Frame) -> None:
        """See `Endpoints`."""
        if frame[0] == DEAD:
            self._on_interface_dead(frame[1])
        else:
            raise BadFrame(f"a frame of kind {frame[0]} is not for a worker")

    def on_fault(self, frame: Frame) -> None:
        """See `Endpoints`. The app is not affected."""

    def _on_interface_dead(self, mailbox: str) -> None:
        """Disconnect the sessions of a dead interface server: its clients are gone, too."""
        self._router.peer_dead(mailbox)
        sessions = [session for session in self if session.peer == mailbox]
        # An app may still run after its answer or after the disconnect. That is all that is left when an interface
        # server stops in good order.
        lost = sum(session.task is not None and not session.closed and not session.complete for session in sessions)
        for session in sessions:
            session.on_reset()
        if lost:
            self.counts["interface died"] += 1
            logger.warning("the interface server %s is dead, and with it %d connections here", mailbox, lost)

    def undelivered(self, mailbox: str) -> None:
        """See `Handler`."""
        self._router.mailbox_missing(mailbox)
        self._recent.raise_limit()

    def interrupted(self) -> None:
        """See `Handler`."""
        self._recent.raise_limit()
        self._router.interrupted()
        logger.warning("the bus was interrupted: %d connections are checked", len(self._sessions))

    def unpack_entry(self, packed: bytes) -> Any:
        """See `Handler`."""
        return unpack_request(packed)

    def orphaned(self, claim: Claim) -> None:
        """See `Handler`. Only the interface server knows whether to offer the connection again."""
        self.counts["orphan"] += 1
        try:
            request = read_request(claim.entry)
        except ForeignVersion as foreign:
            self.counts["foreign version"] += 1
            logger.error("a connection of %s that a dead worker had waits for another one: %s", claim.channel, foreign)
            return  # the claim stays with this worker, until a worker that can read it takes it over
        except ValueError as error:
            self.drop_entry(claim, error)
        else:
            self.bus.post(request.interface, (ABANDONED, request.connection, request.attempt))
            self.bus.done(claim)

    def declined(self, entry: Any) -> None:
        """See `Handler`. The interface server offers the connection again, to another worker."""
        try:
            request = read_request(entry)
        except ValueError as error:
            self.log.count("bad opening", "an entry for this worker was dropped: %s", error, level=logging.ERROR)
        else:
            self.counts["declined"] += 1
            self.bus.post(request.interface, (DECLINED, request.connection, request.attempt))

    def drop_entry(self, claim: Claim, error: ValueError) -> None:
        """Drop an entry of the work queue that is no connect request."""
        self.log.count("bad opening", "an entry of %s was dropped: %s", claim.channel, error, level=logging.ERROR)
        self.bus.done(claim)
