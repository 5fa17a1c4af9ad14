"""The registry of open connections. It offers them to workers and handles the mailbox of the interface server."""

from __future__ import annotations

import itertools
import logging
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

from asgibus.interface_server.callback_tasks import CallbackTasks
from asgibus.interface_server.connections.connection import NO_WORKER, Connection
from asgibus.interface_server.connections.followers import GROUP_PREFIX, Followers, ReadPage
from asgibus.interface_server.connections.groups import Groups
from asgibus.interface_server.connections.keyed_offers import KeyedOffers
from asgibus.interface_server.connections.pending import PendingConnections
from asgibus.interface_server.connections.presence import Users
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.interface_server.terminator import FAULT, abort_faulty
from asgibus.layers.codec import pack
from asgibus.layers.contract import Bus, Frame, Handler, Message
from asgibus.layers.frames import ABANDONED, DECLINED, FIRST_PROTOCOL_KIND, GROUP_MESSAGE, MESSAGE
from asgibus.layers.presence import CLOSE_TYPE, close_message
from asgibus.protocol.channels import shared_channel
from asgibus.protocol.checks import FROM_APP
from asgibus.protocol.connect_request import HTTP, REQUEST_VERSION, ConnectRequest, RequestHead, is_taken_over
from asgibus.protocol.counted_log import CountedLog
from asgibus.protocol.events import Event, encode
from asgibus.protocol.retry import IDEMPOTENT, RunEnd, retry_delay
from asgibus.protocol.router import StreamRouter
from asgibus.protocol.states import ConnectionState

if TYPE_CHECKING:
    from asgibus.interface_server.terminator import Flushable, Terminator

logger = logging.getLogger("asgibus.interface")

DEAD_REMEMBERED = 100  # workers that died lately: their last frames may still arrive
SMALL_BYTES: Final = 1024  # of events that always travel in the offer: the head of the request is as large
_SERVED: Final = (ConnectionState.JOINED, ConnectionState.DETACHED)
NO_ROOM_SECONDS = 1.0  # until an open connection for which there was no room is offered again

_NUMBER = re.compile(r"[0-9]{1,19}\Z", re.ASCII)  # the number of a connection, in the name of its reply channel


class ConnectionRegistry(Handler):
    """The open connections by their numbers.

    Args:
        settings: The settings of the server.
    """

    bus: Bus
    """The place on the bus; set by `on_bus`."""

    def __init__(self, settings: InterfaceSettings) -> None:
        self._settings = settings
        self._routes = [(prefix.encode(), pool) for prefix, pool in settings.routes]
        self._numbers = itertools.count(1)
        self._open: dict[int, Connection] = {}
        self._dead_workers: dict[str, int] = {}  # with the numbers of their deaths; the latest ones last
        self.deaths = 0
        """The number of deaths of workers that are known."""
        self._away_since: float | None = None
        self._to_flush: list[Flushable] = []
        self.counts: Counter[str] = Counter()
        """Dropped and refused items by kind; exported as metrics."""
        self.log = CountedLog(self.counts, logger, monotonic)
        """Counts what should not happen, and logs it at a limited rate."""
        self._router = StreamRouter(self, FROM_APP, self.log)
        self._pending = PendingConnections(settings, self.log)
        self.groups = Groups(self.log)
        self.followers = Followers(self.log, settings.max_follows, settings.stream_keep_alive)
        self.users = Users(settings, self.groups, self.log)
        self._keyed = KeyedOffers(settings, self) if settings.affinity else None
        self.now = 0.0
        """The time of the event loop at the last tick, in seconds."""

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Connection]:
        return iter([*self._open.values()])

    def on_bus(self, bus: Bus, tasks: CallbackTasks, read_page: ReadPage) -> None:
        """Take a place on the bus.

        Args:
            bus: The bus.
            tasks: Runs the joining and leaving of groups. It has to end before the place on the bus does.
            read_page: Reads a page of a stream.
        """
        self.bus = self._router.bus = bus
        self.groups.on_bus(bus, tasks)
        self.followers.on_bus(bus, tasks, read_page, self.now)
        self.users.on_bus(bus, tasks)
        if self._keyed is not None:
            self._keyed.on_bus(tasks, self.now)

    # Offers.

    def open(self, request: RequestHead, terminator: Terminator, events: tuple[Event, ...]) -> Connection:
        """Offer a request or a WebSocket to the workers of its pool.

        Args:
            request: The head of the request.
            terminator: The protocol side of the connection.
            events: The client's first events.
        """
        kind = request.kind
        connection = self._add(kind, self._settings.window, terminator, events)
        stream = connection.stream
        # As `_make` does: every request passes here, and calling the class takes a microsecond.
        fields = (
            REQUEST_VERSION,
            self.bus.mailbox,
            connection.number,
            stream.attempt,
            False,
            0,
            stream.window,
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
            None,
        )
        connection.request = tuple.__new__(ConnectRequest, fields)
        once = kind == HTTP and request.method not in IDEMPOTENT
        self._offer_first(connection, connection.request, self._pool_of(request.raw_path), once=once)
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
        """See `BusConnections`."""
        pack(scope)  # for the TypeError: an offer is packed without this check
        connection = self._add(kind, window or self._settings.window, terminator, events)
        connection.request = ConnectRequest(
            version=REQUEST_VERSION,
            interface=self.bus.mailbox,
            connection=connection.number,
            attempt=connection.stream.attempt,
            resumed=False,
            handled=0,
            window=connection.stream.window,
            kind=kind,
            events=events,
            scope=scope,
        )
        self._offer_first(connection, connection.request, self._settings.pool, once=False)
        return connection

    def _add(self, kind: str, window: int, terminator: Terminator, events: tuple[Event, ...]) -> Connection:
        connection = Connection(self, next(self._numbers), kind, window, terminator, self.now)
        for event in events:
            connection.stream.send(event)
        self._open[connection.number] = connection
        return connection

    def _offer_first(self, connection: Connection, request: ConnectRequest, pool: str, *, once: bool) -> None:
        self._pending.add(connection)
        if self._pending.has_room(pool):
            self._offer(connection, request, pool, once=once)
        else:
            self._pending.refuse(connection)

    def _pool_of(self, raw_path: bytes) -> str:
        """Return the pool whose workers serve a path."""
        if self._routes:
            path = unquote_to_bytes(raw_path)  # as the app sees it: one path may be written in many ways
            for prefix, pool in self._routes:
                if path.startswith(prefix):
                    return pool
        return self._settings.pool

    def offer_again(self, connection: Connection, request: ConnectRequest) -> None:
        """See `ConnectionHost`. A connection whose workers have crashed waits first."""
        self._pending.remove(connection)  # it goes to the end of the queue
        self._pending.add(connection, is_open=connection.accepted)
        connection.offered_at = self.now
        if delay := retry_delay(connection.crashes, random.random()):
            self._pending.delay(connection, self.now + delay)
        else:
            self._offer_further(connection, request)

    def _offer_further(self, connection: Connection, request: ConnectRequest) -> None:
        """Offer a connection for a further run, once there is room for it."""
        pool = self._pool_of(request.raw_path)
        if is_taken_over(request) and not self._pending.takeovers.begin(connection, pool, self.now):
            return
        if self._pending.has_room(pool):
            self._offer(connection, request, pool, once=False)
        else:
            self._pending.delay(connection, self.now + NO_ROOM_SECONDS)

    def _offer_next(self) -> None:
        """Offer the connections of dead workers whose turn it is."""
        while (connection := self._pending.next_takeover(self.now)) is not None:
            self._offer_further(connection, connection.unpack_request())

    def _offer(self, connection: Connection, request: ConnectRequest, pool: str, *, once: bool) -> None:
        """Offer a connection. Its events wait in this process if too many bytes are unclaimed in the layer."""
        in_flight = connection.stream.in_flight
        if in_flight > SMALL_BYTES and not self._pending.has_room(pool, in_flight):
            self.counts["body withheld"] += 1
            connection.withhold()
            request = request._replace(events=())
        if self._keyed is None or not self._keyed.offer(connection, request, pool, once=once):
            connection.offer = self.bus.offer(shared_channel(request.kind, pool), request, once=once)
            self._pending.count_offer(connection, pool, connection.offer.size)

    def count_offer(self, connection: Connection, pool: str, size: int) -> None:
        """See `Offering`."""
        self._pending.count_offer(connection, pool, size)

    def is_open(self, number: int) -> bool:
        """See `Offering`."""
        return number in self._open

    def died_since(self, mailbox: str, deaths: int) -> bool:
        """See `Offering`."""
        return self._dead_workers.get(mailbox, 0) > deaths

    def withdraw(self, connection: Connection) -> bool:
        """See `ConnectionHost`."""
        offer, connection.offer = connection.offer, None
        return offer is None or self.bus.withdraw(offer)

    # Called by connections.

    def on_claimed(self, connection: Connection) -> None:
        """See `ConnectionHost`."""
        self._pending.remove(connection)
        if connection.peer in self._dead_workers:  # its frame was written before the worker died, and arrived later
            self._router.mailbox_missing(connection.peer)
        offer, connection.offer = connection.offer, None
        if offer is not None:
            offer.taken = True
        if self._pending.takeovers.waiting:
            self._offer_next()

    def on_abandoned(self, connection: Connection) -> None:
        """See `ConnectionHost`."""
        self.withdraw(connection)
        if self._keyed is not None:
            self._keyed.abandoned(connection)
        self._pending.abandon(connection, self.now)

    def on_ended(self, connection: Connection) -> None:
        """See `ConnectionHost`."""
        if connection.queue is not None:
            self._pending.remove(connection)
            if self._keyed is not None:
                self._keyed.abandoned(connection)
        self._open.pop(connection.number, None)
        if connection.groups:
            self.groups.remove_member(connection)
        if connection.follows:
            self.followers.remove(connection)
        if connection.user is not None:
            self.users.remove_member(connection)

    def flush_later(self, terminator: Flushable) -> None:
        """Call the terminator's `flush` at the end of the current batch."""
        self._to_flush.append(terminator)

    # Handler of the mailbox.

    def batch(self, sender: str, frames: Sequence[Frame]) -> None:
        """See `Handler`."""
        self._router.batch(sender, frames)
        if self._to_flush:
            to_flush, self._to_flush = self._to_flush, []
            for terminator in to_flush:
                try:
                    terminator.flush()
                except Exception:  # the other sockets are still flushed
                    logger.exception(FAULT, abort_faulty(terminator, self.counts))

    def accept(self, sender: str, number: int, attempt: int) -> Connection | None:
        """See `Endpoints`. The first worker that sends a frame for a run becomes its owner."""
        connection = self._open.get(number)
        if connection is None or connection.stream.attempt != attempt:
            return None
        if connection.peer != sender:
            if connection.peer:
                return None
            connection.accept_owner(sender)
        return connection

    def is_superseded(self, sender: str, number: int) -> bool:
        """See `Endpoints`."""
        return number in self._open

    def on_other_frame(self, sender: str, frame: Frame) -> None:
        """See `Endpoints`."""
        kind: int = frame[0]
        if kind == MESSAGE:
            self._on_message(frame[1], frame[2])
        elif kind == GROUP_MESSAGE:
            if frame[1].startswith(GROUP_PREFIX):
                self.followers.broadcast(frame[1], frame[2])
            else:
                self.groups.broadcast(frame[1], frame[2])
        elif kind == ABANDONED:
            connection = self._open.get(frame[1])
            if connection is not None and connection.stream.attempt == frame[2] and not connection.peer:
                connection.run_ended(RunEnd.ABANDONED)
        elif kind == DECLINED:
            connection = self._open.get(frame[1])
            if self._keyed is not None and connection is not None and connection.stream.attempt == frame[2]:
                self._keyed.declined(connection, sender)
        else:
            self._on_worker_dead(frame[1])

    def on_fault(self, frame: Frame) -> None:
        """See `Endpoints`. The socket is aborted."""
        self.counts["fault"] += 1
        if frame[0] >= FIRST_PROTOCOL_KIND and frame[1] in self._open:
            with suppress(Exception):  # the terminator may be what has failed
                self._open[frame[1]].terminator.abort()

    def _on_worker_dead(self, mailbox: str) -> None:
        """End the runs of a dead worker: other workers continue with its connections, where that is possible."""
        self._router.peer_dead(mailbox)
        self.deaths += 1
        self._dead_workers.pop(mailbox, None)
        self._dead_workers[mailbox] = self.deaths
        if len(self._dead_workers) > DEAD_REMEMBERED:
            del self._dead_workers[next(iter(self._dead_workers))]
        served = [connection for connection in self._open.values() if connection.peer == mailbox]
        if self._keyed is not None:
            self._keyed.worker_dead(mailbox, [*self._open.values()])
        for connection in served:
            connection.run_ended(RunEnd.KILLED)
        if served:
            again = sum(connection.state is ConnectionState.OFFERED for connection in served)
            logger.warning(
                "the worker %s is dead: of its %d connections here, %d were offered to other workers",
                mailbox,
                len(served),
                again,
            )

    def _on_message(self, local: str, message: Message) -> None:
        """Write a message that was sent to the reply channel of a connection."""
        connection = self._open.get(int(local)) if _NUMBER.match(local) else None
        if connection is None:
            self.counts["message to nobody"] += 1
            logger.debug("a message for %r was dropped: it is not open here", local)
            return
        try:
            if message.get("type") == CLOSE_TYPE:
                close_message(message.get("code"), message.get("reason"))
                written = connection.close(message["code"], message["reason"])
            else:
                written = connection.plain(encode(message))
        except (ValueError, TypeError) as error:
            self.log.count("bad message", "a message for connection %s was dropped: %s", local, error)
            return
        if not written:
            text = "a %s for connection %s was dropped: it is %s"
            self.log.count("message out of place", text, message["type"], local, connection.app_state.value)

    def undelivered(self, mailbox: str) -> None:
        """See `Handler`."""
        self._router.mailbox_missing(mailbox)

    def interrupted(self) -> None:
        """See `Handler`."""
        self._pending.interrupted(self.now)
        if self._keyed is not None:
            self._keyed.interrupted()
        self.followers.interrupted()
        joined = self._router.interrupted()
        logger.warning("the bus was interrupted: %d connections are checked with their workers", joined)

    # The move to another process.

    def export(self) -> dict[str, Any]:
        """Return what the process knows besides its connections, as `restore` takes it."""
        return {
            "next": next(self._numbers),
            "dead_workers": self._dead_workers,
            "deaths": self.deaths,
            "keyed": None if self._keyed is None else self._keyed.export(),
            "without_mailbox": self._router.peers_without_mailbox,
            "users": self.users.export(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where another process has stopped; to be called before its connections are added.

        Args:
            state: The result of `export` there.
        """
        self._numbers = itertools.count(state["next"])
        self._dead_workers = dict(state["dead_workers"])
        self.deaths = state["deaths"]
        for mailbox in state["without_mailbox"]:
            self._router.mailbox_missing(mailbox)
        if "users" in state:  # not from a process of an earlier release
            self.users.restore(state["users"], self.now)

    def give_away(self) -> None:
        """Forget all connections without a word: another process has them."""
        self._open.clear()
        self._pending = PendingConnections(self._settings, self.log)
        if self._keyed is not None:
            self._keyed.give_away()
        self.groups = Groups(self.log)
        self.followers = Followers(self.log, self._settings.max_follows, self._settings.stream_keep_alive)
        self.users = Users(self._settings, self.groups, self.log)

    @property
    def may_move(self) -> bool:
        """Whether no offer is in doubt, so that all connections can be exported."""
        return not self._pending.has_doubts

    def export_connection(self, connection: Connection) -> dict[str, Any]:
        """Return the state of a connection, as `restore_connection` takes it."""
        offer = connection.offer
        return {
            **connection.export(),
            "place": self._pending.export(connection, self.now),
            "offer": None if offer is None else self.bus.export_offer(offer),
        }

    def restore_connection(self, state: Mapping[str, Any], terminator: Terminator) -> Connection:
        """Add a connection of another process. `restore_places` completes it.

        Args:
            state: The result of `export_connection` there.
            terminator: The protocol side of the connection.
        """
        window: int = state["stream"]["window"]
        connection = Connection(self, state["number"], state["kind"], window, terminator, self.now)
        connection.restore(state)
        self._open[connection.number] = connection
        self.groups.restore_member(connection)
        self.followers.restore(connection, state.get("follows") or ())
        return connection

    def restore_places(self, state: Mapping[str, Any], connections: Iterable[Mapping[str, Any]]) -> None:
        """Put connections of another process into their queues, with their offers.

        Args:
            state: The result of `export` there.
            connections: The results of `export_connection` there.
        """
        if self._keyed is not None and state["keyed"] is not None:
            self._keyed.restore(state["keyed"], self._open)
        for each in sorted(connections, key=_waited, reverse=True):
            connection = self._open[each["number"]]
            self._pending.restore(connection, each["place"], self.now)
            if each["offer"] is not None:
                connection.offer = self.bus.restore_offer(each["offer"])

    # Time.

    def tick(self, now: float) -> None:
        """Handle the passing of time. To be called several times per second.

        Args:
            now: The time of the event loop in seconds.
        """
        self.now = now
        self._pending.tick(self.bus, now)
        for connection in self._pending.take_due(now):
            self._offer_further(connection, connection.unpack_request())
        self._offer_next()
        if self._keyed is not None:
            self._keyed.tick(now)
        self._router.tick(now)
        self.followers.tick(now)
        self.users.tick(now)
        if self.bus.available:
            self._away_since = None
        elif self._away_since is None:
            self._away_since = now
        elif now - self._away_since > self._settings.resume_timeout:
            self._end_all(now)

    def _end_all(self, now: float) -> None:
        """End the connections, because the layer has been away too long and may not come back."""
        self._away_since = now
        joined = [connection for connection in self._open.values() if connection.state in _SERVED]
        for connection in joined:
            connection.fail(NO_WORKER)
        if joined:
            self.counts["layer away"] += len(joined)
            seconds = self._settings.resume_timeout
            logger.error("the channel layer is away for %g s: %d connections were ended", seconds, len(joined))


def _waited(state: Mapping[str, Any]) -> float:
    """Return for how long a connection of another process has waited."""
    waited: float = state["place"]["waited"]
    return waited
