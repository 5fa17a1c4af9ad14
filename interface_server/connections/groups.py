"""Groups at the interface server: which of its connections are members, and the fan-out of a broadcast to them.

Redis knows only which mailboxes have members. The process joins a group with its first member and leaves it with its
last. Both are written in order by one writer, so the newest word wins.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from asgibus.interface_server.callback_tasks import CallbackTasks
from asgibus.interface_server.terminator import FAULT, cut
from asgibus.layers.contract import Message
from asgibus.layers.errors import LayerUnavailable
from asgibus.protocol.events import GROUP_ADD, OTHER_CLOSE, OTHER_SENT, encode

if TYPE_CHECKING:
    from asgibus.interface_server.connections.connection import Connection
    from asgibus.interface_server.connections.connection_life import Living
    from asgibus.interface_server.connections.registry import Connections

logger = logging.getLogger("asgibus.interface")

MOST_TYPES = 100  # of events that no member could take are told, each once


class _Group:
    """The members here of one group, and who waits until the process has joined it."""

    __slots__ = ("members", "waiting")

    def __init__(self) -> None:
        self.members: dict[Living, None] = {}
        self.waiting: list[Connection] | None = []  # None: joined


class Groups:
    """The groups that have members here."""

    tasks: CallbackTasks

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._groups: dict[str, _Group] = {}
        self._told: set[str] = set()

    def change(self, connection: Connection, code: int, name: str) -> None:
        """A member comes (GROUP_ADD) or goes; the connection is told when it is done."""
        if code == GROUP_ADD:
            self._add(connection, name)
        else:
            self._discard(connection, name)
            if connection.groups is not None:
                connection.groups.discard(name)
            connection.group_done(name, None)

    def forget(self, connection: Living) -> None:
        """A connection has ended, and with it its memberships."""
        for name in connection.groups or ():
            self._discard(connection, name)
        connection.groups = None

    def _add(self, connection: Connection, name: str) -> None:
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = _Group()
            self.tasks.start_soon(self._join, name, group)
        group.members[connection] = None
        if connection.groups is None:
            connection.groups = set()
        connection.groups.add(name)
        if group.waiting is None:
            connection.group_done(name, None)
        else:
            group.waiting.append(connection)

    async def _join(self, name: str, group: _Group) -> None:
        error: str | None = None
        try:
            await self._connections.bus.join_group(name)
        except LayerUnavailable as unavailable:
            error = str(unavailable)
            logger.warning("group %r could not be joined: %s", name, error)
            if self._groups.get(name) is group:
                del self._groups[name]
        except Exception as fault:  # whatever it is, the app that waits has to hear of it
            error = f"the layer failed: {type(fault).__name__}"
            logger.exception("group %r could not be joined", name)
            if self._groups.get(name) is group:
                del self._groups[name]
        waiting, group.waiting = group.waiting, None
        for connection in waiting or ():
            connection.group_done(name, error)

    def _discard(self, connection: Living, name: str) -> None:
        group = self._groups.get(name)
        if group is None:
            return
        group.members.pop(connection, None)
        if not group.members:
            del self._groups[name]
            self.tasks.start_soon(self._leave, name)

    async def _leave(self, name: str) -> None:
        try:
            await self._connections.bus.leave_group(name)
        except LayerUnavailable as error:  # harmless: the next broadcast finds no member here
            logger.info("group %r could not be left: %s", name, error)

    def broadcast(self, name: str, message: Message) -> None:
        """Write an event to every member here: encoded once, without waiting for anyone."""
        group = self._groups.get(name)
        if group is None:
            return
        try:
            event = encode(message)
        except (ValueError, TypeError) as error:
            self._connections.counts["bad message"] += 1
            logger.warning("a broadcast to group %r was dropped: %s", name, error)
            return
        shared: dict[str, Any] = {}
        counts = self._connections.counts
        before = counts["broadcast out of place"]
        for connection in list(group.members):
            try:
                connection.terminator.broadcast(event, shared)
            except Exception:  # the other members are to get it
                logger.exception(FAULT, cut(connection.terminator, counts))
        if event[0] in (OTHER_SENT, OTHER_CLOSE) and (missed := counts["broadcast out of place"] - before):
            self._tell(name, event[1], missed)

    def _tell(self, name: str, kind: str, missed: int) -> None:
        """Somebody takes this for a group of consumers, whose events the app would read."""
        if kind in self._told or len(self._told) >= MOST_TYPES:
            return
        self._told.add(kind)
        logger.warning(
            "%r to group %r was dropped for %d members here (said once for this type): what is sent to a group goes "
            "straight to clients, as websocket.send to WebSockets and as http.response.body to responses",
            kind,
            name,
            missed,
        )
