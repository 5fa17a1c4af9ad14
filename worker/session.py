"""One session: one run of the app for one connection, and the app's `receive` and `send`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, MutableMapping
from typing import Any

from asgibus.layers.codec import listed, pack, unpack
from asgibus.layers.contract import Bus, ChannelLayer, Claim, Frame
from asgibus.layers.errors import LayerUnavailable, MessageTooLarge
from asgibus.protocol.events import (
    ABORT,
    CLOSE,
    CONTINUE,
    GROUP_DONE,
    HTTP_DISCONNECT,
    MESSAGE_SENT,
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
    encode,
    size,
)
from asgibus.protocol.frames import HEAD
from asgibus.protocol.opening import HTTP, Opening, scope_of
from asgibus.protocol.session import PART, Arrival, SessionEnd
from asgibus.protocol.states import HTTP_TABLE, WEBSOCKET_TABLE, App, step
from asgibus.worker.connection import Connection

logger = logging.getLogger("asgibus.worker")

MAX_STATE_BYTES = 16 * 1024  # kept in the interface server's memory for every open connection
MAX_MESSAGE_BYTES = 16 * 1024 * 1024  # one WebSocket message is one entry on the bus, and must not stall the others


# What `receive` returns once the app itself has ended the connection: a WebSocket that it refused was never open.
_HTTP_END: Event = (HTTP_DISCONNECT, True)
_WEBSOCKET_END: Event = (WEBSOCKET_DISCONNECT, 1006, "")


class ClientDisconnected(OSError):
    """The client is gone: nothing can be sent to it. ASGI 3, "Disconnected Client - send Exception"."""


class Session(SessionEnd):
    """The worker's end of a connection."""

    __slots__ = (
        "_announced",
        "_app_state",
        "_bus",
        "_claim",
        "_connecting",
        "_disconnect",
        "_expects_continue",
        "_group_waiters",
        "_held",
        "_hold",
        "_inbox",
        "_is_http",
        "_no_body",
        "_own_end",
        "_receivers",
        "_remaining",
        "_saved",
        "_window_waiters",
        "interface",
        "layer",
        "lost",
        "scope",
        "task",
    )

    def __init__(
        self,
        opening: Opening,
        claim: Claim,
        bus: Bus,
        layer: ChannelLayer,
        lifespan_state: dict[str, Any],
        hold: Callable[[Session], None],
    ) -> None:
        super().__init__(opening.connection, opening.attempt, opening.window)
        self._bus = bus
        self._hold = hold
        self._held: Event | None = None
        self._claim = claim
        self.layer = layer
        self.interface = opening.interface
        self._is_http = opening.kind == HTTP
        self._app_state = App.WAITING if self._is_http else App.HANDSHAKE
        self._connecting = not self._is_http
        self._expects_continue = opening.expects_continue
        self._no_body = opening.method == "HEAD"
        self._remaining: int | None = None
        self._inbox: list[tuple[int, Event]] = list(enumerate(opening.events))
        self.expected = len(opening.events)
        self._disconnect: Event | None = None
        self._own_end: Event = _HTTP_END if self._is_http else _WEBSOCKET_END
        self.lost = False
        self._announced = False
        self._receivers: list[asyncio.Future[None]] | None = None
        self._window_waiters: list[asyncio.Future[None]] | None = None
        self._group_waiters: list[tuple[str, asyncio.Future[None]]] | None = None
        self._saved: Any = opening.state
        self.scope = scope_of(opening)
        self.scope["state"] = lifespan_state.copy()
        self.scope["extensions"]["asgibus"] = {"connection": Connection(self)}
        self.task: asyncio.Task[None] | None = None

    # What the app calls.

    async def receive(self) -> dict[str, Any]:
        """ASGI's receive."""
        if self._connecting:
            self._connecting = False
            return {"type": "websocket.connect"}
        while not self._inbox:
            if self._disconnect is not None:
                return decode(self._disconnect)
            if self._app_state is App.COMPLETE:
                return decode(self._own_end)
            if self._expects_continue:
                self._expects_continue = False
                self._post((CONTINUE,))
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._receivers = [*_waiting(self._receivers), waiter]
            await waiter
        event = self._inbox.pop(0)[1]
        if event[0] in (HTTP_DISCONNECT, WEBSOCKET_DISCONNECT):
            self._disconnect = event
        self._took(event)
        if self.ack_due and not self.lost:
            self._bus.post(self.interface, self.ack())
        return decode(event)

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """ASGI's send. Waits while the client is slow.

        Raises ClientDisconnected (an OSError) when the client is gone, ValueError or TypeError for an invalid event,
        IllegalTransition (a RuntimeError) for one that is out of order, MessageTooLarge for a WebSocket message over
        16 MiB.
        """
        event = encode(message)
        kind = message["type"]
        if not kind.startswith("http." if self._is_http else "websocket."):
            raise ValueError(f"{kind!r} cannot be sent on {'an HTTP' if self._is_http else 'a WebSocket'} connection")
        if self.lost:
            raise ClientDisconnected(f"the client is gone: {kind!r} was not sent")
        if self._app_state is App.COMPLETE and self._is_http:
            return  # "any further messages on the channel will be ignored", Response Body
        code = event[0]
        before = self._app_state
        after = step(HTTP_TABLE if self._is_http else WEBSOCKET_TABLE, before, code)
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
        elif code == MESSAGE_SENT and len(event[1]) > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(len(event[1]), MAX_MESSAGE_BYTES)
        self._app_state = after
        if code == RESPONSE_START and self._is_http:
            self._held = event  # most apps go on with the body at once: then both are one event
            self._hold(self)
            return
        if self._held is not None:
            if code == RESPONSE_END and len(event[1]) <= PART:
                event, self._held = (RESPONSE, *self._held[1:], event[1]), None
            else:
                self.flush()
        self._post(event)
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
            self._post(held)

    async def _send_parts(self, event: Event) -> Event:
        """Post a large body part by part, each when the window is open; gives the last one back."""
        body = memoryview(event[1])
        cut = (len(body) - 1) // PART * PART
        for start in range(0, cut, PART):
            if not self.window_open:
                await self._window()
            self._post((RESPONSE_BODY, bytes(body[start : start + PART])))
        if not self.window_open:
            await self._window()
        return (event[0], bytes(body[cut:]))

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
            self._window_waiters = [*_waiting(self._window_waiters), waiter]
            await waiter

    async def change_group(self, code: int, group: str) -> None:
        """Ask the interface server to add this connection to a group, or to take it out, and wait until it has."""
        if self.lost or self._disconnect is not None:
            raise ClientDisconnected("the client is gone, and with it its memberships")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._group_waiters = [*(self._group_waiters or ()), (group, waiter)]
        self.flush()
        self._post((code, group))
        await waiter

    @property
    def state(self) -> dict[str, Any]:
        """What the app saved, unpacked at the first look."""
        if isinstance(self._saved, bytes):
            self._saved = listed(unpack(self._saved)) if self._saved else {}
        saved: dict[str, Any] = self._saved
        return saved

    async def save_state(self) -> None:
        """See `Connection.save_state`."""
        packed = pack(self.state)
        if len(packed) > MAX_STATE_BYTES:
            raise MessageTooLarge(len(packed), MAX_STATE_BYTES)
        if self.lost:
            raise ClientDisconnected("the client is gone, and with it its state")
        self._post((SAVE_STATE, packed))
        await self._window()

    # What arrives from the interface server.

    def event(self, frame: Frame) -> None:
        """An EVENT frame for this session."""
        if self.acknowledged(frame[4]):
            self._open_window()
        arrival = self.arrived(frame[3])
        if arrival is Arrival.GAP:
            self._bus.post(self.interface, self.resend())
            return
        if arrival is Arrival.DUPLICATE:
            return
        event = frame[HEAD:]
        code = event[0]
        if code == GROUP_DONE:
            self._took(event)
            self._group_done(event[2], event[1])
            return
        self._inbox.append((frame[3], event))
        if code == WEBSOCKET_DISCONNECT or (code == HTTP_DISCONNECT and event[1]):
            self._lose()
        self._wake()

    def acknowledgement(self, number: int) -> None:
        """An ACK frame for this session."""
        if self.acknowledged(number):
            self._open_window()

    def disconnected(self, code: int, reason: str = "") -> None:
        """The client is gone without the interface server having said so in an event of the session."""
        if not self.lost:
            event = (HTTP_DISCONNECT, True) if self._is_http else (WEBSOCKET_DISCONNECT, code, reason)
            self._inbox.append((self.expected, event))
            self._lose()
            self._wake()

    def repeat(self, number: int) -> None:
        """A RESEND frame: the interface server misses events from that number on."""
        for frame, counted in self.kept():
            if frame[3] >= number:
                self._bus.post(self.interface, frame, counted)

    def _lose(self) -> None:
        self.lost = True
        self._open_window()
        for _, waiter in self._group_waiters or ():
            if not waiter.done():
                waiter.set_exception(ClientDisconnected("the client is gone, and with it its memberships"))
                waiter.exception()  # looked at, so that nothing is logged if the app has stopped waiting
        self._group_waiters = None

    def _took(self, event: Event) -> None:
        """Count an event as taken; what is before the first one in the inbox has been taken."""
        self.took(size(event), self._inbox[0][0] if self._inbox else self.expected)

    def _wake(self) -> None:
        waiters, self._receivers = self._receivers, None
        _resolve(waiters)

    def _open_window(self) -> None:
        waiters, self._window_waiters = self._window_waiters, None
        _resolve(waiters)

    def _group_done(self, group: str, error: str | None) -> None:
        waiters = self._group_waiters or []
        for index, (name, waiter) in enumerate(waiters):
            if name == group:
                del waiters[index]
                if waiter.done():
                    pass  # the app has stopped waiting
                elif error is None:
                    waiter.set_result(None)
                else:
                    waiter.set_exception(LayerUnavailable(error))
                return

    # The end.

    @property
    def is_http(self) -> bool:
        """Whether this is an HTTP connection; else it is a WebSocket."""
        return self._is_http

    @property
    def awaits_body(self) -> bool:
        """Whether the request has more of its body than came with the opening."""
        return self._is_http and not (self._inbox and self._inbox[-1][1][0] == REQUEST_END)

    def announce(self) -> None:
        """Name this worker as the owner, if no event has done so yet."""
        if not self._announced:
            self._bus.post(self.interface, self.own())
            self._owned()

    def _owned(self) -> None:
        """The interface server learns of its owner by what was just posted: the claim is done behind it."""
        self._announced = True
        self._bus.done(self._claim)

    def finish(self, error: BaseException | None) -> str | None:
        """The app has returned, or raised: answer what it left open. Returns what it did wrong, if anything."""
        if self.lost or self._app_state is App.COMPLETE:
            return None
        excused = error is not None or self._disconnect is not None
        if self._held is not None:  # the client has seen nothing of it yet
            self._held = None
            self._app_state = App.WAITING
        if self._app_state in (App.WAITING, App.HANDSHAKE):
            self._answer(500, b"Internal Server Error")
            return None if excused else "returned without answering"
        if self._app_state is App.OPEN:
            self._post((CLOSE, 1011 if error else 1000, ""))
            return None
        self._post((ABORT,))
        return None if excused else "returned before its response was complete"

    def release(self) -> None:
        """Let go of the claim, and of what refers back to this session: its memory is then free at once."""
        if not self._announced:
            self._owned()
        self.scope = {}
        self.task = None
        self._held = None
        self.lost = True  # an app's stray task that sends later is told so

    def close(self, code: int, reason: str) -> None:
        """Close the client's WebSocket and tell the app; for a worker that stops."""
        if not self.lost:
            if self._app_state is App.OPEN:
                self._post((CLOSE, code, reason))
            elif self._app_state is App.HANDSHAKE:
                self._answer(503, b"This server is stopping.")
            elif self._app_state is App.DENYING:
                self._post((ABORT,))
            self._app_state = App.COMPLETE
        self.disconnected(code, reason)

    def _answer(self, status: int, body: bytes) -> None:
        headers = ((b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body)))
        self._post((RESPONSE_START, status, headers))
        self._post((RESPONSE_END, body))

    def _post(self, event: Event) -> None:
        frame, counted = self.sent(event)
        self._bus.post(self.interface, frame, counted)
        if not self._announced:
            self._owned()

    def __repr__(self) -> str:
        return f"<Session {self.interface}{self.number} attempt {self.attempt}: {self._app_state.value}>"


def _waiting(waiters: list[asyncio.Future[None]] | None) -> list[asyncio.Future[None]]:
    """Those of `waiters` whose tasks were not cancelled: an app may give up waiting again and again."""
    return [waiter for waiter in waiters or () if not waiter.done()]


def _resolve(waiters: list[asyncio.Future[None]] | None) -> None:
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
