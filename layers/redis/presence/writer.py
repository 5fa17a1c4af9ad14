"""The writer of the users of one process: it writes them again when the store has lost them.

For each group, the process knows which users it has, and which of them are stored. One task at a time writes the
difference, so that all changes meanwhile are one further write. It tells the group of joins and leaves by what the
script has replied. A process whose store lost its data writes everything again, and tells nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import Any

from asgibus.layers.contract import Message
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.presence import Announcements, OnStored, Present, fill, user_key
from asgibus.layers.redis import redelivery, scripts
from asgibus.layers.redis.client import ignore_reply
from asgibus.layers.redis.pipeline import Refused, Store
from asgibus.layers.redis.presence.reader import PresenceReader
from asgibus.layers.redis.presence.stores import (
    announcements_of,
    begin_epoch,
    forget_group,
    pack_announcements,
    pack_present,
    present_of,
    tell_until,
)

logger = logging.getLogger("asgibus.layers")

USERS_AT_ONCE = 200  # in one write
NAMES_AT_ONCE = 1000  # of groups, in one write
BYTES_AT_ONCE = 256 * 1024  # of entries in one write: others wait for it
GROUPS_AT_ONCE = 256  # that are written at the same time
RENEWALS = 4  # how often the keys of a group are renewed within their lifetime
MOST_TOLD = 1000  # events that wait to be sent to one group; further ones are dropped


class Again(Enum):
    """The way to write the users of a group again, who may not be stored any more."""

    SILENTLY = "the store has lost its data, and nobody has left"
    TELLING = "others may have taken this process for dead, and may have told that they have left"


class _Group:
    """The users of this process in one group. Each identified connection has one, so it is small."""

    __slots__ = (
        "again",
        "announcements",
        "connections",
        "due",
        "entries",
        "joins",
        "keeps_until",
        "lost",
        "missing",
        "named",
        "store",
        "stored",
        "telling",
        "untold",
        "unwritten",
        "waiting",
        "writing",
    )

    def __init__(self) -> None:
        self.entries: dict[str, Present] = {}
        """The users that are to be stored, by their keys."""
        self.stored: dict[str, Present] = {}
        """The users that are stored, as far as is known."""
        self.unwritten: dict[str, None] = {}
        """The keys of users that have changed."""
        self.missing: dict[str, None] = {}
        """The keys of users that were to be removed and were not there: the store may have lost its data."""
        self.lost = 0
        """If above 0, how many heartbeats without another sign of a loss say that this group alone was lost."""
        self.keeps_until = 0.0
        """When users may be removed again, by the event loop's clock: others may have to write them again."""
        self.waiting: dict[str, list[OnStored]] = {}
        self.joins: dict[str, Mapping[str, Any]] = {}
        """Further members of the event of a join, by the keys of users who are not stored yet."""
        self.announcements: Announcements | None = None
        self.connections = 0
        self.again: Again | None = None
        """The way in which everything has to be written again."""
        self.store: Store | None = None
        self.named = False
        """Whether the group is in the set by which others clean up after this process."""
        self.due = 0.0
        """When the keys are to be renewed, by the event loop's clock."""
        self.untold: list[Message] = []
        self.writing: asyncio.Task[None] | None = None
        self.telling: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to keep, to write or to tell."""
        return self.is_empty and self.writing is None and self.telling is None

    @property
    def is_empty(self) -> bool:
        """Whether there is nobody to keep or to write."""
        return not (self.entries or self.stored or self.unwritten or self.missing)


class PresenceWriter:
    """Writes the users of one mailbox in groups, on all stores. All methods are called from one event loop."""

    def __init__(
        self, mailbox: str, reader: PresenceReader, counts: Counter[str], lifetime: float, wait: float
    ) -> None:
        """Begin without users.

        Args:
            mailbox: The mailbox.
            reader: Removes dead processes from a group in which this process is new.
            counts: Counts what is dropped.
            lifetime: Seconds for which keys are kept that nobody renews.
            wait: Seconds that a write waits for a store that is away.
        """
        self._mailbox = mailbox
        self._id = mailbox.encode()
        self._reader = reader
        self._counts = counts
        self._lifetime = max(1.0, lifetime)
        self._wait = wait
        self._loop = asyncio.get_running_loop()
        self._groups: dict[str, _Group] = {}
        self._limit = asyncio.Semaphore(GROUPS_AT_ONCE)

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self._groups)

    def show(self, group: str, present: Present, on_stored: OnStored | None, join: Mapping[str, Any]) -> None:
        """See `BusPresence`."""
        at = self._at(group)
        key = user_key(present.user)
        before = at.entries.get(key)
        at.connections += present.connections - (0 if before is None else before.connections)
        at.entries[key] = present
        if join:
            at.joins[key] = join
        if on_stored is not None:
            at.waiting.setdefault(key, []).append(on_stored)
        at.unwritten[key] = None
        self._start(group, at)

    def hide(self, group: str, user: str) -> None:
        """See `BusPresence`."""
        at, key = self._groups.get(group), user_key(user)
        present = None if at is None else at.entries.pop(key, None)
        if at is not None and present is not None:
            at.connections -= present.connections
            at.unwritten[key] = None
            self._start(group, at)

    def announce(self, group: str, announcements: Announcements) -> None:
        """See `BusPresence`."""
        self._at(group).announcements = announcements

    def renew(self, store: Store, again: Again | None = None) -> None:
        """Renew keys that are due, and try again what has failed. To be called about once a second.

        Args:
            store: The store whose groups are meant.
            again: Write everything again, in this way.
        """
        now = self._loop.time()
        if self._groups:
            store.pipeline.write(("TYPE", store.keys.presence(self._mailbox)), partial(self._on_type, store))
        for name, at in list(self._groups.items()):
            if at.store is not None and at.store is not store:
                continue
            if at.is_empty:
                continue  # its first user is about to be shown
            if again is not None:
                at.lost = 0
                if at.again is not Again.TELLING:
                    at.again = again
            elif at.missing and at.again is None:
                at.again = Again.SILENTLY
            if at.lost:
                at.lost -= 1
                if not at.lost:
                    store.entries.log_unexpected("lost key", store.keys.present(name), "it was deleted")
                    begin_epoch(store)
            if at.again is not None or at.unwritten or at.due <= now:
                self._start(name, at)

    def _on_type(self, store: Store, kind: object) -> None:
        """Name all groups again if the set of their names is gone, or of another type."""
        names = [name for name, at in self._groups.items() if at.named and at.store is store]
        if kind == b"set" or not isinstance(kind, bytes) or not names:
            return
        presence = store.keys.presence(self._mailbox)
        if kind != b"none":
            store.entries.log_unexpected("wrong type", presence, f"it was a {kind.decode()}, and was removed")
            store.pipeline.write(("UNLINK", presence), ignore_reply)
        for start in range(0, len(names), NAMES_AT_ONCE):
            self._name(store, names[start : start + NAMES_AT_ONCE])

    def _name(self, store: Store, names: Sequence[str]) -> None:
        """Name groups in the set by which others clean up after this process."""
        presence = store.keys.presence(self._mailbox)
        store.pipeline.write(("SADD", presence, *names), ignore_reply)
        store.pipeline.write(("EXPIRE", presence, round(self._lifetime)), ignore_reply)

    async def settle(self) -> None:
        """Wait until everything is written and told, as far as the stores can be reached."""
        while tasks := [task for at in self._groups.values() for task in (at.writing, at.telling) if task is not None]:
            await asyncio.wait(tasks)

    def close(self) -> None:
        """Stop writing. The stored data stays, for others to clean up."""
        for at in self._groups.values():
            for task in (at.writing, at.telling):
                if task is not None:
                    task.cancel()

    def export(self) -> list[dict[str, Any]]:
        """Return the users of all groups, as `restore` takes them."""
        return [
            {
                "group": name,
                "users": [present._asdict() for present in at.entries.values()],
                "announcements": None if at.announcements is None else at.announcements._asdict(),
                "left": [present._asdict() for key, present in at.stored.items() if key not in at.entries],
                "stored": at.entries == at.stored and at.again is None,
            }
            for name, at in self._groups.items()
        ]

    def restore(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Go on where another process has stopped.

        Args:
            groups: The result of `export` there.
        """
        for each in groups:
            at = self._at(each["group"])
            at.entries = {user_key(fields["user"]): present_of(fields) for fields in each["users"]}
            left = {user_key(fields["user"]): present_of(fields) for fields in each.get("left", ())}
            at.stored = at.entries | left
            at.unwritten = dict.fromkeys(left)
            at.connections = sum(present.connections for present in at.entries.values())
            if each["announcements"] is not None:
                at.announcements = announcements_of(each["announcements"])
            at.again = None if each["stored"] else Again.SILENTLY

    def _at(self, group: str) -> _Group:
        at = self._groups.get(group)
        if at is None:
            at = self._groups[group] = _Group()
        return at

    def _start(self, name: str, at: _Group) -> None:
        if at.writing is None:
            at.writing = self._loop.create_task(self._write(name, at), name=f"{self._mailbox} presence")

    async def _write(self, name: str, at: _Group) -> None:
        """Write what has changed in one group."""
        error = ""
        try:
            async with self._limit:
                await self._write_changes(name, at)
        except LayerUnavailable as unavailable:
            logger.debug("who is in group %r is not stored yet: %s", name, unavailable)
            error = str(unavailable)
        except Exception as fault:  # whatever it is, those who wait must get an answer
            logger.exception("who is in group %r could not be stored", name)
            error = f"the layer failed: {type(fault).__name__}"
        at.writing = None
        if error:
            self._answer(at, list(at.waiting), error)
        self._forget_if_over(name, at)

    async def _write_changes(self, name: str, at: _Group) -> None:
        store = at.store = await self._reader.stores.of(name)
        try:
            if at.again is not None:
                await self._write_everything(store, name, at)
            elif at.due <= self._loop.time() and not at.unwritten:
                await self._write_some(store, name, at, {}, tells=False)
            while some := self._take_unwritten(at):
                await self._write_some(store, name, at, some, tells=True, expects_data=True)
        except Refused as error:
            if error.wrong_type:
                at.again = Again.SILENTLY
                await forget_group(error, store, name)
            raise

    def _take_unwritten(self, at: _Group) -> dict[str, Present | None]:
        """Return changed users for a write of bounded size, without those who left and are still kept."""
        keeps = at.keeps_until > self._loop.time()
        some: dict[str, Present | None] = {}
        size = 0
        for key in at.unwritten:
            present = at.entries.get(key)
            if present is None and keeps:
                continue
            some[key] = present
            size += len(str(present))
            if len(some) >= USERS_AT_ONCE or size >= BYTES_AT_ONCE:
                break
        for key in some:
            del at.unwritten[key]
        return some

    async def _write_everything(self, store: Store, name: str, at: _Group) -> None:
        """Write all users again, and remove others, whom older data may have."""
        again, at.again = at.again, None
        missing, at.missing = at.missing, {}
        at.named = False
        if again is Again.SILENTLY:
            at.keeps_until = self._loop.time() + redelivery.REGROUP_SECONDS
        try:
            every = list(at.stored.items())
            for start in range(0, len(every), USERS_AT_ONCE):
                some: dict[str, Present | None] = dict(every[start : start + USERS_AT_ONCE])
                await self._write_some(store, name, at, some, tells=again is Again.TELLING)
            odd: dict[str, Present | None] = {}
            cursor: str | None = "0"
            while cursor is not None:
                cursor, found = await self._reader.scan(store, name, cursor)
                odd |= {key: None for key, entries in found if self._id in entries and key not in at.stored}
            if odd:
                await self._write_some(store, name, at, odd, tells=False)
        except LayerUnavailable:
            _write_again(at, again)
            at.missing |= missing
            raise
        at.unwritten |= missing

    async def _write_some(
        self,
        store: Store,
        name: str,
        at: _Group,
        some: Mapping[str, Present | None],
        *,
        tells: bool,
        expects_data: bool = False,
    ) -> None:
        """Write some users of a group.

        Args:
            store: The store of the group.
            name: The group.
            at: The group.
            some: The users by their keys; None for one that is to be removed.
            tells: Whether the group is told.
            expects_data: Whether the store has lost data, if it has no users of this process.
        """
        pipeline, keys = store.pipeline, store.keys
        if not at.named or at.due <= self._loop.time():
            at.named = True
            self._name(store, [name])  # in the same flush: if this process dies now, others can clean up after it
        new = {key: present for key, present in some.items() if present is not None and key not in at.stored}
        users = len(at.stored) + len(new) - sum(present is None and key in at.stored for key, present in some.items())
        events = pack_announcements(store, name, at.announcements)
        arguments = self._mailbox, at.connections, users, f"{self._lifetime:f}", events, len(new)
        entries: list[str | bytes] = []
        for key, present in {**new, **some}.items():
            entries += key, b"" if present is None else pack_present(store, name, present)
        at.due = self._loop.time() + self._lifetime / RENEWALS
        key = keys.present(name)
        try:
            changes, had, others, changed_at = await pipeline.call(
                "EVAL", scripts.PRESENCE_WRITE, 1, key, *arguments, *entries, until=self._until()
            )
        except LayerUnavailable:
            at.due = 0.0
            if tells:
                at.unwritten = {**dict.fromkeys(some), **at.unwritten}
            raise
        if expects_data and not had and at.stored:
            at.lost = 2
        before = {key: at.stored.get(key) for key in some}
        for key, present in some.items():
            if present is None:
                at.stored.pop(key, None)
            else:
                at.stored[key] = present
        self._answer(at, some, None)
        joins = {key: at.joins.pop(key) for key in some if key in at.joins}
        for change, user, count in zip(changes[::3], changes[1::3], changes[2::3], strict=True) if tells else ():
            each = user.decode()
            if change > 0 and at.lost:
                continue  # whoever else has the user has yet to write again
            present = some[each] or before[each]
            self._on_change(name, at, change, present, count, int(changed_at), joins.get(each, {}))
        if others:
            await self._reader.remove_left(store, name, store.entries.valid_names(key, others))

    def _on_change(
        self,
        name: str,
        at: _Group,
        change: int,
        present: Present | None,
        count: int,
        changed_at: int,
        join: Mapping[str, Any],
    ) -> None:
        """Tell that a user was the first or the last one in the group; or note that it was missing.

        Args:
            name: The group.
            at: The group.
            change: 1, -1 or 0, as `presence_write.lua` has it.
            present: The user.
            count: The number of users in the group.
            changed_at: When that was, in microseconds since 1970 by Redis's clock.
            join: Further members of the event of a join.
        """
        if present is None:
            return
        if change == 0:
            at.stored[user_key(present.user)] = present
            at.missing[user_key(present.user)] = None
            return
        told = at.announcements
        template = None if told is None else told.join if change > 0 else told.leave
        if told is None or template is None or count > told.most:
            return
        if len(at.untold) >= MOST_TOLD:
            self._counts["presence event dropped"] += 1
            return
        at.untold.append({**fill(template, present, count, changed_at), **(join if change > 0 else {})})
        if at.telling is None:
            at.telling = self._loop.create_task(self._tell(name, at), name=f"{self._mailbox} joins and leaves")

    async def _tell(self, name: str, at: _Group) -> None:
        """Send the events of one group, one after another."""
        while at.untold:
            event = at.untold.pop(0)
            try:
                await self._reader.send(name, event, tell_until())
            except LayerUnavailable as error:
                self._counts["presence event dropped"] += 1
                logger.warning("group %r was not told who has joined or left: %s", name, error)
            except Exception:  # the next event may be a better one
                self._counts["presence event dropped"] += 1
                logger.exception("group %r was not told who has joined or left", name)
        at.telling = None
        self._forget_if_over(name, at)

    def _answer(self, at: _Group, keys: Iterable[str], error: str | None) -> None:
        for key in keys:
            for on_stored in at.waiting.pop(key, ()):
                on_stored(error)

    def _forget_if_over(self, name: str, at: _Group) -> None:
        if at.is_over and self._groups.get(name) is at:
            del self._groups[name]
            if at.store is not None and at.named:
                presence = at.store.keys.presence(self._mailbox)
                at.store.pipeline.write(("SREM", presence, name), ignore_reply)

    def _until(self) -> float:
        return self._loop.time() + self._wait


def _write_again(at: _Group, again: Again | None) -> None:
    """Note that everything has to be written again, unless that is noted already."""
    if at.again is None:
        at.again = again
