"""A connection to Redis that comes back: connects, watches, and connects again with growing pauses.

All links of one process share an `Outage`, so that the log says once that Redis is gone and once that it is back.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis.config import Address
from asgibus.layers.redis.connection import SILENCE_SECONDS, RedisConnection, connect, pack_command

logger = logging.getLogger("asgibus.layers")

FIRST_PAUSE = 0.05  # seconds: a connection that was cut, by a failover say, is usually welcome at once
STEADY_SECONDS = 1.0  # a connection that ended sooner was no good: the next pause is longer than the one before
LONGEST_PAUSE = 2.0  # seconds: how long after its return Redis is noticed at the latest
LOOK_SECONDS = 1.0  # how often a connection is looked at for a reply that is owed for too long


class Outage:
    """Whether Redis is away, for all links of a process, and what that cost; says so in the log once."""

    def __init__(self, address: Address, counts: Counter[str]) -> None:
        self.counts = counts
        self._address = address
        self._links: set[Link] = set()
        self._down: set[Link] = set()
        self._failed = 0

    @property
    def available(self) -> bool:
        """Whether no link waits for Redis."""
        return not self._down

    def failed(self, reason: object) -> None:
        """A call of the app could not be made for lack of Redis."""
        self.counts["send failed"] += 1
        self._failed += 1
        if self._failed == 1:
            logger.warning("what an app sent did not go out (%s); later ones are counted", reason)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """For a call of an app: if it fails for lack of Redis, that is counted, and logged once."""
        try:
            yield
        except LayerUnavailable as error:
            self.failed(error)
            raise

    def down(self, link: Link, reason: str) -> None:
        """A link lost its connection."""
        if not self._down:
            logger.warning("Redis at %s is gone (%s): trying again until it is back", self._address, reason)
        self._down.add(link)

    def up(self, link: Link) -> None:
        """A link has its connection, or has it back."""
        self._links.add(link)
        connection = link.connection
        if connection is not None and connection.run_id:
            for each in self._links:  # those that are connected to the one before would not meet this one
                each.leave(connection.run_id)
        if link in self._down:
            self._down.discard(link)
            self.counts["reconnect"] += 1
            if not self._down:
                logger.warning("Redis at %s is back", self._address)
        if self._failed and not self._down:
            logger.warning("%d calls of apps failed while Redis was away", self._failed)
            self._failed = 0

    def moved(self, place: tuple[str, int]) -> None:
        """The master is at this host and port: leave servers elsewhere. One that hung may not know yet."""
        for link in self._links:
            connection = link.connection
            if connection is not None and connection.place is not None and connection.place != place:
                connection.abort("the master is {}:{} now, as Sentinels say".format(*place))

    def forget(self, link: Link) -> None:
        """A link is closed: it does not matter any more."""
        self._links.discard(link)
        self._down.discard(link)


class Link:
    """A connection that is kept up. `on_up` gets each new connection, greeted and empty; `on_down` says it is lost."""

    def __init__(
        self,
        address: Address,
        name: str,
        outage: Outage,
        on_up: Callable[[RedisConnection], None],
        on_down: Callable[[], None] | None = None,
    ) -> None:
        self._address = address
        self._name = name
        self._outage = outage
        self._on_up = on_up
        self._on_down = on_down
        self._task: asyncio.Task[None] | None = None
        self._last = ("", 0)  # the run id of Redis, and our client id there, of the last connection
        self.connection: RedisConnection | None = None

    async def open(self) -> None:
        """Connect, and stay connected until `close`. Raises LayerUnavailable when the first try fails."""
        self._use(await connect(self._address, self._name))
        self.start()

    def start(self) -> None:
        """Connect in the background, and stay connected until `close`: for a store that is known to be usable."""
        self._task = background(self._keep(), f"redis {self._name}")

    async def close(self) -> None:
        """End the connection; returns when it has ended."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        self._end()

    def leave(self, run_id: str) -> None:
        """End the connection and make another one, unless it goes to the Redis with this run id."""
        if self.connection is not None and self.connection.run_id not in ("", run_id):
            self.connection.abort("another Redis has taken its place")

    def _use(self, connection: RedisConnection) -> None:
        last, self._last = self._last, (connection.run_id, connection.client_id)
        if connection.run_id and last[0] == connection.run_id:
            # Redis may think that the last one lives: what is still on its way by it must not be carried out after what
            # comes now, and nothing may be given to a reader that is gone.
            connection.write(pack_command(("CLIENT", "KILL", "ID", last[1])), (_ignore,))
        self.connection = connection
        self._outage.up(self)
        self._on_up(connection)

    def _end(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abort("closed here")
        self._outage.forget(self)

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self.connection is None:
                self._use(await self._reconnect(0))
            pause = 0.0
            while self.connection is not None:
                since = loop.time()
                reason = await self._watch(self.connection)
                self.connection = None
                self._outage.down(self, reason)
                if self._on_down is not None:
                    self._on_down()
                steady = loop.time() - since > STEADY_SECONDS
                pause = FIRST_PAUSE if steady else min(max(pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
                self._use(await self._reconnect(pause))
        finally:
            self._end()  # also when the event loop ends without a `close`

    async def _watch(self, connection: RedisConnection) -> str:
        """Why the connection ended."""
        while True:
            done, _ = await asyncio.wait([connection.lost], timeout=LOOK_SECONDS)
            if done:
                return connection.lost.result()
            if connection.overdue(SILENCE_SECONDS):
                connection.abort(f"no reply for {SILENCE_SECONDS:g} s")

    async def _reconnect(self, pause: float) -> RedisConnection:
        while True:
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # spread, so that many processes do not come at once
            try:
                return await connect(self._address, self._name)
            except LayerUnavailable as error:
                logger.debug("still gone: %s", error)
            pause = min(max(pause * 2, FIRST_PAUSE), LONGEST_PAUSE)


def background(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Start a task of the running event loop that may be left there: `loop.close()` cancels nothing.

    asyncio would report each such task when it is collected, to an app that has never seen it.
    """
    task = asyncio.create_task(work, name=name)
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # as asyncio does itself for its inner futures
    return task


def _ignore(reply: object) -> None:
    """Mostly it was gone already; to a user who may not do this, Redis closes it by itself in time."""
