"""Offers on shared channels: written once, taken back, and made again when it is unknown whether Redis has them.

An offer that is written twice is served twice, so one that was in flight when the connection broke is not simply
repeated: its claimant has a moment to name itself, and then a script looks whether it is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from asgibus.layers.codec import pack
from asgibus.layers.contract import Offer
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis import scripts
from asgibus.layers.redis.connection import RedisError
from asgibus.layers.redis.writer import Command, Writer

logger = logging.getLogger("asgibus.layers")

NAMED_SECONDS = 1.0  # for a claimant to name itself to whoever offered, once the connection is back
AT_ONCE = 100  # offers that one script looks for: it holds up Redis for about a millisecond
LOOK_THROUGH = 10_000  # entries that a script looks through for an offer whose id is unknown, newest first


class _Entry:
    """What is known of an offer's entry. `since`: Redis's time at the last beat before it was offered, in ms."""

    __slots__ = ("command", "id", "key", "payload", "pending", "since")

    def __init__(self, key: str, payload: bytes, since: int) -> None:
        self.key = key
        self.payload = payload
        self.since = since
        self.command: Command | None = None
        self.id = b""
        self.pending = True  # somebody here is about to find out whether it is there


class Offers:
    """Those of one process. `now` gives Redis's time at the last beat, in ms."""

    def __init__(self, writer: Writer, prefix: str, counts: Counter[str], now: Callable[[], int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._writer = writer
        self._prefix = prefix
        self._counts = counts
        self._now = now
        self._doubtful: list[Offer] = []
        self._again: dict[str, list[Offer]] = {}  # by key: to be looked for in this turn of the loop
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        writer.on_up.add(self._up)

    def offer(self, channel: str, entry: Any) -> Offer:
        """As `Bus.offer`."""
        offer = Offer(channel)
        key = f"{self._prefix}:shared:{channel}"
        state = offer.state = _Entry(key, pack(entry), self._now())

        def written(reply: Any) -> None:
            state.command = None
            self._settled(offer, state, reply)

        state.command = self._writer.write(("XADD", key, "*", "b", state.payload), written, repeatable=False)
        return offer

    def withdraw(self, offer: Offer) -> None:
        """As `Bus.withdraw`."""
        offer.withdrawn = True
        state: _Entry | None = offer.state
        if state is None:
            return
        if state.command is not None and self._writer.cancel(state.command):
            offer.state = state.command = None  # so that what is offered while Redis is away does not pile up here
        elif not state.pending:
            offer.state = None
            self._delete(state)

    def offer_again(self, offer: Offer) -> None:
        """As `Bus.offer_again`."""
        state: _Entry | None = offer.state
        if state is None or state.pending or offer.withdrawn or offer.taken or self._closed:
            return
        state.pending = True
        if not self._again:
            self._loop.call_soon(self._look)
        self._again.setdefault(state.key, []).append(offer)

    def close(self) -> None:
        """Make no offer again."""
        self._closed = True
        self._writer.on_up.discard(self._up)
        self._doubtful.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _settled(self, offer: Offer, state: _Entry, reply: Any) -> None:
        """Redis has answered for an offer, or will not."""
        if isinstance(reply, bytes):
            state.id = reply
            state.pending = False
            if offer.withdrawn:
                offer.state = None
                self._delete(state)
        elif not isinstance(reply, LayerUnavailable):
            state.pending = False
            logger.error("an offer on %s was not written: %s", offer.channel, reply)
        elif not self._closed:
            self._doubtful.append(offer)

    def _up(self) -> None:
        if self._doubtful and self._timer is None:
            self._timer = self._loop.call_later(NAMED_SECONDS, self._resolve)

    def _resolve(self) -> None:
        self._timer = None
        doubtful, self._doubtful = self._doubtful, []
        for offer in doubtful:
            state: _Entry = offer.state
            state.pending = False
            if offer.withdrawn:
                offer.state = None
                self._delete(state)
            else:
                self.offer_again(offer)

    def _look(self) -> None:
        again, self._again = self._again, {}
        if self._closed:
            return
        for key, offers in again.items():
            for start in range(0, len(offers), AT_ONCE):
                part = offers[start : start + AT_ONCE]
                self._counts["offer looked for"] += len(part)
                since = f"{min(offer.state.since for offer in part)}-0"
                pairs = [value for offer in part for value in (offer.state.id, offer.state.payload)]
                self._writer.write(
                    ("EVAL", scripts.OFFER_AGAIN, 1, key, since, LOOK_THROUGH, *pairs),
                    partial(self._looked, part),
                    repeatable=False,
                )

    def _looked(self, offers: list[Offer], reply: Any) -> None:
        ids = reply if isinstance(reply, list) else [reply] * len(offers)
        for offer, each in zip(offers, ids, strict=True):
            self._settled(offer, offer.state, each)

    def _delete(self, state: _Entry) -> None:
        """Delete an entry unless somebody has claimed it: its claimant still has to acknowledge it."""
        place = (state.id,) if state.id else (f"{state.since}-0", LOOK_THROUGH, state.payload)
        self._writer.write(("EVAL", scripts.WITHDRAW, 1, state.key, *place), _log_error)


def _log_error(reply: Any) -> None:
    if isinstance(reply, RedisError):
        logger.error("Redis refused a command: %s", reply)
