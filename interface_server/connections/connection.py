"""The interface server's end of one session: what passes between a client and its app.

When a run of the app ends, `connection_life` has what becomes of it.
"""

from __future__ import annotations

import logging

from asgibus.interface_server.connections.connection_life import Living
from asgibus.layers.codec import pack
from asgibus.layers.contract import Frame
from asgibus.layers.frames import EVENT_OFFSET
from asgibus.protocol.connect_request import Opening
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
    size,
)
from asgibus.protocol.retry import Ending
from asgibus.protocol.states import (
    HTTP_TABLE,
    OTHER_TABLE,
    WEBSOCKET_TABLE,
    AppState,
    ConnectionEvent,
    ConnectionState,
    IllegalTransition,
)
from asgibus.protocol.stream import NEW, Arrival

logger = logging.getLogger("asgibus.interface")

APP_FAILED = (500, 1011)  # when a further run of the app answers otherwise than the first
_LAST = (CLOSE, RESPONSE_END, ABORT)  # the last event of a run that has not been told of the end of its WebSocket
# Looked up once: see `protocol.stream`.
_OFFERED, _JOINED, _PARTING = ConnectionState.OFFERED, ConnectionState.JOINED, ConnectionState.CLOSING
_HANDSHAKE, _COMPLETE = AppState.HANDSHAKE, AppState.COMPLETE


class Connection(Living):
    """One exchange on the bus. `terminator` holds its socket, `owner` is the mailbox of the worker that serves it."""

    __slots__ = ()

    # From the client.

    def event(self, event: Event) -> None:
        """Something came from the client. Pauses the terminator when the window is full."""
        frame, counted = self.sent(event)
        if self.life is _JOINED or self.life is _PARTING:
            self._connections.bus.post(self.owner, frame, counted)
        elif self.life is _OFFERED:
            if self._unsent is None:
                self._unsent = []
            self._unsent.append((frame, counted))
        if self.in_flight >= self.window:
            self.terminator.pause()

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
        self._turn(ConnectionEvent.CLAIMED)
        for frame, counted in unsent or ():
            self._connections.bus.post(sender, frame, counted)
        if unsent and self.in_flight < self.window:
            self.terminator.resume()  # if its events were withheld, it was paused
        return True

    def frame(self, frame: Frame) -> None:
        """An EVENT frame of the owner."""
        if self.life is not _JOINED and self.life is not _PARTING:
            return  # it has just learned of its owner, who has just been told that the client is gone
        if frame[4] > self.acked:
            self.acknowledgement(frame[4])
        if (arrival := self.arrived(frame[3])) is not NEW:
            if arrival is Arrival.GAP:
                self._connections.missed(self.owner, self.resend())
            return
        event = frame[EVENT_OFFSET:]
        code = event[0]
        if code >= GROUP_ADD:
            self._control(event)
            return
        if self.life is not _JOINED:
            if code in _LAST:
                # The app has ended the connection itself and may have returned: nobody is left who could hear more.
                self._tell_all_taken()
                if self.life is _PARTING:  # else the frame has said that the app has heard it
                    self._turn(ConnectionEvent.DISCONNECT_DELIVERED)
                return
            # A further run, which comes to hear of it, goes on as if the client were there, and must not wait for that.
            self.took(size(event), self.expected)
            if self.ack_due:
                self._connections.bus.post(self.owner, self.ack())
            return
        after = self.table.get((self.app, code))
        if after is None:
            logger.error("connection %d of %s: %s", self.number, self.owner, IllegalTransition(self.app, code))
            return
        if self.app is _HANDSHAKE and not self._first_answer(event):
            return
        self.app = after
        self.terminator.write_event(event)
        if after is _COMPLETE:
            if self.table is not HTTP_TABLE:
                self._tell_all_taken()
            self._turn(ConnectionEvent.COMPLETED)
            return
        self._behind += size(event)
        if not self.terminator.write_paused:
            self.took(self._behind, self.expected)
            self._behind = 0
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
            self.crashes = 0
            self.run_ended(Ending.HANDED_OVER)
        elif self.life is _JOINED:
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
                self.app = AppState.OPEN
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
        self._connections.bus.post(self.owner, self.ack())

    def plain(self, event: Event) -> bool:
        """A plain ASGI event that anyone posted to the reply channel, or to a group. False if it is out of place."""
        if self.life is not _JOINED and not (self.life is _OFFERED and self.accepted):
            return False
        code = event[0]
        if (code == OTHER_SENT or code == OTHER_CLOSE) and not event[1].startswith(f"{self.kind}."):
            return False
        # Between two runs the client is open, whatever the next run is going to say.
        state = AppState.OPEN if self.accepted and self.app is _HANDSHAKE else self.app
        after = self.table.get((state, code))
        if after is None:
            return False
        if code == ACCEPT and event[1] is not None and event[1] not in self.whole_opening.subprotocols:
            return False
        if after is not _COMPLETE and self.terminator.write_paused and not self.terminator.keeps_up():
            return True
        if state is self.app or after is _COMPLETE:
            self.app = after
        self.terminator.write_event(event)
        if after is _COMPLETE:
            self.client_gone(*event[1:3]) if code == CLOSE else self.client_gone()
        return True

    def acknowledgement(self, number: int) -> None:
        """The owner has taken everything below `number`."""
        opened = self.acknowledged(number)
        if self.life is _PARTING:
            if all(event[0] == GROUP_DONE for event in self.unacknowledged):  # an answer may come behind the disconnect
                self._turn(ConnectionEvent.DISCONNECT_DELIVERED)
        elif opened:
            self.terminator.resume()

    def acknowledge(self) -> None:
        """Tell the owner what was written, unless the client is behind: then its window stays shut."""
        if self.life is not _JOINED or self.terminator.write_paused:
            return
        if self._behind:
            self._took(0)
        if self.untold:
            self._connections.bus.post(self.owner, self.ack())

    def repeat(self, number: int) -> None:
        """The owner misses events from `number` on."""
        for frame, counted in self.kept():
            if frame[3] >= number:
                self._connections.bus.post(self.owner, frame, counted)

    def group_done(self, group: str, error: str | None) -> None:
        """Answer the oldest GROUP_ADD or GROUP_DISCARD of that group."""
        if self.life is _JOINED or self.life is _PARTING:
            self.answers += 1
            self.event((GROUP_DONE, error, group))
