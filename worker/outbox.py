"""The way from a session to its interface server: the claim, numbered frames within a window, and acknowledgements."""

from __future__ import annotations

import asyncio
from typing import Protocol

from asgibus.layers.contract import Bus, Draft
from asgibus.layers.frames import ACKNOWLEDGED
from asgibus.layers.offers import Claim
from asgibus.protocol.events import RESPONSE_BODY, Event
from asgibus.protocol.stream import PART, ReliableStream


class OutboxHost(Protocol):
    """The worker, as the outboxes of its sessions see it."""

    bus: Bus

    def schedule_ack(self, outbox: Outbox, /) -> None:
        """Call the outbox's `acknowledge` soon."""


class Outbox:
    """Posts the frames of one session.

    Args:
        host: The worker.
        peer: The mailbox of the interface server.
        stream: The numbers and windows of the connection.
        claim: The claim of the offer.
        is_http: Whether acknowledgements may wait for a full window, because a request is never handed over.
    """

    __slots__ = (
        "_claim",
        "_draft",
        "_draft_packed",
        "_handling_bytes",
        "_host",
        "_is_http",
        "_waiters",
        "announced",
        "closed",
        "handling",
        "peer",
        "stream",
    )

    def __init__(self, host: OutboxHost, peer: str, stream: ReliableStream, claim: Claim, is_http: bool) -> None:
        self._host = host
        self.peer = peer
        """The mailbox of the interface server."""
        self.stream = stream
        self._claim: Claim | None = claim  # until it is completed
        self._is_http = is_http
        self.announced = False
        """Whether the interface server was sent a frame that names this worker as the owner."""
        self.closed = False
        """Whether nothing more can be sent to the client."""
        self.handling = -1
        """The number of the first event that the app has got and not handled; -1 if there is none."""
        self._handling_bytes = 0
        self._draft: Draft | None = None  # the last frame, if an event was being handled when it was posted
        self._draft_packed = 0  # `Bus.packed` at that time
        self._waiters: list[asyncio.Future[None]] | None = None

    # Events of the app.

    def post(self, event: Event) -> None:
        """Post an event. The caller has checked the window, or is never going to post much."""
        frame, counted = self.stream.send(event)
        bus = self._host.bus
        if self.handling < 0:
            bus.post(self.peer, frame, counted)
        else:  # it may be the answer to the event that the app handles: see `handled`
            self._draft = [*frame]
            self._draft_packed = bus.packed
            bus.post(self.peer, self._draft, counted)
        if not self.announced:
            self.complete_claim()

    async def post_parts(self, event: Event) -> Event:
        """Post a large body in parts, each when the window is open.

        Returns:
            The event of the last part, which is not posted. Returns early if nothing more can be sent.
        """
        body = memoryview(event[1])
        cut = (len(body) - 1) // PART * PART
        for start in range(0, cut, PART):
            await self.wait_for_window()
            if self.closed:
                return event
            self.post((RESPONSE_BODY, bytes(body[start : start + PART])))
        await self.wait_for_window()
        return (event[0], bytes(body[cut:]))

    async def wait_for_window(self) -> None:
        """Wait until the window is open or nothing more can be sent."""
        while not self.stream.window_open and not self.closed:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters = add_waiter(self._waiters, waiter)
            await waiter

    def acknowledged(self, number: int) -> None:
        """Handle that the interface server has consumed every event below `number`."""
        if self.stream.acknowledge(number):
            self._wake()

    def close(self) -> None:
        """Wake every task that waits to send, because nothing can be sent any more."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, None
        wake(waiters)

    # The claim.

    def announce(self) -> None:
        """Name this worker as the owner, if no event has done so yet."""
        if not self.announced:
            self._host.bus.post(self.peer, self.stream.claimed_frame())
            self.complete_claim()

    def complete_claim(self) -> None:
        """Complete the claim, because the frame that was just posted names the owner, and is written before."""
        if not self.announced:
            self.announced = True
            claim, self._claim = self._claim, None  # an answered request is kept for a moment, and its claim is large
            if claim is not None:
                self._host.bus.done(claim)

    def probe(self) -> None:
        """Ask the interface server whether the connection is still to be served."""
        self._host.bus.post(self.peer, self.stream.probe_frame())

    # Events of the client.

    def begin(self, number: int, counted: int) -> None:
        """Count an event as got by the app, which handles it now.

        Args:
            number: The number of the event.
            counted: The size of the event in bytes.
        """
        if self.handling < 0:
            self.handling = number
        self._handling_bytes += counted

    def handled(self, through: int) -> None:
        """Acknowledge the events that the app has got, because it has handled them.

        The acknowledgement is written into the frame that was posted last, unless that is on its way already. Most apps
        ask for the next event right after they have answered one. The answer and the acknowledgement then arrive
        together, or neither does. So a client never gets the answer to an event that a further run handles again after
        a crash.

        Args:
            through: The app has handled every event below this number.
        """
        if self.handling < 0:
            return
        counted, self.handling, self._handling_bytes = self._handling_bytes, -1, 0
        draft, self._draft = self._draft, None
        if draft is not None and self._draft_packed == self._host.bus.packed:
            draft[ACKNOWLEDGED] = self.stream.consumed = through
            self.stream.unreported = 0
        else:
            self.consume(counted, through)

    def consume(self, counted: int, through: int) -> None:
        """Count bytes as consumed, and acknowledge them if they are many, or else soon.

        Args:
            counted: The size of the events.
            through: Every event below this number is consumed, unless the app still handles an earlier one.
        """
        stream = self.stream
        reported = not stream.unreported
        ack_due = stream.consume(counted, through if self.handling < 0 else self.handling)
        if reported and not self._is_http:
            self._host.schedule_ack(self)
        if ack_due and not self.closed:
            self._host.bus.post(self.peer, stream.ack_frame())

    def acknowledge(self) -> None:
        """Post an acknowledgement of what was consumed, unless nothing more can be sent."""
        if self.stream.unreported and not self.closed:
            self._host.bus.post(self.peer, self.stream.ack_frame())


Waiters = list["asyncio.Future[None]"]


def add_waiter(waiters: Waiters | None, waiter: asyncio.Future[None]) -> Waiters:
    """Return the waiters with a further one, without those whose tasks were cancelled.

    An app may cancel the same wait again and again.
    """
    return [*(each for each in waiters or () if not each.done()), waiter]


def wake(waiters: Waiters | None) -> None:
    """Wake the tasks that wait."""
    for waiter in waiters or ():
        if not waiter.done():
            waiter.set_result(None)
