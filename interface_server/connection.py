"""The interface server's end of one session: an HTTP exchange or a WebSocket, from its opening to its end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from asgibus.layers.contract import Frame, Offer
from asgibus.protocol.events import (
    CLOSE,
    GROUP_ADD,
    GROUP_DISCARD,
    GROUP_DONE,
    HTTP_DISCONNECT,
    SAVE_STATE,
    WEBSOCKET_DISCONNECT,
    Event,
    size,
)
from asgibus.protocol.frames import HEAD
from asgibus.protocol.opening import HTTP
from asgibus.protocol.session import Arrival, SessionEnd
from asgibus.protocol.states import HTTP_TABLE, WEBSOCKET_TABLE, App, IllegalTransition, Life, Turn, step, turn

if TYPE_CHECKING:
    from asgibus.interface_server.connections import Connections
    from asgibus.interface_server.terminator import Terminator

logger = logging.getLogger("asgibus.interface")

NO_WORKER = (503, 1013)  # HTTP status and close code while no worker takes a connection: try again later
WORKER_LOST = (502, 1012)  # when the worker that served it is gone


class Connection(SessionEnd):
    """One exchange on the bus. `terminator` holds its socket, `owner` is the mailbox of the worker that serves it."""

    __slots__ = (
        "_behind",
        "_connections",
        "_unsent",
        "app",
        "groups",
        "life",
        "offer",
        "offered_at",
        "owner",
        "saved_state",
        "table",
        "terminator",
    )

    def __init__(
        self, connections: Connections, number: int, kind: str, window: int, terminator: Terminator, now: float
    ) -> None:
        super().__init__(number, 1, window)
        self._connections = connections
        self.terminator = terminator
        self.table = HTTP_TABLE if kind == HTTP else WEBSOCKET_TABLE
        self.app = App.WAITING if kind == HTTP else App.HANDSHAKE
        self.life = Life.OFFERED
        self.offer: Offer | None = None
        self.offered_at = now
        self.owner = ""
        self.groups: set[str] | None = None
        self.saved_state = b""
        self._behind = 0
        self._unsent: list[tuple[Frame, int]] | None = None

    # From the client.

    def event(self, event: Event) -> None:
        """Something came from the client. Pauses the terminator when the window is full."""
        frame, counted = self.sent(event)
        if self.life is Life.JOINED:
            self._connections.post(self.owner, frame, counted)
        elif self.life is Life.OFFERED:
            self._unsent = [*(self._unsent or ()), (frame, counted)]
        if self.in_flight >= self.window:
            self.terminator.pause()

    def client_gone(self, code: int = 1006, reason: str = "") -> None:
        """The client is gone, or its request cannot be finished: the app learns it at once, and this ends."""
        if self.life is Life.ENDED or self.life is Life.LEFT:
            return
        event = (HTTP_DISCONNECT, True) if self.table is HTTP_TABLE else (WEBSOCKET_DISCONNECT, code, reason)
        self.event(event)
        self._turn(Turn.CLIENT_GONE)

    # From the bus.

    def owned_by(self, sender: str) -> bool:
        """Take `sender` as the owner if there is none yet; whether it is the owner."""
        if self.owner:
            return self.owner == sender
        self.owner = sender
        unsent, self._unsent = self._unsent, None
        self._turn(Turn.OWNED)
        for frame, counted in unsent or ():
            self._connections.post(sender, frame, counted)
        return True

    def frame(self, frame: Frame) -> None:
        """An EVENT frame of the owner."""
        if self.life is not Life.JOINED:
            return  # it has just learned of its owner, who has just been told that the client is gone
        if frame[4] > self.acked:
            self.acknowledgement(frame[4])
        if (arrival := self.arrived(frame[3])) is not Arrival.NEW:
            if arrival is Arrival.GAP:
                self._connections.post(self.owner, self.resend())
            return
        event = frame[HEAD:]
        code = event[0]
        if code == GROUP_ADD or code == GROUP_DISCARD:
            self._took(size(event))
            self._connections.groups.change(self, code, event[1])
            return
        if code == SAVE_STATE:
            self.saved_state = event[1]
            self._took(size(event))
            return
        try:
            self.app = after = step(self.table, self.app, code)
        except IllegalTransition as error:
            logger.error("connection %d of %s: %s", self.number, self.owner, error)
            return
        self.terminator.write_event(event)
        if after is App.COMPLETE:
            self._turn(Turn.COMPLETED)
            return
        self._took(size(event))
        if self.ack_due:
            self.acknowledge()

    def _took(self, counted: int) -> None:
        """Count an event as taken, once its socket has room: else its sender would not feel a slow client (I11)."""
        self._behind += counted
        if not self.terminator.write_paused:
            self.took(self._behind, self.expected)
            self._behind = 0

    def plain(self, event: Event) -> bool:
        """A plain ASGI event that anyone posted to the reply channel, or to a group. False if it is out of place."""
        if self.life is not Life.JOINED:
            return False
        try:
            self.app = step(self.table, self.app, event[0])
        except IllegalTransition:
            return False
        self.terminator.write_event(event)
        if self.app is App.COMPLETE:
            self.client_gone(*event[1:3]) if event[0] == CLOSE else self.client_gone()
        return True

    def acknowledgement(self, number: int) -> None:
        """The owner has taken everything below `number`."""
        if self.acknowledged(number):
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
        if self.life is Life.JOINED:
            self.event((GROUP_DONE, error, group))

    def give_up(self, answer: tuple[int, int]) -> None:
        """No worker took this in time, or its worker is gone: the client gets the status or the close code."""
        if self.life is Life.LEFT:
            self._turn(Turn.GIVEN_UP)
        elif self.life is not Life.ENDED:
            self._turn(Turn.GIVEN_UP)
            self.app = App.COMPLETE
            self.terminator.fail(*answer)

    def _turn(self, event: Turn) -> None:
        before, self.life = self.life, turn(self.life, event)
        if event is Turn.OWNED and before is Life.LEFT:
            self._connections.ended(self)
        elif event is Turn.OWNED:
            self._connections.joined(self)
        elif self.life is Life.LEFT:
            self._connections.withdraw(self)
        else:
            if before is Life.OFFERED:
                self._connections.withdraw(self)
            self._connections.ended(self)
