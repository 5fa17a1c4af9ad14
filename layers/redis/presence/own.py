"""The users and the wills of one mailbox, and the clean-up after other ones: see `BusPresence`."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.names import require_any_group
from asgibus.layers.presence import Announcements, BusPresence, OnStored, Present, PresentPage
from asgibus.layers.redis.pipeline import Refused, Store, call_until
from asgibus.layers.redis.presence.reader import PresenceReader
from asgibus.layers.redis.presence.stores import remove_other_types
from asgibus.layers.redis.presence.wills import Wills
from asgibus.layers.redis.presence.writer import Again, PresenceWriter

logger = logging.getLogger("asgibus.layers")

ATTEMPTS = 10  # to remove the users of a dead process, while the store is away
RETRY_SECONDS = 1.0
GROUPS_AT_ONCE = 100  # of a dead process, that this one handles at the same time


class RedisPresence(BusPresence):
    """The users and wills of one mailbox."""

    lasts = True

    def __init__(
        self,
        home: Store,
        mailbox: str,
        reader: PresenceReader,
        counts: Counter[str],
        lifetime: float,
        wait: float,
    ) -> None:
        """Begin without users.

        Args:
            home: The store of the mailbox.
            mailbox: The mailbox.
            reader: Reads the users of all groups.
            counts: Counts what is dropped.
            lifetime: Seconds for which keys are kept that nobody renews.
            wait: Seconds that a write waits for a store that is away.
        """
        self._home = home
        self._mailbox = mailbox
        self._reader = reader
        self._stores = reader.stores
        self._writer = PresenceWriter(mailbox, reader, counts, lifetime, wait)
        self._tasks: set[asyncio.Task[None]] = set()
        self._wills = Wills(home, mailbox, reader.send, lifetime, wait)

    def show(
        self,
        group: str,
        present: Present,
        on_stored: OnStored | None = None,
        *,
        join: Mapping[str, Any] | None = None,
    ) -> None:
        self._writer.show(group, present, on_stored, join or {})

    def hide(self, group: str, user: str) -> None:
        self._writer.hide(group, user)

    def announce(self, group: str, announcements: Announcements) -> None:
        self._writer.announce(group, announcements)

    def set_will(self, connection: int, group: str, event: dict[str, Any], on_stored: OnStored) -> None:
        self._wills.set(connection, group, event, on_stored)

    def clear_will(self, connection: int) -> None:
        self._wills.clear(connection)

    def execute_will(self, connection: int) -> None:
        self._wills.execute(connection)

    async def page(self, group: str, cursor: str | None = None) -> PresentPage:
        return await self._reader.page(group, cursor)

    async def settle(self) -> None:
        await self._writer.settle()
        await self._wills.settle()

    async def settle_within(self, seconds: float) -> None:
        """Wait as `settle` does, but no longer than that."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.settle()

    def renew(self, store: Store, *, everything: bool, lapsed: bool) -> None:
        """Renew what is due at a store, and try again what has failed. To be called about once a second.

        Args:
            store: The store.
            everything: Write everything again.
            lapsed: Whether that is so because others may have taken this process for dead, and the store has lost no
                data.
        """
        again = None if not everything else Again.TELLING if lapsed else Again.SILENTLY
        self._writer.renew(store, again)
        if store is self._home:
            self._wills.renew(everything=everything, lapsed=lapsed)

    def close(self) -> None:
        """Stop writing. The stored data stays."""
        self._writer.close()
        self._wills.close()
        for task in self._tasks:
            task.cancel()

    async def leave(self) -> None:
        """Remove everything that is stored, as others would do after the death of this process."""
        if len(self._wills) or len(self._writer):
            with suppress(LayerUnavailable):  # others do it
                await self.remove_dead(self._mailbox, None)

    def export(self) -> dict[str, Any]:
        """Return everything, as `restore` takes it."""
        return {"groups": self._writer.export(), "wills": self._wills.export()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where another process has stopped.

        Args:
            state: The result of `export` there.
        """
        self._writer.restore(state["groups"])
        self._wills.restore(state["wills"])

    def remove_dead_soon(self, mailbox: str, died: int) -> None:
        """Do so in a task of its own: whoever is told may be away, and the heartbeat must not wait.

        Args:
            mailbox: The mailbox of the dead process.
            died: The time of its death at the latest, in ms by the clock of the home.
        """
        task = asyncio.get_running_loop().create_task(self._remove_dead(mailbox, died), name="asgibus users of a dead")
        self._tasks.add(task)
        task.add_done_callback(self._on_removed)

    def _on_removed(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the users of a dead process could not be removed", exc_info=error)

    async def _remove_dead(self, mailbox: str, died: int) -> None:
        for _ in range(ATTEMPTS):
            try:
                await self.remove_dead(mailbox, died)
            except LayerUnavailable as error:
                logger.debug("the users of %s cannot be removed yet: %s", mailbox, error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def remove_dead(self, mailbox: str, died: int | None) -> None:
        """Remove the users of a dead process from its groups, tell these, and execute its wills.

        Several processes may do so at once: whoever removes a user tells it. A store that is away is skipped: there,
        the users are removed by the next process that looks at the group.

        Args:
            mailbox: The mailbox of the dead process.
            died: The time of its death at the latest, in ms by the clock of the home; None if it does not live again.

        Raises:
            LayerUnavailable: The home cannot be reached.
        """
        await self._wills.remove_dead(self._home, mailbox, died)
        for getting in self._stores.every():
            try:
                store = await getting
                at = died if store is self._home else None
                await self._remove_dead_at(store, mailbox, at)
            except LayerUnavailable as error:
                logger.debug("the users of %s cannot be removed everywhere: %s", mailbox, error)
                if not self._home.outage.available:
                    raise

    async def _remove_dead_at(self, store: Store, mailbox: str, died: int | None) -> None:
        presence = store.keys.presence(mailbox)
        try:
            # Groups are picked at random, so that several processes seldom handle the same ones. Each is in the set
            # until it was handled: this process may die meanwhile.
            while groups := await store.pipeline.call("SRANDMEMBER", presence, GROUPS_AT_ONCE, until=call_until()):
                names = store.entries.valid_names(presence, groups, require_any_group)
                removals = (self._reader.remove_dead(store, name, mailbox, died) for name in names)
                if not all(await asyncio.gather(*removals)):
                    return  # it lives again
                await store.pipeline.call("SREM", presence, *groups, until=call_until())
        except Refused as error:
            await remove_other_types(error, store, presence, kind="set")
