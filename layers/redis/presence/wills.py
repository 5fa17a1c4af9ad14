"""The wills of the connections of one process: events that are sent when a connection ends, or the process dies.

They are in a hash. The process that removes a will from it sends it, so that it is sent once: the process itself when
the connection ends, or another one that cleans up after its death.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.presence import OnStored
from asgibus.layers.redis import scripts
from asgibus.layers.redis.pipeline import Refused, Store, call_until
from asgibus.layers.redis.presence.reader import NEVER
from asgibus.layers.redis.presence.stores import SendToGroup, remove_other_types, tell_until

logger = logging.getLogger("asgibus.layers")

TAKEN_AT_ONCE = 10  # wills of a dead process: if this process dies before it has sent them, they are lost
WRITTEN_AT_ONCE = 500
GONE = 2  # reply of `will_take.lua`
RENEWALS = 4


class _Will(NamedTuple):
    group: str
    event: dict[str, Any]


class Wills:
    """The wills of one mailbox, at its home. All methods are called from one event loop."""

    def __init__(self, home: Store, mailbox: str, send: SendToGroup, lifetime: float, wait: float) -> None:
        """Begin without wills.

        Args:
            home: The store of the mailbox.
            mailbox: The mailbox.
            send: Sends to groups.
            lifetime: Seconds for which wills are kept that nobody renews.
            wait: Seconds that a write waits for a store that is away.
        """
        self._home = home
        self._key = home.keys.wills(mailbox)
        self._send = send
        self._lifetime = f"{max(1.0, lifetime):f}"
        self._wait = wait
        self._every = max(1.0, lifetime) / RENEWALS
        self._loop = asyncio.get_running_loop()
        self._wills: dict[int, _Will] = {}
        self._ended: dict[int, None] = {}  # connections whose wills are to be executed
        self._due = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._again = False

    def __len__(self) -> int:
        """Return the number of wills."""
        return len(self._wills)

    def set(self, connection: int, group: str, event: dict[str, Any], on_stored: OnStored) -> None:
        """See `BusPresence.set_will`."""
        self._wills[connection] = _Will(group, event)
        self._start(self._store(connection, on_stored))

    def clear(self, connection: int) -> None:
        """See `BusPresence.clear_will`."""
        if self._wills.pop(connection, None) is not None:
            self._home.pipeline.write(
                ("EVAL", scripts.WILL_WRITE, 1, self._key, self._lifetime, 1, connection, b""), _ignore
            )

    def execute(self, connection: int) -> None:
        """See `BusPresence.execute_will`."""
        if connection in self._wills:
            self._ended[connection] = None
            self._start(self._execute(connection, certain=False))

    def renew(self, *, everything: bool, lapsed: bool) -> None:
        """Renew the wills if they are due. To be called about once a second.

        Args:
            everything: Write all wills again, if the store has lost them.
            lapsed: Whether others may have taken this process for dead, and have executed its wills.
        """
        if not self._wills:
            return
        if everything:
            self._start(self._write_again(lapsed=lapsed))
        elif self._due <= self._loop.time():
            self._due = self._loop.time() + self._every
            self._start(self._write_again(lapsed=False))
        else:
            for connection in list(self._ended):
                self._start(self._execute(connection, certain=True))

    async def settle(self) -> None:
        """Wait until what was begun has ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def close(self) -> None:
        """Stop writing. The stored data stays."""
        for task in self._tasks:
            task.cancel()

    def export(self) -> list[tuple[int, str, dict[str, Any]]]:
        """Return all wills, as `restore` takes them."""
        return [(connection, will.group, will.event) for connection, will in self._wills.items()]

    def restore(self, wills: Any) -> None:
        """Keep the wills of another process. They are stored.

        Args:
            wills: The result of `export` there.
        """
        self._wills = {connection: _Will(group, event) for connection, group, event in wills}

    async def remove_dead(self, store: Store, mailbox: str, died: int | None) -> None:
        """Execute the wills of a dead process, unless it has been here since its death. Raises LayerUnavailable."""
        key = store.keys.wills(mailbox)
        while True:
            try:
                taken = await store.pipeline.call(
                    "EVAL",
                    scripts.WILLS_TAKE,
                    1,
                    key,
                    died or NEVER,
                    TAKEN_AT_ONCE,
                    repeatable=False,
                    until=call_until(),
                )
            except Refused as error:
                await remove_other_types(error, store, key)
                return
            if not taken:
                return
            for entry in taken[1::2]:
                try:
                    fields = store.entries.unpack_message(key, entry)
                    group, event = fields.get("group"), fields.get("event")
                    if not isinstance(group, str) or not isinstance(event, dict):
                        raise ValueError("it is no will")
                except ValueError as error:
                    store.entries.log_rejected(key, "of a will", error)
                else:
                    await self._send_to(group, event)

    def _start(self, work: Any) -> None:
        task = self._loop.create_task(work, name="asgibus will")
        self._tasks.add(task)
        task.add_done_callback(self._ended_task)

    def _ended_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a will was not handled", exc_info=error)

    async def _store(self, connection: int, on_stored: OnStored) -> None:
        will = self._wills.get(connection)
        error: str | None = None
        if will is not None:
            try:
                await self._write({connection: will}, must_exist=False)
            except LayerUnavailable as unavailable:
                error = str(unavailable)
                if self._wills.get(connection) is will:
                    self.clear(connection)  # it may have been written
        on_stored(error)

    async def _write(self, wills: Mapping[int, _Will], *, must_exist: bool) -> bool:
        """Write wills. Return whether that was done: not, if the hash must exist and does not."""
        arguments: list[str | bytes | int] = [self._lifetime, int(must_exist)]
        for connection, will in wills.items():
            entry = {"group": will.group, "event": will.event}
            arguments += connection, self._home.entries.pack(self._key, entry)
        until = self._loop.time() + self._wait
        try:
            return bool(
                await self._home.pipeline.call("EVAL", scripts.WILL_WRITE, 1, self._key, *arguments, until=until)
            )
        except Refused as error:
            await remove_other_types(error, self._home, self._key)
            raise

    async def _write_again(self, *, lapsed: bool) -> None:
        """Write all wills again. If others have executed them, forget them."""
        wills = dict(self._wills)
        try:
            if not await self._write({}, must_exist=True) and lapsed:
                logger.warning("this process was taken for dead: its wills (%d) were executed", len(wills))
                for connection in wills:
                    self._wills.pop(connection, None)
                    self._ended.pop(connection, None)
                return
            every = list(wills)
            for start in range(0, len(every), WRITTEN_AT_ONCE):
                some = {key: self._wills[key] for key in every[start : start + WRITTEN_AT_ONCE] if key in self._wills}
                await self._write(some, must_exist=False)
        except LayerUnavailable as error:
            logger.debug("the wills are not stored yet: %s", error)
            self._due = 0.0

    async def _execute(self, connection: int, *, certain: bool) -> None:
        """Take a will, and send it.

        Args:
            connection: The connection that has ended.
            certain: Whether the store has the wills, if it had lost them: else another attempt follows.
        """
        if connection not in self._ended:
            return
        until = self._loop.time() + self._wait
        try:
            taken = await self._home.pipeline.call("EVAL", scripts.WILL_TAKE, 1, self._key, connection, until=until)
        except Refused as error:
            await remove_other_types(error, self._home, self._key)
            self._due = 0.0
            return
        except LayerUnavailable as error:
            logger.debug("a will waits for Redis: %s", error)
            return
        if taken == GONE and not certain:
            self._due = 0.0  # write all again, unless others have taken this process for dead
            return
        self._ended.pop(connection, None)
        will = self._wills.pop(connection, None)
        if will is not None and taken != GONE:
            await self._send_to(will.group, will.event)

    async def _send_to(self, group: str, event: dict[str, Any]) -> None:
        try:
            await self._send(group, event, tell_until())
        except (LayerUnavailable, TypeError) as error:
            logger.warning("a will for group %r was not sent: %s", group, error)


def _ignore(reply: object) -> None:
    """Ignore a reply."""
