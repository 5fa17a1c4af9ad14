"""What an app sends: checked, numbered, and posted to the interface server, as fast as the client takes it."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from asgibus.layers.contract import Bus, ChannelLayer, Claim
from asgibus.layers.errors import LayerUnavailable, MessageTooLarge
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
from asgibus.protocol.frames import TAKING
from asgibus.protocol.opening import HTTP, WEBSOCKET, Opening
from asgibus.protocol.session import PART, SessionEnd
from asgibus.protocol.states import HTTP_TABLE, OTHER_TABLE, App, beginning, step
from asgibus.worker.files import send_file

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

    trial: asyncio.Lock
    """Held while an app has an event that was in hand when the last worker died: if this one dies, that was it."""

    def hold(self, session: Sending) -> None:
        """Call the session's `flush` at the end of this turn of the event loop."""

    def keep(self, session: Sending) -> None:
        """Do not, after all."""

    def took(self, session: Sending) -> None:
        """The app has taken an event of a WebSocket that the interface server should soon hear of."""


class Sending(SessionEnd):
    """The half of a session that the app's `send` uses."""

    __slots__ = (
        "_announced",
        "_app_state",
        "_claim",
        "_held",
        "_is_http",
        "_no_body",
        "_own_end",
        "_remaining",
        "_resumed",
        "_subprotocols",
        "_table",
        "_window_waiters",
        "confirmation",
        "host",
        "interface",
        "kind",
        "lost",
        "stale",
    )

    def __init__(self, opening: Opening, claim: Claim, host: Host) -> None:
        super().__init__(opening.connection, opening.attempt, opening.window)
        self.host = host
        self.interface = opening.interface
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
        self._table, self._app_state = beginning(opening.kind)
        self._no_body = opening.method == "HEAD"
        self._held: Event | None = None
        self._remaining: int | None = None
        self._own_end: Event | None = None
        self._window_waiters: list[asyncio.Future[None]] | None = None

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """ASGI's send. Waits while the client is slow.

        Raises ClientDisconnected (an OSError) when the client is gone, ValueError or TypeError for an invalid event,
        IllegalTransition (a RuntimeError) for one that is out of order, MessageTooLarge for a WebSocket message over
        16 MiB, OSError for a file that cannot be read.
        """
        event = encode(message)
        kind = message["type"]
        if kind.partition(".")[0] != self.kind:
            raise ValueError(f"{kind!r} cannot be sent on {_NAMES.get(self.kind) or 'a ' + self.kind} connection")
        if self.lost:
            raise ClientDisconnected(f"the client is gone: {kind!r} was not sent")
        if self._app_state is App.COMPLETE and self._is_http:
            return  # "any further messages on the channel will be ignored", Response Body
        code = event[0]
        before = self._app_state
        if code >= PATH_SEND:
            await self._send_file(event)
            return
        after = step(self._table, before, code)
        if code == RESPONSE_BODY or code == RESPONSE_END:
            if self._remaining is not None:
                self._count_body(len(event[1]), last=code == RESPONSE_END)
            if len(event[1]) > PART:
                self.flush()
                event = await self._send_parts(event)
        elif code == RESPONSE_START or code == RESPONSE_START_TRAILERS:
            self._remaining = _content_length(event)
            if self._no_body or event[1] in (204, 304):
                self._remaining = None
        elif (code == MESSAGE_SENT or code == OTHER_SENT) and len(event[-1]) > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(len(event[-1]), MAX_MESSAGE_BYTES)
        elif code == ACCEPT:
            if event[1] is not None and event[1] not in self._subprotocols:
                raise ValueError(f"the client did not offer the subprotocol {event[1]!r}, see scope['subprotocols']")
            event = (*event[:3], self.host.resume)
        self._app_state = after
        if code == RESPONSE_START and self._is_http:
            self._held = event  # most apps go on with the body at once: then both are one event
            self.host.hold(self)
            return
        if self._held is not None and code != EARLY_HINT:
            if code == RESPONSE_END and len(event[1]) <= PART:
                event, self._held = (RESPONSE, *self._held[1:], event[1]), None
            else:
                self.flush()
        self.post(event)
        if after is App.COMPLETE:
            if code == CLOSE and before is App.OPEN:
                self._own_end = (WEBSOCKET_DISCONNECT, event[1], event[2])
            self._wake()
        if not self.window_open:
            await self._window()

    def flush(self) -> None:
        """Post the start of the response if it is still held: the body does not follow at once."""
        if self._held is not None:
            held, self._held = self._held, None
            self.post(held)

    def post(self, event: Event) -> None:
        """Number an event and post it to the interface server."""
        frame, counted = self.sent(event)
        self.host.bus.post(self.interface, frame, counted)
        if not self._announced:
            self._owned()

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

    async def say_taking(self, count: int) -> None:
        """Let the interface server know how many events the app is about to have got, before it gets the last of them.

        If the worker then dies, that may be the event's doing.
        """
        self.host.bus.post(self.interface, (TAKING, self.number, self.attempt, count))
        if not self._announced:
            self._owned()
        with suppress(LayerUnavailable):  # nobody can be told now; that must not keep the app from its work
            await self.host.bus.posted()

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
        """Post a large body part by part, each when the window is open; gives the last one back."""
        body = memoryview(event[1])
        cut = (len(body) - 1) // PART * PART
        for start in range(0, cut, PART):
            if not self.window_open:
                await self._window()
            self.post((RESPONSE_BODY, bytes(body[start : start + PART])))
        if not self.window_open:
            await self._window()
        return (event[0], bytes(body[cut:]))

    async def _send_file(self, event: Event) -> None:
        """Send a file as the body, or as a part of it."""
        more = event[0] != PATH_SEND and event[1]
        step(HTTP_TABLE, self._app_state, RESPONSE_BODY if more else RESPONSE_END)
        # The start is kept for the first part: if there is none because the file cannot be read, the client gets a 500.
        self.host.keep(self)
        limit = 0 if self._no_body else self._remaining if event[0] == PATH_SEND else None
        try:
            await send_file(event, limit, partial(self._send_part, more))
        finally:
            if self._held is not None:
                self.host.hold(self)

    async def _send_part(self, more: bool, body: bytes, last: bool) -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": more or not last})

    def _count_body(self, length: int, *, last: bool) -> None:
        assert self._remaining is not None
        if length > self._remaining:
            raise RuntimeError("the response's body is longer than its content-length")
        self._remaining -= length
        if last and self._remaining:
            raise RuntimeError(f"the response's body is {self._remaining} bytes shorter than its content-length")

    async def _window(self) -> None:
        """Wait until the window is open, or raise ClientDisconnected."""
        while not self.window_open:
            if self.lost:
                raise ClientDisconnected("the client is gone, and has not read all that was sent")
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
        waiters, self._window_waiters = self._window_waiters, None
        resolve(waiters)

    def _wake(self) -> None:
        """The app may have something to receive: that it has ended the connection itself."""
        raise NotImplementedError

    # What the server answers for the app.

    def finish(self, error: BaseException | None, *, excused: bool) -> str | None:
        """The app has returned, or raised: answer what it left open. Returns what it did wrong, if anything."""
        if self.lost or self._app_state is App.COMPLETE:
            return None
        excused = excused or error is not None
        if self._table is OTHER_TABLE:
            self.post((ABORT,) if error is not None else self._other_close())
            return None
        if self._held is not None:  # the client has seen nothing of it yet
            self._held = None
            self._app_state = App.WAITING
        if self._app_state in (App.WAITING, App.HANDSHAKE) and not self._resumed:
            self._answer(500, b"Internal Server Error")
            return None if excused else "returned without answering"
        if self._app_state in (App.OPEN, App.HANDSHAKE):
            self.post((CLOSE, 1011 if error else 1000, ""))
            return None
        self.post((ABORT,))
        return None if excused else "returned before its response was complete"

    def close(self, code: int, reason: str) -> None:
        """Close the client's WebSocket, or its connection of another protocol; for a worker that stops."""
        if not self.lost:
            if self._table is OTHER_TABLE:
                if self._app_state is App.OPEN:
                    self.post(self._other_close())
            elif self._app_state is App.OPEN or self._resumed:
                self.post((CLOSE, code, reason))
            elif self._app_state is App.HANDSHAKE:
                self._answer(503, b"This server is stopping.")
            elif self._app_state is App.DENYING:
                self.post((ABORT,))
            self._app_state = App.COMPLETE

    def _other_close(self) -> Event:
        return other(OTHER_CLOSE, {"type": f"{self.kind}.close"})

    def _answer(self, status: int, body: bytes) -> None:
        headers = ((b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body)))
        self.post((RESPONSE_START, status, headers))
        self.post((RESPONSE_END, body))

    def __repr__(self) -> str:
        return f"<Session {self.interface}{self.number} attempt {self.attempt}: {self._app_state.value}>"


def waiting(waiters: list[asyncio.Future[None]] | None) -> list[asyncio.Future[None]]:
    """Those of `waiters` whose tasks were not cancelled: an app may give up waiting again and again."""
    return [waiter for waiter in waiters or () if not waiter.done()]


def resolve(waiters: list[asyncio.Future[None]] | None) -> None:
    """Wake those who wait."""
    for waiter in waiters or ():
        if not waiter.done():
            waiter.set_result(None)


def _content_length(event: Event) -> int | None:
    for name, value in event[2]:
        if name.lower() == b"content-length":
            try:
                return int(value)
            except ValueError:
                raise ValueError(f"the response's content-length is not a number: {value!r}") from None
    return None
