"""One end of a session: numbers, keeps and bounds what is under way. Both ends are of this class.

Sending: events are numbered from 0 and kept until they are acknowledged; what is unacknowledged counts in bytes against
the window (I11, I12). Receiving: an event is taken once, in order, without a gap (I10); what has been *taken* (by the
app, or by the socket) is acknowledged, which opens the other end's window.

What got lost is found by probing: the one end says how much it has sent, and the other asks for what it misses.

No IO: the owner posts what `sent` gives, and asks `ack_due` when to acknowledge without an event to carry it.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from asgibus.layers.frames import ACK, CLAIMED, EVENT, PROBE, RESEND, RESET
from asgibus.protocol.events import Event, size

WINDOW = 256 * 1024  # bytes under way per connection and direction
PART = 64 * 1024  # bytes of a body in one event
ACK_SHARE = 4  # acknowledge when a quarter of the window was taken: often enough never to stall the sender


class Arrival(Enum):
    """What to do with an event that arrived."""

    NEW = "take it"
    DUPLICATE = "ignore it"
    GAP = "ignore it, and ask for what is missing"
    AHEAD = "ignore it: what is missing was asked for"


# Up to Python 3.11 a member costs 50 ns each time that its class is asked for it; these are asked for with every event.
NEW, DUPLICATE = Arrival.NEW, Arrival.DUPLICATE


class SessionEnd:
    """The sequence numbers and windows of one connection, at one of its ends."""

    __slots__ = (
        "_asked",
        "_kept",
        "_probed",
        "acked",
        "attempt",
        "expected",
        "in_flight",
        "next_number",
        "number",
        "taken",
        "untold",
        "window",
    )

    def __init__(self, number: int, attempt: int, window: int) -> None:
        self.number = number
        self.attempt = attempt
        self.window = window
        # Sending.
        self.next_number = 0
        self.acked = 0
        self.in_flight = 0
        self._kept: dict[int, tuple[Event, int]] = {}
        self._probed = -1
        # Receiving.
        self.expected = 0
        self.taken = 0
        self.untold = 0
        self._asked = -1  # from where on events were asked for

    # Sending.

    @property
    def window_open(self) -> bool:
        """Whether another event may be sent now. One event may overshoot the window, so that none is too large."""
        return self.in_flight < self.window

    def sent(self, event: Event) -> tuple[Event, int]:
        """Number an event and keep it. Returns its frame and its size in bytes."""
        number = self.next_number
        self.next_number = number + 1
        counted = size(event)
        self.in_flight += counted
        self._kept[number] = (event, counted)
        self.untold = 0
        return (EVENT, self.number, self.attempt, number, self.taken, *event), counted

    def acknowledged(self, number: int) -> bool:
        """The other end has taken everything below `number`. True if this opened the window."""
        if number <= self.acked or number > self.next_number:
            return False  # old news; or nonsense, which must not open the window
        was_open = self.in_flight < self.window
        kept = self._kept
        for index in range(self.acked, number):
            self.in_flight -= kept.pop(index)[1]
        self.acked = number
        return not was_open and self.in_flight < self.window

    def kept(self) -> list[tuple[Event, int]]:
        """Frames, with sizes, of all that is not acknowledged, to be sent again in this order (I12)."""
        return [
            ((EVENT, self.number, self.attempt, number, self.taken, *event), counted)
            for number, (event, counted) in self._kept.items()
        ]

    @property
    def unacknowledged(self) -> list[Event]:
        """The events that the other end has not taken, as far as is known here, in their order."""
        return [event for event, _ in self._kept.values()]

    def stalled(self) -> bool:
        """Whether something is under way and nothing of it was acknowledged since this was asked last."""
        stalled = self.in_flight > 0 and self._probed == self.acked
        self._probed = self.acked
        return stalled

    def renew(self, attempt: int, events: Iterable[Event]) -> None:
        """Begin again with another end, which is to get `events` first: all numbers start from 0."""
        self.attempt = attempt
        self._kept = {number: (event, size(event)) for number, event in enumerate(events)}
        self.in_flight = sum(counted for _, counted in self._kept.values())
        self.next_number = len(self._kept)
        self.acked = self.expected = self.taken = self.untold = 0
        self._probed = self._asked = -1

    # Receiving.

    def arrived(self, number: int) -> Arrival:
        """Judge an event by its number; NEW counts it as received."""
        if number == self.expected:
            self.expected = number + 1
            return NEW
        if number < self.expected:
            return DUPLICATE
        return Arrival.AHEAD if self._asked == self.expected else Arrival.GAP

    def took(self, counted: int, through: int) -> None:
        """An event of that size has reached the app or the socket; `through`: everything below that number has."""
        self.taken = through
        self.untold += counted

    @property
    def ack_due(self) -> bool:
        """Whether so much was taken since the other end last heard of it that it should hear now."""
        return self.untold * ACK_SHARE >= self.window

    # Frames without an event.

    def own(self) -> Event:
        """The frame that names its sender as owner."""
        return (CLAIMED, self.number, self.attempt)

    def ack(self) -> Event:
        """The frame that acknowledges all that was taken."""
        self.untold = 0
        return (ACK, self.number, self.attempt, self.taken)

    def reset(self) -> Event:
        """The frame that says: this connection is not known here."""
        return (RESET, self.number, self.attempt)

    def resend(self) -> Event:
        """The frame that asks for everything from the first missing event on."""
        self._asked = self.expected
        return (RESEND, self.number, self.attempt, self.expected)

    def probe(self) -> Event:
        """The frame that asks whether all that was sent has arrived."""
        return (PROBE, self.number, self.attempt, self.next_number)

    def probed(self, number: int) -> Event:
        """The answer to a probe: the frame that asks for what is missing below `number`, or an acknowledgement."""
        return self.resend() if self.expected < number else self.ack()
