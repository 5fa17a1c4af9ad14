"""One session: one run of the app for one connection; what the app receives, and how the run ends."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from asgibus.layers.codec import listed, pack, unpack
from asgibus.layers.contract import ChannelLayer, Claim, Frame
from asgibus.layers.errors import LayerUnavailable, MessageTooLarge
from asgibus.layers.frames import EVENT_OFFSET
from asgibus.protocol.checks import MAX_STATE_BYTES
from asgibus.protocol.connect_request import HTTP, WEBSOCKET, Opening, scope_of
from asgibus.protocol.events import (
    CONTINUE,
    GROUP_DISCARD,
    GROUP_DONE,
    HANDOVER,
    HTTP_DISCONNECT,
    OTHER_DISCONNECT,
    REQUEST_BODY,
    REQUEST_END,
    SAVE_STATE,
    WEBSOCKET_DISCONNECT,
    Event,
    decode,
    disconnect,
    size,
)
from asgibus.protocol.states import RUN_TABLE, AppState, RunEvent, RunState, transition
from asgibus.protocol.stream import NEW, Arrival
from asgibus.worker.connection import Connection, Extension
from asgibus.worker.sending import ClientDisconnected, Host, Sending, resolve, waiting

logger = logging.getLogger("asgibus.worker")

SERVICE_RESTART = 1012  # close code: the service restarts, the client may come back

_HANDED_OVER: Event = (WEBSOCKET_DISCONNECT, SERVICE_RESTART, "")
# Looked up once: see `protocol.stream`.
_COMPLETE, _LEAVING = AppState.COMPLETE, RunState.DRAINING


class Session(Sending):
    """The worker's end of a connection."""

    __slots__ = (
        "_connecting",
        "_disconnect",
        "_expects_continue",
        "_group_waiters",
        "_in_hand_bytes",
        "_inbox",
        "_receivers",
        "_saved",
        "_saved_bytes",
        "parting",
        "received",
        "scope",
        "task",
    )

    def __init__(self, opening: Opening, claim: Claim, host: Host) -> None:
        super().__init__(opening, claim, host)
        self.parting = False
        """Whether the interface server waits for the end of this run, which has heard that the client is gone."""
        self._connecting = opening.kind == WEBSOCKET
        self._expects_continue = opening.expects_continue
        self._inbox: list[tuple[int, Event]] = list(enumerate(opening.events))
        self.expected = len(opening.events)
        self._in_hand_bytes = 0
        self.received = opening.handled
        """How many of the client's events the app and its earlier runs have got."""
        self._disconnect: Event | None = None
        self._receivers: list[asyncio.Future[None]] | None = None
        self._group_waiters: list[tuple[str, asyncio.Future[None]]] | None = None
        self._saved_bytes = opening.state
        self._saved: dict[str, Any] | None = None
        self.scope = scope_of(opening)
        self.scope["state"] = host.lifespan_state.copy()
        # pathsend and zerocopysend are taken, but not offered: middleware that rewrites bodies drops unknown messages.
        self.scope["extensions"]["asgibus"] = Extension(Connection(self), self.attempt, self._resumed)
        self.task: asyncio.Task[None] | None = None

    @property
    def is_http(self) -> bool:
        """Whether this is an HTTP connection; else it is a WebSocket, or of a protocol that is open from the start."""
        return self._is_http

    @property
    def resumed(self) -> bool:
        """Whether an earlier run has accepted the client."""
        return self._resumed

    @property
    def awaits_body(self) -> bool:
        """Whether the request has more of its body than came with the opening."""
        return self._is_http and not (self._inbox and self._inbox[-1][1][0] == REQUEST_END)

    @property
    def handed_over(self) -> bool:
        """Whether another run goes on with the WebSocket, as the app of this one knows."""
        return self.kind == WEBSOCKET and self.run in (RunState.NOTIFIED, RunState.HANDED_OVER, RunState.SUPERSEDED)

    @property
    def target(self) -> object:
        """What the connection is to, or from whom: for people to read."""
        return self.scope.get("path") or self.scope.get("client")

    @property
    def complete(self) -> bool:
        """Whether the app has answered in full."""
        return self._app_state is _COMPLETE

    @property
    def layer(self) -> ChannelLayer:
        """The channel layer."""
        return self.host.layer

    # What the app calls.

    async def receive(self) -> dict[str, Any]:
        """ASGI's receive. The app is done with the event before, which is acknowledged then."""
        if self._connecting:
            self._connecting = False
            return {"type": "websocket.connect"}
        if self._disconnect is None:
            self._done()
        while True:
            if self.run is _LEAVING:
                self._tell()
            if self._disconnect is not None:
                return decode(self._disconnect)
            if self._is_http:
                if self._app_state is _COMPLETE:
                    return decode(disconnect(HTTP, 1006, ""))
                self._join_body()
            if self._inbox:
                break
            if self._app_state is _COMPLETE:
                # The app itself has ended the connection; a WebSocket that it refused was never open.
                return decode(self._own_end or disconnect(self.kind, 1006, ""))
            if self._expects_continue:
                self._expects_continue = False
                self.post((CONTINUE,))
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._receivers = [waiter] if self._receivers is None else [*waiting(self._receivers), waiter]
            await waiter
        number, event = self._inbox.pop(0)
        if self._in_hand is None:
            self._in_hand = number
        self._in_hand_bytes += size(event)
        if event[0] in (HTTP_DISCONNECT, WEBSOCKET_DISCONNECT, OTHER_DISCONNECT):
            self._disconnect = event  # in hand until the app returns
        else:
            self.received += 1
            if self.host.acknowledge_early:
                self._done()
        return decode(event)

    def _join_body(self) -> None:
        """Spare the app parts of a body that carry nothing, as the first and the last one may be."""
        inbox = self._inbox
        while inbox and inbox[0][1] == (REQUEST_BODY, b""):
            del inbox[0]
        if len(inbox) > 1 and inbox[0][1][0] == REQUEST_BODY and inbox[1][1] == (REQUEST_END, b""):
            inbox[:2] = [(inbox[0][0], (REQUEST_END, inbox[0][1][1]))]

    def _done(self) -> None:
        """Acknowledge what the app has in hand: it is done with that."""
        if self._in_hand is not None:
            counted, self._in_hand, self._in_hand_bytes = self._in_hand_bytes, None, 0
            if self._last_sent is None or not self.acknowledged_with_answer(
                self._inbox[0][0] if self._inbox else self.expected
            ):
                self._took(counted)

    @property
    def _has_heard(self) -> bool:
        return self._disconnect is not None

    async def change_group(self, code: int, group: str) -> None:
        """Ask the interface server to add this connection to a group, or to take it out, and wait until it has."""
        if self.handed_over and code == GROUP_DISCARD:
            return  # the connection goes on, and so does its membership: nothing may be missed between two runs
        if self.lost or self._disconnect is not None:
            raise ClientDisconnected("the client is gone, and with it its memberships")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._group_waiters = [*(self._group_waiters or ()), (group, waiter)]
        self.flush()
        self.post((code, group))
        await waiter

    @property
    def state(self) -> dict[str, Any]:
        """What the app saved, unpacked at the first look."""
        if self._saved is None:
            self._saved = listed(unpack(self._saved_bytes)) if self._saved_bytes else {}
        return self._saved

    async def save_state(self) -> None:
        """See `Connection.save_state`."""
        if self.run is RunState.SUPERSEDED:
            raise ClientDisconnected("another run serves this connection by now, with a state of its own")
        if self.run in (RunState.DISCONNECTED, RunState.HANDED_OVER, RunState.ENDED):
            raise ClientDisconnected("the client is gone, and with it its state")
        self._save()
        if self.run is not RunState.NOTIFIED:
            await self._window()
            if self.is_gone:
                raise ClientDisconnected("the client is gone, and with it its state")

    def _save(self) -> None:
        """Post the state if it is another than the interface server has. Raises TypeError, MessageTooLarge."""
        packed = pack(self.state)
        if len(packed) > MAX_STATE_BYTES:
            raise MessageTooLarge(len(packed), MAX_STATE_BYTES)
        if packed != self._saved_bytes:
            self._saved_bytes = packed
            self.post((SAVE_STATE, packed))

    # What arrives from the interface server.

    def event(self, frame: Frame) -> None:
        """An EVENT frame for this session."""
        if frame[4] > self.acked and self.acknowledged(frame[4]):
            self._open_window()
        if (arrival := self.arrived(frame[3])) is not NEW:
            if arrival is Arrival.GAP:
                self.host.bus.post(self.interface, self.resend())
            return
        event = frame[EVENT_OFFSET:]
        code = event[0]
        if code == GROUP_DONE:
            self._took(size(event))
            self._group_done(event[2], event[1])
            return
        self._inbox.append((frame[3], event))
        if code == WEBSOCKET_DISCONNECT:
            self.parting = self.host.resume
            if (
                self.run is not RunState.NOTIFIED
            ):  # else the next run hears of it, and this one has still to be handed over
                self._lose()
        elif code == OTHER_DISCONNECT or (code == HTTP_DISCONNECT and event[1]):
            self._lose()
        self._wake()

    def superseded(self) -> None:
        """End this run as one that was handed over, since another run serves its connection."""
        self.run = transition(RUN_TABLE, self.run, RunEvent.SUPERSEDE)
        if self.run is RunState.SUPERSEDED and self._disconnect is None:
            self._disconnect = _HANDED_OVER if self.kind == WEBSOCKET else disconnect(self.kind, 1006, "")
            self._cut()
            self._wake()

    def disconnected(self, code: int, reason: str = "") -> None:
        """The client is gone, without the interface server having said so in an event."""
        if self.run not in (RunState.DISCONNECTED, RunState.SUPERSEDED):
            self._inbox.append((self.expected, disconnect(self.kind, code, reason)))
            self._lose()
            self._wake()

    def _lose(self) -> None:
        if self.run is not RunState.DISCONNECTED:
            self.run = transition(RUN_TABLE, self.run, RunEvent.DISCONNECT)
        self._cut()

    def _cut(self) -> None:
        """Nothing can be sent any more, and nothing need be waited for."""
        self.lost = True
        self._confirmed()
        self._open_window()
        for _, waiter in self._group_waiters or ():
            if not waiter.done():
                waiter.set_exception(ClientDisconnected("the client is gone, and with it its memberships"))
                waiter.exception()  # looked at, so that nothing is logged if the app has stopped waiting
        self._group_waiters = None

    def _took(self, counted: int) -> None:
        """Count bytes as dealt with; and what is before the first event that the app has in hand, or has not got."""
        told = not self.untold
        through = self._in_hand
        if through is None:
            through = self._inbox[0][0] if self._inbox else self.expected
        self.took(counted, through)
        if told and not self._is_http:
            self.host.took(self)
        if self.ack_due and not self.lost:
            self.host.bus.post(self.interface, self.ack())

    def _wake(self) -> None:
        if self._receivers is not None:
            waiters, self._receivers = self._receivers, None
            resolve(waiters)

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

    def drain(self) -> None:
        """End what would last, as the worker stops: hand a WebSocket over, or close it; end an event stream.

        A WebSocket is handed over, and an event stream ended, when the app has cleaned up. Other requests may finish.
        """
        if self.run is not RunState.SERVING:
            return
        if self._is_http:
            leaves = self.is_event_stream
        else:
            leaves = (
                self.host.resume and self.kind == WEBSOCKET and self._app_state in (AppState.HANDSHAKE, AppState.OPEN)
            )
        if leaves:
            self.run = transition(RUN_TABLE, self.run, RunEvent.DRAIN)
            self._wake()
        elif not self._is_http:
            self.close(SERVICE_RESTART, "")
            self.disconnected(SERVICE_RESTART, "" if self.kind == WEBSOCKET else "the worker stops")

    def insist(self) -> None:
        """Let an app that has not asked for what comes learn from `send` that it is to end."""
        if self.run is _LEAVING:
            self._tell()
            self._wake()

    def warn(self) -> None:
        """Tell the app of a request that it will soon be cut: it gets `http.disconnect`, and may still answer."""
        if self._is_http and self._disconnect is None:
            self._disconnect = (HTTP_DISCONNECT, False)
            self._wake()

    def _tell(self) -> None:
        self.run = transition(RUN_TABLE, self.run, RunEvent.NOTIFY)
        # What is in the inbox was not taken, so the next run gets it.
        self._disconnect = (HTTP_DISCONNECT, False) if self._is_http else _HANDED_OVER
        self._cut()

    def end(self, error: BaseException | None) -> None:
        """The app has returned, or raised: answer what it left open, and log what it did wrong."""
        if error is None:
            self._done()
        if self.run is RunState.NOTIFIED and self._app_state is not _COMPLETE:
            if self._is_http:
                self.end_stream()
            else:
                self._hand_over()
        elif wrong := self.finish(error, excused=self._disconnect is not None):
            logger.error("the app %s on %s %r", wrong, self.scope["type"], self.target)
        self.run = transition(RUN_TABLE, self.run, RunEvent.RETURN)
        if not self._announced:
            self._owned()
        # Let go of what refers back to this session: its memory is then free at once.
        self.scope = {}
        self.task = None
        self._held = None
        self.lost = True  # an app's stray task that sends later is told so

    def _hand_over(self) -> None:
        if self._saved is not None:
            try:
                self._save()
            except (TypeError, MessageTooLarge) as error:
                logger.error("the state of a connection could not be handed over: %s", error)
        self.post((HANDOVER,))
