"""Lengthen a lease from a thread of its own, as long as the event loop of its process moves now and then.

A beat waits behind what the process writes, and does not run at all while the event loop is busy: a burst of one
client, or a machine without spare CPU, would end the leases of living processes. The thread has a connection of its
own and little to do. It stops when the loop has stood still for so long that others should take over what it serves.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import suppress

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis import scripts
from asgibus.layers.redis.config import Address
from asgibus.layers.redis.connection import RedisConnection, RedisError, connect

logger = logging.getLogger("asgibus.layers")

KEEP_SECONDS = 1.0  # how often the lease is lengthened
PULSE_SECONDS = 0.5  # how often the event loop says that it moves
HANG_SECONDS = 10.0  # that the event loop may stand still: then the lease ends, within the life of one
STALE_SECONDS = 30.0  # since the last beat: a process that does not get one through has lost touch with Redis
REPLY_SECONDS = 1.0  # for Redis to answer
STOP_SECONDS = 2.0  # for the thread to end


class LeaseKeeper:
    """Keeps the lease of one mailbox. All methods are called from the event loop of its process."""

    def __init__(self, address: Address, key: str, mailbox: str, life: int) -> None:
        """`key`: the set of processes. `life`: how long a lease is, in ms."""
        self._address = address
        self._command = "EVAL", scripts.EXTEND_LEASE, 1, key, mailbox, life
        self._name = f"{mailbox}lease"
        self._loop = asyncio.get_running_loop()
        self._thread: threading.Thread | None = None
        self._stop: asyncio.Event | None = None  # of the thread's event loop
        self._thread_loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        # Written by the event loop, read by the thread.
        self._moved_at = 0.0
        self._beat_at = 0.0
        self._run_id = ""

    def beat(self, run_id: str) -> None:
        """A beat got through to the Redis with this run id; the first one starts the thread."""
        self._beat_at = time.monotonic()
        self._run_id = run_id
        if self._thread is None:
            self._pulse()
            self._thread = threading.Thread(target=self._run, name="asgibus lease", daemon=True)
            self._thread.start()

    async def close(self) -> None:
        """End the thread, so that the lease can be given back."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is None:
            return
        if self._thread_loop is not None and self._stop is not None:
            with suppress(RuntimeError):  # it has ended
                self._thread_loop.call_soon_threadsafe(self._stop.set)
        await asyncio.to_thread(self._thread.join, STOP_SECONDS)

    def _pulse(self) -> None:
        self._moved_at = time.monotonic()
        self._timer = self._loop.call_later(PULSE_SECONDS, self._pulse)

    def _is_alive(self) -> bool:
        now = time.monotonic()
        return now - self._moved_at < HANG_SECONDS and now - self._beat_at < STALE_SECONDS and not self._closed

    def _run(self) -> None:
        """The life of the thread."""
        try:
            asyncio.run(self._keep())
        except Exception:  # without it the beat alone keeps the lease
            logger.exception("%s cannot be kept by a thread", self._name)

    async def _keep(self) -> None:
        connection: RedisConnection | None = None
        self._stop, self._thread_loop = asyncio.Event(), asyncio.get_running_loop()
        try:
            while not self._closed:
                if self._is_alive():
                    connection = await self._lengthen(connection)
                with suppress(TimeoutError):
                    async with asyncio.timeout(KEEP_SECONDS):
                        await self._stop.wait()
        finally:
            if connection is not None:
                connection.abort("closed here")
                await asyncio.sleep(0)  # in which its socket is closed

    async def _lengthen(self, connection: RedisConnection | None) -> RedisConnection | None:
        """Lengthen the lease; return the connection for the next time."""
        if connection is not None and connection.run_id != self._run_id:
            connection.abort("another Redis has taken its place")
        try:
            if connection is None or connection.lost.done():
                connection = await connect(self._address, self._name)
            async with asyncio.timeout(REPLY_SECONDS):
                await connection.call(*self._command)
        except (LayerUnavailable, RedisError, TimeoutError) as error:
            logger.debug("%s: %s", self._name, error)
            if connection is not None:
                connection.abort("no answer in time")
            return None
        return connection
