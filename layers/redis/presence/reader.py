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
    tell_until,
    unpack_announcements,
    unpack_entries,
    unpack_present,
    unpack_servers,
)

logger = logging.getLogger("asgibus.layers")

NEVER: Final = 2**53 - 1  # in ms by Redis's clock
DROPPED_AT_ONCE = 1000  # users of a dead process
TOLD_AT_ONCE = 10  # users whose leaves are told: if this process dies meanwhile, these may be lost
UNTOLD_AT_ONCE = 100  # users who are at other servers, or in a group that is too large to be told
SCANNED: Final = PAGE + 100  # fields of a hash, a few of which are no users
SERVERS: Final = ":servers"

_USER = re.compile(rb"[0-9a-f]{32}\Z")
_CURSOR = re.compile(r"[0-9]{1,20}\Z", re.ASCII)

Found = list[tuple[str, dict[bytes, bytes]]]
"""Keys of users, and for each the entries by the mailboxes of processes."""


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
        then, found = await self.scan(store, group, cursor or "0")
        mailboxes = dict.fromkeys(mailbox for _, entries in found for mailbox in entries)
        names = store.entries.valid_names(store.keys.present(group), mailboxes)
        live = {each.encode() for each in await self.remove_left(store, group, names)}
        users: dict[str, list[Present]] = {}
        for _, entries in found:
            for mailbox, entry in entries.items():
                if mailbox in live:
                    self._add(store, group, entry, users)
        return PresentPage([merge(each) for each in users.values()], then)

    async def scan(self, store: Store, group: str, cursor: str) -> tuple[str | None, Found]:
        """Return a part of the users, and the cursor of the next part if there is one. Raises LayerUnavailable."""
        key = store.keys.present(group)
        try:
            then, fields = await store.pipeline.call("HSCAN", key, cursor, "COUNT", SCANNED, until=call_until())
        except Refused as error:
            await forget_group(error, store, group)
            raise
        found: Found = []
        for field, packed in zip(fields[::2], fields[1::2], strict=True):
            if _USER.match(field):
                try:
                    found.append((field.decode(), unpack_entries(packed)))
                except ValueError as error:
                    store.entries.log_rejected(key, "of a user", error)
        return None if then == b"0" else then.decode(), found

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
        fields, servers = await self._read_servers(store, group)
        names = store.entries.valid_names(store.keys.present(group), servers)
        if len(await self.remove_left(store, group, names)) < len(names):
            fields, servers = await self._read_servers(store, group)
        return PresentCount(fields, sum(connections for connections, _ in servers.values()))

    async def _read_servers(self, store: Store, group: str) -> tuple[int, dict[bytes, tuple[int, int]]]:
        """Return the number of users, and for each process its connections. Raises LayerUnavailable."""
        key, call, until = store.keys.present(group), store.pipeline.call, call_until()
        try:
            packed, fields = await asyncio.gather(
                call("HGET", key, SERVERS, until=until), call("HLEN", key, until=until)
            )
        except Refused as error:
            await forget_group(error, store, group)
            raise
        if packed is None:
            return 0, {}
        try:
            servers = unpack_servers(packed)
        except ValueError as error:
            store.entries.log_rejected(key, SERVERS, error)
            return 0, {}
        return fields - 1 - sum(events for _, events in servers.values()), servers

    async def remove_left(self, store: Store, group: str, mailboxes: list[str]) -> set[str]:
        """Remove those processes from a group that are dead. Return the others. Raises LayerUnavailable."""
        live = set()
        for mailbox in mailboxes:
            if await self._leases.is_dead(mailbox):
                await self.remove_dead(store, group, mailbox, None)
            else:
                live.add(mailbox)
        return live

    async def remove_dead(self, store: Store, group: str, mailbox: str, died: int | None) -> bool:
        """Remove the users of a dead process from a group, and tell the group who has left.

        Args:
            store: The store of the group.
            group: The group.
            mailbox: The mailbox of the process.
            died: When it died, in ms by Redis's clock: it may live again, and have written since. None if it does not.

        Returns:
            Whether the process is dead.

        Raises:
            LayerUnavailable: The store cannot be reached.
        """
        key = store.keys.present(group)
        cursor, count = b"0", TOLD_AT_ONCE
        while True:
            arguments = mailbox, died or NEVER, cursor, count
            try:
                cursor, events, left, at = await store.pipeline.call(
                    "EVAL", scripts.PRESENCE_DROP, 1, key, *arguments, until=call_until()
                )
            except Refused as error:
                await forget_group(error, store, group)
                raise
            tells = await self._tell(store, group, events, left, int(at)) if left else False
            count = DROPPED_AT_ONCE if not events else TOLD_AT_ONCE if tells else UNTOLD_AT_ONCE
            if cursor in (b"0", b""):
                return bool(cursor)

    async def _tell(self, store: Store, group: str, events: bytes, left: list[bytes | int], at: int) -> bool:
        """Tell a group who has left, as the dead process would have done. Return whether there was anything to tell."""
        place = store.keys.present(group)
        try:
            told = unpack_announcements(store, group, events)
        except ValueError as error:
            store.entries.log_rejected(place, "of events", error)
            return False
        if told is None or told.leave is None:
            return False
        tells = False
        for entry, count in zip(left[::2], left[1::2], strict=True):
            if int(count) > told.most or not isinstance(entry, bytes):
                continue
            tells = True
            try:
                event = fill(told.leave, unpack_present(store, group, entry), int(count), at)
                await self.send(group, event, tell_until())
            except (ValueError, TypeError) as error:
                store.entries.log_rejected(place, "of a user who has left", ValueError(str(error)))
            except LayerUnavailable as error:
                logger.warning("group %r was not told who has left: %s", group, error)
        return tells
