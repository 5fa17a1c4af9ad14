"""The table of open connections, and the handler of the interface server's mailbox."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from anyio.abc import TaskGroup

from asgibus.interface_server.connection import NO_WORKER, WORKER_LOST, Connection
from asgibus.interface_server.groups import Groups
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.layers.contract import FIRST_PROTOCOL_KIND, GROUP_MESSAGE, MESSAGE, Bus, Frame, Message
from asgibus.protocol.channels import shared_channel
from asgibus.protocol.events import Event, encode
from asgibus.protocol.frames import ACK, EVENT, OWN, RESEND, RESET
from asgibus.protocol.opening import OPENING_VERSION, Opening
from asgibus.protocol.states import App, Life

if TYPE_CHECKING:
    from asgibus.interface_server.request import Request
    from asgibus.interface_server.terminator import Terminator

logger = logging.getLogger("asgibus.interface")


class Connections:
    """Every open connection by its number; opens them on the bus and hands them what comes back."""

    def __init__(self, settings: InterfaceSettings) -> None:
        self._settings = settings
        self._bus: Bus | None = None
        self._numbers = itertools.count(1)
        self._open: dict[int, Connection] = {}
        self._offered: dict[int, Connection] = {}  # in the order of their opening, so the oldest stands first
        self._held: list[Terminator] = []
        self.groups = Groups(self)
        self.counts: Counter[str] = Counter()
        """What was dropped or refused, by kind."""
        self.now = 0.0
        """The event loop's time, as of the last tick."""

    def __len__(self) -> int:
        return len(self._open)

    @property
    def bus(self) -> Bus:
        """The bus, once the server is on it."""
        assert self._bus is not None
        return self._bus

    def on_bus(self, bus: Bus, tasks: TaskGroup) -> None:
        """The server has its place on the bus; `tasks` lives as long as that."""
        self._bus = bus
        self.groups.tasks = tasks

    def open(self, request: Request, terminator: Terminator, events: tuple[Event, ...]) -> Connection:
        """Offer a connection to the workers of its pool, with its first events."""
        kind = request.kind
        connection = Connection(self, next(self._numbers), kind, self._settings.window, terminator, self.now)
        for event in events:
            connection.sent(event)
        bus = self.bus
        opening = Opening(
            OPENING_VERSION,
            bus.mailbox,
            bus.epoch,
            connection.number,
            connection.attempt,
            connection.window,
            kind,
            request.http_version,
            request.method,
            request.scheme,
            request.raw_path,
            request.query_string,
            self._settings.root_path,
            tuple(request.headers),
            request.client,
            request.server,
            request.subprotocols,
            request.extensions,
            request.expects_continue,
            events,
            b"",
        )
        self._open[connection.number] = connection
        self._offered[connection.number] = connection
        connection.offer = bus.offer(shared_channel(kind, self._pool(request.raw_path)), opening)
        return connection

    def _pool(self, raw_path: bytes) -> str:
        for prefix, pool in self._settings.routes:
            if raw_path.startswith(prefix.encode()):
                return pool
        return self._settings.pool

    # What a connection asks for.

    def post(self, mailbox: str, frame: Frame, counted: int = 0) -> None:
        """Post a frame to a worker."""
        self.bus.post(mailbox, frame, counted)

    def joined(self, connection: Connection) -> None:
        """A worker has taken it."""
        self._offered.pop(connection.number, None)

    def withdraw(self, connection: Connection) -> None:
        """Take its offer back."""
        if connection.offer is not None:
            self.bus.withdraw(connection.offer)

    def ended(self, connection: Connection) -> None:
        """It has ended."""
        self._offered.pop(connection.number, None)
        self._open.pop(connection.number, None)
        if connection.groups:
            self.groups.forget(connection)

    def hold(self, terminator: Terminator) -> None:
        """Call the terminator's `flush` when the batch is through."""
        self._held.append(terminator)

    # Handler of the mailbox.

    def batch(self, sender: str, epoch: str, frames: Sequence[Frame]) -> None:
        """Frames of a worker, or a public message or broadcast."""
        for frame in frames:
            try:
                self._frame(sender, frame)
            except Exception:  # a fault in one connection must not reach the others of the batch
                logger.exception("a frame of kind %r from %s was dropped", frame[0], sender or "the layer")
                self.counts["fault"] += 1
                if frame[0] >= FIRST_PROTOCOL_KIND and frame[1] in self._open:
                    self._open[frame[1]].terminator.abort()
        if self._held:
            held, self._held = self._held, []
            for terminator in held:
                terminator.flush()

    def _frame(self, sender: str, frame: Frame) -> None:
        kind = frame[0]
        if kind == MESSAGE:
            self._message(frame[1], frame[2])
            return
        if kind == GROUP_MESSAGE:
            self.groups.broadcast(frame[1], frame[2])
            return
        connection = self._open.get(frame[1])
        if connection is None or connection.attempt != frame[2] or not connection.owned_by(sender):
            if kind == EVENT or kind == OWN:
                self.post(sender, (RESET, frame[1], frame[2]))
        elif kind == EVENT:
            connection.frame(frame)
        elif kind == ACK:
            connection.acknowledgement(frame[3])
        elif kind == RESET:
            self.counts["reset"] += 1
            connection.give_up(WORKER_LOST)
        elif kind == RESEND:
            connection.repeat(frame[3])
        elif kind != OWN:
            logger.error("a frame of unknown kind %r from %s was dropped", kind, sender)

    def unreachable(self, mailbox: str) -> None:
        """A worker is gone."""
        lost = [connection for connection in self._open.values() if connection.owner == mailbox]
        if lost:
            logger.warning("the worker %s is gone, and with it %d connections", mailbox, len(lost))
        for connection in lost:
            connection.give_up(WORKER_LOST)

    def _message(self, local: str, message: Message) -> None:
        connection = self._open.get(int(local)) if local.isdigit() else None
        if connection is None:
            self.counts["message to nobody"] += 1
            logger.debug("a message for %r was dropped: it is not open here", local)
            return
        try:
            taken = connection.plain(encode(message))
        except (ValueError, TypeError) as error:
            self.counts["bad message"] += 1
            logger.warning("a message for connection %s was dropped: %s", local, error)
            return
        if not taken:
            self.counts["message out of place"] += 1
            logger.warning("a %s for connection %s was dropped: it is %s", message["type"], local, connection.app.value)

    # The passing of time.

    def tick(self, now: float) -> None:
        """Give up what no worker took in time."""
        self.now = now
        limit = now - self._settings.connect_timeout
        unserved = 0
        while self._offered:
            connection = next(iter(self._offered.values()))
            if connection.offered_at > limit:
                break
            unserved += connection.life is Life.OFFERED
            connection.give_up(NO_WORKER)
        if unserved:
            self.counts["no worker"] += unserved
            seconds = self._settings.connect_timeout
            logger.warning(
                "no worker took %d connections within %g s: is one running for their pool?", unserved, seconds
            )

    def acknowledge(self) -> None:
        """Tell the workers what was written since they last heard of it."""
        for connection in self._open.values():
            if connection.untold and connection.app is not App.COMPLETE:
                connection.acknowledge()
