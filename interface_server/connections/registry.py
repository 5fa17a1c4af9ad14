"""The table of open connections, and the handler of the interface server's mailbox."""

from __future__ import annotations

import itertools
import logging
import random
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from asgibus.interface_server.callback_tasks import CallbackTasks
from asgibus.interface_server.connections.connection import Connection
from asgibus.interface_server.connections.connection_life import NO_WORKER, Living
from asgibus.interface_server.connections.groups import Groups
from asgibus.interface_server.connections.pending import Waiting
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.interface_server.terminator import FAULT, cut
from asgibus.layers.contract import Bus, Claim, Frame, Message
from asgibus.layers.frames import (
    ABANDONED,
    ACK,
    CLAIMED,
    EVENT,
    FIRST_PROTOCOL_KIND,
    GROUP_MESSAGE,
    MESSAGE,
    PROBE,
    RESEND,
    RESET,
    SUPERSEDED,
)
from asgibus.protocol.channels import shared_channel
from asgibus.protocol.checks import FROM_APP, BadFrame, check_frame
from asgibus.protocol.connect_request import HTTP, OPENING_VERSION, Address, Opening
from asgibus.protocol.events import Event, encode
from asgibus.protocol.retry import IDEMPOTENT, Ending, retry_delay
from asgibus.protocol.states import AppState, ConnectionState

if TYPE_CHECKING:
    from asgibus.interface_server.terminator import Holding, Terminator

logger = logging.getLogger("asgibus.interface")

DEAD_REMEMBERED = 100  # workers whose last words may still be on their way
SMALL_BYTES = 1024  # of events that are not worth a journey of their own: the head is as large
NO_ROOM_SECONDS = 1.0  # until an open connection is offered that found no room
PROBE_AGAIN_SECONDS = 3.0  # after an interruption: what others judge of us for longer, they judge from a later beat


_NUMBER = re.compile(r"[0-9]{1,19}\Z", re.ASCII)  # of a connection, in the name of its reply channel


class RequestHead(Protocol):
    """The head of a request, as an `Opening` carries it to a worker."""

    kind: str
    http_version: str
    method: str
    scheme: str
    raw_path: bytes
    query_string: bytes
    headers: list[tuple[bytes, bytes]]
    client: Address | None
    server: Address | None
    subprotocols: tuple[str, ...]
    extensions: dict[str, Any]
    expects_continue: bool


class Connections:
    """Every open connection by its number; opens them on the bus and hands them what comes back."""

    bus: Bus
    """The bus, once the server is on it."""

    def __init__(self, settings: InterfaceSettings) -> None:
        self._settings = settings
        self._numbers = itertools.count(1)
        self._open: dict[int, Connection] = {}
        self._suspects: set[str] = set()  # workers who had no mailbox when something was posted to them
        self._dead_workers: dict[str, None] = {}  # the latest ones
        self._probe_again: float | None = None
        self._away_since: float | None = None
        self._held: list[Holding] = []
        self.groups = Groups(self)
        self.counts: Counter[str] = Counter()
        """What was dropped or refused, by kind."""
        self._waiting = Waiting(settings, self.counts)
        self.now = 0.0
        """The event loop's time, as of the last tick."""

    def __len__(self) -> int:
        return len(self._open)

    def on_bus(self, bus: Bus, tasks: CallbackTasks) -> None:
        """Take a place on the bus; `tasks` are to end before that does."""
        self.bus = bus
        self.groups.tasks = tasks

    def open(self, request: RequestHead, terminator: Terminator, events: tuple[Event, ...]) -> Connection:
        """Offer a connection to the workers of its pool, with its first events."""
        kind = request.kind
        connection = Connection(self, next(self._numbers), kind, self._settings.window, terminator, self.now)
        for event in events:
            connection.sent(event)
        bus = self.bus
        opening = Opening(
            OPENING_VERSION,
            bus.mailbox,
            connection.number,
            connection.attempt,
            False,
            0,
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
        connection.opening = opening
        self._open[connection.number] = connection
        self._waiting.add(connection)
        once = kind == HTTP and request.method not in IDEMPOTENT
        pool = self._settings.pool_of(request.raw_path)
        if self._waiting.has_room(pool):
            self._offer(connection, opening, pool, once=once)
        else:
            self._waiting.refuse(connection)
        return connection

    def open_other(
        self,
        kind: str,
        scope: dict[str, Any],
        terminator: Terminator,
        events: tuple[Event, ...] = (),
        *,
        window: int | None = None,
    ) -> Connection:
        """Offer a connection of a protocol that is neither HTTP nor WebSocket, which is open from the start.

        `scope` is what the app gets, less `type` and `asgi`. `window` are the bytes that may be under way to the app,
        and from it; by default those of the option.
        """
        connection = Connection(self, next(self._numbers), kind, window or self._settings.window, terminator, self.now)
        for event in events:
            connection.sent(event)
        connection.opening = Opening(
            version=OPENING_VERSION,
            interface=self.bus.mailbox,
            connection=connection.number,
            attempt=connection.attempt,
            resumed=False,
            handled=0,
            window=connection.window,
            kind=kind,
            events=events,
            scope=scope,
        )
        self._open[connection.number] = connection
        self._waiting.add(connection)
        if self._waiting.has_room(self._settings.pool):
            self._offer(connection, connection.opening, self._settings.pool)
        else:
            self._waiting.refuse(connection)
        return connection

    def reopen(self, connection: Living, opening: Opening) -> None:
        """Offer a connection for a further run of the app."""
        self._waiting.remove(connection)  # so that it stands last
        self._waiting.add(connection, is_open=connection.accepted)
        connection.offered_at = self.now
        delay = retry_delay(connection.crashes, random.random())
        if delay:
            self._waiting.delay(connection, self.now + delay)
        else:
            self.offer(connection, opening)

    def offer(self, connection: Living, opening: Opening) -> None:
        """Put the opening of a further run on the shared channel of its pool, once there is room for it."""
        pool = self._settings.pool_of(opening.raw_path)
        if self._waiting.has_room(pool):
            self._offer(connection, opening, pool)
        else:
            self._waiting.delay(connection, self.now + NO_ROOM_SECONDS)

    def _offer(self, connection: Living, opening: Opening, pool: str, *, once: bool = False) -> None:
        """Offer a connection; its events wait here for a worker if too many bytes wait in the layer."""
        if connection.in_flight > SMALL_BYTES and not self._waiting.has_room(pool, connection.in_flight):
            self.counts["body withheld"] += 1
            connection.withhold()
            opening = opening._replace(events=())
        connection.offer = self.bus.offer(shared_channel(opening.kind, pool), opening, once=once)
        self._waiting.offered(connection, pool, connection.offer.size)

    # What a connection asks for.

    def joined(self, connection: Living) -> None:
        """A worker has taken it."""
        self._waiting.remove(connection)
        if connection.owner in self._dead_workers:  # what it wrote last came behind the news of its death
            self._suspects.add(connection.owner)
        offer, connection.offer = connection.offer, None
        if offer is not None:
            offer.taken = True

    def withdraw(self, connection: Living) -> bool:
        """Take its offer back, if there is one. False if it may have been claimed all the same."""
        offer, connection.offer = connection.offer, None
        return offer is None or self.bus.withdraw(offer)

    def left(self, connection: Living) -> None:
        """Its client is gone, and with it its memberships."""
        if connection.groups:
            self.groups.forget(connection)

    def left_early(self, connection: Living) -> None:
        """Its client is gone before a worker named itself, and no app need hear of that unless one has it already."""
        self.withdraw(connection)
        self._waiting.left(connection, self.now)

    def ended(self, connection: Living) -> None:
        """It has ended."""
        self._waiting.remove(connection)
        self._open.pop(connection.number, None)
        if connection.groups:
            self.groups.forget(connection)

    def missed(self, mailbox: str, resend: Frame) -> None:
        """Ask a worker for events that are missing."""
        self.counts["gap"] += 1
        self.bus.post(mailbox, resend)

    def hold(self, terminator: Holding) -> None:
        """Call the terminator's `flush` when the batch is through."""
        self._held.append(terminator)

    # Handler of the mailbox.

    def batch(self, sender: str, frames: Sequence[Frame]) -> None:
        """Frames of a worker, or a public message or broadcast."""
        for frame in frames:
            try:
                check_frame(frame, FROM_APP)
                self._frame(sender, frame)
            except BadFrame as error:
                self.counts["bad frame"] += 1
                level = logging.ERROR if self.counts["bad frame"] == 1 else logging.INFO  # it may come without end
                logger.log(level, "a frame from %s was dropped: %s", sender or "the layer", error)
            except Exception:  # a fault in one connection must not reach the others of the batch
                logger.exception("a frame of kind %r from %s was dropped", frame[0], sender or "the layer")
                self.counts["fault"] += 1
                if frame[0] >= FIRST_PROTOCOL_KIND and frame[1] in self._open:
                    with suppress(Exception):  # what is at fault may not even do that
                        self._open[frame[1]].terminator.abort()
        if self._held:
            held, self._held = self._held, []
            for terminator in held:
                try:
                    terminator.flush()
                except Exception:  # the others are to get theirs
                    logger.exception(FAULT, cut(terminator, self.counts))

    def _frame(self, sender: str, frame: Frame) -> None:
        kind = frame[0]
        if kind < FIRST_PROTOCOL_KIND:
            if kind == MESSAGE:
                self._message(frame[1], frame[2])
            elif kind == GROUP_MESSAGE:
                self.groups.broadcast(frame[1], frame[2])
            else:
                self._dead(frame[1])
            return
        connection = self._open.get(frame[1])
        if kind == ABANDONED:
            if connection is not None and connection.attempt == frame[2] and not connection.owner:
                connection.run_ended(Ending.ABANDONED)
        elif connection is None or connection.attempt != frame[2] or not connection.owned_by(sender):
            if kind == EVENT or kind == CLAIMED or kind == PROBE:
                self.bus.post(sender, (RESET if connection is None else SUPERSEDED, frame[1], frame[2]))
        elif kind == EVENT:
            connection.frame(frame)
        elif kind == ACK:
            connection.acknowledgement(frame[3])
        elif kind == RESET:
            self.counts["reset"] += 1
            connection.run_ended(Ending.FORGOTTEN)
        elif kind == RESEND:
            self.counts["repeated"] += 1
            connection.repeat(frame[3])
        elif kind == PROBE:
            self.bus.post(sender, connection.probed(frame[3]))
        elif kind != CLAIMED:
            logger.error("a frame of unknown kind %r from %s was dropped", kind, sender)

    def _dead(self, mailbox: str) -> None:
        """A worker is gone: others go on with what it served, where that is possible."""
        self._suspects.discard(mailbox)
        self._dead_workers[mailbox] = None
        if len(self._dead_workers) > DEAD_REMEMBERED:
            del self._dead_workers[next(iter(self._dead_workers))]
        lost = [connection for connection in self._open.values() if connection.owner == mailbox]
        for connection in lost:
            connection.run_ended(Ending.KILLED)
        if lost:
            again = sum(connection.life is ConnectionState.OFFERED for connection in lost)
            logger.warning(
                "the worker %s is dead: of its %d connections here, %d were offered to other workers",
                mailbox,
                len(lost),
                again,
            )

    def undelivered(self, mailbox: str) -> None:
        """See `Handler`."""
        self._suspects.add(mailbox)

    def interrupted(self) -> None:
        """See `Handler`."""
        joined = self._probe()
        self._probe_again = self.now + PROBE_AGAIN_SECONDS
        self._waiting.interrupted(self.now)
        self.counts["interruption"] += 1
        logger.warning("the bus was interrupted: %d connections are checked with their workers", joined)

    def _probe(self) -> int:
        """Ask every worker whether it has all that was sent to it; for how many connections."""
        owned = [connection for connection in self._open.values() if connection.owner]
        for connection in owned:
            self.bus.post(connection.owner, connection.probe())
        return len(owned)

    def orphaned(self, claim: Claim) -> None:
        """See `Handler`: an interface server claims nothing."""

    def _message(self, local: str, message: Message) -> None:
        connection = self._open.get(int(local)) if _NUMBER.match(local) else None
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
        """Look after what waits: for a worker, for a second question to all workers, for the layer."""
        self.now = now
        self._waiting.tick(self.bus, now)
        for connection in self._waiting.due(now):
            self.offer(connection, connection.whole_opening)
        if self._probe_again is not None and self._probe_again <= now:
            self._probe_again = None
            self._probe()
        if self.bus.available:
            self._away_since = None
        elif self._away_since is None:
            self._away_since = now
        elif now - self._away_since > self._settings.resume_timeout:
            self._end_all(now)

    def _end_all(self, now: float) -> None:
        """The layer is away for too long: nobody can say when the connections would go on."""
        self._away_since = now
        joined = [connection for connection in self._open.values() if connection.life is ConnectionState.JOINED]
        for connection in joined:
            connection.fail(NO_WORKER)
        if joined:
            self.counts["layer away"] += len(joined)
            seconds = self._settings.resume_timeout
            logger.error("the channel layer is away for %g s: %d connections were ended", seconds, len(joined))

    def check(self, *, stalled: bool) -> None:
        """Tell the workers what was written since they last heard of it, and ask those who may have missed something.

        `stalled`: ask also where nothing was acknowledged for a while.
        """
        suspects, self._suspects = self._suspects, set()
        for connection in self._open.values():
            if connection.untold and connection.app is not AppState.COMPLETE:
                connection.acknowledge()
            if connection.owner in suspects or (stalled and connection.stalled() and connection.owner):
                self.bus.post(connection.owner, connection.probe())
