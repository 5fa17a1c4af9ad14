"""The table of sessions, and the handler of the worker's mailbox."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Sequence

import anyio

from asgibus.layers.contract import Bus, Claim, Frame
from asgibus.layers.frames import ABANDONED, ACK, DEAD, EVENT, EVENT_OFFSET, PROBE, RESEND, RESET, SUPERSEDED
from asgibus.protocol.checks import FROM_CLIENT, BadFrame, ForeignVersion, check_frame, read_opening
from asgibus.protocol.connect_request import Opening
from asgibus.protocol.events import WEBSOCKET_DISCONNECT
from asgibus.protocol.states import RunState
from asgibus.worker.answers import Answers
from asgibus.worker.sending import Sending
from asgibus.worker.session import Session

logger = logging.getLogger("asgibus.worker")

TICK_SECONDS = (
    0.1  # what a WebSocket's app is done with is acknowledged this soon: after a crash it does not come again
)
CHECK_TICKS = 10  # what a request's app is done with is acknowledged this often, and missing mailboxes are tried again
PROBE_TICKS = 50  # what was sent and is not acknowledged for as long is asked after: it may be lost
PROBE_AGAIN_TICKS = 30  # after an interruption: what others judge of us for longer, they judge from a later beat
ANSWER_TICKS = 25  # an answer to a request is kept for one to two times as long: see `Answers`
SETTLE_SECONDS = 2.0  # for the interface servers to confirm what was said last


class Sessions:
    """Every session by its connection, and those whose last words are under way."""

    bus: Bus

    def __init__(self) -> None:
        self._sessions: dict[tuple[str, int], Session] = {}
        self._ended: dict[Session, None] = {}  # WebSockets whose last words the interface server has not confirmed
        self._answers = Answers()
        self._settled = asyncio.Event()
        self._taken: list[Sending] = []
        self._ticks = 0
        self._probe_again = 0  # the tick when all is asked after once more
        self._suspects: set[str] = set()  # interface servers who had no mailbox when something was posted to them
        self.counts: Counter[str] = Counter()
        """What was repaired, lost or dropped, by what it was."""

    def __iter__(self) -> Iterator[Session]:
        return iter([*self._sessions.values()])

    def __contains__(self, session: Session) -> bool:
        return self._sessions.get((session.interface, session.number)) is session

    def known(self, opening: Opening) -> bool:
        """Whether the run that an opening asks for, or a later one, is here already; an earlier one is ended."""
        known = self._find(opening.interface, opening.connection)
        if known is None:
            return False
        if known.attempt >= opening.attempt:  # its offer was made twice, as the store seemed to have lost it
            # A probe names the owner, and finds what else was lost; but this run may believe that its client is gone.
            self.bus.post(known.interface, known.reset() if known.run is RunState.DISCONNECTED else known.probe())
            return True
        self._supersede(known)  # the interface server has begun anew, without this run
        return False

    def add(self, session: Session) -> None:
        """A run begins."""
        self._sessions[session.interface, session.number] = session
        if session.attempt > 1:
            self.counts["further run"] += 1

    def ended(self, session: Session, *, lost: bool) -> None:
        """A run has ended. `lost`: its client was gone, so that nothing needs to arrive there any more."""
        if lost and session.parting:
            session.took(0, session.expected)
            self.bus.post(session.interface, session.ack())
        if lost or not session.in_flight:
            self._forget(session)
        elif session.is_http:
            self._forget(session)
            self._answers.add(session)
        else:
            self._ended[session] = None  # what it said last is repeated if it does not arrive

    def took(self, session: Sending) -> None:
        """See `Host`."""
        self._taken.append(session)

    async def settle(self) -> None:
        """Wait until the interface servers have confirmed what was said last: it may have to be repeated."""
        with anyio.move_on_after(SETTLE_SECONDS, shield=True):
            while self._ended:
                self._settled.clear()
                await self._settled.wait()

    def _find(self, interface: str, number: int) -> Session | None:
        """The session of a connection, also when it has ended and may have to repeat its answer."""
        return self._sessions.get((interface, number)) or self._answers.find(interface, number)

    def _forget(self, session: Session) -> None:
        """Nothing more is to be said of it."""
        if session in self:
            del self._sessions[session.interface, session.number]
        else:
            self._answers.forget(session)
        if self._ended:
            self._ended.pop(session, None)
            if not self._ended:
                self._settled.set()

    def _disconnect(self, session: Session) -> None:
        """Tell a session that its client is gone."""
        if session.task is None:
            self._forget(session)
        else:
            session.disconnected(1006)

    def _supersede(self, session: Session) -> None:
        """Tell a session that another run of the app serves its connection."""
        if session.task is None:
            self._forget(session)
        else:
            session.superseded()

    async def tick(self) -> None:
        """Acknowledge what was taken, and ask after what may be lost."""
        while True:
            await anyio.sleep(TICK_SECONDS)
            self._ticks = ticks = self._ticks + 1
            taken, self._taken = self._taken, []
            for session in taken:
                if session.untold and not session.lost:
                    self.bus.post(session.interface, session.ack())
            if ticks % CHECK_TICKS == 0:
                self._check(stalled=ticks % PROBE_TICKS == 0)
            if ticks % ANSWER_TICKS == 0 and self.bus.available:
                self._answers.age()
            if ticks == self._probe_again:
                self._probe_all()

    def _check(self, *, stalled: bool) -> None:
        suspects, self._suspects = self._suspects, set()
        for session in self._sessions.values():
            if session.untold and not session.lost:
                self.bus.post(session.interface, session.ack())
            # A whole answer is not acknowledged, so nothing can be said of one that its app has not returned from.
            waits = stalled and session.stalled() and not (session.is_http and session.complete)
            if session.interface in suspects or waits:
                self._probe(session)
        if suspects:
            for session in self._answers:
                if session.interface in suspects:
                    self._probe(session)

    def _probe(self, session: Session) -> None:
        """Ask whether the interface server has all that was sent, unless the client is gone."""
        if session.run not in (RunState.DISCONNECTED, RunState.SUPERSEDED):
            self.bus.post(session.interface, session.probe())

    def _probe_all(self) -> None:
        for session in (*self._sessions.values(), *self._answers):
            self._probe(session)

    # Handler of the mailbox.

    def batch(self, sender: str, frames: Sequence[Frame]) -> None:
        """Frames of an interface server for its sessions here."""
        for frame in frames:
            try:
                check_frame(frame, FROM_CLIENT)
                self._frame(sender, frame)
            except BadFrame as error:
                self.counts["bad frame"] += 1
                level = logging.ERROR if self.counts["bad frame"] == 1 else logging.INFO  # it may come without end
                logger.log(level, "a frame from %s was dropped: %s", sender or "the layer", error)
            except Exception:  # a fault in one session must not reach the others of the batch
                logger.exception("a frame of kind %r from %s was dropped", frame[0], sender)

    def _frame(self, sender: str, frame: Frame) -> None:
        kind = frame[0]
        if kind == DEAD:
            self._dead(frame[1])
            return
        session = self._find(sender, frame[1])
        if session is None or session.attempt != frame[2]:
            if kind == EVENT or kind == PROBE:
                self.bus.post(sender, (RESET, frame[1], frame[2]))
        elif kind == EVENT:
            if session.task is not None:
                session.event(frame)
            elif frame[EVENT_OFFSET] == WEBSOCKET_DISCONNECT and session.run is RunState.ENDED:
                self._forget(session)  # nobody is left who could be told its last words
        elif kind == ACK:
            session.acknowledgement(frame[3])
            if session.task is None and not session.in_flight:
                self._forget(session)
        elif kind == RESET:
            self.counts["reset"] += 1
            self._disconnect(session)
        elif kind == SUPERSEDED:
            self.counts["superseded"] += 1
            self._supersede(session)
        elif kind == RESEND:
            self.counts["repeated"] += 1
            session.repeat(frame[3])
        elif kind == PROBE:
            given_up = session.run is RunState.DISCONNECTED and not session.parting
            self.bus.post(sender, session.reset() if given_up else session.probed(frame[3]))
        else:
            logger.error("a frame of unknown kind %r from %s was dropped", kind, sender)

    def _dead(self, mailbox: str) -> None:
        """An interface server is gone, and its clients are, too."""
        self._suspects.discard(mailbox)
        sessions = [session for (interface, _), session in self._sessions.items() if interface == mailbox]
        # An app may go on after its answer, or behind its client's end: with one that leaves in good order only those
        # are left.
        lost = sum(session.task is not None and not session.lost and not session.complete for session in sessions)
        for session in (*sessions, *(each for each in self._answers if each.interface == mailbox)):
            self._disconnect(session)
        if lost:
            self.counts["interface died"] += 1
            logger.warning("the interface server %s is dead, and with it %d connections here", mailbox, lost)

    def undelivered(self, mailbox: str) -> None:
        """See `Handler`."""
        self._suspects.add(mailbox)
        self._answers.keep_more()

    def interrupted(self) -> None:
        """See `Handler`."""
        self.counts["interruption"] += 1
        self._answers.keep_more()
        logger.warning("the bus was interrupted: %d connections are checked", len(self._sessions))
        self._probe_all()
        self._probe_again = self._ticks + PROBE_AGAIN_TICKS

    def orphaned(self, claim: Claim) -> None:
        """See `Handler`: only the interface server knows whether to offer the connection again."""
        self.counts["orphan"] += 1
        try:
            opening = read_opening(claim.entry)
        except ForeignVersion as error:
            self.counts["foreign version"] += 1
            logger.error("a connection of %s that a dead worker had waits for another one: %s", claim.channel, error)
            return  # it stays under our name, for a worker that takes over from us and can read it
        except ValueError as error:
            logger.error("an entry of %s was dropped: %s", claim.channel, error)
        else:
            self.bus.post(opening.interface, (ABANDONED, opening.connection, opening.attempt))
        self.bus.done(claim)
