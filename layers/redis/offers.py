"""Offers on shared channels: written once, taken back, and made again when it is unknown whether Redis has them.

An offer that is written twice is served twice, so one that was in flight when the connection broke is not simply
repeated. A script looks for it. If it is not there, it was never written; or it was claimed and dealt with, and then
its claimant has said so in our mailbox before. So a marker goes into the mailbox behind the look, and it is decided
when that is read: order says what no timer could.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from asgibus.layers.contract import Frame, Handler, Offer
from asgibus.layers.frames import FENCE
from asgibus.layers.redis import scripts
from asgibus.layers.redis.client import Outage
from asgibus.layers.redis.codec import Entries
from asgibus.layers.redis.connection import RedisError
from asgibus.layers.redis.keys import Keys
from asgibus.layers.redis.pipeline import PAYLOAD_VERSION, Command, Writer

logger = logging.getLogger("asgibus.layers")

AT_ONCE = 100  # offers that one script looks for: it holds up Redis for about a millisecond
LOOK_THROUGH = 10_000  # entries that a script looks through for an offer whose id is unknown, newest first
NOT_FOUND = (b"", b"?")  # it is not there; or it may be, behind all that was looked through
STEP = 60_000  # ms that Redis's clock may step back, or be behind after a failover, without an offer being overlooked


class _Entry:
    """What is known of an offer's entry.

    `since`: an id before it. `epoch`: of the store that it was written to. `doubted`: it may have been claimed
    before it is written again. `pending`: somebody here is about to find out whether it is there.
    """

    __slots__ = ("command", "doubted", "epoch", "id", "key", "payload", "pending", "since")

    def __init__(self, key: str, payload: bytes, since: int) -> None:
        self.key = key
        self.payload = payload
        self.since = since
        self.command: Command | None = None
        self.doubted = False
        self.epoch = 0
        self.id = b""
        self.pending = True


class Offers:
    """Those of one process. `now` gives Redis's time at the last beat, in ms; `missed` is told that our mailbox is."""

    def __init__(
        self,
        writer: Writer,
        keys: Keys,
        entries: Entries,
        mailbox: str,
        outage: Outage,
        handler: Handler,
        *,
        now: Callable[[], int],
        missed: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._writer = writer
        self._keys = keys
        self._entries = entries
        self._mailbox = mailbox
        self._outage = outage
        self._handler = handler
        self._now = now
        self._missed = missed
        self._run_id = writer.run_id
        self._epoch = 0  # goes on when Redis is another one, or may have lost something
        self._doubtful: dict[Offer, None] = {}  # to be looked for
        self._looked_for: dict[int, list[Offer]] = {}  # by token: not there, and to be decided when the marker is read
        self._token = 0
        self._scheduled = False
        self._closed = False
        writer.on_up.add(self._up)

    def offer(self, channel: str, entry: Any, once: bool) -> Offer:
        """As `Bus.offer`."""
        key = self._keys.shared(channel)
        payload = self._entries.pack(key, entry)
        offer = Offer(channel, once, state=_Entry(key, payload, max(0, self._now() - STEP)), size=len(payload))
        self._write(offer)
        return offer

    def withdraw(self, offer: Offer) -> bool:
        """As `Bus.withdraw`."""
        offer.withdrawn = True
        state: _Entry | None = offer.state
        if state is None:
            return False
        if state.command is not None and self._writer.cancel(state.command):
            offer.state = state.command = None  # so that what is offered while Redis is away does not pile up here
            return not state.doubted
        if state.pending:
            return False  # if it turns up, it is deleted
        offer.state = None
        if state.id:
            self._delete(state)
        return self._outage.available and state.epoch == self._epoch and not state.doubted

    def offer_again(self, offer: Offer) -> None:
        """As `Bus.offer_again`."""
        state: _Entry | None = offer.state
        if state is None or state.pending or offer.withdrawn or offer.taken or self._closed:
            return
        state.pending = True
        self._doubt(offer)

    def interrupted(self) -> None:
        """What was in our mailbox may be lost; to be called before the mailbox is made anew."""
        self._epoch += 1

    def restored(self) -> None:
        """The mailbox is there again: what is in doubt is looked for anew."""
        self._look_anew()

    def told(self, frames: Sequence[Frame]) -> Sequence[Frame]:
        """Look for markers in frames that the layer itself has posted. Returns the others."""
        tokens = [frame[1] for frame in frames if frame[0] == FENCE]
        if not tokens:
            return frames
        for token in tokens:
            for offer in self._looked_for.pop(token, ()):
                self._decide(offer)
        return [frame for frame in frames if frame[0] != FENCE]

    def close(self) -> None:
        """Make no offer again."""
        self._closed = True
        self._writer.on_up.discard(self._up)
        self._doubtful.clear()
        self._looked_for.clear()

    def _write(self, offer: Offer) -> None:
        state: _Entry = offer.state
        state.epoch = self._epoch
        state.id = b""
        state.command = self._writer.write(
            ("XADD", state.key, "*", "b", state.payload), partial(self._written, offer, state), repeatable=False
        )

    def _written(self, offer: Offer, state: _Entry, reply: Any) -> None:
        state.command = None
        if isinstance(reply, bytes):
            self._found(offer, state, reply)
        elif isinstance(reply, RedisError):
            state.pending = False
            logger.error("an offer on %s was not written: %s", offer.channel, reply)
        else:
            self._doubt(offer)

    def _found(self, offer: Offer, state: _Entry, entry_id: bytes) -> None:
        state.id = entry_id
        state.epoch = self._epoch
        state.pending = False
        if offer.withdrawn:
            offer.state = None
            self._delete(state)

    def _doubt(self, *offers: Offer) -> None:
        if not self._closed:
            self._doubtful.update(dict.fromkeys(offers))
            self._look_soon()

    def _up(self) -> None:
        if self._writer.run_id != self._run_id or not self._run_id:
            self._run_id = self._writer.run_id
            self._epoch += 1
            self._look_anew()
        self._look_soon()

    def _look_anew(self) -> None:
        """What was seen in another store, or before it lost something, does not count."""
        for offers in self._looked_for.values():
            self._doubt(*offers)
        self._looked_for.clear()
        self._look_soon()

    def _look_soon(self) -> None:
        if self._doubtful and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._scheduled = False
        if not self._writer.connected:
            return  # to be looked for when it is up
        by_key: dict[str, list[Offer]] = {}
        for offer in self._doubtful:
            by_key.setdefault(offer.state.key, []).append(offer)
        self._doubtful.clear()
        for key, offers in by_key.items():
            for start in range(0, len(offers), AT_ONCE):
                part = offers[start : start + AT_ONCE]
                self._outage.counts["offer looked for"] += len(part)
                since = f"{min(offer.state.since for offer in part)}-0"
                pairs = [value for offer in part for value in (offer.state.id, offer.state.payload)]
                self._writer.write(
                    ("EVAL", scripts.FIND_OFFERS, 1, key, since, LOOK_THROUGH, *pairs), partial(self._looked, part)
                )

    def _looked(self, offers: list[Offer], reply: Any) -> None:
        if not isinstance(reply, list):
            self._not_known(offers, reply)
            return
        missing = []
        for offer, entry_id in zip(offers, reply, strict=True):
            if entry_id not in NOT_FOUND:
                self._found(offer, offer.state, entry_id)
            else:
                offer.state.doubted = offer.state.doubted or entry_id != b""
                missing.append(offer)
        if missing and not self._closed:
            self._token += 1
            self._looked_for[self._token] = missing
            key = self._keys.mailbox(self._mailbox)
            marker = self._entries.pack(key, (PAYLOAD_VERSION, "", [(FENCE, self._token)]))
            self._writer.write(("XADD", key, "NOMKSTREAM", "*", "b", marker), partial(self._marked, self._token))

    def _marked(self, token: int, reply: Any) -> None:
        if not isinstance(reply, bytes):
            self._not_known(self._looked_for.pop(token, []), reply)
            if reply is None:
                self._missed()  # we are going to be interrupted

    def _not_known(self, offers: list[Offer], reply: Any) -> None:
        """They are looked for again after an interruption, or on the next connection."""
        if isinstance(reply, RedisError):
            logger.error("offers in doubt cannot be looked for: %s", reply)
        if not self._closed:
            self._doubtful.update(dict.fromkeys(offers))

    def _decide(self, offer: Offer) -> None:
        """It is not on its channel, and whoever had claimed it would have said so, if that was not lost."""
        state: _Entry = offer.state
        if offer.withdrawn or offer.taken:
            offer.state = None
            return
        sure = state.epoch == self._epoch and not state.id and not state.doubted
        if offer.once and not sure:
            offer.state = None
            self._outage.counts["offer lost"] += 1
            self._handler.offer_lost(offer)
        else:
            state.doubted = not sure
            self._outage.counts["offer made again"] += 1
            self._write(offer)

    def _delete(self, state: _Entry) -> None:
        """Delete an entry unless somebody has claimed it: its claimant still has to acknowledge it."""
        self._writer.write(("EVAL", scripts.WITHDRAW, 1, state.key, state.id), _log_error)


def _log_error(reply: Any) -> None:
    if isinstance(reply, RedisError):
        logger.error("Redis refused a command: %s", reply)
