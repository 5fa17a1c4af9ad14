"""Read who is in a group, and remove the users of dead processes that nobody has cleaned up after."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Final

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.presence import PAGE, Present, PresentCount, PresentPage, fill, merge
from asgibus.layers.redis import scripts
from asgibus.layers.redis.pipeline import Refused, Store, call_until
from asgibus.layers.redis.presence.stores import (
    LeaseReader,
    SendToGroup,
    Stores,
    forget_group,
    keys_of,
    tell_until,
    unpack_announcements,
    unpack_present,
)

logger = logging.getLogger("asgibus.layers")

NEVER: Final = 2**53 - 1  # in ms by Redis's clock
DROPPED_AT_ONCE = 100  # users of a dead process; their entries are returned

_CURSOR = re.compile(r"[0-9]{1,20}\Z", re.ASCII)


class PresenceReader:
    """Reads who is in the groups of a layer, from one event loop."""

    def __init__(self, stores: Stores, leases: LeaseReader, send: SendToGroup) -> None:
        """Prepare to read.

        Args:
            stores: The stores of the layer.
            leases: Knows which processes are alive.
            send: Sends to groups what is told of leaves.
        """
        self.stores = stores
        self.send = send
        self._leases = leases

    async def page(self, group: str, cursor: str | None = None) -> PresentPage:
        """Return a part of the users of a group.

        Raises:
            ValueError: The cursor is not one of a part.
            LayerUnavailable: The store could not be reached in time.
        """
        if cursor is not None and not _CURSOR.match(cursor):
            raise ValueError(f"{cursor!r:.50} is not a cursor of `present`")
        store = await self.stores.of(group)
        keys = store.keys.users(group), store.keys.present(group)
        arguments = cursor or "0", PAGE
        try:
            then, mailboxes, entries = await store.pipeline.call(
                "EVAL", scripts.PRESENCE_PAGE, 2, *keys, *arguments, until=call_until()
            )
        except Refused as error:
            await forget_group(error, store, group)
            raise
        found: dict[str, list[Present]] = {}
        live = await self.remove_left(store, group, store.entries.valid_names(keys[1], mailboxes))
        for mailbox, each in zip(mailboxes, entries, strict=True):
            if mailbox.decode(errors="replace") in live:
                for entry in each:
                    self._add(store, group, entry, found)
        users = [merge(each) for each in found.values()]
        return PresentPage(users, None if then == b"0" else then.decode())

    def _add(self, store: Store, group: str, entry: bytes, found: dict[str, list[Present]]) -> None:
        try:
            present = unpack_present(store, group, entry)
        except ValueError as error:
            store.entries.log_rejected(store.keys.present(group), "of a user", error)
        else:
            found.setdefault(present.user, []).append(present)

    async def count(self, group: str) -> PresentCount:
        """Return the number of users of a group. Raises LayerUnavailable."""
        store = await self.stores.of(group)
        call, keys = store.pipeline.call, (store.keys.users(group), store.keys.present(group))
        mailboxes = await call("HKEYS", keys[1], until=call_until())
        await self.remove_left(store, group, store.entries.valid_names(keys[1], mailboxes))
        users, connections = await asyncio.gather(
            call("HLEN", keys[0], until=call_until()), call("HVALS", keys[1], until=call_until())
        )
        return PresentCount(users, sum(int(each) for each in connections if each.isdigit()))

    async def remove_left(self, store: Store, group: str, mailboxes: list[str]) -> set[str]:
        """Remove those processes from a group that are dead. Return the others. Raises LayerUnavailable."""
        live = set()
        for mailbox in mailboxes:
            if await self._leases.is_dead(mailbox):
                await self.remove_dead(store, group, mailbox, None)
            else:
                live.add(mailbox)
        return live

    async def remove_dead(self, store: Store, group: str, mailbox: str, died: int | None) -> None:
        """Remove the users of a dead process from a group, and tell the group who has left.

        Args:
            store: The store of the group.
            group: The group.
            mailbox: The mailbox of the process.
            died: When it died, in ms by Redis's clock: it may live again, and have written since. None if it does not.

        Raises:
            LayerUnavailable: The store cannot be reached.
        """
        keys = keys_of(store.keys, group, mailbox)
        more = True
        while more:
            try:
                more, events, left, at = await store.pipeline.call(
                    "EVAL", scripts.PRESENCE_DROP, 3, *keys, mailbox, died or NEVER, DROPPED_AT_ONCE, until=call_until()
                )
            except Refused as error:
                await forget_group(error, store, group)
                raise
            if left and events:
                await self._tell(store, group, events, left, int(at))

    async def _tell(self, store: Store, group: str, events: bytes, left: list[bytes | int], at: int) -> None:
        """Tell a group who has left, as the dead process would have done."""
        try:
            told = unpack_announcements(store, group, events)
            if told is None or told.leave is None:
                return
            for entry, count in zip(left[1::3], left[2::3], strict=True):
                if int(count) <= told.most and isinstance(entry, bytes):
                    event = fill(told.leave, unpack_present(store, group, entry), int(count), at)
                    await self.send(group, event, tell_until())
        except (ValueError, TypeError) as error:
            store.entries.log_rejected(store.keys.present(group), "of a user who has left", ValueError(str(error)))
        except LayerUnavailable as error:
            logger.warning("group %r was not told who has left: %s", group, error)
