"""Connections that wait for a worker: how long each may, and what becomes of their offers when the store loses data."""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from asgibus.interface_server.settings import InterfaceSettings
from asgibus.layers.contract import Bus, Offer
from asgibus.protocol.states import ConnectionState

if TYPE_CHECKING:
    from asgibus.interface_server.connections.connection_life import Living

logger = logging.getLogger("asgibus.interface")

POOL_SHARE = 16  # of the room for offers, one part is for each pool alone
TELL_SECONDS = 10.0  # between two lines in the log that say the same
LEFT_SECONDS = 3.0  # after an offer was withdrawn: by then a worker that had claimed it before has said so
OFFER_AGAIN_SECONDS = 3.0  # after the store lost its data: by then a worker that had claimed an offer has said so


class Waiting:
    """The connections on offer, by number. Each question says what time it is, by the clock of the event loop."""

    def __init__(self, settings: InterfaceSettings, counts: Counter[str]) -> None:
        self._settings = settings
        self._counts = counts
        # In the order in which they were offered, so the oldest stands first.
        self._new: dict[int, Living] = {}
        self._reopened: dict[int, Living] = {}  # those whose client is open already: they may wait for longer
        self._left: dict[int, Living] = {}  # those whose client has left: a worker may have claimed them just before
        self._in_doubt: list[tuple[float, Living, Offer]] = []  # offers that may be lost, and when they are repeated
        self._delayed: dict[int, tuple[float, Living]] = {}  # those that are offered at that time
        self._bytes: Counter[str] = Counter()  # of the offers, by pool
        self._total = 0  # of all pools
        self._refused: list[Living] = []  # those for which there was no room; they are told at the next tick
        self._told_at = -TELL_SECONDS

    def add(self, connection: Living, *, is_open: bool = False) -> None:
        """It is offered now; `is_open`: again, as an earlier run has accepted its client."""
        connection.queue = self._reopened if is_open else self._new
        connection.queue[connection.number] = connection

    def has_room(self, pool: str, events: int = 0) -> bool:
        """Return whether an offer to a pool may be made, with events of so many bytes.

        Events may take half of the room at most. A pool for which little waits has room in any case, so that one
        without workers does not shut out the others.
        """
        room = self._settings.max_unclaimed // 2 if events else self._settings.max_unclaimed
        return self._total + events < room or self._bytes[pool] + events < room // POOL_SHARE

    def offered(self, connection: Living, pool: str, size: int) -> None:
        """Count the bytes of an offer until the connection waits no longer."""
        self._uncount(connection)
        self._bytes[pool] += size
        self._total += size
        connection.unclaimed = pool, size

    def _uncount(self, connection: Living) -> None:
        if connection.unclaimed is not None:
            pool, size = connection.unclaimed
            connection.unclaimed = None
            self._bytes[pool] -= size
            self._total -= size

    def refuse(self, connection: Living) -> None:
        """Answer a connection that was added that no worker can take it, at the next tick."""
        self._refused.append(connection)

    def delay(self, connection: Living, until: float) -> None:
        """Have a connection that was added offered at that time only."""
        self._delayed[connection.number] = until, connection

    def due(self, now: float) -> list[Living]:
        """Return the delayed connections whose time has come, and delay them no longer."""
        due = [connection for until, connection in self._delayed.values() if until <= now]
        for connection in due:
            del self._delayed[connection.number]
        return due

    def left(self, connection: Living, now: float) -> None:
        """Its client has left, and its offer is withdrawn."""
        self.remove(connection)
        connection.offered_at = now
        connection.queue = self._left
        self._left[connection.number] = connection

    def remove(self, connection: Living) -> None:
        """It waits no longer, if it did."""
        if connection.queue is not None:
            del connection.queue[connection.number]
            connection.queue = None
            self._delayed.pop(connection.number, None)
            self._uncount(connection)

    def interrupted(self, now: float) -> None:
        """The store has lost its data: offers may be gone, and so may the news that they were claimed."""
        for connection in (*self._new.values(), *self._reopened.values()):
            if connection.offer is not None:
                self._in_doubt.append((now + OFFER_AGAIN_SECONDS, connection, connection.offer))

    def tick(self, bus: Bus, now: float) -> None:
        """Give up what no worker took in time, and make again the offers that may be lost."""
        if self._refused:
            self._answer_refused(now)
        self._give_up(self._new, self._settings.connect_timeout, now)
        self._give_up(self._reopened, self._settings.resume_timeout, now)
        self._give_up(self._left, LEFT_SECONDS, now)
        while self._in_doubt and self._in_doubt[0][0] <= now:
            _, connection, offer = self._in_doubt.pop(0)
            if connection.offer is offer:
                bus.offer_again(offer, partial(connection.offer_lost, offer))

    def _answer_refused(self, now: float) -> None:
        refused, self._refused = self._refused, []
        for connection in refused:
            connection.not_taken()
        self._counts["no room"] += len(refused)
        if now - self._told_at >= TELL_SECONDS:
            self._told_at = now
            logger.warning(
                "new connections are refused: %d bytes of others wait for a worker, which is all that --max-unclaimed "
                "allows. Are enough workers running?",
                self._total,
            )

    def _give_up(self, waiting: dict[int, Living], seconds: float, now: float) -> None:
        unserved = 0
        while waiting:
            connection = next(iter(waiting.values()))
            if connection.offered_at > now - seconds:
                break
            unserved += connection.life is ConnectionState.OFFERED
            connection.not_taken()
        if unserved:
            self._counts["no worker"] += unserved
            logger.warning(
                "no worker took %d connections within %g s: is one running for their pool?", unserved, seconds
            )
