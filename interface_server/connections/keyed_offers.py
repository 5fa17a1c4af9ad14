"""Offers by key: each goes to the one worker that its key is assigned to, until that worker dies or drains."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import unquote_to_bytes

from asgibus.interface_server.affinity import AffinityRule, Ids, digest, find_key, parse_rules
from asgibus.interface_server.callback_tasks import CallbackTasks
from asgibus.interface_server.connections.first_answer import FirstAnswer
from asgibus.interface_server.connections.learner import CookieSetter, Learner
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.layers.contract import Bus
from asgibus.layers.offers import AffinityKey, Offer
from asgibus.protocol.connect_request import HTTP, ConnectRequest
from asgibus.protocol.retry import IDEMPOTENT, RunEnd

if TYPE_CHECKING:
    from asgibus.interface_server.connections.connection import Connection

ANNOUNCE_SECONDS = 1.0  # between two announcements, as those of workers
SETTLE_SECONDS = 2.5  # after an interruption: by then the workers have announced themselves again
BACK_SECONDS = 0.5  # after the layer is back: by then it is known whether it has lost the assignments
AGAIN_SECONDS = 0.25  # until a key is assigned that no worker took
RENEWALS: Final = 4  # of a key in its lifetime, while a connection has it
RECENT_KEYS: Final = 10_000  # whose workers are remembered, to assign them again if the layer loses its data
AT_ONCE: Final = 100  # keys to restore, or connections to offer, until the event loop handles something else
_PERCENT: Final = ord(b"%")  # as an integer, since `in` looks for those ten times as fast as for bytes
WAITING_BYTES: Final = 1024  # counted for a connection that waits for a worker, beside its events


class Offering(Protocol):
    """The registry of connections, as offers by key use it."""

    bus: Bus

    def count_offer(self, connection: Connection, pool: str, size: int) -> None:
        """Count the bytes of an offer until its connection is claimed."""

    def is_open(self, number: int) -> bool:
        """Return whether the connection of that number is open."""

    @property
    def deaths(self) -> int:
        """The number of deaths of workers that are known."""

    def died_since(self, mailbox: str, deaths: int) -> bool:
        """Return whether a worker has died since that many deaths were known."""


class KeyedOffers:
    """Offers connections by their keys.

    Args:
        settings: The settings of the server.
        host: The registry of connections.
    """

    def __init__(self, settings: InterfaceSettings, host: Offering) -> None:
        self._host = host
        self._rules = parse_rules(settings.affinity)
        self._lifetime = settings.affinity_expiry
        self._pools = (settings.pool, *dict.fromkeys(pool for _, pool in settings.routes if pool != settings.pool))
        self._tasks: CallbackTasks | None = None
        self._announce_at = 0.0
        self._probe_at: dict[str, float] = {}  # when a key of a pool is tried again, whose workers took none
        self._waiting: dict[str, dict[int, tuple[Connection, AffinityKey, bool]]] = {}  # by pool and number
        self._catching_up = False  # whether a task offers them
        self._keys: dict[int, AffinityKey] = {}  # of the connections, by their numbers
        self._recent: OrderedDict[AffinityKey, str] = OrderedDict()  # and their workers
        self._renew_at = 0.0
        self._restore: list[tuple[AffinityKey, str]] = []
        self._holds_until = 0.0  # no key is assigned before that, because the layer has lost the assignments
        self._now = 0.0

    def on_bus(self, tasks: CallbackTasks, now: float) -> None:
        """Announce to the workers that there are offers by key.

        Args:
            tasks: Runs the announcements.
            now: The time of the event loop in seconds.
        """
        self._tasks = tasks
        self._now = now
        self._renew_at = now + self._lifetime / RENEWALS
        self._announce(now)

    def export(self) -> dict[str, Any]:
        """Return the keys of the connections, of types that msgpack knows, for another process."""
        return {
            "keys": list(self._keys.items()),
            "waiting": [
                (number, key, once) for waiting in self._waiting.values() for number, (_, key, once) in waiting.items()
            ],
            "recent": list(self._recent.items()),
        }

    def restore(self, state: Mapping[str, Any], connections: Mapping[int, Connection]) -> None:
        """Go on with the keys of another process.

        Args:
            state: The result of `export` there.
            connections: Its connections, by their numbers.
        """
        self._keys = {number: AffinityKey(*key) for number, key in state["keys"]}
        self._recent = OrderedDict((AffinityKey(*key), mailbox) for key, mailbox in state["recent"])
        for number, key, once in state["waiting"]:
            if number in connections:
                pool = AffinityKey(*key).pool
                self._waiting.setdefault(pool, {})[number] = connections[number], AffinityKey(*key), once

    # Offers.

    def offer(self, connection: Connection, request: ConnectRequest, pool: str, *, once: bool) -> bool:
        """Offer a connection by its key, or let it wait for a worker.

        Returns:
            Whether the connection has a key. If not, nothing was done.
        """
        known_key = self._keys.get(connection.number)  # of an earlier run, which the request may not have
        if known_key is not None:
            self._offer(connection, request, known_key, once=once)
            return True
        path = request.raw_path
        if _PERCENT in path:
            path = unquote_to_bytes(path)  # as the app sees it: one path may be written in many ways
        rule, ids = find_key(self._rules, path, request) or self._make_id(connection, request, path)
        if rule is None:
            self._learn(connection, path, pool)
            return False
        key = AffinityKey(pool, digest(ids))
        self._keys[connection.number] = key
        # An id that another interface server has just learned may be on its way: it is waited for, once.
        self._offer(connection, request, key, once=once, known=rule.learn is not None and key not in self._recent)
        return True

    def _make_id(self, connection: Connection, request: ConnectRequest, path: bytes) -> tuple[AffinityRule | None, Ids]:
        """Make an id for a client without a key, and have the answer set it as a cookie; None if no rule says so."""
        for rule in self._rules:
            if rule.cookie and path.startswith(rule.prefix):
                made = secrets.token_hex(16).encode()
                secure = b"; Secure" if request.scheme in ("https", "wss") else b""
                line = b"set-cookie: %b=%b; Path=/; HttpOnly; SameSite=Lax%b\r\n" % (rule.cookie, made, secure)
                FirstAnswer(connection, CookieSetter(line))
                return rule, (rule.cookie, made)
        return None, ()

    def _learn(self, connection: Connection, path: bytes, pool: str) -> None:
        """Look for an id in the answer to a request without a key."""
        learns = [rule.learn for rule in self._rules if rule.learn is not None and path.startswith(rule.prefix)]
        if learns and not isinstance(connection.terminator, FirstAnswer):
            FirstAnswer(connection, Learner(learns, partial(self._on_learned, connection, pool)))

    def _on_learned(self, connection: Connection, pool: str, ids: Ids) -> None:
        """Assign an id to the worker that has made it. This is written before the client can have the answer."""
        key = AffinityKey(pool, digest(ids))
        self._keys[connection.number] = key
        self._note(key, connection.peer)
        self._host.bus.assign(key, self._lifetime, connection.peer)

    def _note(self, key: AffinityKey, mailbox: str) -> None:
        """Note the worker of a key, to assign it again if the layer loses its data."""
        self._recent[key] = mailbox
        self._recent.move_to_end(key)
        if len(self._recent) > RECENT_KEYS:
            self._recent.popitem(last=False)

    def _offer(
        self, connection: Connection, request: ConnectRequest, key: AffinityKey, *, once: bool, known: bool = False
    ) -> None:
        if self._must_wait(key.pool):
            self._wait(connection, key, once=once)
            return
        now = self._now
        if key.pool in self._probe_at:
            self._probe_at[key.pool] = now + AGAIN_SECONDS
        assigned = partial(self._on_assigned, connection, key, self._host.deaths, known)
        bus = self._host.bus
        connection.offer = bus.offer_by_key(key, self._lifetime, request, assigned, once=once, known=known)
        self._host.count_offer(connection, key.pool, connection.offer.size)

    def _must_wait(self, pool: str) -> bool:
        self._hold_while_away()
        now = self._now
        return now < self._holds_until or bool(self._restore) or now < self._probe_at.get(pool, 0.0)

    def _hold_while_away(self) -> None:
        if not self._host.bus.available:
            self._holds_until = max(self._holds_until, self._now + BACK_SECONDS)

    def _wait(self, connection: Connection, key: AffinityKey, *, once: bool) -> None:
        connection.offer = None
        self._host.count_offer(connection, key.pool, connection.stream.in_flight + WAITING_BYTES)
        self._waiting.setdefault(key.pool, {})[connection.number] = connection, key, once

    def abandoned(self, connection: Connection) -> None:
        """Do not offer a connection that waits for a worker: its client is gone, or it was given up."""
        for waiting in self._waiting.values():
            waiting.pop(connection.number, None)

    def give_away(self) -> None:
        """Offer none of the connections that wait, and restore no keys: another process does."""
        for waiting in self._waiting.values():
            waiting.clear()
        self._restore = []

    def _on_assigned(self, connection: Connection, key: AffinityKey, deaths: int, known: bool, offer: Offer) -> None:
        """Handle that the worker of an offer is known."""
        if offer.claimant:
            self._probe_at.pop(key.pool, None)
            self._note(key, offer.claimant)
        if connection.offer is not offer:
            return  # it is claimed already, or withdrawn
        if not offer.claimant:
            if not known:
                self._probe_at[key.pool] = self._now + AGAIN_SECONDS
            self._wait(connection, key, once=offer.once)
        elif self._host.died_since(offer.claimant, deaths):
            self._take_back(connection, offer)  # it died before this was known

    # Workers that die or stop.

    def worker_dead(self, mailbox: str, connections: list[Connection]) -> None:
        """Offer those connections again that a dead worker has not claimed. The keys move to other workers."""
        for connection in connections:
            offer = connection.offer
            if offer is not None and offer.claimant == mailbox:
                self._take_back(connection, offer)

    def _take_back(self, connection: Connection, offer: Offer) -> None:
        self._host.bus.take_back(offer, partial(self._on_taken_back, connection, offer))

    def _on_taken_back(self, connection: Connection, offer: Offer, unclaimed: bool) -> None:
        if connection.offer is not offer:
            return
        connection.offer = None
        if unclaimed:
            self._offer_again(connection)
        else:
            connection.run_ended(RunEnd.ABANDONED)

    def declined(self, connection: Connection, mailbox: str) -> None:
        """Offer a connection again, because the worker that it was offered to stops."""
        offer = connection.offer
        if offer is not None and offer.claimant in (mailbox, "") and connection.number in self._keys:
            connection.offer = None
            self._offer_again(connection)

    def _offer_again(self, connection: Connection) -> None:
        request = _unclaimed_request(connection)
        once = request.kind == HTTP and request.method not in IDEMPOTENT
        self._offer(connection, request, self._keys[connection.number], once=once)

    # Time.

    def tick(self, now: float) -> None:
        """Announce, renew and restore keys, and offer what has waited.

        Args:
            now: The time of the event loop in seconds.
        """
        self._now = now
        self._hold_while_away()
        if now >= self._announce_at and self._host.bus.available:
            self._announce(now)
        if now >= self._renew_at:
            self._renew_at = now + self._lifetime / RENEWALS
            self._host.bus.renew_keys([*{*self._keys.values()}], self._lifetime)
        is_due = now >= self._holds_until and (self._restore or self._waiting)
        if is_due and self._tasks is not None and not self._catching_up:
            self._catching_up = True
            self._tasks.start_soon(self._catch_up)

    async def _catch_up(self) -> None:
        """Restore keys, then offer each connection that waits once, unless it must wait for longer."""
        try:
            while self._restore and self._now >= self._holds_until:
                some, self._restore = self._restore[:AT_ONCE], self._restore[AT_ONCE:]
                for key, mailbox in some:
                    self._host.bus.assign(key, self._lifetime, mailbox)
                await asyncio.sleep(0)
            for pool, waiting in [*self._waiting.items()]:
                left = len(waiting)
                while left > 0 and not self._must_wait(pool):
                    self._offer_some(pool, min(left, AT_ONCE))
                    left -= AT_ONCE
                    await asyncio.sleep(0)
        finally:
            self._catching_up = False

    def _offer_some(self, pool: str, number: int) -> None:
        waiting = self._waiting[pool]
        for each in [*islice(waiting, number)]:
            if self._must_wait(pool):
                return
            connection, key, once = waiting.pop(each)
            if connection.queue is not None and connection.offer is None:
                self._offer(connection, _unclaimed_request(connection), key, once=once)

    def interrupted(self) -> None:
        """Assign the keys again, because the layer may have lost the assignments."""
        self._holds_until = self._now + SETTLE_SECONDS
        self._restore = [*self._recent.items()]
        self._announce_at = 0.0

    def _announce(self, now: float) -> None:
        self._announce_at = now + ANNOUNCE_SECONDS
        self._keys = {number: key for number, key in self._keys.items() if self._host.is_open(number)}
        self._host.bus.announce_keys(self._pools)


def _unclaimed_request(connection: Connection) -> ConnectRequest:
    """Return the request of a connection that no worker has claimed, for another offer of the same run."""
    request = connection.unpack_request()
    return request._replace(events=()) if connection.withheld else request
