"""The interface server's end of one session: an HTTP exchange or a WebSocket, from its opening to its end."""

from __future__ import annotations

import logging
from itertools import accumulate
from typing import TYPE_CHECKING

from asgibus.layers.codec import pack, unpack
from asgibus.layers.contract import Frame, Offer
from asgibus.protocol.events import (
    ABORT,
    ACCEPT,
    CLOSE,
    GROUP_ADD,
    GROUP_DONE,
    HANDOVER,
    OTHER_CLOSE,
    OTHER_SENT,
    RESPONSE_END,
    SAVE_STATE,
    Event,
    disconnect,
    size,
)
from asgibus.protocol.frames import HEAD
from asgibus.protocol.opening import Opening, read_opening
from asgibus.protocol.recovery import KILLS, START_KILLS, Deaths, Ending, may_run_http_again, may_run_websocket_again
from asgibus.protocol.session import PART, Arrival, SessionEnd
from asgibus.protocol.states import (
    HTTP_TABLE,
    OTHER_TABLE,
    WEBSOCKET_TABLE,
    App,
    IllegalTransition,
    Life,
    Turn,
    beginning,
    step,
    turn,
)

if TYPE_CHECKING:
    from asgibus.interface_server.connections import Connections
    from asgibus.interface_server.terminator import Terminator

logger = logging.getLogger("asgibus.interface")

NO_WORKER = (503, 1013)  # HTTP status and close code while no worker takes a connection: try again later
WORKER_LOST = (502, 1012)  # when the worker that served it is gone, and no other may go on
KILLER = (502, 1011)  # when it has killed the workers that served it
APP_FAILED = (500, 1011)  # when a further run of the app answers otherwise than the first
_LAST = (CLOSE, RESPONSE_END, ABORT)  # the last event of a run that has not been told of the end of its WebSocket
_CONNECT: Event = ()  # the event in hand of a WebSocket that waits to be accepted


class Connection(SessionEnd):
    """One exchange on the bus. `terminator` holds its socket, `owner` is the mailbox of the worker that serves it."""

    __slots__ = (
        "_behind",
        "_connections",
        "_unsent",
        "accepted",
        "app",
        "begun",
        "deaths",
        "groups",
        "kind",
        "life",
        "offer",
        "offered_at",
        "opening",
        "owner",
        "resumable",
        "saved_state",
        "subprotocol",
        "table",
        "terminator",
    )

    opening: Opening | bytes
    """What a further run begins with. A WebSocket's, which stays for long, is kept packed."""

    def __init__(
        self, connections: Connections, number: int, kind: str, window: int, terminator: Terminator, now: float
    ) -> None:
        super().__init__(number, 1, window)
        self._connections = connections
        self.terminator = terminator
        self.kind = kind
        self.table, self.app = beginning(kind)
        self.life = Life.OFFERED
        self.offer: Offer | None = None
        self.offered_at = now
        self.owner = ""
        self.accepted = self.app is App.OPEN
        self.subprotocol: str | None = None
        self.resumable = False
        self.deaths: Deaths | None = None
        self.begun = -1
        """How many events the app has got or is about to get, if its worker says so: see `Opening.suspect`."""
        self.groups: set[str] | None = None
        self.saved_state = b""
        self._behind = 0
        self._unsent: list[tuple[Frame, int]] | None = None

    # From the client.

    def event(self, event: Event) -> None:
        """Something came from the client. Pauses the terminator when the window is full."""
        frame, counted = self.sent(event)
        if self.life is Life.JOINED or self.life is Life.PARTING:
            self._connections.post(self.owner, frame, counted)
        elif self.life is Life.OFFERED:
            if self._unsent is None:
                self._unsent = []
            self._unsent.append((frame, counted))
        if self.in_flight >= self.window:
            self.terminator.pause()

    def client_gone(self, code: int = 1006, reason: str = "") -> None:
        """The client is gone, or its request cannot be finished: the app learns it at once, and this ends."""
        if self.life is not Life.OFFERED and self.life is not Life.JOINED:
            return
        self.event(disconnect(self.kind, code, reason))
        self._turn(Turn.CLIENT_GONE)

    # From the bus.

    def owned_by(self, sender: str) -> bool:
        """Take `sender` as the owner if there is none yet; whether it is the owner."""
        if self.owner:
            return self.owner == sender
        self.owner = sender
        if self.table is WEBSOCKET_TABLE:
            assert isinstance(self.opening, Opening)
            self.opening = pack(self.opening._replace(events=(), state=b""))  # a further run gets them as they are then
        elif self.table is OTHER_TABLE:
            self.opening = b""  # there is no further run
        unsent, self._unsent = self._unsent, None
        self._turn(Turn.OWNED)
        for frame, counted in unsent or ():
            self._connections.post(sender, frame, counted)
        return True

    def frame(self, frame: Frame) -> None:
        """An EVENT frame of the owner."""
        if self.life is not Life.JOINED and self.life is not Life.PARTING:
            return  # it has just learned of its owner, who has just been told that the client is gone
        if frame[4] > self.acked:
            self.acknowledgement(frame[4])
        if (arrival := self.arrived(frame[3])) is not Arrival.NEW:
            if arrival is Arrival.GAP:
                self._connections.missed(self.owner, self.resend())
            return
        event = frame[HEAD:]
        code = event[0]
        if code >= GROUP_ADD:
            self._control(event)
            return
        if self.life is not Life.JOINED:
            if code in _LAST:
                # The app has ended the connection itself and may have returned: nobody is left who could hear more.
                self._tell_all_taken()
                if self.life is Life.PARTING:  # else the frame has said that the app has heard it
                    self._turn(Turn.HEARD)
                return
            # A further run, which comes to hear of it, goes on as if the client were there, and must not wait for that.
            self.took(size(event), self.expected)
            if self.ack_due:
                self._connections.post(self.owner, self.ack())
            return
        try:
            after = step(self.table, self.app, code)
        except IllegalTransition as error:
            logger.error("connection %d of %s: %s", self.number, self.owner, error)
            return
        if self.app is App.HANDSHAKE and not self._first_answer(event):
            return
        self.app = after
        self.terminator.write_event(event)
        if after is App.COMPLETE:
            if self.table is not HTTP_TABLE:
                self._tell_all_taken()
            self._turn(Turn.COMPLETED)
            return
        self._took(size(event))
        if self.ack_due:
            self.acknowledge()

    def _control(self, event: Event) -> None:
        """An event of the worker that is not for the client."""
        code = event[0]
        self._took(size(event))
        if code == SAVE_STATE:
            self.saved_state = event[1]
        elif code == HANDOVER:
            self._tell_all_taken()
            self.deaths = None
            self.run_ended(Ending.HANDED_OVER)
        elif self.life is Life.JOINED:
            self._connections.groups.change(self, code, event[1])
        else:
            self.group_done(event[1], None)

    def _first_answer(self, event: Event) -> bool:
        """The answer of a run to a WebSocket's opening; whether it is for the client. A client is accepted once."""
        code = event[0]
        if code == ACCEPT:
            self.resumable = event[3]
            if not self.accepted:
                self.accepted, self.subprotocol = True, event[1]
                return True
            if event[1] == self.subprotocol:
                self.app = App.OPEN
                self._took(size(event))
                return False
            wrong = f"accepted it with the subprotocol {event[1]!r}, where it was {self.subprotocol!r}"
        elif code == CLOSE or not self.accepted:
            return True
        else:
            wrong = "answered with an HTTP response, where it was open already"
        logger.error("connection %d was closed: run %d of the app %s", self.number, self.attempt, wrong)
        self.fail(APP_FAILED)
        return False

    def _took(self, counted: int) -> None:
        """Count an event as taken, once its socket has room: else its sender would not feel a slow client (I11)."""
        self._behind += counted
        if not self.terminator.write_paused:
            self.took(self._behind, self.expected)
            self._behind = 0

    def _tell_all_taken(self) -> None:
        """Acknowledge the last event of a run, which its worker keeps until it hears of it."""
        self.took(0, self.expected)
        self._connections.post(self.owner, self.ack())

    def plain(self, event: Event) -> bool:
        """A plain ASGI event that anyone posted to the reply channel, or to a group. False if it is out of place."""
        if self.life is not Life.JOINED and not (self.life is Life.OFFERED and self.accepted):
            return False
        code = event[0]
        if (code == OTHER_SENT or code == OTHER_CLOSE) and not event[1].startswith(f"{self.kind}."):
            return False
        # Between two runs the client is open, whatever the next run is going to say.
        state = App.OPEN if self.accepted and self.app is App.HANDSHAKE else self.app
        try:
            after = step(self.table, state, code)
        except IllegalTransition:
            return False
        if after is not App.COMPLETE and self.terminator.write_paused and not self.terminator.keeps_up():
            return True
        if state is self.app or after is App.COMPLETE:
            self.app = after
        self.terminator.write_event(event)
        if after is App.COMPLETE:
            self.client_gone(*event[1:3]) if code == CLOSE else self.client_gone()
        return True

    def acknowledgement(self, number: int) -> None:
        """The owner has taken everything below `number`."""
        opened = self.acknowledged(number)
        if self.life is Life.PARTING:
            if all(event[0] == GROUP_DONE for event in self.unacknowledged):  # an answer may come behind the disconnect
                self._turn(Turn.HEARD)
        elif opened:
            self.terminator.resume()

    def acknowledge(self) -> None:
        """Tell the owner what was written, unless the client is behind: then its window stays shut."""
        if self.life is not Life.JOINED or self.terminator.write_paused:
            return
        if self._behind:
            self._took(0)
        if self.untold:
            self._connections.post(self.owner, self.ack())

    def repeat(self, number: int) -> None:
        """The owner misses events from `number` on."""
        for frame, counted in self.kept():
            if frame[3] >= number:
                self._connections.post(self.owner, frame, counted)

    def group_done(self, group: str, error: str | None) -> None:
        """Answer the oldest GROUP_ADD or GROUP_DISCARD of that group."""
        if self.life is Life.JOINED or self.life is Life.PARTING:
            self.event((GROUP_DONE, error, group))

    # Endings.

    def run_ended(self, ending: Ending, *, suspect: bool = True) -> None:
        """The run of the app that served this has ended before its time: offer it for another one, or end it.

        `suspect`: what its worker had in hand of this may be why it died: it had nothing else in hand, or is known to
        have ended by its own doing.
        """
        if (self.life is Life.LEFT or self.life is Life.PARTING) and (
            ending is Ending.FORGOTTEN or not self._must_be_heard
        ):
            self._turn(Turn.GIVEN_UP)
        elif self.life is not Life.ENDED:
            if ending.by_death and self._is_killer(suspect=suspect):
                deaths = self.deaths.count if self.deaths else 0
                logger.error(
                    "connection %d is ended: %d workers in a row died with the same event of it", self.number, deaths
                )
                self._connections.counts["killer"] += 1
                self.give_up(KILLER)
            elif self._may_run_again():
                self._connections.counts[ending.name.lower().replace("_", " ")] += 1
                self._run_again()
            else:
                self._connections.counts["worker lost"] += 1
                self.give_up(WORKER_LOST)

    @property
    def _must_be_heard(self) -> bool:
        """Whether an app has to hear that the client is gone, if not this run of it then another one."""
        return self.accepted and self.resumable

    def in_hand(self) -> tuple[Event, int] | None:
        """What its worker may have in hand, and how many events its app has got with that; None if it is at rest."""
        if isinstance(self.opening, Opening) and self.table is HTTP_TABLE:
            return self.opening.events[0], 0
        if not self.accepted:
            return _CONNECT, 0
        waiting = enumerate(self.unacknowledged, self.acked + 1)
        for count, event in waiting:
            if event[0] != GROUP_DONE:
                return event, count
        return (_CONNECT, 0) if self.app is App.HANDSHAKE else None

    def _is_killer(self, *, suspect: bool) -> bool:
        """Count the death of a worker; whether this connection has brought about too many."""
        found = self.in_hand()
        if found is None:
            self.deaths = None
            return False
        in_hand, needed = found
        limit = START_KILLS if in_hand is _CONNECT and self.accepted else KILLS
        self.deaths = self.deaths or Deaths()
        return self.deaths.too_many(in_hand, limit, begun=self.begun >= needed, suspect=suspect)

    def _may_run_again(self) -> bool:
        if isinstance(self.opening, Opening) and self.table is HTTP_TABLE:
            return may_run_http_again(self.app, self.opening.method, whole=self.acked <= len(self.opening.events))
        return may_run_websocket_again(self.app, accepted=self.accepted, resumable=self.resumable)

    def _run_again(self) -> None:
        """Offer it again, with what no run has taken yet."""
        opening = self.opening if isinstance(self.opening, Opening) else read_opening(unpack(self.opening))
        events = self.unacknowledged
        if self.table is HTTP_TABLE:
            events = [*opening.events[: self.acked], *events]
        self.renew(self.attempt + 1, [event for event in events if event[0] != GROUP_DONE])
        self.app = App.WAITING if self.table is HTTP_TABLE else App.HANDSHAKE
        self.owner = ""
        self.begun = -1
        self._behind = 0
        self._turn(Turn.REOPENED)
        first = sum(end <= 2 * PART for end in accumulate(counted for _, counted in self.kept()))
        self._unsent = self.kept()[first:]
        self.opening = opening._replace(
            attempt=self.attempt,
            resumed=self.accepted,
            suspect=self.deaths is not None,
            events=tuple(self.unacknowledged[:first]),
            state=self.saved_state,
        )
        self._connections.reopen(self, self.opening)
        if self.in_flight < self.window and self.life is Life.OFFERED:
            self.terminator.resume()

    def not_taken(self) -> None:
        """No worker has named itself in time."""
        may_have_begun = self.offer is not None and self.offer.once
        sure = self._connections.withdraw(self)
        self.give_up(WORKER_LOST if may_have_begun and not sure else NO_WORKER)

    def give_up(self, answer: tuple[int, int]) -> None:
        """No worker took this in time, or its worker is gone: the client gets the status or the close code."""
        if self.life is Life.LEFT or self.life is Life.PARTING:
            self._turn(Turn.GIVEN_UP)
        elif self.life is not Life.ENDED:
            self._turn(Turn.GIVEN_UP)
            self.app = App.COMPLETE
            self.terminator.fail(*answer)

    def fail(self, answer: tuple[int, int]) -> None:
        """End this though its worker lives: the app learns it, and the client gets the status or the close code."""
        self.client_gone(answer[1])
        self.app = App.COMPLETE
        self.terminator.fail(*answer)

    def _turn(self, event: Turn) -> None:
        self.life = turn(self.life, event)
        if event is Turn.OWNED:
            self._connections.joined(self)
        elif event is Turn.CLIENT_GONE:
            self._connections.left(self)
        if self.life is Life.PARTING and not self._must_be_heard:
            self.life = turn(self.life, Turn.HEARD)
        if self.life is Life.LEFT and not self._must_be_heard:
            self._connections.withdraw(self)
        elif self.life is Life.ENDED:
            self._connections.withdraw(self)
            self._connections.ended(self)
