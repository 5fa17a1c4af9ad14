"""One session: one run of the app for one connection; what the app receives, and how the run ends."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from asgibus.layers.codec import listed, pack, unpack
from asgibus.layers.contract import ChannelLayer, Claim, Frame
from asgibus.layers.errors import LayerUnavailable, MessageTooLarge
from asgibus.protocol.events import (
    CONTINUE,
    GROUP_DISCARD,
    GROUP_DONE,
    HANDOVER,
    HTTP_DISCONNECT,
    OTHER_DISCONNECT,
    REQUEST_END,
    SAVE_STATE,
    WEBSOCKET_DISCONNECT,
    Event,
    decode,
    disconnect,
    size,
)
from asgibus.protocol.frames import HEAD
from asgibus.protocol.opening import WEBSOCKET, Opening, scope_of
from asgibus.protocol.session import Arrival
from asgibus.protocol.states import App, Change, Run, change
from asgibus.worker.connection import Connection
from asgibus.worker.sending import ClientDisconnected, Host, Sending, resolve, waiting

logger = logging.getLogger("asgibus.worker")

TRIAL_SECONDS = 0.1  # an event is acknowledged so long after the app took it, and then it is not given to another run
MAX_STATE_BYTES = 16 * 1024  # kept in the interface server's memory for every open connection
SERVICE_RESTART = 1012  # close code: the service restarts, the client may come back

_HANDED_OVER: Event = (WEBSOCKET_DISCONNECT, SERVICE_RESTART, "")


class Session(Sending):
    """The worker's end of a connection."""

    __slots__ = (
        "_connecting",
        "_disconnect",
        "_expects_continue",
        "_group_waiters",
        "_inbox",
        "_receivers",
        "_saved",
        "_saved_bytes",
        "_trial",
        "parting",
        "run",
        "scope",
        "suspect",
        "task",
    )

    def __init__(self, opening: Opening, claim: Claim, host: Host) -> None:
        super().__init__(opening, claim, host)
        self.run = Run.SERVING
        self.suspect = opening.suspect
        """Whether an event that the app has not got yet was in hand when the last worker died."""
        self._trial: asyncio.TimerHandle | None = None  # while the app has the suspect event, and has not come for more
        self.parting = False
        """Whether the interface server waits for the end of this run, which has heard that the client is gone."""
        self._connecting = opening.kind == WEBSOCKET
        self._expects_continue = opening.expects_continue
        self._inbox: list[tuple[int, Event]] = list(enumerate(opening.events))
        self.expected = len(opening.events)
        self._disconnect: Event | None = None
        self._receivers: list[asyncio.Future[None]] | None = None
        self._group_waiters: list[tuple[str, asyncio.Future[None]]] | None = None
        self._saved_bytes = opening.state
        self._saved: dict[str, Any] | None = None
        self.scope = scope_of(opening)
        self.scope["state"] = host.lifespan_state.copy()
        extensions = self.scope["extensions"]
        extensions["asgibus"] = {"connection": Connection(self)}
        if self._is_http:
            extensions["http.response.pathsend"] = {}
            extensions["http.response.zerocopysend"] = {}
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
    def target(self) -> object:
        """What the connection is to, or from whom: for people to read."""
        return self.scope.get("path") or self.scope.get("client")

    @property
    def complete(self) -> bool:
        """Whether the app has answered in full."""
        return self._app_state is App.COMPLETE

    @property
    def layer(self) -> ChannelLayer:
        """The channel layer."""
        return self.host.layer

    # What the app calls.

    async def receive(self) -> dict[str, Any]:
        """ASGI's receive."""
        if self._connecting:
            self._connecting = False
            return {"type": "websocket.connect"}
        if self._trial is not None:
            self._survived()
        while True:
            if self.run is Run.LEAVING:
                self._tell()
            if self._disconnect is not None:
                return decode(self._disconnect)
            if self._inbox and self.suspect and not self._is_http:
                await self._try()
                continue  # meanwhile much may have happened
            if self._inbox:
                break
            if self._app_state is App.COMPLETE:
                # The app itself has ended the connection; a WebSocket that it refused was never open.
                return decode(self._own_end or disconnect(self.kind, 1006, ""))
            if self._expects_continue:
                self._expects_continue = False
                self.post((CONTINUE,))
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._receivers = [*waiting(self._receivers), waiter]
            await waiter
        event = self._inbox.pop(0)[1]
        if event[0] in (HTTP_DISCONNECT, WEBSOCKET_DISCONNECT, OTHER_DISCONNECT):
            self._disconnect = event
        if self._disconnect is None or not self.parting:  # else it counts as taken when the app has dealt with it
            self._took(event)
        return decode(event)

    async def _try(self) -> None:
        """Say that the app is about to get the suspect event; the worker does so with one at a time."""
        await self.host.trial.acquire()
        try:
            if self._inbox:
                await self.say_taking(self._inbox[0][0] + 1)
        except BaseException:
            self.host.trial.release()
            raise
        self._trial = asyncio.get_running_loop().call_later(TRIAL_SECONDS, self._survived)
        self.suspect = False

    def _survived(self) -> None:
        """The worker lives: if it dies now, that is not the doing of the suspect event."""
        if self._trial is not None:
            self._trial.cancel()
            self._trial = None
            self.host.trial.release()
            if not self.lost:
                self.host.bus.post(self.interface, self.ack())

    async def change_group(self, code: int, group: str) -> None:
        """Ask the interface server to add this connection to a group, or to take it out, and wait until it has."""
        if self.run is Run.TOLD and code == GROUP_DISCARD:
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
        if self.run in (Run.LOST, Run.HANDED_OVER, Run.ENDED):
            raise ClientDisconnected("the client is gone, and with it its state")
        self._save()
        if self.run is not Run.TOLD:
            await self._window()

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
        if self.acknowledged(frame[4]):
            self._open_window()
        if (arrival := self.arrived(frame[3])) is not Arrival.NEW:
            if arrival is Arrival.GAP:
                self.host.bus.post(self.interface, self.resend())
            return
        event = frame[HEAD:]
        code = event[0]
        if code == GROUP_DONE:
            self._took(event)
            self._group_done(event[2], event[1])
            return
        self._inbox.append((frame[3], event))
        if code == WEBSOCKET_DISCONNECT:
            self.parting = self.host.resume
            if self.run is not Run.TOLD:  # else the next run hears of it, and this one has still to be handed over
                self._lose()
        elif code == OTHER_DISCONNECT or (code == HTTP_DISCONNECT and event[1]):
            self._lose()
        self._wake()

    def disconnected(self, code: int, reason: str = "") -> None:
        """The client is gone, or another run's, without the interface server having said so in an event."""
        if self.run is not Run.LOST:
            self._inbox.append((self.expected, disconnect(self.kind, code, reason)))
            self._lose()
            self._wake()

    def _lose(self) -> None:
        if self.run is not Run.LOST:
            self.run = change(self.run, Change.LOSE)
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

    def _took(self, event: Event) -> None:
        """Count an event as taken; what is before the first one in the inbox has been taken."""
        if not self.untold and not self._is_http:
            self.host.took(self)
        self.took(size(event), self._inbox[0][0] if self._inbox else self.expected)
        if self.ack_due and not self.lost:
            self.host.bus.post(self.interface, self.ack())

    def _wake(self) -> None:
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

    def drain(self, *, resume: bool) -> None:
        """The worker stops: hand a WebSocket over to another run when the app has cleaned up, or close it."""
        if self.run is not Run.SERVING:
            return
        if resume and self.kind == WEBSOCKET and self._app_state in (App.HANDSHAKE, App.OPEN):
            self.run = change(self.run, Change.DRAIN)
            self._wake()
        else:
            self.close(SERVICE_RESTART, "")
            self.disconnected(SERVICE_RESTART, "" if self.kind == WEBSOCKET else "the worker stops")

    def insist(self) -> None:
        """The app has not asked for what comes: let it learn from `send` that it is to end."""
        if self.run is Run.LEAVING:
            self._tell()
            self._wake()

    def _tell(self) -> None:
        self.run = change(self.run, Change.TELL)
        self._disconnect = _HANDED_OVER  # what is in the inbox was not taken, so the next run gets it
        self._cut()

    def end(self, error: BaseException | None) -> None:
        """The app has returned, or raised: answer what it left open, and log what it did wrong."""
        self._survived()
        if self.run is Run.TOLD and self._app_state is not App.COMPLETE:
            self._hand_over()
        elif wrong := self.finish(error, excused=self._disconnect is not None):
            logger.error("the app %s on %s %r", wrong, self.scope["type"], self.target)
        self.run = change(self.run, Change.RETURN)
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
