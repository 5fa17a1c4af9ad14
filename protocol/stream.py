"""One end of the reliable stream of events between an interface server and a worker.

Sending: events are numbered from 0 and kept until the other end acknowledges them. The bytes of unacknowledged events
count against the window. Receiving: every event is accepted once, in order and without a gap. Events that were
*consumed* (by the app, or by the client's socket) are acknowledged, which opens the other end's window.

Lost frames are found by probing: one end says how many events it has sent, and the other asks for those it misses.

The stream does no IO. Its owner posts the frames that the methods return, and sends an acknowledgement when `consume`
says so and no event carries one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Final

from asgibus.layers.contract import Frame
from asgibus.layers.frames import ACK, CLAIMED, EVENT, PROBE, RESEND, RESET
from asgibus.protocol.events import Event, size

WINDOW: Final = 256 * 1024  # bytes that may be unacknowledged per connection and direction
PART: Final = 64 * 1024  # bytes of a body in one event
ACK_SHARE: Final = 4  # acknowledge after a quarter of the window: often enough that the sender never stalls


class Arrival(Enum):
    """The number of an event, compared with the expected one. The values say what to do."""

    NEW = "handle it"
    DUPLICATE = "ignore it"
    GAP = "ignore it, and request the missing events"
    AHEAD = "ignore it: the missing events were requested"


# Module-level aliases, because up to Python 3.11 a lookup of a member on its enum takes 50 ns.
NEW: Final = Arrival.NEW
GAP: Final = Arrival.GAP


class ReliableStream:
    """The sequence numbers and windows of one connection, at one of its ends.

    Args:
        number: The interface server's number of the connection.
        attempt: The run of the app that the stream belongs to, from 1.
        window: The number of bytes that may be unacknowledged in each direction.
    """

    __slots__ = (
        "_checked",
        "_requested",
        "_unacked",
        "acked",
        "attempt",
        "consumed",
        "expected",
        "in_flight",
        "next_number",
        "number",
        "unreported",
        "window",
    )

    def __init__(self, number: int, attempt: int, window: int) -> None:
        self.number = number
        self.attempt = attempt
        self.window = window
        # Sending.
        self.next_number = 0
        self.acked = 0
        """The other end has consumed every event below this number."""
        self.in_flight = 0
        """Bytes that are sent and not acknowledged."""
        self._unacked: dict[int, tuple[Event, int]] = {}
        self._checked = -1  # `acked` at the last call of `check_stalled`
        # Receiving.
        self.expected = 0
        """The number of the next event."""
        self.consumed = 0
        """Every event below this number was consumed here."""
        self.unreported = 0
        """Bytes that were consumed since the last acknowledgement."""
        self._requested = -1  # the number from which events were requested again

    # Sending.

    @property
    def window_open(self) -> bool:
        """Whether another event may be sent now. One event may exceed the window, so that none is too large."""
        return self.in_flight < self.window

    def send(self, event: Event) -> tuple[Frame, int]:
        """Assign the next number to an event, and keep the event until it is acknowledged.

        Returns:
            The frame, and its size in bytes.
        """
        number = self.next_number
        self.next_number = number + 1
        counted = size(event)
        self.in_flight += counted
        self._unacked[number] = (event, counted)
        self.unreported = 0
        return (EVENT, self.number, self.attempt, number, self.consumed, *event), counted

    def acknowledge(self, number: int) -> bool:
        """Forget the events below `number`, which the other end has consumed.

        Returns:
            Whether this opened the window.
        """
        if number <= self.acked or number > self.next_number:
            return False  # out of date; or invalid, and must not open the window
        was_open = self.in_flight < self.window
        unacked = self._unacked
        for index in range(self.acked, number):
            self.in_flight -= unacked.pop(index)[1]
        self.acked = number
        return not was_open and self.in_flight < self.window

    def unacked_frames(self, first: int = 0) -> list[tuple[Frame, int]]:
        """Return the frames of all unacknowledged events from the number `first` on, with their sizes, in order."""
        return [
            ((EVENT, self.number, self.attempt, number, self.consumed, *event), counted)
            for number, (event, counted) in self._unacked.items()
            if number >= first
        ]

    @property
    def unacked_events(self) -> list[Event]:
        """The events that the other end has not acknowledged, in order."""
        return [event for event, _ in self._unacked.values()]

    def check_stalled(self) -> bool:
        """Return whether events are in flight of which none was acknowledged since the last call."""
        stalled = self.in_flight > 0 and self._checked == self.acked
        self._checked = self.acked
        return stalled

    def restart(self, attempt: int, events: Iterable[Event]) -> None:
        """Start again from number 0 with a new other end.

        Args:
            attempt: The number of the next run.
            events: The events that the new end is to get first.
        """
        self.attempt = attempt
        self._unacked = {number: (event, size(event)) for number, event in enumerate(events)}
        self.in_flight = sum(counted for _, counted in self._unacked.values())
        self.next_number = len(self._unacked)
        self.acked = self.expected = self.consumed = self.unreported = 0
        self._checked = self._requested = -1

    # The move to another process.

    def export(self) -> dict[str, Any]:
        """Return the state of the stream, as `restore` takes it."""
        return {
            "attempt": self.attempt,
            "window": self.window,
            "acked": self.acked,
            "unacked": self.unacked_events,
            "expected": self.expected,
            "consumed": self.consumed,
            "unreported": self.unreported,
            "requested": self._requested,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where the stream of another process has stopped.

        Args:
            state: The result of `export` there.
        """
        self.restart(state["attempt"], state["unacked"])
        first: int = state["acked"]
        self._unacked = {first + number: kept for number, kept in self._unacked.items()}
        self.next_number = first + len(self._unacked)
        self.acked = first
        self.window = state["window"]
        self.expected = state["expected"]
        self.consumed = state["consumed"]
        self.unreported = state["unreported"]
        self._requested = state["requested"]

    # Receiving.

    def receive(self, number: int) -> Arrival:
        """Compare the number of an event with the expected one, and count a new event as received."""
        if number == self.expected:
            self.expected = number + 1
            return NEW
        if number < self.expected:
            return Arrival.DUPLICATE
        return Arrival.AHEAD if self._requested == self.expected else GAP

    def consume(self, counted: int, through: int) -> bool:
        """Count received bytes as consumed.

        Args:
            counted: The size of the events.
            through: Every event below this number is consumed.

        Returns:
            Whether enough was consumed since the last acknowledgement to send one now.
        """
        self.consumed = through
        self.unreported += counted
        return self.unreported * ACK_SHARE >= self.window

    # Frames without an event.

    def claimed_frame(self) -> Frame:
        """Return the frame that names its sender as the owner of the connection."""
        return (CLAIMED, self.number, self.attempt)

    def ack_frame(self) -> Frame:
        """Return the frame that acknowledges every consumed event."""
        self.unreported = 0
        return (ACK, self.number, self.attempt, self.consumed)

    def reset_frame(self) -> Frame:
        """Return the frame that says that its sender does not serve this connection."""
        return (RESET, self.number, self.attempt)

    def resend_frame(self) -> Frame:
        """Return the frame that requests every event from the first missing one on."""
        self._requested = self.expected
        return (RESEND, self.number, self.attempt, self.expected)

    def probe_frame(self) -> Frame:
        """Return the frame that asks whether every sent event has arrived."""
        return (PROBE, self.number, self.attempt, self.next_number)

    def answer_probe(self, number: int) -> Frame:
        """Return the answer to a probe: a RESEND if events below `number` are missing, else an ACK."""
        return self.resend_frame() if self.expected < number else self.ack_frame()
