"""The life of a connection: what becomes of it when a run of its app ends, when its client goes, or no worker comes.

Only here it is decided whether another worker goes on with it. What passes between the client and the app is in
`connection`.
"""

from __future__ import annotations

import logging
from itertools import accumulate
from typing import TYPE_CHECKING

from asgibus.interface_server.terminator import FAULT, cut
from asgibus.layers.codec import unpack
from asgibus.layers.contract import Frame, Offer
from asgibus.protocol.connect_request import Opening
from asgibus.protocol.events import GROUP_DONE, Event, disconnect
from asgibus.protocol.retry import CRASHES, Ending, may_run_http_again, may_run_websocket_again
from asgibus.protocol.states import (
    CONNECTION_TABLE,
    HTTP_TABLE,
    AppState,
    ConnectionEvent,
    ConnectionState,
    initial_state,
    transition,
)
from asgibus.protocol.stream import PART, SessionEnd

if TYPE_CHECKING:
    from asgibus.interface_server.connections.registry import Connections
    from asgibus.interface_server.terminator import Terminator

logger = logging.getLogger("asgibus.interface")

NO_WORKER = (503, 1013)  # HTTP status and close code while no worker takes a connection: try again later
WORKER_LOST = (502, 1012)  # when the worker that served it is gone, and no other may go on
POISON = (502, 1011)  # when one worker after another died with it
# Looked up once: see `protocol.stream`.
_PARTING, _LEFT, _ENDED = ConnectionState.CLOSING, ConnectionState.ABANDONED, ConnectionState.ENDED
_OWNED, _CLIENT_GONE = ConnectionEvent.CLAIMED, ConnectionEvent.CLIENT_GONE


class Living(SessionEnd):
    """The half of a connection that outlives the runs of its app; the other half carries the events."""

    __slots__ = (
        "_behind",
        "_connections",
        "_unsent",
        "accepted",
        "answers",
        "app",
        "crashes",
        "groups",
        "handled",
        "kind",
        "life",
        "offer",
        "offered_at",
        "opening",
        "owner",
        "queue",
        "resumable",
        "saved_state",
        "subprotocol",
        "table",
        "terminator",
        "unclaimed",
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
        self.table, self.app = initial_state(kind)
        self.life = ConnectionState.OFFERED
        self.offer: Offer | None = None
        self.offered_at = now
        self.queue: dict[int, Living] | None = None
        """Where it stands among those that wait for a worker: see `Waiting`."""
        self.unclaimed: tuple[str, int] | None = None
        """The pool of its offer, and the bytes."""
        self.owner = ""
        self.accepted = self.app is AppState.OPEN
        self.subprotocol: str | None = None
        self.resumable = False
        self.crashes = 0
        """How many workers in a row have died with this connection, without progress between."""
        self.handled = 0
        """How many of the client's events earlier runs were done with."""
        self.answers = 0
        """How many answers about groups are among the events of this run."""
        self.groups: set[str] | None = None
        self.saved_state = b""
        self._behind = 0
        self._unsent: list[tuple[Frame, int]] | None = None

    def event(self, event: Event) -> None:
        """Send the app an event."""
        raise NotImplementedError

    def withhold(self) -> None:
        """Keep all events until a worker has named itself, and read no more from the client until then."""
        self._unsent = self.kept()
        self.terminator.pause()

    def client_gone(self, code: int = 1006, reason: str = "") -> None:
        """The client is gone, or its request cannot be finished: the app learns it at once, and this ends."""
        if self.life is not ConnectionState.OFFERED and self.life is not ConnectionState.JOINED:
            return
        self.event(disconnect(self.kind, code, reason))
        self._turn(ConnectionEvent.CLIENT_GONE)

    def run_ended(self, ending: Ending) -> None:
        """Offer the connection for another run, as the last one has ended before its time; or end it."""
        if (self.life is ConnectionState.ABANDONED or self.life is ConnectionState.CLOSING) and (
            ending is Ending.FORGOTTEN or not self._must_be_heard
        ):
            self._turn(ConnectionEvent.GIVEN_UP)
        elif self.life is not ConnectionState.ENDED:
            if ending.by_death and self._is_poison():
                logger.error(
                    "connection %d is ended: %d workers in a row died while they handled it", self.number, self.crashes
                )
                self._connections.counts["poison"] += 1
                self.give_up(POISON)
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

    @property
    def _at_rest(self) -> bool:
        """Whether its worker had nothing to do for it."""
        if self.table is HTTP_TABLE or not self.accepted or self.app is AppState.HANDSHAKE:
            return False
        return all(event[0] == GROUP_DONE for event in self.unacknowledged)

    def _handled_now(self) -> int:
        """Return how many of the client's events this run was done with."""
        unanswered = len([event for event in self.unacknowledged if event[0] == GROUP_DONE])
        return self.acked - (self.answers - unanswered)

    def _is_poison(self) -> bool:
        """Count the death of a worker; whether it was one too many without progress."""
        if self._at_rest:
            self.crashes = 0
            return False
        # A request begins again with its whole body, so that what was done of it is no progress.
        if self.table is not HTTP_TABLE and self._handled_now():
            self.crashes = 0
        self.crashes += 1
        return self.crashes >= CRASHES

    def _may_run_again(self) -> bool:
        if isinstance(self.opening, Opening) and self.table is HTTP_TABLE:
            return may_run_http_again(self.app, self.opening.method, whole=self.acked <= len(self.opening.events))
        return may_run_websocket_again(self.app, accepted=self.accepted, resumable=self.resumable)

    @property
    def whole_opening(self) -> Opening:
        """The opening, unpacked."""
        return self.opening if isinstance(self.opening, Opening) else Opening._make(unpack(self.opening))

    def _run_again(self) -> None:
        """Offer it again, with what no run has taken yet."""
        opening = self.whole_opening
        events = self.unacknowledged
        if self.table is HTTP_TABLE:
            events = [*opening.events[: self.acked], *events]
        else:
            self.handled += self._handled_now()
        self.renew(self.attempt + 1, [event for event in events if event[0] != GROUP_DONE])
        self.answers = 0
        self.app = AppState.WAITING if self.table is HTTP_TABLE else AppState.HANDSHAKE
        self.owner = ""
        self._behind = 0
        self._turn(ConnectionEvent.OFFERED_AGAIN)
        first = sum(end <= 2 * PART for end in accumulate(counted for _, counted in self.kept()))
        self._unsent = self.kept()[first:]
        self.opening = opening._replace(
            attempt=self.attempt,
            resumed=self.accepted,
            handled=self.handled,
            events=tuple(self.unacknowledged[:first]),
            state=self.saved_state,
        )
        self._connections.reopen(self, self.opening)
        if self.in_flight < self.window and self.life is ConnectionState.OFFERED:
            self.terminator.resume()

    def not_taken(self) -> None:
        """No worker has named itself in time."""
        may_have_begun = self.offer is not None and self.offer.once
        sure = self._connections.withdraw(self)
        self.give_up(WORKER_LOST if may_have_begun and not sure else NO_WORKER)

    def offer_lost(self, offer: Offer) -> None:
        """End the connection, as a worker may have claimed that offer, and none has named itself."""
        if self.offer is offer:
            self._connections.counts["worker lost"] += 1
            self.give_up(WORKER_LOST)

    def give_up(self, answer: tuple[int, int]) -> None:
        """No worker took this in time, or its worker is gone: the client gets the status or the close code."""
        if self.life is ConnectionState.ABANDONED or self.life is ConnectionState.CLOSING:
            self._turn(ConnectionEvent.GIVEN_UP)
        elif self.life is not ConnectionState.ENDED:
            self._turn(ConnectionEvent.GIVEN_UP)
            self.app = AppState.COMPLETE
            self._answer(answer)

    def fail(self, answer: tuple[int, int]) -> None:
        """End this though its worker lives: the app learns it, and the client gets the status or the close code."""
        self.client_gone(answer[1])
        self.app = AppState.COMPLETE
        self._answer(answer)

    def _answer(self, answer: tuple[int, int]) -> None:
        try:
            self.terminator.fail(*answer)
        except Exception:  # others may be waiting behind it to be told the same
            logger.exception(FAULT, cut(self.terminator, self._connections.counts))

    def _turn(self, event: ConnectionEvent) -> None:
        self.life = transition(CONNECTION_TABLE, self.life, event)
        if event is _OWNED:
            self._connections.joined(self)
        elif event is _CLIENT_GONE:
            self._connections.left(self)
        if self.life is _PARTING and not self._must_be_heard:
            self.life = transition(CONNECTION_TABLE, self.life, ConnectionEvent.DISCONNECT_DELIVERED)
        if self.life is _LEFT and not self._must_be_heard:
            self._connections.left_early(self)
        elif self.life is _ENDED:
            self._connections.withdraw(self)
            self._connections.ended(self)
