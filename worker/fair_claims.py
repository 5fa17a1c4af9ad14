"""Claim connections, and leave those that last to other workers of the pool while these come first.

`protocol.shares` decides which workers come first. They get a moment to claim, and no client waits for longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Final

from asgibus.layers.contract import Bus
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.offers import Claim
from asgibus.protocol.shares import FEW, PATIENCE_SECONDS
from asgibus.worker.announcer import Announcer

SMALL_ROOM: Final = 2  # connections: before so small a claim, or none, the numbers of the others are read again
LOOK_SECONDS: Final = 0.002  # until it is looked again whether others have claimed what waits
REST_SECONDS: Final = 0.05  # the same, while nothing waits

_RESUMED: Final = 4  # the position of `resumed` in a connect request


class FairClaims:
    """The claims of one worker.

    Args:
        bus: The place of the worker on the bus.
        channels: All channels to claim from.
        requests: The one of them whose connections do not last.
        announcer: Knows the sessions of the other workers.
        lasting: Returns the number of sessions here that last.
    """

    def __init__(
        self, bus: Bus, channels: Sequence[str], requests: str, announcer: Announcer, lasting: Callable[[], int]
    ) -> None:
        self._bus = bus
        self._channels = channels
        self._lasting_channels = [channel for channel in channels if channel != requests]
        self._requests = requests
        self._announcer = announcer
        self._shares = announcer.shares
        self._lasting = lasting
        self._lasted = False  # whether the last claims had connections that last
        self._refresh = False  # whether the numbers of the others are needed before the next claim
        self._waits_since: float | None = None  # when this worker began to wait for those that come first

    async def claim(self, limit: int, free: int) -> list[Claim]:
        """Claim connections.

        Args:
            limit: The number of connections to claim from each channel.
            free: The number of connections for which there is room.

        Returns:
            The claims; an empty list if there is nothing to claim at the moment, and after `stop_claiming`.
        """
        if self._refresh:
            self._refresh = False
            # A worker that knows of no other waits: it would claim without a limit.
            await self._announcer.refresh(wait=not self._shares.knows_others)
        own, shares = self._lasting(), self._shares
        room = shares.room(own)
        if room < SMALL_ROOM:
            await self._announcer.renew()  # in a burst, the others have claimed some meanwhile
            own = self._lasting()
            room = shares.room(own)
        if room:
            self._waits_since = None
            claims = await self._claim_from_all(min(limit, room) if self._lasted else limit, free)
        elif shares.leaves_to_new(own):
            claims = await self._claim_what_is_left(limit, free)
        elif self._has_waited():
            claims = await self._claim_some(free)
        else:
            claims = await self._claim_requests(limit, free)
        if claims:
            self._lasted = self._refresh = self._lasts(claims)
        return claims

    def _has_waited(self) -> bool:
        """Return whether this worker has waited for long. At the first call it begins to wait."""
        now = perf_counter()
        if self._waits_since is None:
            self._waits_since = now
            self._shares.wait()
        return now - self._waits_since >= PATIENCE_SECONDS

    async def _claim_from_all(self, limit: int, free: int) -> list[Claim]:
        """Wait for connections of all channels.

        Those that were handed over, or whose worker has died, are left to workers that come first. A worker that had
        nothing to claim for a while knows only now that there are such workers.
        """
        claims = await self._bus.claim(self._channels, min(free, limit * len(self._channels)))
        if not self._lasts(claims) or not any(map(_is_resumed, claims)):
            return claims
        await self._announcer.refresh()
        if self._shares.room(self._lasting()):
            return claims
        kept = []
        for claim in claims:
            if claim.channel in self._lasting_channels and _is_resumed(claim):
                self._bus.requeue(claim)
            else:
                kept.append(claim)
        return kept

    async def _claim_some(self, free: int) -> list[Claim]:
        """Claim a few connections, because others may be too slow to claim them."""
        self._waits_since = None
        self._shares.end_wait()
        claims = await self._bus.claim(self._channels, min(free, FEW * len(self._channels)), wait=0.0)
        return claims or await self._claim_from_all(FEW, free)

    async def _claim_what_is_left(self, limit: int, free: int) -> list[Claim]:
        """Claim requests, or a few connections that last if new workers have left them for long."""
        has_waited = self._has_waited()
        waited = await self._waited()
        if not waited:  # they have claimed everything
            self._waits_since = None
        elif has_waited and waited >= PATIENCE_SECONDS:
            self._waits_since = None
            self._shares.end_wait()
            return await self._bus.claim(self._channels, min(free, FEW * len(self._channels)), wait=0.0)
        if waited:
            return await self._claim_requests(limit, free)
        return await self._bus.claim([self._requests], min(free, limit), wait=REST_SECONDS)

    async def _claim_requests(self, limit: int, free: int) -> list[Claim]:
        """Claim requests that wait already, or wait for a moment."""
        claims = await self._bus.claim([self._requests], min(free, limit), wait=0.0)
        if not claims:
            await asyncio.sleep(LOOK_SECONDS)  # a read that waits may take a tenth of a second: Redis rounds
        return claims

    async def _waited(self) -> float:
        """Return for how many seconds a connection that lasts has waited for a claim; 0 if none waits."""
        longest = 0.0
        for channel in self._lasting_channels:
            try:
                statistics = await self._bus.shared_statistics(channel)
            except LayerUnavailable:
                continue
            if statistics["messages_pending"]:
                longest = max(longest, statistics["messages_max_age"], LOOK_SECONDS)
        return longest

    def _lasts(self, claims: list[Claim]) -> bool:
        """Return whether there are claims of connections that last. Those offered to this worker alone do not count."""
        requests = self._requests
        if not claims or claims[0].channel == requests == claims[-1].channel:  # claims of a channel follow each other
            return False
        return any(claim.channel in self._lasting_channels for claim in claims)


def _is_resumed(claim: Claim) -> bool:
    """Return whether an earlier run has accepted the client, so that it was handed over, or its worker has died."""
    entry: Any = claim.entry
    return isinstance(entry, tuple) and len(entry) > _RESUMED and entry[_RESUMED] is True
