"""The groups that have members in this process, and the fan-out of a broadcast to them.

The store only knows which mailboxes have members. This process joins a group with its first member and leaves the group
with its last. One writer sends both commands in order, so the latest one is in force.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from asgibus.interface_server.callback_tasks import CallbackTasks
from asgibus.interface_server.terminator import FAULT, abort_faulty
from asgibus.layers.contract import Bus, Message
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.presence import CLOSE_TYPE, close_message
from asgibus.layers.streams.past import KEPT, group_past
from asgibus.protocol.connect_request import reply_channel
from asgibus.protocol.counted_log import CountedLog
from asgibus.protocol.events import EXCLUDE, GROUP_ADD, OTHER_CLOSE, OTHER_SENT, encode

if TYPE_CHECKING:
    from asgibus.interface_server.terminator import Terminator

logger = logging.getLogger("asgibus.interface")

WARNED_TYPES = 100  # event types that are logged, each once, when members cannot write them


class Member(Protocol):
    """A connection, as its groups see it."""

    number: int
    terminator: Terminator
    groups: set[str] | None

    @property
    def follows(self) -> Mapping[str, object] | None:
        """The streams that it follows, by name."""

    def group_done(self, group: str, error: str | None) -> None:
        """Answer the oldest request of the app for that group."""

    def close(self, code: int, reason: str) -> bool:
        """Close the connection, as the app could. Return False if it cannot be closed in its state."""


OnJoined = Callable[[str | None], None]


class _Group:
    """The members of one group in this process, and those that wait until the process has joined it."""

    __slots__ = ("members", "waiting")

    def __init__(self) -> None:
        self.members: dict[Member, None] = {}
        self.waiting: list[OnJoined] | None = []  # None: joined


class Groups:
    """The groups that have members in this process.

    Args:
        log: Counts and logs dropped broadcasts.
    """

    def __init__(self, log: CountedLog) -> None:
        self._log = log
        self._counts = log.counts
        self._groups: dict[str, _Group] = {}
        self._warned: set[str] = set()
        self._bus: Bus
        self._tasks: CallbackTasks

    def on_bus(self, bus: Bus, tasks: CallbackTasks) -> None:
        """Join and leave groups on that bus.

        Args:
            bus: The bus.
            tasks: Runs the joining and leaving.
        """
        self._bus = bus
        self._tasks = tasks

    def change(self, member: Member, code: int, name: str) -> None:
        """Add a member to a group (GROUP_ADD) or remove it, and call its `group_done` afterwards."""
        if code == GROUP_ADD:
            self.add(member, name, partial(member.group_done, name))
        else:
            self._discard(member, name)
            if member.groups is not None:
                member.groups.discard(name)
            member.group_done(name, None)

    def remove_member(self, member: Member) -> None:
        """Remove a member from all its groups, because its connection has ended."""
        for name in member.groups or ():
            self._discard(member, name)
        member.groups = None

    def restore_member(self, member: Member) -> None:
        """Add a member of another process to its groups, which this process has joined already."""
        for name in member.groups or ():
            group = self._groups.get(name)
            if group is None:
                group = self._groups[name] = _Group()
                group.waiting = None
            group.members[member] = None

    def add(self, member: Member, name: str, on_joined: OnJoined) -> None:
        """Add a member to a group.

        Args:
            member: The member.
            name: The group, of an app or an internal one.
            on_joined: Called with None once the member gets what is sent, or with the reason why it does not.
        """
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = _Group()
            self._tasks.start_soon(self._join, name, group)
        group.members[member] = None
        if member.groups is None:
            member.groups = set()
        member.groups.add(name)
        if group.waiting is None:
            on_joined(None)
        else:
            group.waiting.append(on_joined)

    async def _join(self, name: str, group: _Group) -> None:
        error: str | None = None
        try:
            await self._bus.join_group(name)
        except LayerUnavailable as unavailable:
            error = str(unavailable)
            self._log.count("group not joined", "group %r could not be joined: %s", name, error)
        except Exception as fault:  # whatever it is, the app must get an answer
            error = f"the layer failed: {type(fault).__name__}"
            self._counts["group not joined"] += 1
            logger.exception("group %r could not be joined", name)
        if error is not None and self._groups.get(name) is group:
            del self._groups[name]
        waiting, group.waiting = group.waiting, None
        for on_joined in waiting or ():
            on_joined(error)

    def _discard(self, member: Member, name: str) -> None:
        group = self._groups.get(name)
        if group is None:
            return
        group.members.pop(member, None)
        if not group.members:
            del self._groups[name]
            self._tasks.start_soon(self._leave, name)

    async def _leave(self, name: str) -> None:
        try:
            await self._bus.leave_group(name)
        except LayerUnavailable as error:  # harmless: the next broadcast finds no member here
            logger.info("group %r could not be left: %s", name, error)

    def broadcast(self, name: str, message: Message) -> None:
        """Write a message to every member in this process. It is encoded once, and no member is waited for.

        Args:
            name: The group.
            message: A plain ASGI event, which may name a member that does not get it (EXCLUDE).
        """
        group = self._groups.get(name)
        if group is None:
            return
        if message.get("type") == CLOSE_TYPE:
            self._close(name, list(group.members), message)
            return
        try:
            event = encode(message)
        except (ValueError, TypeError) as error:
            self._log.count("bad message", "a broadcast to group %r was dropped: %s", name, error)
            return
        members = list(group.members)
        if EXCLUDE in message:
            excluded = message[EXCLUDE]
            members = [each for each in members if reply_channel(self._bus.mailbox, each.number) != excluded]
        if KEPT in message:
            past = group_past(name)  # those that follow it get the message from there
            members = [each for each in members if past not in (each.follows or ())]
        shared: dict[str, Any] = {}
        before = self._counts["broadcast out of place"]
        for member in members:
            try:
                member.terminator.broadcast(event, shared)
            except Exception:  # the other members still get the broadcast
                logger.exception(FAULT, abort_faulty(member.terminator, self._counts))
        if event[0] in (OTHER_SENT, OTHER_CLOSE) and (dropped := self._counts["broadcast out of place"] - before):
            self._warn_once(name, event[1], dropped)

    def _close(self, name: str, members: list[Member], message: Message) -> None:
        """Close connections, because someone has asked for it."""
        try:
            close = close_message(message.get("code"), message.get("reason"))
        except (TypeError, ValueError) as error:
            self._log.count("bad message", "a close of group %r was dropped: %s", name, error)
            return
        for member in members:
            try:
                member.close(close["code"], close["reason"])
            except Exception:  # the other members are still closed
                logger.exception(FAULT, abort_faulty(member.terminator, self._counts))

    def _warn_once(self, name: str, kind: str, dropped: int) -> None:
        """Explain to authors who expect a group of consumers, where the app would receive the events."""
        if kind in self._warned or len(self._warned) >= WARNED_TYPES:
            return
        self._warned.add(kind)
        logger.warning(
            "%r to group %r was dropped for %d members here (logged once for this type): messages to a group go "
            "straight to clients, as websocket.send to WebSockets and as http.response.body to responses",
            kind,
            name,
            dropped,
        )
