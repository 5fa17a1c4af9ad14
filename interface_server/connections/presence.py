"""The users of this process's connections: who they are, in which groups they are present, and their wills.

The data for the store is made here: for each group, the users with connections of this process. A user whose last
connection has ended stays for a while, so that a client that comes back has never left. Time is an argument.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from asgibus.interface_server.callback_tasks import CallbackTasks
from asgibus.interface_server.connections.groups import Groups, Member
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.layers.codec import listed, unpack, unpack_message
from asgibus.layers.contract import Bus
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.frames import MESSAGE
from asgibus.layers.names import split_local
from asgibus.layers.presence import Announcements, Present, close_message, user_group
from asgibus.protocol.connect_request import WEBSOCKET, reply_channel
from asgibus.protocol.counted_log import CountedLog
from asgibus.protocol.events import EXCLUDE, IDENTIFY, PRESENT, SET_WILL, WILL_SET, Event

if TYPE_CHECKING:
    from asgibus.layers.presence import BusPresence

logger = logging.getLogger("asgibus.interface")

TOO_MANY: Final = (4429, "too many connections of this user")
"""The close code and reason of a connection that exceeds `--max-connections-per-user`."""


class UserOf:
    """The user of a connection, as far as the server knows."""

    __slots__ = ("groups", "has_will", "identified_at", "info", "user")

    def __init__(self) -> None:
        self.user = ""
        """The id of the user; empty until the app has called `identify`."""
        self.info: Any = None
        self.identified_at = 0.0
        """In seconds since 1970."""
        self.groups: set[str] = set()
        """The groups in which the user is shown because of this connection."""
        self.has_will = False

    def export(self) -> dict[str, Any]:
        """Return the state, as `restored` takes it."""
        return {
            "user": self.user,
            "info": self.info,
            "identified_at": self.identified_at,
            "groups": sorted(self.groups),
            "has_will": self.has_will,
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> UserOf:
        """Return what another process has exported."""
        known = cls()
        known.user, known.info, known.identified_at = state["user"], listed(state["info"]), state["identified_at"]
        known.groups = set(state["groups"])
        known.has_will = state["has_will"]
        return known


class UsersMember(Member, Protocol):
    """A connection, as its user sees it."""

    user: UserOf | None

    @property
    def kind(self) -> str:
        """The type of its scope."""


class _Local:
    """A user in a group, by the connections of this process."""

    __slots__ = ("connections", "info", "leaves_at", "since")

    def __init__(self, since: float) -> None:
        self.connections = 0
        self.info: Any = None
        self.since = since
        self.leaves_at = 0.0
        """When the user leaves, by the clock of the event loop, if there is no connection."""


class _Leave(NamedTuple):
    at: float
    group: str
    user: str


class Users:
    """The users of the connections of one interface server.

    Args:
        settings: The settings of the server.
        groups: The groups of the connections.
        log: Counts what is dropped.
    """

    def __init__(
        self,
        settings: InterfaceSettings,
        groups: Groups,
        log: CountedLog,
    ) -> None:
        self._grace = settings.presence_grace
        self._most_told = settings.presence_events
        self._limit = settings.max_connections_per_user
        self._newest_goes = settings.user_limit == "newest"
        self._groups = groups
        self._log = log
        self._now = 0.0
        self._present: dict[str, dict[str, _Local]] = {}
        self._leaving: deque[_Leave] = deque()  # in the order of their times
        self._identified = 0
        self._wills = 0
        self._settled: asyncio.Event | None = None
        self._bus: Bus
        self._tasks: CallbackTasks

    def on_bus(self, bus: Bus, tasks: CallbackTasks) -> None:
        """Store users on that bus.

        Args:
            bus: The bus.
            tasks: Runs what waits for the store.
        """
        self._bus = bus
        self._tasks = tasks

    def gauges(self) -> dict[str, int]:
        """Return how many identified connections, wills, and users in groups there are in this process."""
        present = sum(len(users) for users in self._present.values())
        return {"identified": self._identified, "present": present, "wills": self._wills}

    # From the app.

    def change(self, member: UsersMember, event: Event) -> None:
        """Handle IDENTIFY, PRESENT or SET_WILL, and call the member's `group_done` afterwards."""
        code: int = event[0]
        try:
            self._bus.presence  # noqa: B018  # of which layers for other stores may have none
        except NotImplementedError as error:
            member.group_done(reply_name(event), str(error))
            return
        if code == IDENTIFY:
            self._identify(member, event[1], listed(unpack(event[2])))
        elif code == PRESENT:
            self._add(member, *event[1:])
        else:
            self._set_will(member, event[1], event[2])

    def _identify(self, member: UsersMember, user: str, info: Any) -> None:
        group = user_group(user)
        known = member.user = member.user or UserOf()
        if known.user and known.user != user:
            member.group_done(group, "this is the connection of another user")
            return
        if not known.user:
            self._identified += 1
            known.identified_at = time.time()
        if known.info != info:
            known.info = info
            for shown in known.groups:
                self._present[shown][user].info = info
                self._show(shown, user, self._present[shown][user])
        known.user = user
        self._groups.add(member, group, partial(self._joined_own, member, group))

    def _joined_own(self, member: UsersMember, group: str, error: str | None) -> None:
        """Store the connection, as its process has joined the group of its user."""
        known = member.user
        if error is not None or known is None:
            member.group_done(group, error)
            return
        channel = reply_channel(self._bus.mailbox, member.number)
        present = Present(channel, known.info, known.identified_at, 1)
        self._store.show(group, present, partial(self._stored_own, member, group))

    def _stored_own(self, member: UsersMember, group: str, error: str | None) -> None:
        if error is None and self._limit is not None:
            self._tasks.start_soon(self._keep_limit, member, group, self._limit)
        else:
            member.group_done(group, error)

    async def _keep_limit(self, member: UsersMember, group: str, limit: int) -> None:
        """Close the connections of a user that exceed the limit: every process comes to the same result."""
        error: str | None = None
        try:
            found: list[Present] = []
            page = await self._store.page(group)
            found += page.users
            while page.cursor is not None:
                page = await self._store.page(group, page.cursor)
                found += page.users
            since = {each.user: each.since for each in found}  # a connection may be on two pages
            channels = sorted(since, key=lambda channel: (since[channel], channel))
            own = reply_channel(self._bus.mailbox, member.number)
            # A newer connection may have been stored before this one, and have found room.
            close = channels[limit:] if self._newest_goes else channels[: max(0, len(channels) - limit)]
            for channel in close:
                local = split_local(channel)
                if local is not None:
                    self._log.count(
                        "user limit",
                        "a connection was closed: its user has more than --max-connections-per-user allows (%d)",
                        limit,
                    )
                    self._bus.post(local[0], (MESSAGE, local[1], close_message(*TOO_MANY)))
            if own in close and member.kind == WEBSOCKET:
                return  # the app gets a disconnect
            if own in close:  # it may be in a state in which only the app can end it, as a response that has not begun
                error = f"the user has over {limit} connections"
        except LayerUnavailable as unavailable:
            error = str(unavailable)
        member.group_done(group, error)

    def _add(self, member: UsersMember, group: str, join: bytes, leave: bytes) -> None:
        if member.user is None or not member.user.user:
            member.group_done(group, "nobody is known to be present: the app has to call `identify` before")
            return
        self._groups.add(member, group, partial(self._joined, member, group, join, leave))

    def _joined(self, member: UsersMember, group: str, join: bytes, leave: bytes, error: str | None) -> None:
        """Show the user, as this process has joined the group."""
        known = member.user
        if error is not None or known is None or group not in (member.groups or ()):  # it has left meanwhile
            member.group_done(group, error)
            return
        if join or leave:
            templates = [unpack_message(each) if each else None for each in (join, leave)]
            self._store.announce(group, Announcements(templates[0], templates[1], self._most_told))
        users = self._present.setdefault(group, {})
        local = users.get(known.user)
        if local is None:
            local = users[known.user] = _Local(time.time())
        local.info = known.info
        if group not in known.groups:
            known.groups.add(group)
            local.connections += 1
        # The member itself knows that it has joined.
        others = {EXCLUDE: reply_channel(self._bus.mailbox, member.number)}
        present = Present(known.user, local.info, local.since, local.connections)
        self._store.show(group, present, partial(self._shown, member, group), join=others)

    def _shown(self, member: UsersMember, group: str, error: str | None) -> None:
        if error is not None:
            self._log.count("presence not stored", "who is in group %r could not be stored: %s", group, error)
            self.discard(member, group)
        member.group_done(group, error)

    def _set_will(self, member: UsersMember, group: str, packed: bytes) -> None:
        known = member.user = member.user or UserOf()
        if known.has_will:
            self._wills -= 1
            self._store.clear_will(member.number)
        known.has_will = bool(packed)
        if not packed:
            member.group_done(WILL_SET, None)
            return
        self._wills += 1
        self._store.set_will(member.number, group, unpack_message(packed), partial(self._will_stored, member))

    def _will_stored(self, member: UsersMember, error: str | None) -> None:
        known = member.user
        if error is not None and known is not None and known.has_will:
            known.has_will = False
            self._wills -= 1
        member.group_done(WILL_SET, error)

    def discard(self, member: UsersMember, group: str) -> None:
        """Show the user in a group no more because of this connection, which leaves the group. There is no grace."""
        known = member.user
        if known is not None and group in known.groups:
            known.groups.discard(group)
            self._remove(group, known.user, 0.0)

    def remove_member(self, member: UsersMember) -> None:
        """Forget the user of a connection that has ended, and execute its will."""
        known, member.user = member.user, None
        if known is None:
            return
        for group in known.groups:
            self._remove(group, known.user, self._grace)
        if known.user:
            self._identified -= 1
            self._store.hide(user_group(known.user), reply_channel(self._bus.mailbox, member.number))
        if known.has_will:
            self._wills -= 1
            self._store.execute_will(member.number)

    def _remove(self, group: str, user: str, grace: float) -> None:
        local = self._present[group][user]
        local.connections -= 1
        if local.connections:
            self._show(group, user, local)
        elif grace:
            local.leaves_at = self._now + grace
            self._leaving.append(_Leave(local.leaves_at, group, user))
            self._show(group, user, local)
        else:
            self._leave(group, user)

    # Time.

    def tick(self, now: float) -> None:
        """Let the users leave whose grace has ended.

        Args:
            now: The time of the event loop in seconds.
        """
        self._now = now
        while self._leaving and self._leaving[0].at <= now:
            at, group, user = self._leaving.popleft()
            local = self._present.get(group, {}).get(user)
            if local is not None and not local.connections and local.leaves_at == at:
                self._leave(group, user)
        if self._settled is not None and not self._leaving:
            self._settled.set()

    async def settle(self) -> None:
        """Wait until all users have left whose connections have ended, and the others of their groups know it.

        The grace counts: clients may come back to another process while this one stops.
        """
        if not (self._identified or self._present or self._leaving or self._wills):
            return
        if self._leaving and self._store.lasts:
            self._settled = asyncio.Event()
            text = "waiting up to %g s for users (%d) who may come back at another interface server, before they leave"
            logger.info(text, self._grace, len({each.user for each in self._leaving}))
            await self._settled.wait()
        await self._store.settle()

    # The move to another process.

    def export(self) -> dict[str, Any]:
        """Return the users in groups, as `restore` takes them."""
        leaving = {(each.group, each.user): each.at for each in self._leaving}
        present = [
            {
                "group": group,
                "user": user,
                "info": local.info,
                "since": local.since,
                "connections": local.connections,
                "leaves_in": None if local.connections else leaving[group, user] - self._now,
            }
            for group, users in self._present.items()
            for user, local in users.items()
        ]
        return {"present": present, "identified": self._identified, "wills": self._wills}

    def restore(self, state: Mapping[str, Any], now: float) -> None:
        """Go on where another process has stopped.

        Args:
            state: The result of `export` there.
            now: The time of the event loop in seconds.
        """
        self._now = now
        self._identified, self._wills = state["identified"], state["wills"]
        leaving = []
        for each in state["present"]:
            local = self._present.setdefault(each["group"], {})[each["user"]] = _Local(each["since"])
            local.info, local.connections = listed(each["info"]), each["connections"]
            if each["leaves_in"] is not None:
                local.leaves_at = now + each["leaves_in"]
                leaving.append(_Leave(local.leaves_at, each["group"], each["user"]))
        self._leaving.extend(sorted(leaving))

    # The store.

    @property
    def _store(self) -> BusPresence:
        return self._bus.presence

    def _show(self, group: str, user: str, local: _Local) -> None:
        self._store.show(group, Present(user, local.info, local.since, local.connections))

    def _leave(self, group: str, user: str) -> None:
        users = self._present[group]
        del users[user]
        if not users:
            del self._present[group]
        self._store.hide(group, user)


def reply_name(event: Event) -> str:
    """Return the name in the GROUP_DONE that answers an event."""
    code: int = event[0]
    if code == SET_WILL:
        return WILL_SET
    return user_group(event[1]) if code == IDENTIFY else str(event[1])
