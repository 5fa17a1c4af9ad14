"""The presence of users in groups, and the wills of connections, within one process."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from asgibus.layers.codec import pack_message, unpack_message
from asgibus.layers.presence import (
    PAGE,
    Announcements,
    BusPresence,
    OnStored,
    Present,
    PresentCount,
    PresentPage,
    fill,
    merge,
)

Send = Callable[[str, dict[str, Any]], object]


P = ParamSpec("P")
T = TypeVar("T")


def _locked(method: Callable[Concatenate[PresenceTable, P], T]) -> Callable[Concatenate[PresenceTable, P], T]:
    """Run a method under the lock of its table."""

    @wraps(method)
    def call(table: PresenceTable, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with table.lock:
            return method(table, *args, **kwargs)

    return call


class _Will(NamedTuple):
    group: str
    event: bytes


class _Group:
    """The users of one group, and for each the mailboxes of the servers that have it."""

    def __init__(self) -> None:
        self.users: dict[str, dict[str, Present]] = {}
        self.announcements: dict[str, Announcements] = {}  # by mailbox
        self.counts: Counter[str] = Counter()
        """The number of users of each mailbox, which has announcements as long as it has users."""


class PresenceTable:
    """The users in all groups of a memory layer. Methods may be called from any thread."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._latest = 0  # the time of the last change, in microseconds
        self._groups: dict[str, _Group] = {}
        self._wills: dict[tuple[str, int], _Will] = {}

    @_locked
    def announce(self, mailbox: str, group: str, announcements: Announcements) -> None:
        """Set the events of a group, for the users of one server."""
        self._groups.setdefault(group, _Group()).announcements[mailbox] = announcements

    @_locked
    def show(self, mailbox: str, group: str, present: Present) -> list[dict[str, Any]]:
        """Add or replace a user of one server. Return the events for the group."""
        at = self._groups.setdefault(group, _Group())
        servers = at.users.setdefault(present.user, {})
        first = not servers
        at.counts[mailbox] += mailbox not in servers
        servers[mailbox] = present
        told = at.announcements.get(mailbox)
        if not first or told is None or told.join is None or len(at.users) > told.most:
            return []
        return [fill(told.join, present, len(at.users), self._time())]

    @_locked
    def hide(self, mailbox: str, group: str, user: str) -> list[dict[str, Any]]:
        """Remove a user of one server. Return the events for the group."""
        at = self._groups.get(group)
        servers = {} if at is None else at.users.get(user, {})
        present = servers.pop(mailbox, None)
        if at is None or present is None:
            return []
        told = at.announcements.get(mailbox)
        at.counts[mailbox] -= 1
        if not at.counts[mailbox]:
            del at.counts[mailbox]
            at.announcements.pop(mailbox, None)
        if servers:
            return []
        del at.users[user]
        if not at.users:
            del self._groups[group]
        if told is None or told.leave is None or len(at.users) > told.most:
            return []
        return [fill(told.leave, present, len(at.users), self._time())]

    def _time(self) -> int:
        """Return the time in microseconds, later than that of the last change."""
        self._latest = max(self._latest + 1, time.time_ns() // 1000)
        return self._latest

    @_locked
    def set_will(self, mailbox: str, connection: int, group: str, event: dict[str, Any]) -> None:
        """Store the will of a connection. Raises as `pack_message`."""
        self._wills[mailbox, connection] = _Will(group, pack_message(event))

    @_locked
    def take_will(self, mailbox: str, connection: int) -> tuple[str, dict[str, Any]] | None:
        """Remove the will of a connection. Return it with its group; None if there is none."""
        will = self._wills.pop((mailbox, connection), None)
        return None if will is None else (will.group, unpack_message(will.event))

    @_locked
    def remove(self, mailbox: str) -> list[tuple[str, dict[str, Any]]]:
        """Remove everything of a server that has ended. Return the events to send, with their groups."""
        events = []
        for name, group in list(self._groups.items()):
            users = [user for user, servers in group.users.items() if mailbox in servers]
            events += [(name, event) for user in users for event in self.hide(mailbox, name, user)]
        wills = [self.take_will(*key) for key in list(self._wills) if key[0] == mailbox]
        return events + [will for will in wills if will is not None]

    @_locked
    def page(self, group: str, cursor: str | None) -> PresentPage:
        """Return a part of the users of a group, in the order of their ids."""
        at = self._groups.get(group, _Group())
        users = sorted(user for user in at.users if cursor is None or user > cursor)
        found = [merge(list(at.users[user].values())) for user in users[:PAGE]]
        return PresentPage(found, users[PAGE - 1] if len(users) > PAGE else None)

    @_locked
    def count(self, group: str) -> PresentCount:
        """Return the number of users of a group."""
        at = self._groups.get(group, _Group())
        every = [present for servers in at.users.values() for present in servers.values()]
        return PresentCount(len(at.users), sum(present.connections for present in every))


class MemoryPresence(BusPresence):
    """The users and wills of one server: see `BusPresence`."""

    lasts = False

    def __init__(self, table: PresenceTable, mailbox: str, send: Send) -> None:
        """Prepare.

        Args:
            table: The users of the layer.
            mailbox: The mailbox of the server.
            send: Sends an event to a group.
        """
        self._table = table
        self._mailbox = mailbox
        self._send = send

    def show(
        self,
        group: str,
        present: Present,
        on_stored: OnStored | None = None,
        *,
        join: Mapping[str, Any] | None = None,
    ) -> None:
        events = self._table.show(self._mailbox, group, present)
        if on_stored is not None:
            on_stored(None)
        self._tell(group, [{**event, **(join or {})} for event in events])

    def hide(self, group: str, user: str) -> None:
        self._tell(group, self._table.hide(self._mailbox, group, user))

    def announce(self, group: str, announcements: Announcements) -> None:
        self._table.announce(self._mailbox, group, announcements)

    def set_will(self, connection: int, group: str, event: dict[str, Any], on_stored: OnStored) -> None:
        self._table.set_will(self._mailbox, connection, group, event)
        on_stored(None)

    def clear_will(self, connection: int) -> None:
        self._table.take_will(self._mailbox, connection)

    def execute_will(self, connection: int) -> None:
        will = self._table.take_will(self._mailbox, connection)
        if will is not None:
            self._send(*will)

    async def page(self, group: str, cursor: str | None = None) -> PresentPage:
        return self._table.page(group, cursor)

    async def settle(self) -> None:
        """Do nothing: everything is stored."""

    def _tell(self, group: str, events: list[dict[str, Any]]) -> None:
        for event in events:
            self._send(group, event)
