"""A connection at the interface server: it relays events between a client and the runs of the app that serve it.

When a run ends before its connection does, the connection decides whether another run continues, which is described in
`protocol.retry`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, Protocol

from asgibus.interface_server.connections.followers import Followers, Following
from asgibus.interface_server.connections.groups import Groups
from asgibus.interface_server.connections.presence import UserOf, Users, reply_name
from asgibus.interface_server.terminator import FAULT, abort_faulty
from asgibus.layers.codec import pack, unpack
from asgibus.layers.contract import Bus, Frame
from asgibus.layers.names import stream_group
from asgibus.layers.offers import Offer
from asgibus.layers.streams.past import group_past
from asgibus.protocol.connect_request import WEBSOCKET, ConnectRequest, mark_taken_over, mark_user
from asgibus.protocol.counted_log import CountedLog
from asgibus.protocol.events import (
    ABORT,
    ACCEPT,
    CLOSE,
    DETACH,
    DISCONNECTS,
    FOLLOW,
    GROUP_ADD,
    GROUP_DISCARD,
    GROUP_DONE,
    HANDOVER,
    IDENTIFY,
    OTHER_CLOSE,
    OTHER_SENT,
    RESPONSE_BODY,
    RESPONSE_END,
    SAVE_STATE,
    UNFOLLOW,
    Event,
    disconnect,
    other,
    size,
)
from asgibus.protocol.retry import CRASH_LIMIT, RunEnd, may_run_http_again, may_run_websocket_again
from asgibus.protocol.states import (
    CONNECTION_TABLE,
    FOLLOWING,
    HTTP_TABLE,
    OTHER_TABLE,
    WEBSOCKET_TABLE,
    AppState,
    ConnectionEvent,
    ConnectionState,
    IllegalTransition,
    initial_state,
    transition,
)
from asgibus.protocol.stream import PART, ReliableStream

if TYPE_CHECKING:
    from asgibus.interface_server.terminator import SharedWriter, Terminator
    from asgibus.protocol.event_stream import EventStream

logger = logging.getLogger("asgibus.interface")

# The answer to a client whose connection fails: the HTTP status, and the close code of a WebSocket.
NO_WORKER = (503, 1013)  # no worker claims the connection: try again later
WORKER_LOST = (502, 1012)  # the worker that served it is gone, and no other may continue
POISON = (502, 1011)  # one worker after another died with it
APP_FAILED = (500, 1011)  # a further run of the app gave another answer than the first

_LAST: Final = (CLOSE, RESPONSE_END, ABORT)  # the last event of a run that has ended its connection itself
# Module-level aliases, because up to Python 3.11 a lookup of a member on its enum takes 50 ns.
_OFFERED: Final = ConnectionState.OFFERED
_JOINED: Final = ConnectionState.JOINED
_DETACHED: Final = ConnectionState.DETACHED
_CLOSING: Final = ConnectionState.CLOSING
_ABANDONED: Final = ConnectionState.ABANDONED
_ENDED: Final = ConnectionState.ENDED
_CLAIMED: Final = ConnectionEvent.CLAIMED
_CLIENT_GONE: Final = ConnectionEvent.CLIENT_GONE
_COMPLETED: Final = ConnectionEvent.COMPLETED
_HANDSHAKE: Final = AppState.HANDSHAKE
_OPEN: Final = AppState.OPEN
_COMPLETE: Final = AppState.COMPLETE

# The state for the client, while a further run has not answered yet.
_BETWEEN_RUNS: Final = {AppState.HANDSHAKE: AppState.OPEN, AppState.CONTINUING: AppState.STREAMING}


class ConnectionHost(Protocol):
    """The registry, as its connections see it."""

    bus: Bus
    counts: Counter[str]
    log: CountedLog
    groups: Groups
    followers: Followers
    users: Users

    def on_claimed(self, connection: Connection) -> None:
        """Handle that a worker has claimed the connection."""

    def on_abandoned(self, connection: Connection) -> None:
        """Withdraw the offer of a connection whose client is gone, and end it soon if no worker has claimed it."""

    def on_ended(self, connection: Connection) -> None:
        """Forget the connection."""

    def offer_again(self, connection: Connection, request: ConnectRequest) -> None:
        """Offer the connection for a further run of the app."""

    def withdraw(self, connection: Connection) -> bool:
        """Withdraw the offer of the connection. Return False if it may have been claimed."""


class Connection:
    """An exchange with a client.

    Args:
        host: The registry of connections.
        number: The number of the connection, unique in this process.
        kind: The type of its scope.
        window: The bytes that may be unacknowledged in each direction.
        terminator: The protocol side of the connection.
        now: The time in seconds, by the clock of the event loop.
    """

    __slots__ = (
        "_host",
        "_unconsumed",
        "_unsent",
        "accepted",
        "app_state",
        "crashes",
        "events",
        "follows",
        "group_answers",
        "groups",
        "handled",
        "held",
        "kind",
        "number",
        "offer",
        "offered_at",
        "peer",
        "queue",
        "request",
        "resumable",
        "saved_state",
        "state",
        "stream",
        "subprotocol",
        "table",
        "terminator",
        "unclaimed",
        "user",
    )

    request: ConnectRequest | bytes
    """The request that a further run begins with. A WebSocket lasts long, so its request is kept packed."""

    def __init__(
        self, host: ConnectionHost, number: int, kind: str, window: int, terminator: Terminator, now: float
    ) -> None:
        self._host = host
        self.number = number
        self.kind = kind
        self.terminator = terminator
        self.stream = ReliableStream(number, 1, window)
        self.state: ConnectionState = _OFFERED
        self.table, self.app_state = initial_state(kind)
        self.peer = ""
        """The mailbox of the worker that serves this connection; empty until one has claimed it."""
        self.offer: Offer | None = None
        self.offered_at = now
        self.queue: dict[int, Connection] | None = None
        """The queue of `PendingConnections` that holds this connection."""
        self.unclaimed: tuple[str, int] | None = None
        """The pool and the bytes of the offer, while it counts as unclaimed."""
        self.accepted = self.app_state is _OPEN
        self.subprotocol: str | None = None
        self.resumable = False
        """Whether another run of the app may continue with the accepted client."""
        self.events: EventStream | None = None
        """The events of an event stream with which other runs may continue."""
        self.crashes = 0
        """The number of workers in a row that have died with this connection, without progress between."""
        self.handled = 0
        """The number of the client's events that earlier runs have handled."""
        self.held = False
        """Whether nothing is acknowledged, so that the app soon sends nothing more."""
        self.group_answers = 0
        """The number of GROUP_DONE events that were sent to this run."""
        self.groups: set[str] | None = None
        self.follows: dict[str, Following] | None = None
        """The streams that the client follows, by name. The next run finds them as they are."""
        self.user: UserOf | None = None
        """The user of the connection, once the app has identified it; and the will."""
        self.saved_state = b""
        self._unconsumed = 0  # bytes that were written while the socket had no room
        self._unsent: list[tuple[Frame, int]] | None = None  # frames that wait for a worker

    # From the client.

    def event(self, event: Event) -> None:
        """Send an event of the client to the app. Pauses the terminator when the window is full."""
        stream = self.stream
        frame, counted = stream.send(event)
        if self.state is _JOINED or self.state is _CLOSING:
            self._host.bus.post(self.peer, frame, counted)
        elif self.state is _OFFERED:
            if self._unsent is None:
                self._unsent = []
            self._unsent.append((frame, counted))
        if stream.in_flight >= stream.window and event[0] not in DISCONNECTS and self.state is not _CLOSING:
            self.terminator.pause()  # after a disconnect, it may serve the next request of its socket

    def client_gone(self, code: int = 1006, reason: str = "") -> None:
        """End the connection, because the client is gone or its request cannot be finished. The app gets a disconnect.

        Args:
            code: The close code of a WebSocket.
            reason: The reason for the app.
        """
        if self.state is _DETACHED:
            self._transition(_CLIENT_GONE)
            return
        if self.state is not _OFFERED and self.state is not _JOINED:
            return
        self.event(disconnect(self.kind, code, reason))
        self._transition(_CLIENT_GONE)

    @property
    def withheld(self) -> bool:
        """Whether the events of this run are kept until a worker has claimed the connection."""
        return bool(self._unsent) and self._unsent == self.stream.unacked_frames()

    def withhold(self) -> None:
        """Keep all events until a worker has claimed the connection, and read no more from the client until then."""
        self._unsent = self.stream.unacked_frames()
        self.terminator.pause()

    # From the worker.

    def accept_owner(self, sender: str) -> None:
        """Make `sender` the owner: it is the first worker that has sent a frame for this run."""
        self.peer = sender
        if self.table is WEBSOCKET_TABLE:
            assert isinstance(self.request, ConnectRequest)
            self.request = pack(self.request._replace(events=(), state=b""))  # a further run gets the latest ones
        elif self.table is OTHER_TABLE:
            self.request = b""  # there is no further run
        unsent, self._unsent = self._unsent, None
        self._transition(_CLAIMED)
        for frame, counted in unsent or ():
            self._host.bus.post(sender, frame, counted)
        if unsent and self.state is _JOINED and self.stream.window_open:
            self.terminator.resume()  # it was paused if its events were withheld

    def on_event(self, event: Event) -> None:
        """Handle the next event of the run. See `Endpoint`."""
        code: int = event[0]
        if code >= GROUP_ADD:
            self._on_control_event(event)
            return
        stream = self.stream
        if self.state is not _JOINED:
            if code in _LAST:
                # The app has ended the connection itself and may have returned, so it can get no disconnect.
                self._ack_all()
                if self.state is _CLOSING:  # unless the acknowledgement in the frame has ended it
                    self._transition(ConnectionEvent.DISCONNECT_DELIVERED)
                return
            # A further run that is to get the disconnect acts as if the client were there. Its window must not fill up.
            if stream.consume(size(event), stream.expected):
                self._host.bus.post(self.peer, stream.ack_frame())
            return
        after = self.table.get((self.app_state, code))
        if after is None:
            error = IllegalTransition(self.app_state, code)
            text = "an event of %s for connection %d was dropped: %s"
            self._host.log.count("illegal event", text, self.peer, self.number, error, level=logging.ERROR)
            return
        if self.app_state is _HANDSHAKE and not self._check_first_answer(event):
            return
        self.app_state = after
        self.terminator.write_event(event)
        if after is _COMPLETE:
            if self.table is not HTTP_TABLE:
                self._ack_all()
            self._transition(_COMPLETED)
            return
        self._unconsumed += size(event)
        if not self.terminator.write_paused and not self.held:
            counted, self._unconsumed = self._unconsumed, 0
            if stream.consume(counted, stream.expected):
                self._host.bus.post(self.peer, stream.ack_frame())

    def _on_control_event(self, event: Event) -> None:
        """Handle an event of the worker that is not for the client."""
        code: int = event[0]
        self._consume(size(event))
        if code == SAVE_STATE:
            self.saved_state = event[1]
        elif code == HANDOVER:
            self._ack_all()
            self.crashes = 0
            self.run_ended(RunEnd.HANDED_OVER)
        elif FOLLOW <= code <= DETACH:
            self._follow(event)
        elif self.state is not _JOINED:
            self.group_done(reply_name(event), None)
        elif code >= IDENTIFY:
            self._host.users.change(self, event)
        else:
            if self.user is not None and code == GROUP_DISCARD:
                self._host.users.discard(self, event[1])
            if self.follows and code == GROUP_DISCARD:
                self._host.followers.forget(self, group_past(event[1]))
            self._host.groups.change(self, code, event[1])

    def _follow(self, event: Event) -> None:
        """Handle FOLLOW, UNFOLLOW or DETACH."""
        code: int = event[0]
        name: str = event[1]
        if self.state is not _JOINED:
            if code != DETACH:
                self.group_done(stream_group(name), None)
                return
            self._ack_all()  # as for the last event of a response
            if self.state is _CLOSING:
                self._transition(ConnectionEvent.DISCONNECT_DELIVERED)
        elif code == UNFOLLOW:
            self._host.followers.unfollow(self, name)
        elif self.app_state not in FOLLOWING or self.table is OTHER_TABLE:
            self.group_done(stream_group(name), f"the client cannot get entries of a stream: {self.app_state.value}")
        elif code == FOLLOW:
            self._host.followers.follow(self, name, event[2], event[3])
        elif self.table is HTTP_TABLE:
            self._detach()
            self._host.followers.follow(self, name, event[2], event[3], detached=True)

    def _detach(self) -> None:
        """Go on without a run of the app, whose later frames are for an attempt that is over."""
        if self.events is None:
            self.shared_writer.detach()
        self.app_state = AppState.STREAMING
        self.stream.restart(self.stream.attempt + 1, ())
        self.peer = ""
        self.request = b""  # there is no further run
        self._unconsumed = 0
        self._transition(ConnectionEvent.DETACHED)

    @property
    def shared_writer(self) -> SharedWriter:
        """See `Reader`. Only WebSockets and responses follow streams."""
        return self.terminator  # type: ignore[return-value]  # read for every delivery: a cast takes as long again

    def end_detached(self) -> None:
        """See `Reader`."""
        self.app_state = _COMPLETE
        self.terminator.write_event((RESPONSE_END, b""))
        self._transition(_COMPLETED)

    def _check_first_answer(self, event: Event) -> bool:
        """Check the first answer of a run to a WebSocket's handshake. A client is accepted once.

        Returns:
            Whether to write the answer to the client.
        """
        code: int = event[0]
        if code == ACCEPT:
            self.resumable = event[3]
            if not self.accepted:
                self.accepted, self.subprotocol = True, event[1]
                return True
            if event[1] == self.subprotocol:
                self.app_state = AppState.OPEN
                self._consume(size(event))
                return False
            wrong = f"accepted it with the subprotocol {event[1]!r}, where it was {self.subprotocol!r}"
        elif code == CLOSE or not self.accepted:
            return True
        else:
            wrong = "answered with an HTTP response, where it was open already"
        logger.error("connection %d was closed: run %d of the app %s", self.number, self.stream.attempt, wrong)
        self.fail(APP_FAILED)
        return False

    def begin_event_stream(self, terminator: Terminator, events: EventStream) -> None:
        """Have further runs continue with an event stream, whose head was written.

        Args:
            terminator: Writes whole events, and the heads of further runs never.
            events: What the client has got.
        """
        self.terminator, self.events = terminator, events
        self.accepted = self.resumable = True

    def on_ack(self, number: int) -> None:
        """Handle that the run has consumed every event below `number`."""
        opened = self.stream.acknowledge(number)
        if self.state is _CLOSING:
            # The answer of a group may follow the disconnect.
            if all(event[0] == GROUP_DONE for event in self.stream.unacked_events):
                self._transition(ConnectionEvent.DISCONNECT_DELIVERED)
        elif opened and self.state is _JOINED:
            self.terminator.resume()

    def on_reset(self) -> None:
        """Handle that the worker does not know this connection any more."""
        self.run_ended(RunEnd.FORGOTTEN)

    def on_superseded(self) -> None:
        """Ignore the frame: only a worker can be superseded."""

    def answer_probe(self, number: int) -> Frame:
        """Return the answer to a probe."""
        return self.stream.answer_probe(number)

    @property
    def expects_ack(self) -> bool:
        """Whether the worker is going to acknowledge what was sent."""
        return True

    @property
    def may_probe(self) -> bool:
        """Whether a worker serves this connection."""
        return bool(self.peer)

    def plain(self, event: Event) -> bool:
        """Write a plain ASGI event that was sent to the reply channel, by any process.

        Returns:
            False if the event is not legal in the state of the connection.
        """
        if self.state is not _JOINED and not (self.state is _OFFERED and self.accepted):
            return False
        code: int = event[0]
        if (code == OTHER_SENT or code == OTHER_CLOSE) and not event[1].startswith(f"{self.kind}."):
            return False
        # Between two runs the client is open, whatever the next run answers.
        state = _BETWEEN_RUNS.get(self.app_state, self.app_state) if self.accepted else self.app_state
        after = self.table.get((state, code))
        if after is None:
            return False
        if code == ACCEPT and event[1] is not None and event[1] not in self.unpack_request().subprotocols:
            return False
        if after is not _COMPLETE and self.terminator.write_paused and not self.terminator.keeps_up():
            return True
        if self.events is not None and code == RESPONSE_BODY:
            self.terminator.broadcast(event, {})  # it is not a part of what the run sends
            return True
        if state is self.app_state or after is _COMPLETE:
            self.app_state = after
        self.terminator.write_event(event)
        if after is _COMPLETE:
            self.client_gone(*event[1:3]) if code == CLOSE else self.client_gone()
        return True

    def close(self, code: int, reason: str) -> bool:
        """Close the connection for the app, with this code if it is a WebSocket. Return False if that cannot be."""
        if self.state is _DETACHED:
            self.end_detached()
            return True
        if self.kind == WEBSOCKET:
            return self.plain((CLOSE, code, reason))
        if self.table is HTTP_TABLE:
            return self.plain((RESPONSE_END, b""))
        return self.plain(other(OTHER_CLOSE, {"type": f"{self.kind}.close"}))

    def group_done(self, group: str, error: str | None) -> None:
        """Answer the oldest GROUP_ADD or GROUP_DISCARD of a group.

        Args:
            group: The group.
            error: Why the group could not be joined; None if it was.
        """
        if self.state is _JOINED or self.state is _CLOSING:
            self.group_answers += 1
            self.event((GROUP_DONE, error, group))

    # Acknowledgements.

    @property
    def acked(self) -> int:
        """The number of the client's events that this run has consumed. For terminators."""
        return self.stream.acked

    @property
    def unacknowledged(self) -> list[Event]:
        """The client's events that this run has not consumed. For terminators."""
        return self.stream.unacked_events

    def acknowledge(self) -> None:
        """Acknowledge what was written, unless the socket has no room: then the window of the run stays shut."""
        if self.follows and not self.terminator.write_paused:
            self._host.followers.release(self)
        if self.state is not _JOINED or self.app_state is _COMPLETE or self.terminator.write_paused or self.held:
            return
        if self._unconsumed:
            self._consume(0)
        if self.stream.unreported:
            self._host.bus.post(self.peer, self.stream.ack_frame())

    def hold_back(self) -> bool:
        """Acknowledge nothing until `go_on`, so that what was sent is written some time. Return whether that is new."""
        new = not self.held
        self.held = True
        return new

    def go_on(self) -> None:
        """Acknowledge again what was written, and what another process has left to be acknowledged."""
        self.held = False
        self.acknowledge()

    def _consume(self, counted: int) -> None:
        """Count an event as consumed once its socket has room, so that the worker waits for a slow client."""
        self._unconsumed += counted
        if not self.terminator.write_paused and not self.held:
            self.stream.consume(self._unconsumed, self.stream.expected)
            self._unconsumed = 0

    def _ack_all(self) -> None:
        """Acknowledge the last event of a run. Its worker keeps the event until then."""
        self.stream.consume(0, self.stream.expected)
        self._host.bus.post(self.peer, self.stream.ack_frame())

    # The end of a run.

    def run_ended(self, reason: RunEnd) -> None:
        """Offer the connection for another run, because the last one has ended too early; or end the connection."""
        if self.state is _ENDED:
            return
        client_gone = self.state is _ABANDONED or self.state is _CLOSING
        if client_gone and (reason is RunEnd.FORGOTTEN or not self._needs_disconnect):
            self._transition(ConnectionEvent.GIVEN_UP)
        elif reason.by_death and self._count_crash() >= CRASH_LIMIT:
            logger.error(
                "connection %d is ended: %d workers in a row died while they handled it", self.number, self.crashes
            )
            self._host.counts["poison"] += 1
            self.give_up(POISON)
        elif self._may_run_again():
            self._host.counts[reason.name.lower().replace("_", " ")] += 1
            self._run_again(taken_over=reason.by_death and self.accepted)
        else:
            if reason is not RunEnd.HANDED_OVER:
                self._host.counts["worker lost"] += 1
            self.give_up(WORKER_LOST)

    @property
    def _needs_disconnect(self) -> bool:
        """Whether an app must get the disconnect of the client, if not this run then a further one."""
        return self.accepted and self.resumable and self.events is None

    def _count_crash(self) -> int:
        """Count the death of a worker, and return the number of workers in a row that have died without progress."""
        if self._is_idle:
            self.crashes = 0
            return 0
        if self.events is not None:
            progressed = self.events.progressed
        else:
            # A further run of a request gets the whole body again, so a part that was handled is no progress.
            progressed = self.table is not HTTP_TABLE and self._handled_by_run() > 0
        if progressed:
            self.crashes = 0
        self.crashes += 1
        return self.crashes

    @property
    def _is_idle(self) -> bool:
        """Whether the worker had no event of this connection to handle."""
        if self.table is HTTP_TABLE or not self.accepted or self.app_state is _HANDSHAKE:
            return False
        return all(event[0] == GROUP_DONE for event in self.stream.unacked_events)

    def _handled_by_run(self) -> int:
        """Return how many of the client's events this run has handled."""
        unacked = len([event for event in self.stream.unacked_events if event[0] == GROUP_DONE])
        return self.stream.acked - self.group_answers + unacked

    def _may_run_again(self) -> bool:
        if isinstance(self.request, ConnectRequest) and self.table is HTTP_TABLE:
            whole = self.stream.acked <= len(self.request.events)
            if self.events is not None:
                return whole and self.resumable and not self.events.obstacle
            return may_run_http_again(self.app_state, self.request.method, whole=whole)
        return may_run_websocket_again(self.app_state, accepted=self.accepted, resumable=self.resumable)

    def unpack_request(self) -> ConnectRequest:
        """Return the request that a further run begins with."""
        if isinstance(self.request, ConnectRequest):
            return self.request
        return ConnectRequest._make(unpack(self.request))

    def _run_again(self, *, taken_over: bool) -> None:
        """Offer the connection again, with the events that no run has handled.

        Args:
            taken_over: Whether its worker has died and its client is accepted: workers begin few of those at once.
        """
        request = self.unpack_request()
        stream = self.stream
        events = stream.unacked_events
        self.app_state = AppState.HANDSHAKE
        if self.table is HTTP_TABLE:
            events = [*request.events[: stream.acked], *events]
            self.app_state = AppState.WAITING
            if self.events is not None:
                self.app_state = AppState.CONTINUING
                self.events.restart()
                request = request._replace(headers=self.events.headers(request.headers))
        else:
            self.handled += self._handled_by_run()
        stream.restart(stream.attempt + 1, [event for event in events if event[0] != GROUP_DONE])
        self.group_answers = 0
        self.peer = ""
        self._unconsumed = 0
        self._transition(ConnectionEvent.OFFERED_AGAIN)
        frames = stream.unacked_frames()
        first = sum(end <= 2 * PART for end in accumulate(counted for _, counted in frames))
        self._unsent = frames[first:]
        extensions = mark_taken_over(request.extensions, taken_over)
        if self.user is not None and self.user.user:
            extensions = mark_user(extensions, self.user.user)
        self.request = request._replace(
            attempt=stream.attempt,
            resumed=self.accepted,
            handled=self.handled,
            events=tuple(stream.unacked_events[:first]),
            state=self.saved_state,
            extensions=extensions,
        )
        self._host.offer_again(self, self.request)
        if stream.window_open and self.state is _OFFERED:
            self.terminator.resume()

    # The move to another process.

    def export(self) -> dict[str, Any]:
        """Return the state of the connection, as `restore` takes it. The registry adds its place in the queues."""
        request = self.request
        packed = isinstance(request, bytes)
        return {
            "number": self.number,
            "kind": self.kind,
            "stream": self.stream.export(),
            "state": self.state.name,
            "app_state": self.app_state.name,
            "peer": self.peer,
            "request": request if isinstance(request, bytes) else pack(request),
            "packed": packed,
            "accepted": self.accepted,
            "subprotocol": self.subprotocol,
            "resumable": self.resumable,
            "crashes": self.crashes,
            "handled": self.handled,
            "group_answers": self.group_answers,
            "groups": None if self.groups is None else sorted(self.groups),
            "follows": self._host.followers.export(self),
            "saved_state": self.saved_state,
            "user": None if self.user is None else self.user.export(),
            "events": None if self.events is None else self.events.export(),
            "unconsumed": self._unconsumed,
            # They are the last ones of those that no run has acknowledged.
            "unsent": None if self._unsent is None else len(self._unsent),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where the connection of another process has stopped.

        Args:
            state: The result of `export` there.
        """
        self.stream.restore(state["stream"])
        self.state = ConnectionState[state["state"]]
        self.app_state = AppState[state["app_state"]]
        self.peer = state["peer"]
        self.request = state["request"]
        if not state["packed"]:
            self.request = self.unpack_request()
        self.accepted = state["accepted"]
        self.subprotocol = state["subprotocol"]
        self.resumable = state["resumable"]
        self.crashes = state["crashes"]
        self.handled = state["handled"]
        self.group_answers = state["group_answers"]
        self.groups = None if state["groups"] is None else set(state["groups"])
        self.saved_state = state["saved_state"]
        user: Any = state.get("user")
        self.user = None if user is None else UserOf.restored(user)
        self._unconsumed = state["unconsumed"]
        unsent: int | None = state["unsent"]
        if unsent is not None:
            frames = self.stream.unacked_frames()
            self._unsent = frames[len(frames) - unsent :]

    # The end of the connection.

    def on_claim_timeout(self) -> None:
        """Give up, because no worker has claimed the connection in time."""
        may_have_run = self.offer is not None and self.offer.once
        withdrawn = self._host.withdraw(self)
        self.give_up(WORKER_LOST if may_have_run and not withdrawn else NO_WORKER)

    def on_offer_lost(self, offer: Offer) -> None:
        """Give up, because that offer may have been claimed, and its claimant has sent no frame."""
        if self.offer is offer:
            self._host.counts["worker lost"] += 1
            self.give_up(WORKER_LOST)

    def give_up(self, answer: tuple[int, int]) -> None:
        """End the connection, because no worker serves it.

        Args:
            answer: The HTTP status and the close code for the client.
        """
        if self.state is _ABANDONED or self.state is _CLOSING:
            self._transition(ConnectionEvent.GIVEN_UP)
        elif self.state is not _ENDED:
            self._transition(ConnectionEvent.GIVEN_UP)
            self.app_state = _COMPLETE
            self._fail_terminator(answer)

    def fail(self, answer: tuple[int, int]) -> None:
        """End the connection although its worker is alive. The app gets a disconnect.

        Args:
            answer: The HTTP status and the close code for the client.
        """
        self.client_gone(answer[1])
        self.app_state = _COMPLETE
        self._fail_terminator(answer)

    def _fail_terminator(self, answer: tuple[int, int]) -> None:
        try:
            self.terminator.fail(*answer)
        except Exception:  # further connections may be about to fail in the same pass
            logger.exception(FAULT, abort_faulty(self.terminator, self._host.counts))

    def _transition(self, event: ConnectionEvent) -> None:
        self.state = transition(CONNECTION_TABLE, self.state, event)
        if event is _CLAIMED:
            self._host.on_claimed(self)
        elif event is _CLIENT_GONE:
            self._host.groups.remove_member(self)
            self._host.followers.remove(self)
            if self.user is not None:
                self._host.users.remove_member(self)
        if self.state is _CLOSING and not self._needs_disconnect:
            self.state = transition(CONNECTION_TABLE, self.state, ConnectionEvent.DISCONNECT_DELIVERED)
        if self.state is _ABANDONED and not self._needs_disconnect:
            self._host.on_abandoned(self)
        elif self.state is _ENDED:
            self._host.withdraw(self)
            self._host.on_ended(self)
