"""A session: the worker's end of a connection, for one run of the app.

The app's `receive` and `send` are methods of its session. Events of the app are checked, numbered and posted to the
interface server, as fast as the client reads them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import MutableMapping
from functools import partial
from random import random
from typing import Any, Final, Protocol

from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.codec import listed, pack, unpack
from asgibus.layers.compiling import mypyc_attr
from asgibus.layers.contract import Frame
from asgibus.layers.errors import LayerUnavailable, MessageTooLarge
from asgibus.layers.offers import Claim
from asgibus.protocol.checks import MAX_STATE_BYTES
from asgibus.protocol.connect_request import (
    EVENT_STREAMS,
    HTTP,
    STREAMS,
    USER,
    WEBSOCKET,
    ConnectRequest,
    build_scope,
)
from asgibus.protocol.event_stream import retry_line
from asgibus.protocol.events import (
    ACCEPT,
    CLOSE,
    CONTINUE,
    DETACH,
    DISCONNECTS,
    EARLY_HINT,
    EVENT_STREAM,
    GROUP_DONE,
    HANDOVER,
    HTTP_DISCONNECT,
    MESSAGE_SENT,
    OTHER_DISCONNECT,
    OTHER_SENT,
    PATH_SEND,
    REQUEST_BODY,
    REQUEST_END,
    RESPONSE,
    RESPONSE_BODY,
    RESPONSE_END,
    RESPONSE_START,
    RESPONSE_START_TRAILERS,
    SAVE_STATE,
    WEBSOCKET_DISCONNECT,
    Event,
    decode,
    disconnect,
    encode,
    size,
)
from asgibus.protocol.header_lines import AnnouncedBody
from asgibus.protocol.states import (
    FOLLOWING,
    HTTP_TABLE,
    RUN_TABLE,
    AppState,
    IllegalTransition,
    RunEvent,
    RunState,
    initial_state,
    transition,
)
from asgibus.protocol.stream import PART, ReliableStream
from asgibus.worker import endings
from asgibus.worker.connection import Extension
from asgibus.worker.outbox import Outbox, OutboxHost, Waiters, add_waiter, wake
from asgibus.worker.pending_changes import PendingChanges
from asgibus.worker.sendfile import send_file
from asgibus.worker.silent_run import SilentRun

logger = logging.getLogger("asgibus.worker")

OTHER_TASKS_SECONDS = 0.1  # for what other tasks of the app do before a hand-over, if one of them waits in `receive`
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024  # one WebSocket message is one entry on the bus, and must not block others

_HANDED_OVER: Event = (WEBSOCKET_DISCONNECT, endings.SERVICE_RESTART, "")
_NAMES: Final = {HTTP: "an HTTP", WEBSOCKET: "a WebSocket"}
# Module-level aliases, because up to Python 3.11 a lookup of a member on its enum takes 50 ns.
_OPEN: Final = AppState.OPEN
_COMPLETE: Final = AppState.COMPLETE
_STREAMING: Final = AppState.STREAMING
_SERVING: Final = RunState.SERVING
_DRAINING: Final = RunState.DRAINING
_NOTIFIED: Final = RunState.NOTIFIED
_DISCONNECTED: Final = RunState.DISCONNECTED
_RETURN: Final = RunEvent.RETURN


@mypyc_attr(native_class=False)
class ClientDisconnected(OSError):
    """The client is gone, so nothing can be sent to it. ASGI 3, "Disconnected Client - send Exception"."""


class SessionHost(OutboxHost, Protocol):
    """The worker, as its sessions see it."""

    layer: ChannelLayer
    lifespan_state: dict[str, Any]
    resume: bool
    """Whether the app can continue with a WebSocket or an event stream of an earlier run."""
    silent: bool
    """Whether a run gets no disconnect at a hand-over: it is cancelled or suspended."""
    suspends: bool
    """Whether it is suspended."""
    suspended: list[asyncio.Task[Any]]
    """The main tasks of suspended runs."""
    acknowledge_early: bool
    """Whether an event is acknowledged when the app gets it, and not only when the app has handled it."""

    @property
    def draining(self) -> bool:
        """Whether the worker stops."""

    def schedule_flush(self, session: Session, /) -> None:
        """Call the session's `flush` at the end of this iteration of the event loop."""

    def cancel_flush(self, session: Session, /) -> None:
        """Undo `schedule_flush`."""

    def on_event_stream(self, session: Session, /) -> None:
        """Handle that the app begins an event stream, which a worker that stops ends soon."""

    def on_dropped(self, kind: str, /) -> None:
        """Count an event of this type that the app has sent to a client after a silent hand-over."""

    def forget(self, session: Session, /) -> None:
        """Forget a session that has ended and has nothing to repeat."""


class Session:
    """The worker's end of a connection.

    Args:
        request: The connection, as the interface server has offered it.
        claim: The claim of that offer.
        host: The worker.
    """

    __slots__ = (
        "_app_state",
        "_body",
        "_changes",
        "_connecting",
        "_disconnect",
        "_expects_continue",
        "_head_only",
        "_held",
        "_inbox",
        "_offered",
        "_outbox",
        "_own_end",
        "_receivers",
        "_saved",
        "_saved_bytes",
        "_streaming",
        "_subprotocols",
        "_table",
        "_tasks_until",
        "confirmation",
        "end_awaited",
        "host",
        "is_http",
        "kind",
        "number",
        "peer",
        "received",
        "resumed",
        "run",
        "scope",
        "silent_run",
        "stale",
        "stream",
        "task",
    )

    def __init__(self, request: ConnectRequest, claim: Claim, host: SessionHost) -> None:
        self.host = host
        self.peer = request.interface
        """The mailbox of the interface server."""
        self.number = request.connection
        """The interface server's number of the connection."""
        self.kind = request.kind
        self.is_http = request.kind == HTTP
        self.resumed = request.resumed
        """Whether an earlier run has accepted the client."""
        self.stream = ReliableStream(request.connection, request.attempt, request.window)
        self.run: RunState = _SERVING
        self.task: asyncio.Task[None] | None = None
        """The task of the app; None once it has ended."""
        self.silent_run: SilentRun | None = None
        """Calls the app, if it gets no disconnect at a hand-over."""
        if request.kind == WEBSOCKET and host.silent:
            self.silent_run = SilentRun(host.suspended if host.suspends else None)
        self._outbox = Outbox(host, self.peer, self.stream, claim, self.is_http)
        self.stale = claim.stale
        """Whether the connection may have been served before, by another worker: see `confirm`."""
        self.confirmation: asyncio.Future[None] | None = None
        """Done when the interface server has replied to `confirm`."""
        self.end_awaited = False
        """Whether the interface server waits for the end of this run, which gets the disconnect of its client."""
        # What the app receives.
        self._connecting = request.kind == WEBSOCKET
        self._expects_continue = request.expects_continue
        self._inbox: list[tuple[int, Event]] = list(enumerate(request.events))
        self.stream.expected = len(request.events)
        self.received = request.handled
        """The number of the client's events that the app and its earlier runs have got."""
        self._disconnect: Event | None = None  # the disconnect that the app has got, or is to get next
        self._receivers: Waiters | None = None
        self._tasks_until = 0.0  # when other tasks of the app must have finished what they do; 0 before the end
        # What the app sends.
        self._table, self._app_state = initial_state(request.kind)
        self._subprotocols = request.subprotocols
        self._head_only = request.method == "HEAD"
        self._offered: Any = request.extensions.get("asgibus")  # what the interface server can do
        self._held: Event | None = None  # the head of the response, which waits for the body
        self._body: AnnouncedBody | None = None
        self._streaming = False  # whether the app has sent a part of the body that is not the last one
        self._own_end: Event | None = None  # the disconnect that follows the app's own close
        # What the interface server keeps.
        self._changes: PendingChanges | None = None  # few connections ever make one
        self._saved_bytes = request.state
        self._saved: dict[str, Any] | None = None
        self.scope = build_scope(request)
        self.scope["state"] = host.lifespan_state.copy()
        # pathsend and zerocopysend are not advertised, because middleware that rewrites bodies drops unknown messages.
        self.scope["extensions"]["asgibus"] = Extension(self, request.attempt, request.resumed)

    def __repr__(self) -> str:
        return f"<Session {self.peer}{self.number} attempt {self.attempt}: {self._app_state.value}>"

    @property
    def attempt(self) -> int:
        """The number of this run of the app, from 1."""
        return self.stream.attempt

    @property
    def closed(self) -> bool:
        """Whether this run can send nothing more to the client."""
        return self._outbox.closed

    @property
    def awaits_body(self) -> bool:
        """Whether the request has more of its body than came with the offer."""
        return self.is_http and not (self._inbox and self._inbox[-1][1][0] == REQUEST_END)

    @property
    def handed_over(self) -> bool:
        """Whether another run continues with the client, and the app of this run knows it."""
        lasts = self.kind == WEBSOCKET or self._app_state is _STREAMING
        return lasts and self.run in (RunState.NOTIFIED, RunState.HANDED_OVER, RunState.SUPERSEDED)

    @property
    def draining(self) -> bool:
        """Whether the worker stops, so that this run ends soon."""
        return self.host.draining

    @property
    def target(self) -> object:
        """The path of the request or the address of the client, for people to read."""
        return self.scope.get("path") or self.scope.get("client")

    @property
    def is_at_rest(self) -> bool:
        """Whether the app waits for the next event of an open WebSocket."""
        waits = self._receivers is not None and not self._inbox and self._outbox.handling < 0
        return waits and self.run is _SERVING and self._app_state is _OPEN

    @property
    def complete(self) -> bool:
        """Whether the app has answered in full."""
        return self._app_state is _COMPLETE

    @property
    def is_event_stream(self) -> bool:
        """Whether the app has begun an event stream."""
        return self._body is not None and self._body.is_event_stream

    @property
    def is_disconnected(self) -> bool:
        """Whether the client is gone."""
        return self.run is _DISCONNECTED

    @property
    def layer(self) -> ChannelLayer:
        """The channel layer."""
        return self.host.layer

    # The app receives.

    async def receive(self) -> dict[str, Any]:
        """Return the next event for the app. ASGI's `receive`.

        The app has handled the event before, which is acknowledged now.
        """
        if self._connecting:
            self._connecting = False
            return {"type": "websocket.connect"}
        outbox = self._outbox
        if outbox.handling >= 0 and self._disconnect is None:
            outbox.handled(self._next_number)
        while True:
            if self.run is not _SERVING:
                await self._receive_at_end()
            if self._disconnect is not None:
                return decode(self._disconnect)
            if self.is_http:
                if self._app_state is _COMPLETE:
                    return decode(disconnect(HTTP, 1006, ""))
                self._join_body()
            if self._inbox:
                break
            if self._app_state is _COMPLETE or self.task is None:
                # The app itself has ended the connection, or has returned and left a task. A WebSocket that it refused
                # was never open.
                return decode(self._own_end or disconnect(self.kind, 1006, ""))
            if self._expects_continue:
                self._expects_continue = False
                outbox.post((CONTINUE,))
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._receivers = add_waiter(self._receivers, waiter)
            await waiter
        number, event = self._inbox.pop(0)
        outbox.begin(number, size(event))
        if event[0] in DISCONNECTS:
            self._disconnect = event  # handled when the app returns
        else:
            self.received += 1
            if self.host.acknowledge_early:
                outbox.handled(self._next_number)
        return decode(event)

    async def _receive_at_end(self) -> None:
        """End a run that is to be handed over, because its app asks for the next event."""
        if self.run is _DRAINING and self._app_state is not _COMPLETE:
            main = self.task if self.silent_run is None else self.silent_run.main
            if asyncio.current_task() is not main and not self.is_http:
                await self._await_other_tasks()
            if self.run is _DRAINING:  # nothing has happened meanwhile
                self._notify_stop()
        if self.silent_run is not None and self.silent_run.over and self._disconnect is None:
            await self.silent_run.wait()
            self._disconnect = _HANDED_OVER

    async def _await_other_tasks(self) -> None:
        """Let the other tasks of the app finish what they do, since it calls `receive` in a task of its own.

        That task may have given the last event to another one, as in Quart, or the app may handle something else
        meanwhile, such as a message of a group of Channels.
        """
        loop = asyncio.get_running_loop()
        # An app may give up this call after a moment, again and again: the time is that of all calls.
        self._tasks_until = self._tasks_until or loop.time() + OTHER_TASKS_SECONDS
        while self.run is _DRAINING and (left := self._tasks_until - loop.time()) > 0:
            waiter: asyncio.Future[None] = loop.create_future()
            self._receivers = add_waiter(self._receivers, waiter)
            await asyncio.wait([waiter], timeout=left)  # the client may leave

    def _join_body(self) -> None:
        """Remove empty parts of the body, which the app need not see: the first and the last one may be empty."""
        inbox = self._inbox
        while inbox and inbox[0][1] == (REQUEST_BODY, b""):
            del inbox[0]
        if len(inbox) > 1 and inbox[0][1][0] == REQUEST_BODY and inbox[1][1] == (REQUEST_END, b""):
            inbox[:2] = [(inbox[0][0], (REQUEST_END, inbox[0][1][1]))]

    @property
    def _next_number(self) -> int:
        """The number of the next event that the app is to get."""
        return self._inbox[0][0] if self._inbox else self.stream.expected

    def _wake_receivers(self) -> None:
        if self._receivers is not None:
            receivers, self._receivers = self._receivers, None
            wake(receivers)

    # The app sends.

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Send an event of the app. ASGI's `send`. Waits while the client is slow.

        Once the client is gone, only a message and a further part of a stream raise: see `_send_to_nobody`. After a
        silent hand-over nothing raises: an app that sends to each client that it knows must not take one that was
        handed over for one that has left.

        Raises:
            ClientDisconnected: The client is gone. It is an OSError.
            ValueError, TypeError: The event is not valid.
            IllegalTransition: The event is out of order. It is a RuntimeError.
            MessageTooLarge: A WebSocket message is larger than 16 MiB.
            OSError: A file cannot be read.
        """
        if self._outbox.closed:
            if self.silent_run is not None and self.silent_run.over:
                self.host.on_dropped(str(message.get("type")))
                await asyncio.sleep(0)  # an app that sends without end must not block the event loop
            else:
                self._send_to_nobody(message)
            return
        event = encode(message)
        kind = message["type"]
        if kind.partition(".")[0] != self.kind:
            raise ValueError(f"{kind!r} cannot be sent on {_NAMES.get(self.kind) or 'a ' + self.kind} connection")
        if self._app_state is _COMPLETE and self.is_http:
            return  # "any further messages on the channel will be ignored", Response Body
        code: int = event[0]
        before = self._app_state
        if code >= PATH_SEND:
            await self._send_file(event)
            return
        after = self._table.get((before, code))
        if after is None:
            if self._disconnect is not None:
                return  # some apps answer again after a stream that a disconnect has ended
            raise IllegalTransition(before, code)
        if code == RESPONSE_BODY or code == RESPONSE_END:
            if self._body is not None:
                self._body.count(len(event[1]), last=code == RESPONSE_END)
            if code == RESPONSE_BODY:
                self._streaming = True
            if len(event[1]) > PART:
                self.flush()
                event = await self._outbox.post_parts(event)
                if self._outbox.closed:
                    return
        elif code == RESPONSE_START or code == RESPONSE_START_TRAILERS:
            streams = code == RESPONSE_START and self.is_http
            self._body = AnnouncedBody(event[1], event[2], head_only=self._head_only, may_stream=streams)
        elif (code == MESSAGE_SENT or code == OTHER_SENT) and len(event[-1]) > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(len(event[-1]), MAX_MESSAGE_BYTES)
        elif code == ACCEPT:
            if event[1] is not None and event[1] not in self._subprotocols:
                raise ValueError(f"the client did not offer the subprotocol {event[1]!r}, see scope['subprotocols']")
            event = (*event[:3], self.host.resume)
        self._app_state = after
        if code == RESPONSE_START and self.is_http:
            if self._body is not None and self._body.is_event_stream:
                self.host.on_event_stream(self)
                readable = event[1] == 200 and not self._body.is_encoded
                if readable and self.host.resume and self.offers(EVENT_STREAMS):  # another run may continue
                    event = (EVENT_STREAM, *event[1:])
                    self._app_state = _STREAMING
            self._held = event  # most apps send the body at once: then both are one event
            self.host.schedule_flush(self)
            return
        if self._held is not None and code != EARLY_HINT:
            if code == RESPONSE_END and len(event[1]) <= PART:
                event, self._held = (RESPONSE, *self._held[1:], event[1]), None
            else:
                self.flush()
        self._outbox.post(event)
        if after is _COMPLETE:
            if code == CLOSE and before is _OPEN:
                self._own_end = (WEBSOCKET_DISCONNECT, event[1], event[2])
            self._wake_receivers()
        stream = self.stream
        if stream.in_flight >= stream.window:
            await self._outbox.wait_for_window()
            if self.is_disconnected and not self.is_http:
                raise ClientDisconnected("the client is gone, and has not read all that was sent")

    def _send_to_nobody(self, message: MutableMapping[str, Any]) -> None:
        """Decide whether an app may send a message that reaches no client, because this run can send nothing more.

        A whole answer is no error, as in ASGI up to version 2.3 of HTTP: the app has done its work. An accept, a close
        and a refusal are no errors either, because the app may not know yet. An app that sends more of a stream, or
        more messages, must learn that they are lost.

        Raises:
            ClientDisconnected: For a message, and for a part of a stream after its first part.
        """
        kind = str(message.get("type"))
        if kind.startswith(("http.response.", "websocket.http.response.")):
            refused = self._streaming and bool(message.get("more_body"))
            self._streaming = self._streaming or bool(message.get("more_body"))
        else:
            refused = not kind.endswith((".close", ".accept"))
        if refused:
            if self.handed_over or self.run is RunState.SUPERSEDED:
                why = "another run serves the client"
            elif self.task is None:
                why = "the app has returned"
            else:
                why = "the client is gone" if self.run is _DISCONNECTED else "the worker stops"
            raise ClientDisconnected(f"{why}: {kind!r} was not sent")

    def flush(self) -> None:
        """Post the head of the response if it is still held, because the body does not follow at once."""
        if self._held is not None:
            held, self._held = self._held, None
            self._outbox.post(held)

    async def _send_file(self, event: Event) -> None:
        """Send a file as the body, or as a part of the body."""
        more = event[0] != PATH_SEND and event[1]
        transition(HTTP_TABLE, self._app_state, RESPONSE_BODY if more else RESPONSE_END)
        # The head is held until the first part. If the file cannot be read, there is none, and the client gets a 500.
        self.host.cancel_flush(self)
        assert self._body is not None  # the head was sent, or the transition would be illegal
        limit = self._body.remaining if event[0] == PATH_SEND else None
        if self._head_only:
            limit = 0
        try:
            await send_file(event, limit, partial(self._send_part, more))
        except ClientDisconnected:
            if more:
                raise
        finally:
            if self._held is not None:
                self.host.schedule_flush(self)

    async def _send_part(self, more: bool, body: bytes, last: bool) -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": more or not last})

    # What the interface server keeps for the client.

    def offers(self, feature: str) -> bool:
        """Return whether the interface server has a feature, such as STREAMS. Those of earlier releases may lack it."""
        return isinstance(self._offered, dict) and feature in self._offered

    @property
    def earlier_user(self) -> str | None:
        """The user whose connection this was when the run began; None if an earlier run has not called `identify`."""
        user = self._offered[USER] if self.offers(USER) else None
        return user if isinstance(user, str) else None

    @property
    def may_follow(self) -> bool:
        """Whether the client can get entries of streams: it was accepted, or its response has begun, and lasts."""
        return self._app_state in FOLLOWING

    async def change(self, name: str, event: Event, what: str, *, removes: bool = False) -> None:
        """Have the interface server change what it keeps for the client, and wait until it has done so.

        Args:
            name: The name in the reply.
            event: The change.
            what: What is kept, in the text of an error, such as "its memberships".
            removes: Whether something is removed. A run that was handed over need not do that.

        Raises:
            ClientDisconnected: The client is gone, or another run serves it.
            LayerUnavailable: The store could not be reached in time, or the interface server has refused the change.
        """
        if self.handed_over:
            if self.silent_run is not None and self.silent_run.is_suspended:
                await self.silent_run.wait()
            if removes:
                return  # the client keeps it, so that it misses nothing between two runs
            raise ClientDisconnected(f"another run serves the client, which keeps {what}")
        if self._outbox.closed or self._disconnect is not None:
            raise ClientDisconnected(f"the client is gone, and with it {what}")
        self._changes = self._changes or PendingChanges()
        waiter = self._changes.add(name)
        self.flush()
        self._outbox.post(event)
        await waiter

    @property
    def may_detach(self) -> bool:
        """Whether the interface server can go on with the response: an event stream that nothing else encodes."""
        body = self._body
        readable = body is not None and body.is_event_stream and not body.is_encoded
        return readable and self.offers(STREAMS) and self.may_follow and not self._outbox.closed

    def detach(self, stream: str, after: str, template: bytes) -> None:
        """End this run, and have the interface server send the entries of a stream as the rest of the response.

        Args:
            stream: The stream.
            after: The offset of the last entry that the client has.
            template: The packed template.
        """
        self.flush()
        self._outbox.post((DETACH, stream, after, template))
        self._app_state = _COMPLETE
        self._wake_receivers()

    @property
    def state(self) -> dict[str, Any]:
        """The state that the app keeps with the connection. It is unpacked at the first access."""
        if self._saved is None:
            self._saved = listed(unpack(self._saved_bytes)) if self._saved_bytes else {}
        return self._saved

    async def save_state(self) -> None:
        """Save `state` at the interface server.

        Raises:
            ClientDisconnected: The client is gone, or another run serves it.
            TypeError: The state holds a value that a message cannot hold.
            MessageTooLarge: The packed state is larger than 16 KiB.
        """
        if self.silent_run is not None and self.silent_run.is_suspended:
            await self.silent_run.wait()
        if self.run is RunState.SUPERSEDED:
            raise ClientDisconnected("another run serves this connection by now, with a state of its own")
        if self.run in (RunState.DISCONNECTED, RunState.HANDED_OVER, RunState.ENDED):
            raise ClientDisconnected("the client is gone, and with it its state")
        self._post_state()
        if self.run is not RunState.NOTIFIED:
            await self._outbox.wait_for_window()
            if self.is_disconnected:
                raise ClientDisconnected("the client is gone, and with it its state")

    def _post_state(self) -> None:
        """Post the state if it differs from the one that the interface server has."""
        packed = pack(self.state)
        if len(packed) > MAX_STATE_BYTES:
            raise MessageTooLarge(len(packed), MAX_STATE_BYTES)
        if packed != self._saved_bytes:
            self._saved_bytes = packed
            self._outbox.post((SAVE_STATE, packed))

    # Ownership.

    def announce(self) -> None:
        """Name this worker as the owner, if no event has done so yet."""
        self._outbox.announce()

    async def confirm(self) -> bool:
        """Ask the interface server whether this connection is still to be served, and return the answer.

        It is, too, if its client has left and the interface server waits for a run that gets the disconnect.
        """
        self.confirmation = asyncio.get_running_loop().create_future()
        self._outbox.probe()
        await self.confirmation
        if self._outbox.closed and not self.end_awaited:
            return False
        self._outbox.complete_claim()
        return True

    def _resolve_confirmation(self) -> None:
        if self.confirmation is not None and not self.confirmation.done():
            self.confirmation.set_result(None)

    # From the interface server: see `protocol.router.Endpoint`.

    def on_event(self, event: Event) -> None:
        """Pass the next event of the client to the app."""
        code: int = event[0]
        if self.task is None:
            if code == WEBSOCKET_DISCONNECT and self.run is RunState.ENDED:
                self.host.forget(self)  # the last events of this run are not needed
            return
        if code == GROUP_DONE:
            self._outbox.consume(size(event), self._next_number)
            if self._changes is not None:
                self._changes.on_reply(event[2], None if event[1] is None else LayerUnavailable(event[1]))
            return
        self._inbox.append((self.stream.expected - 1, event))
        if code == WEBSOCKET_DISCONNECT:
            self.end_awaited = self.host.resume
            # A run whose app knows of the handover is still handed over; the next run gets the disconnect.
            if self.run is not RunState.NOTIFIED:
                self._set_disconnected()
        elif code == OTHER_DISCONNECT or (code == HTTP_DISCONNECT and event[1]):
            self._set_disconnected()
        self._wake_receivers()

    def on_ack(self, number: int) -> None:
        """Handle that the interface server has consumed every event below `number`."""
        self._outbox.acknowledged(number)
        if self.confirmation is not None:
            self._resolve_confirmation()
        if self.task is None and not self.stream.in_flight:
            self.host.forget(self)

    def on_reset(self) -> None:
        """Handle that the interface server does not know this connection."""
        if self.task is None:
            self.host.forget(self)
        elif self.run not in (RunState.DISCONNECTED, RunState.SUPERSEDED):
            self._inbox.append((self.stream.expected, disconnect(self.kind, 1006, "")))
            self._set_disconnected()
            self._wake_receivers()

    def on_superseded(self) -> None:
        """End this run as if it were handed over, because another run serves its connection."""
        if self.task is None:
            self.host.forget(self)
            return
        self.run = transition(RUN_TABLE, self.run, RunEvent.SUPERSEDE)
        if self.run is RunState.SUPERSEDED and self._disconnect is None:
            if self.silent_run is not None:
                self.silent_run.cancel()  # at once: the other run gets the event that this one may be handling
            else:
                self._disconnect = _HANDED_OVER if self.kind == WEBSOCKET else disconnect(self.kind, 1006, "")
            self._release_waiters()
            self._wake_receivers()

    def answer_probe(self, number: int) -> Frame:
        """Return the answer to a probe: a RESET if this run has given its client up."""
        if self.run is _DISCONNECTED and not self.end_awaited:
            return self.stream.reset_frame()
        return self.stream.answer_probe(number)

    def acknowledge(self) -> None:
        """Post an acknowledgement of what was consumed, unless nothing more can be sent."""
        self._outbox.acknowledge()

    @property
    def expects_ack(self) -> bool:
        """Whether the interface server is going to acknowledge what was sent: a whole response it does not."""
        return not (self.is_http and self._app_state is _COMPLETE)

    @property
    def may_probe(self) -> bool:
        """Whether the client is still served by this run."""
        return self.run not in (RunState.DISCONNECTED, RunState.SUPERSEDED)

    def _set_disconnected(self) -> None:
        if self.run is not _DISCONNECTED:
            self.run = transition(RUN_TABLE, self.run, RunEvent.DISCONNECT)
        self._release_waiters()

    def _release_waiters(self) -> None:
        """Wake every task that waits to send, because nothing can be sent any more."""
        self._outbox.close()
        self._resolve_confirmation()
        if self._changes is None:
            return
        if self.silent_run is not None and self.silent_run.over:
            if not self.silent_run.is_suspended:  # otherwise the app waits on
                self._changes.end(None)
        else:
            gone = "the client is gone, and with it its memberships"
            why = "another run serves the client" if self.handed_over else gone
            self._changes.end(partial(ClientDisconnected, why))

    # The end.

    def drain(self) -> None:
        """End a connection that would last, because the worker stops. Other requests may finish.

        The app may finish its answer to the last event that it has got. When it asks for the next one, it gets a
        disconnect, or is ended in silence. Then a WebSocket is handed over, or closed without `--resume`. An event
        stream is handed over or ended at once: `receive` gives a disconnect, and `send` raises.
        """
        if self.run is not RunState.SERVING:
            return
        if self.is_http:
            drains = self.is_event_stream
        else:
            drains = self._app_state is _OPEN or (self._may_be_handed_over and self._app_state is AppState.HANDSHAKE)
        if drains:
            self.run = transition(RUN_TABLE, self.run, RunEvent.DRAIN)
            if self.is_http:
                self._notify_stop()  # an app that streams may never ask for an event
            self._wake_receivers()
        elif not self.is_http:
            self._close_for_stop()

    def pass_on(self) -> bool:
        """Hand a WebSocket over before its app has begun, because the worker stops. Return False if it cannot be."""
        if not self._may_be_handed_over or self.run not in (_SERVING, _DRAINING):
            return False
        if self.run is _SERVING:
            self.run = transition(RUN_TABLE, self.run, RunEvent.DRAIN)
        self.run = transition(RUN_TABLE, self.run, RunEvent.NOTIFY)
        return True

    def force_disconnect(self) -> None:
        """End the run of an app that does not call `receive`: make `send` raise, or end the run in silence.

        An app that was cancelled, and has not ended, gets a disconnect.
        """
        if self.run is _DRAINING:
            self._notify_stop()
            self._wake_receivers()
        elif self.silent_run is not None and self.silent_run.over:
            self.silent_run.tell()

    def warn(self) -> None:
        """Give the app of a request `http.disconnect`, because it will be cancelled soon. It may still answer."""
        if self.is_http and self._disconnect is None:
            self._disconnect = (HTTP_DISCONNECT, False)
            self._wake_receivers()

    @property
    def _may_be_handed_over(self) -> bool:
        """Whether another run may continue with this connection."""
        return self.kind == WEBSOCKET and self.host.resume

    def _notify_stop(self) -> None:
        """Give the app the disconnect that ends its run, or end it in silence, because the worker stops."""
        if not self.is_http and not self._may_be_handed_over:
            self._close_for_stop()
            return
        self.run = transition(RUN_TABLE, self.run, RunEvent.NOTIFY)
        # The events in the inbox are not acknowledged, so the next run gets them.
        if self.silent_run is not None and self._app_state is not _COMPLETE:
            self.silent_run.end()
        else:
            self._disconnect = (HTTP_DISCONNECT, False) if self.is_http else _HANDED_OVER
        self._release_waiters()

    def end(self, error: BaseException | None) -> None:
        """End the run, because the app has returned or raised: answer for the app, and log its mistakes.

        Args:
            error: What the app has raised; None if it returned.
        """
        if error is None:
            self._outbox.handled(self._next_number)
        if self.run is _NOTIFIED and self._app_state is not _COMPLETE:
            self.flush()
            if self.is_http and self._app_state is not _STREAMING:
                self._end_event_stream()
            else:
                self._hand_over()
        elif mistake := self._finish(error):
            logger.error("the app %s on %s %r", mistake, self.scope["type"], self.target)
        self.run = transition(RUN_TABLE, self.run, _RETURN)
        self._outbox.complete_claim()
        # Drop the references back to this session, so that its memory is freed without the garbage collector.
        self.scope = {}
        self.task = None
        self._held = None
        # A task that the app has left running gets an error from `send`, and a disconnect from `receive`.
        self._outbox.closed = True
        if self._receivers is not None:
            self._wake_receivers()

    def _hand_over(self) -> None:
        if self._saved is not None:
            try:
                self._post_state()
            except (TypeError, MessageTooLarge) as error:
                logger.error("the state of a connection could not be handed over: %s", error)
        self._outbox.post((HANDOVER,))

    def _end_event_stream(self) -> None:
        """End the body of an event stream for an app that was told to stop. Its client connects again in a while."""
        self._app_state = _COMPLETE
        encoded = self._body is None or self._body.is_encoded
        # A line, and no blank one behind it: the client discards an event that the app has not finished.
        self._outbox.post((RESPONSE_END, b"" if encoded else retry_line(random())))

    def _finish(self, error: BaseException | None) -> str:
        """Answer for an app that has ended without a whole answer.

        Returns:
            The app's mistake, unless it raised or had got a disconnect; an empty text if it made none.
        """
        if self._outbox.closed or self._app_state is _COMPLETE:
            return ""
        if self._held is not None:  # the client has seen nothing of this response
            self._held = None
            self._app_state = AppState.WAITING
        failed = error is not None
        events, mistake = endings.at_return(self.kind, self._app_state, resumed=self.resumed, failed=failed)
        for event in events:
            self._outbox.post(event)
        return "" if failed or self._disconnect is not None else mistake

    def _close_for_stop(self) -> None:
        """Close the client's WebSocket, or its connection of another protocol, because the worker stops."""
        for event in endings.at_stop(self.kind, self._app_state, resumed=self.resumed):
            self._outbox.post(event)
        self._app_state = _COMPLETE
        self._disconnect = disconnect(
            self.kind, endings.SERVICE_RESTART, "" if self.kind == WEBSOCKET else "the worker stops"
        )
        self._set_disconnected()
        self._wake_receivers()
