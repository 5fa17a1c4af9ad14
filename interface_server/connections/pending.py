"""The connections that wait for a worker: their timeouts, and the bound on the bytes of their offers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from asgibus.interface_server.connections.takeovers import Takeovers
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.layers.contract import Bus
from asgibus.layers.offers import Offer
from asgibus.protocol.counted_log import CountedLog
from asgibus.protocol.states import ConnectionState

if TYPE_CHECKING:
    from asgibus.interface_server.connections.connection import Connection

logger = logging.getLogger("asgibus.interface")

POOL_SHARE = 16  # every pool may use one part in so many of the room, however much the others use
ABANDONED_SECONDS = 3.0  # after an offer was withdrawn: a worker that had claimed it before has sent a frame by then
OFFER_AGAIN_SECONDS = 3.0  # after the store lost its data: a worker that had claimed an offer has sent a frame by then


class PendingConnections:
    """The connections that are offered and not claimed.

    Args:
        settings: The settings of the server.
        log: Counts and logs refused connections.
    """

    def __init__(self, settings: InterfaceSettings, log: CountedLog) -> None:
        self._settings = settings
        self._log = log
        # Each queue is in the order of the offers, so that the oldest comes first.
        self._new: dict[int, Connection] = {}
        self._reopened: dict[int, Connection] = {}  # with an accepted client, which may wait longer
        self._abandoned: dict[int, Connection] = {}  # without a client; a worker may have claimed them just before
        self._in_doubt: list[tuple[float, Connection, Offer]] = []  # offers that may be lost, and when to repeat them
        self._delayed: dict[int, tuple[float, Connection]] = {}  # those that are not offered before that time
        self.takeovers = Takeovers()
        self._bytes: dict[str, int] = {}  # of the offers, by pool
        self._total = 0  # bytes of all pools
        self._refused: list[Connection] = []  # those without room; they are answered at the next tick

    def add(self, connection: Connection, *, is_open: bool = False) -> None:
        """Add a connection that is about to be offered.

        Args:
            connection: The connection.
            is_open: Whether an earlier run has accepted its client.
        """
        connection.queue = self._reopened if is_open else self._new
        connection.queue[connection.number] = connection

    def has_room(self, pool: str, events: int = 0) -> bool:
        """Return whether an offer may be made.

        Events may use half of the room. A pool with few pending offers always has room, so that a pool without workers
        does not shut out the others.

        Args:
            pool: The pool of the offer.
            events: The bytes of its events.
        """
        room = self._settings.max_unclaimed // 2 if events else self._settings.max_unclaimed
        return self._total + events < room or self._bytes.get(pool, 0) + events < room // POOL_SHARE

    def count_offer(self, connection: Connection, pool: str, size: int) -> None:
        """Count the bytes of an offer until its connection is removed.

        Args:
            connection: The connection that is offered.
            pool: The pool of the offer.
            size: The bytes of the offer in the layer.
        """
        if connection.unclaimed is not None:
            self._uncount(connection)
        self._bytes[pool] = self._bytes.get(pool, 0) + size
        self._total += size
        connection.unclaimed = pool, size

    def _uncount(self, connection: Connection) -> None:
        if connection.unclaimed is not None:
            pool, size = connection.unclaimed
            connection.unclaimed = None
            self._bytes[pool] -= size
            self._total -= size

    def refuse(self, connection: Connection) -> None:
        """Fail an added connection at the next tick, because there is no room for its offer."""
        self._refused.append(connection)

    def delay(self, connection: Connection, until: float) -> None:
        """Delay the offer of an added connection until that time."""
        self._delayed[connection.number] = until, connection

    def take_due(self, now: float) -> list[Connection]:
        """Remove and return the delayed connections whose time has come."""
        due = [connection for until, connection in self._delayed.values() if until <= now]
        for connection in due:
            del self._delayed[connection.number]
        return due

    def abandon(self, connection: Connection, now: float) -> None:
        """Keep a connection whose client is gone, and whose offer was withdrawn, for `ABANDONED_SECONDS`."""
        self.remove(connection)
        connection.offered_at = now
        connection.queue = self._abandoned
        self._abandoned[connection.number] = connection

    def remove(self, connection: Connection) -> None:
        """Remove a connection, if it is here."""
        if connection.queue is not None:
            del connection.queue[connection.number]
            if connection.queue is self._reopened:
                self.takeovers.remove(connection.number)
            connection.queue = None
            if self._delayed:
                self._delayed.pop(connection.number, None)
            self._uncount(connection)

    def next_takeover(self, now: float) -> Connection | None:
        """Return the next connection of a dead worker that may be offered now, or None."""
        connection = self.takeovers.next(now)
        if connection is not None:
            self._renew(connection, now)
        return connection

    def _renew(self, connection: Connection, now: float) -> None:
        """Let an open connection wait as if it were offered now: it goes to the end of its queue."""
        connection.offered_at = now
        self._reopened[connection.number] = self._reopened.pop(connection.number)

    # The move to another process.

    @property
    def has_doubts(self) -> bool:
        """Whether offers may be lost, and are repeated soon."""
        return bool(self._in_doubt)

    def export(self, connection: Connection, now: float) -> dict[str, Any]:
        """Return the place of a connection in the queues, as `restore` takes it."""
        queue = connection.queue
        names = {id(self._new): "new", id(self._reopened): "reopened", id(self._abandoned): "abandoned"}
        delayed = self._delayed.get(connection.number)
        return {
            "queue": names[id(queue)] if queue is not None else None,
            "waited": now - connection.offered_at,
            "delayed": 0.0 if self.takeovers.is_waiting(connection.number) else delayed and delayed[0] - now,
            "unclaimed": connection.unclaimed,
            "refused": connection in self._refused,
        }

    def restore(self, connection: Connection, place: Mapping[str, Any], now: float) -> None:
        """Add a connection of another process, at the end of its queue.

        Args:
            connection: The connection.
            place: The result of `export` there. Pass the connections in the order of their offers.
            now: The time.
        """
        queues = {"new": self._new, "reopened": self._reopened, "abandoned": self._abandoned}
        connection.offered_at = now - place["waited"]
        if place["queue"] is not None:
            connection.queue = queues[place["queue"]]
            connection.queue[connection.number] = connection
        if place["delayed"] is not None:
            self.delay(connection, now + place["delayed"])
        if place["unclaimed"] is not None:
            pool, size = place["unclaimed"]
            self.count_offer(connection, pool, size)
        if place["refused"]:
            self.refuse(connection)

    def interrupted(self, now: float) -> None:
        """Repeat every offer soon, because the store has lost its data, and with it perhaps the frames of claimants."""
        for connection in (*self._new.values(), *self._reopened.values()):
            if connection.offer is not None:
                self._in_doubt.append((now + OFFER_AGAIN_SECONDS, connection, connection.offer))

    def tick(self, bus: Bus, now: float) -> None:
        """Give up the connections that no worker has claimed in time, and repeat the offers that may be lost."""
        if self._refused:
            self._fail_refused()
        self._time_out(self._new, self._settings.connect_timeout, now)
        self._time_out(self._reopened, self._settings.resume_timeout, now)
        self._time_out(self._abandoned, ABANDONED_SECONDS, now)
        while self._in_doubt and self._in_doubt[0][0] <= now:
            _, connection, offer = self._in_doubt.pop(0)
            if connection.offer is offer:
                bus.offer_again(offer, partial(connection.on_offer_lost, offer))

    def _fail_refused(self) -> None:
        refused, self._refused = self._refused, []
        for connection in refused:
            connection.on_claim_timeout()
            self._log.count(
                "no room",
                "new connections are refused: %d bytes of others wait for a worker, which is all that --max-unclaimed "
                "allows. Are enough workers running?",
                self._total,
            )

    def _time_out(self, queue: dict[int, Connection], seconds: float, now: float) -> None:
        unserved = 0
        while queue:
            connection = next(iter(queue.values()))
            if connection.offered_at > now - seconds:
                break
            if self.takeovers.waiting and self.takeovers.moves(connection.number, now - seconds):
                self._renew(connection, now)
                continue
            unserved += connection.state is ConnectionState.OFFERED
            connection.on_claim_timeout()
        if unserved:
            self._log.counts["no worker"] += unserved
            logger.warning(
                "no worker claimed %d connections within %g s: is one running for their pool?", unserved, seconds
            )
