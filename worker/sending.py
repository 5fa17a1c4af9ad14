"""What an app sends: checked, numbered, and posted to the interface server, as fast as the client takes it."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from functools import partial
from typing import Any, Protocol

from asgibus.layers.contract import Bus, ChannelLayer, Claim, Draft
from asgibus.layers.errors import MessageTooLarge
from asgibus.layers.frames import ACKNOWLEDGED
from asgibus.protocol.connect_request import HTTP, WEBSOCKET, Opening
from asgibus.protocol.events import (
    ABORT,
    ACCEPT,
    CLOSE,
    EARLY_HINT,
    MESSAGE_SENT,
    OTHER_CLOSE,
    OTHER_SENT,
    PATH_SEND,
    RESPONSE,
    RESPONSE_BODY,
    RESPONSE_END,
    RESPONSE_START,
    RESPONSE_START_TRAILERS,
    WEBSOCKET_DISCONNECT,
    Event,
    encode,
    other,
)
from asgibus.protocol.states import (
    HTTP_TABLE,
    OTHER_TABLE,
    AppState,
    IllegalTransition,
    RunState,
    initial_state,
    transition,
)
from asgibus.protocol.stream import PART, SessionEnd
from asgibus.worker.sendfile import send_file

_NAMES = {HTTP: "an HTTP", WEBSOCKET: "a WebSocket"}
MAX_MESSAGE_BYTES = 16 * 1024 * 1024  # one WebSocket message is one entry on the bus, and must not stall the others


class ClientDisconnected(OSError):
    """The client is gone: nothing can be sent to it. ASGI 3, "Disconnected Client - send Exception"."""


class Host(Protocol):
    """Who runs the sessions: what it gives them, and what it is told."""

    bus: Bus
    layer: ChannelLayer
    lifespan_state: dict[str, Any]
    resume: bool
    """Whether the app can go on with a WebSocket that an earlier run has accepted."""

    acknowledge_early: bool
    """Whether an event is acknowledged when the app gets it, and not only when the app is done with it."""

    def hold(self, session: Sending) -> None:
        """Call the session's `flush` at the end of this turn of the event loop."""

    def keep(self, session: Sending) -> None:
        """Do not, after all."""

    def stream_begins(self, session: Sending) -> None:
        """The app begins an event stream; a worker that stops ends it soon."""

    def took(self, session: Sending) -> None:
        """The app is done with an event of a WebSocket; the interface server is to hear of that soon."""


# Looked up once: see `protocol.stream`.
_OPEN, _COMPLETE, _LOST = AppState.OPEN, AppState.COMPLETE, RunState.DISCONNECTED


class Sending(SessionEnd):
    """The half of a session that the app's `send` uses."""

    __slots__ = (
        "_announced",
        "_app_state",
        "_claim",
        "_held",
        "_in_hand",
        "_is_http",
        "_last_packed",
        "_last_sent",
        "_no_body",
        "_own_end",
        "_remaining",
        "_resumed",
        "_streaming",
        "_subprotocols",
        "_table",
        "_window_waiters",
        "confirmation",
        "host",
        "interface",
        "is_event_stream",
        "kind",
        "lost",
        "run",
        "stale",
    )

    def __init__(self, opening: Opening, claim: Claim, host: Host) -> None:
        super().__init__(opening.connection, opening.attempt, opening.window)
        self.host = host
        self.interface = opening.interface
        self.run = RunState.SERVING
        self.confirmation: asyncio.Future[None] | None = None
        """Done when the interface server has answered whether there is such a connection."""
        self.lost = False
        """Whether nothing more can be sent to the client by this run."""
        self.stale = claim.stale
        """Whether this may have been served already, by somebody else."""
        self._claim = claim
        self._resumed = opening.resumed
        self._subprotocols = opening.subprotocols
        self._announced = False
        self.kind = opening.kind
        self._is_http = opening.kind == HTTP
        self._table, self._app_state = initial_state(opening.kind)
        self._no_body = opening.method == "HEAD"
        self._held: Event | None = None
        self._remaining: int | None = None
        self._own_end: Event | None = None
        self.is_event_stream = False
        """Whether the app has begun an event stream, which lasts until either side ends it."""
        self._streaming = False  # whether the app has sent a part of a body that is not the last one
        self._window_waiters: list[asyncio.Future[None]] | None = None
        self._in_hand: int | None = None  # the number of the first event that the app has got and is not done with
        self._last_sent: Draft | None = None  # by the app, with an event in hand
        self._last_packed = 0  # `Bus.packed` as that was posted

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """ASGI's send. Waits while the client is slow.

        Once the client is gone, only a message to it raises, and a further part of a stream: see `_send_to_nobody`.

        Raises:
            ClientDisconnected: the client is gone. It is an OSError.
            ValueError, TypeError: the event is invalid.
            IllegalTransition: the event is out of order. It is a RuntimeError.
            MessageTooLarge: a WebSocket message is over 16 MiB.
            OSError: a file cannot be read.
        """
        if self.lost:
            self._send_to_nobody(message)
            return
        event = encode(message)
        kind = message["type"]
        if kind.partition(".")[0] != self.kind:
            raise ValueError(f"{kind!r} cannot be sent on {_NAMES.get(self.kind) or 'a ' + self.kind} connection")
        if self._app_state is _COMPLETE and self._is_http:
            return  # "any further messages on the channel will be ignored", Response Body
        code = event[0]
        before = self._app_state
        if code >= PATH_SEND:
            await self._send_file(event)
            return
        after = self._table.get((before, code))
        if after is None:
            if self._has_heard:
                return  # some apps answer again behind a stream that a disconnect has ended
            raise IllegalTransition(before, code)
        if code == RESPONSE_BODY or code == RESPONSE_END:
            if self._remaining is not None:
                self._count_body(len(event[1]), last=code == RESPONSE_END)
            if code == RESPONSE_BODY:
                self._streaming = True
            if len(event[1]) > PART:
                self.flush()
                event = await self._send_parts(event)
                if self.lost:
                    return
        elif code == RESPONSE_START or code == RESPONSE_START_TRAILERS:
            self._begin_response(event)
        elif (code == MESSAGE_SENT or code == OTHER_SENT) and len(event[-1]) > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(len(event[-1]), MAX_MESSAGE_BYTES)
        elif code == ACCEPT:
            if event[1] is not None and event[1] not in self._subprotocols:
                raise ValueError(f"the client did not offer the subprotocol {event[1]!r}, see scope['subprotocols']")
            event = (*event[:3], self.host.resume)
        self._app_state = after
        if code == RESPONSE_START and self._is_http:
            if self.is_event_stream:
                self.host.stream_begins(self)
            self._held = event  # most apps go on with the body at once: then both are one event
            self.host.hold(self)
            return
        if self._held is not None and code != EARLY_HINT:
            if code == RESPONSE_END and len(event[1]) <= PART:
                event, self._held = (RESPONSE, *self._held[1:], event[1]), None
            else:
                self.flush()
        self.post(event)
        if after is _COMPLETE:
            if code == CLOSE and before is _OPEN:
                self._own_end = (WEBSOCKET_DISCONNECT, event[1], event[2])
            self._wake()
        if self.in_flight >= self.window:
            await self._window()
            if self.is_gone and not self._is_http:
                raise ClientDisconnected("the client is gone, and has not read all that was sent")

    @property
    def is_gone(self) -> bool:
        """Whether the client is gone."""
        return self.run is _LOST

    @property
    def _has_heard(self) -> bool:
        """Whether the app has heard that the connection ends."""
        raise NotImplementedError

    def _send_to_nobody(self, message: MutableMapping[str, Any]) -> None:
        """Judge what an app sends to a client that is gone.

        A whole answer is no error, as ASGI has it up to version 2.3 of HTTP: the app has done its work. An accept, a
        close and a refusal are none either: the app may not have heard yet. Whoever sends more, of a stream or of
        messages, has to learn that nobody gets it.

        Raises:
            ClientDisconnected: for a message, and for a part of a stream behind its first.
        """
        kind = str(message.get("type"))
        if kind.startswith(("http.response.", "websocket.http.response.")):
            in_vain = self._streaming and bool(message.get("more_body"))
            self._streaming = self._streaming or bool(message.get("more_body"))
        else:
            in_vain = not kind.endswith((".close", ".accept"))
        if in_vain:
            gone = "another run goes on with the client" if self.run is not _LOST else "the client is gone"
            raise ClientDisconnected(f"{gone}: {kind!r} was not sent")

    def flush(self) -> None:
        """Post the start of the response if it is still held: the body does not follow at once."""
        if self._held is not None:
            held, self._held = self._held, None
            self.post(held)

    def post(self, event: Event) -> None:
        """Number an event and post it to the interface server."""
        frame, counted = self.sent(event)
        if self._in_hand is None:
            self.host.bus.post(self.interface, frame, counted)
        else:  # perhaps the answer to what the app has in hand: see `acknowledged_with_answer`
            self._last_sent = [*frame]
            self._last_packed = self.host.bus.packed
            self.host.bus.post(self.interface, self._last_sent, counted)
        if not self._announced:
            self._owned()

    def acknowledged_with_answer(self, through: int) -> bool:
        """Have what was sent last acknowledge what the app was done with since, if that is not on its way yet.

        Most apps ask for the next event as soon as they have answered one. Then answer and acknowledgement arrive
        together, or neither does, so that an event whose answer was seen does not come again after a crash.

        Args:
            through: The app is done with everything below that number.
        """
        answer, self._last_sent = self._last_sent, None
        if answer is None or self._last_packed != self.host.bus.packed:
            return False
        answer[ACKNOWLEDGED] = self.taken = through
        self.untold = 0
        return True

    async def confirm(self) -> None:
        """Ask the interface server whether this connection is still to be served; if not, it is lost then."""
        self.confirmation = asyncio.get_running_loop().create_future()
        self.host.bus.post(self.interface, self.probe())
        await self.confirmation
        if not self.lost and not self._announced:
            self._owned()

    def _confirmed(self) -> None:
        if self.confirmation is not None and not self.confirmation.done():
            self.confirmation.set_result(None)

    def announce(self) -> None:
        """Name this worker as the owner, if no event has done so yet."""
        if not self._announced:
            self.host.bus.post(self.interface, self.own())
            self._owned()

    def _owned(self) -> None:
        """The interface server learns of its owner by what was just posted: the claim is done behind it."""
        self._announced = True
        self.host.bus.done(self._claim)

    async def _send_parts(self, event: Event) -> Event:
        """Post a large body part by part, each when the window is open; give the last one back.

        Ends early if the client is gone.
        """
        body = memoryview(event[1])
        cut = (len(body) - 1) // PART * PART
        for start in range(0, cut, PART):
            if not self.window_open:
                await self._window()
            if self.lost:
                return event
            self.post((RESPONSE_BODY, bytes(body[start : start + PART])))
        if not self.window_open:
            await self._window()
        return (event[0], bytes(body[cut:]))

    async def _send_file(self, event: Event) -> None:
        """Send a file as the body, or as a part of it."""
        more = event[0] != PATH_SEND and event[1]
        transition(HTTP_TABLE, self._app_state, RESPONSE_BODY if more else RESPONSE_END)
        # The start is kept for the first part: if there is none because the file cannot be read, the client gets a 500.
        self.host.keep(self)
        limit = 0 if self._no_body else self._remaining if event[0] == PATH_SEND else None
        try:
            await send_file(event, limit, partial(self._send_part, more))
        except ClientDisconnected:
            if more:
                raise
        finally:
            if self._held is not None:
                self.host.hold(self)

    async def _send_part(self, more: bool, body: bytes, last: bool) -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": more or not last})

    def _begin_response(self, event: Event) -> None:
        """Note what the head of a response says about its body."""
        for given_name, value in event[2]:
            name = given_name.lower()
            if name == b"content-length":
                self._remaining = int(value)
            elif name == b"content-type":
                self.is_event_stream = value.lower().startswith(b"text/event-stream")
        if self._remaining is not None or event[0] != RESPONSE_START or not self._is_http:
            self.is_event_stream = False
        if self._no_body or event[1] in (204, 304):
            self._remaining = None
            self.is_event_stream = False

    def end_stream(self) -> None:
        """End an event stream in good order, for an app that was told to stop."""
        self.flush()
        self._app_state = _COMPLETE
        self.post((RESPONSE_END, b""))

    def _count_body(self, length: int, *, last: bool) -> None:
        assert self._remaining is not None
        if length > self._remaining:
            raise RuntimeError("the response's body is longer than its content-length")
        self._remaining -= length
        if last and self._remaining:
            raise RuntimeError(f"the response's body is {self._remaining} bytes shorter than its content-length")

    async def _window(self) -> None:
        """Wait until the window is open, or nothing can be sent any more."""
        while not self.window_open and not self.lost:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._window_waiters = [*waiting(self._window_waiters), waiter]
            await waiter

    def acknowledgement(self, number: int) -> None:
        """The interface server has taken everything below `number`."""
        if self.acknowledged(number):
            self._open_window()
        self._confirmed()

    def repeat(self, number: int) -> None:
        """A RESEND frame: the interface server misses events from that number on."""
        for frame, counted in self.kept():
            if frame[3] >= number:
                self.host.bus.post(self.interface, frame, counted)

    def _open_window(self) -> None:
        if self._window_waiters is not None:
            waiters, self._window_waiters = self._window_waiters, None
            resolve(waiters)

    def _wake(self) -> None:
        """The app may have something to receive: that it has ended the connection itself."""
        raise NotImplementedError

    # What the server answers for the app.

    def finish(self, error: BaseException | None, *, excused: bool) -> str | None:
        """The app has returned, or raised: answer what it left open. Returns what it did wrong, if anything."""
        if self.lost or self._app_state is _COMPLETE:
            return None
        excused = excused or error is not None
        if self._table is OTHER_TABLE:
            self.post((ABORT,) if error is not None else self._other_close())
            return None
        if self._held is not None:  # the client has seen nothing of it yet
            self._held = None
            self._app_state = AppState.WAITING
        if self._app_state in (AppState.WAITING, AppState.HANDSHAKE) and not self._resumed:
            self._answer(500, b"Internal Server Error")
            return None if excused else "returned without answering"
        if self._app_state in (_OPEN, AppState.HANDSHAKE):
            self.post((CLOSE, 1011 if error else 1000, ""))
            return None
        self.post((ABORT,))
        return None if excused else "returned before its response was complete"

    def close(self, code: int, reason: str) -> None:
        """Close the client's WebSocket, or its connection of another protocol; for a worker that stops."""
        if not self.lost:
            if self._table is OTHER_TABLE:
                if self._app_state is _OPEN:
                    self.post(self._other_close())
            elif self._app_state is _OPEN or self._resumed:
                self.post((CLOSE, code, reason))
            elif self._app_state is AppState.HANDSHAKE:
                self._answer(503, b"This server is stopping.")
            elif self._app_state is AppState.DENYING:
                self.post((ABORT,))
            self._app_state = _COMPLETE

    def _other_close(self) -> Event:
        return other(OTHER_CLOSE, {"type": f"{self.kind}.close"})

    def _answer(self, status: int, body: bytes) -> None:
        headers = ((b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body)))
        self.post((RESPONSE_START, status, headers))
        self.post((RESPONSE_END, body))

    def __repr__(self) -> str:
        return f"<Session {self.interface}{self.number} attempt {self.attempt}: {self._app_state.value}>"


def waiting(waiters: list[asyncio.Future[None]] | None) -> list[asyncio.Future[None]]:
    """Return those of `waiters` whose tasks were not cancelled: an app may give up waiting again and again."""
    return [waiter for waiter in waiters if not waiter.done()] if waiters else []


def resolve(waiters: list[asyncio.Future[None]]) -> None:
    """Wake those who wait."""
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
