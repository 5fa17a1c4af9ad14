"""The routing of frames to streams, and the repair of streams that lost frames. Both ends of the bus use it.

The router does no IO. Its owner passes it the batches of the mailbox and, at least every second, the time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from asgibus.layers.contract import Bus, Frame
from asgibus.layers.frames import (
    ABANDONED,
    ACK,
    ACKNOWLEDGED,
    CLAIMED,
    DECLINED,
    FIRST_PROTOCOL_KIND,
    PROBE,
    RESEND,
    RESET,
    SUPERSEDED,
)
from asgibus.protocol.checks import BadFrame, Check, check_frame
from asgibus.protocol.counted_log import CountedLog
from asgibus.protocol.events import Event
from asgibus.protocol.stream import GAP, NEW, ReliableStream

CHECK_SECONDS = 1.0  # between acknowledgements without an event, and between probes of peers without a mailbox
STALLED_SECONDS = 5.0  # without an acknowledgement: then the other end is probed, since frames may be lost
PROBE_AGAIN_SECONDS = 3.0  # after an interruption: by then the peers have seen the next heartbeat of this process


class Endpoint(Protocol):
    """One end of a connection, as the router sees it."""

    stream: ReliableStream
    peer: str
    """The mailbox of the other end; empty while it is unknown."""

    def on_event(self, event: Event) -> None:
        """Handle the next event in order."""

    def on_ack(self, number: int) -> None:
        """Handle that the other end has consumed every event below `number`."""

    def on_reset(self) -> None:
        """Handle that the other end does not know this connection."""

    def on_superseded(self) -> None:
        """Handle that another run serves this connection."""

    def answer_probe(self, number: int) -> Frame:
        """Return the answer to a probe: the other end has sent every event below `number`."""

    def acknowledge(self) -> None:
        """Post an acknowledgement of what was consumed, if the other end may get one now."""

    @property
    def expects_ack(self) -> bool:
        """Whether the other end is going to acknowledge what was sent."""

    @property
    def may_probe(self) -> bool:
        """Whether the other end is known and may be probed."""


class Endpoints(Protocol):
    """The table of all endpoints of one process."""

    def __iter__(self) -> Iterator[Endpoint]:
        """Iterate over a snapshot of all endpoints."""

    def accept(self, sender: str, number: int, attempt: int) -> Endpoint | None:
        """Accept a frame. Return the endpoint that it belongs to, or None if its run is unknown here."""

    def is_superseded(self, sender: str, number: int) -> bool:
        """Return whether a connection that `accept` did not find is served by another run."""

    def on_other_frame(self, sender: str, frame: Frame) -> None:
        """Handle a frame of the layer, or one that is for no stream. Raise BadFrame if it should not be here."""

    def on_fault(self, frame: Frame) -> None:
        """Handle that a frame was dropped because the code that handled it has failed."""


class StreamRouter:
    """Routes the frames of a mailbox to their endpoints, and probes the other ends when frames may be lost.

    Args:
        endpoints: The endpoints of this process.
        checks: The events that are expected from the other end: `checks.FROM_APP` or `checks.FROM_CLIENT`.
        log: Counts and logs dropped and repeated frames.
    """

    bus: Bus
    """The place on the bus; set before the first batch."""

    def __init__(self, endpoints: Endpoints, checks: Mapping[int, Check], log: CountedLog) -> None:
        self._endpoints = endpoints
        self._checks = checks
        self._log = log
        self._counts = log.counts
        self._without_mailbox: set[str] = set()  # peers whose mailbox was missing when frames were posted to them
        self._check_at = CHECK_SECONDS
        self._stalled_at = STALLED_SECONDS
        self._probe_at: float | None = None
        self._now = 0.0

    # Frames.

    def batch(self, sender: str, frames: Sequence[Any]) -> None:
        """Handle frames of one sender, in order. They are not checked yet. See `Handler.batch`."""
        has_mailbox = sender[-1:] == "!"
        for frame in frames:
            try:
                event = check_frame(frame, self._checks)
                if frame[0] >= FIRST_PROTOCOL_KIND and not has_mailbox:
                    raise BadFrame(f"a frame of kind {frame[0]} comes from no mailbox")
                if event is not None:
                    self._event(sender, frame, event)
                elif frame[0] < FIRST_PROTOCOL_KIND:
                    self._endpoints.on_other_frame(sender, frame)
                else:
                    self._control(sender, frame)
            except BadFrame as error:
                text = "a frame from %s was dropped: %s"
                self._log.count("bad frame", text, sender or "the layer", error, level=logging.ERROR)
            except Exception:  # a fault in one connection must not affect the others of the batch
                self._log.logger.exception("a frame of kind %r from %s was dropped", frame[0], sender or "the layer")
                self._endpoints.on_fault(frame)

    def _event(self, sender: str, frame: Frame, event: Event) -> None:
        endpoint = self._endpoints.accept(sender, frame[1], frame[2])
        if endpoint is None:
            self._reject(sender, frame)
            return
        stream = endpoint.stream
        if frame[ACKNOWLEDGED] > stream.acked:
            endpoint.on_ack(frame[ACKNOWLEDGED])
        arrival = stream.receive(frame[3])
        if arrival is NEW:
            endpoint.on_event(event)
        elif arrival is GAP:
            self._counts["gap"] += 1
            self.bus.post(sender, stream.resend_frame())

    def _control(self, sender: str, frame: Frame) -> None:
        kind: int = frame[0]
        if kind == ABANDONED or kind == DECLINED:
            self._endpoints.on_other_frame(sender, frame)
            return
        endpoint = self._endpoints.accept(sender, frame[1], frame[2])
        if endpoint is None:
            if kind == PROBE or kind == CLAIMED:
                self._reject(sender, frame)
        elif kind == ACK:
            endpoint.on_ack(frame[3])
        elif kind == PROBE:
            self.bus.post(sender, endpoint.answer_probe(frame[3]))
        elif kind == RESEND:
            self._counts["repeated"] += 1
            for again, counted in endpoint.stream.unacked_frames(frame[3]):
                self.bus.post(sender, again, counted)
        elif kind == RESET:
            self._counts["reset"] += 1
            endpoint.on_reset()
        elif kind == SUPERSEDED:
            self._counts["superseded"] += 1
            endpoint.on_superseded()

    def _reject(self, sender: str, frame: Frame) -> None:
        """Reply that the run of a frame is unknown here."""
        kind = SUPERSEDED if self._endpoints.is_superseded(sender, frame[1]) else RESET
        self.bus.post(sender, (kind, frame[1], frame[2]))

    # Repair.

    def mailbox_missing(self, mailbox: str) -> None:
        """Probe the endpoints of a peer at the next check: frames that were posted to it are lost."""
        self._without_mailbox.add(mailbox)

    @property
    def peers_without_mailbox(self) -> list[str]:
        """The peers that are probed at the next check, because their mailbox was missing."""
        return list(self._without_mailbox)

    def peer_dead(self, mailbox: str) -> None:
        """Stop probing a peer, because its process is gone."""
        self._without_mailbox.discard(mailbox)

    def interrupted(self) -> int:
        """Probe every peer now and again later, because frames in both directions may be lost.

        Returns:
            The number of probed endpoints.
        """
        self._counts["interruption"] += 1
        self._probe_at = self._now + PROBE_AGAIN_SECONDS
        return self._probe_all()

    def tick(self, now: float) -> None:
        """Acknowledge what was consumed, and probe the peers that frames may have failed to reach.

        Args:
            now: The time in seconds, by any clock that never goes back.
        """
        self._now = now
        if now >= self._check_at:
            self._check_at = now + CHECK_SECONDS
            if stalled := now >= self._stalled_at:
                self._stalled_at = now + STALLED_SECONDS
            self._check(stalled=stalled)
        if self._probe_at is not None and now >= self._probe_at:
            self._probe_at = None
            self._probe_all()

    def _check(self, *, stalled: bool) -> None:
        missing, self._without_mailbox = self._without_mailbox, set()
        for endpoint in self._endpoints:
            stream = endpoint.stream
            if stream.unreported:
                endpoint.acknowledge()
            if endpoint.peer in missing or (stalled and endpoint.expects_ack and stream.check_stalled()):
                self._probe(endpoint)

    def _probe_all(self) -> int:
        return sum(self._probe(endpoint) for endpoint in self._endpoints)

    def _probe(self, endpoint: Endpoint) -> bool:
        if endpoint.may_probe:
            self.bus.post(endpoint.peer, endpoint.stream.probe_frame())
            return True
        return False
