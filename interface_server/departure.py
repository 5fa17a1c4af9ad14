"""The old process of a move: it stops, passes everything on, and lets go or goes on itself. See `move`."""

from __future__ import annotations

import logging
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Protocol, TypeGuard

import anyio
from anyio.lowlevel import checkpoint

from asgibus.interface_server import move
from asgibus.interface_server.acceptor import Acceptor
from asgibus.interface_server.callback_tasks import CallbackTasks
from asgibus.interface_server.connections.registry import ConnectionRegistry
from asgibus.interface_server.move import Movable, MovableListener, MoveChannel, MoveError
from asgibus.interface_server.open_sockets import OpenSockets
from asgibus.interface_server.read_scheduler import ReadScheduler
from asgibus.interface_server.terminator import Holder
from asgibus.layers.errors import LayerUnavailable

logger = logging.getLogger("asgibus.interface")

AHEAD_SECONDS = 30.0  # for the successor to make transports, while the clients are served
START_SECONDS = 300.0  # for the successor to start, as in a rolling restart
SETTLE_SECONDS = 10.0  # for what cannot move: uploads in chunks, heads that arrive, and slow clients
STILL_SECONDS = 0.5  # for the same once all others are held
FROZEN_SECONDS = 10.0  # for the successor to be ready, while no client is served
TAKE_SECONDS = 5.0  # for the successor to confirm that it goes on
KILL_SECONDS = 5.0  # for its end after SIGKILL
POLL_SECONDS = 0.01  # between two looks at the sockets


class DepartingServer(Protocol):
    """The server, as its departure sees it."""

    connections: ConnectionRegistry
    scheduler: ReadScheduler
    frozen: bool
    """Whether the clock of the connections stands still."""


class Departure:
    """Moves the sockets and the identity of a server to its successor."""

    def __init__(
        self,
        server: DepartingServer,
        sockets: OpenSockets,
        acceptor: Acceptor,
        tasks: CallbackTasks,
        listeners: Sequence[MovableListener],
        *,
        drains: bool,
    ) -> None:
        """Prepare to move.

        Args:
            server: The server.
            sockets: Its open sockets.
            acceptor: Accepts its connections.
            tasks: Tasks of the groups, which have to end before.
            listeners: Listeners for other protocols.
            drains: Whether the open sockets cannot move, and only the listening socket does.
        """
        self._server = server
        self._sockets = sockets
        self._acceptor = acceptor
        self._tasks = tasks
        self._listeners = listeners
        self._drains = drains
        self._ahead: dict[Movable, int] = {}  # sockets that the successor has, by the numbers that it knows them by
        self._moving: list[Movable] = []
        self._frozen_at = 0.0
        self.frozen_seconds = 0.0
        """For how long no client was served."""
        self.pid = 0
        """The process id of the successor."""
        self._moved: Counter[str] = Counter()  # sockets, by the name of their protocol
        self._closed = 0  # sockets whose state could not be exported

    async def run(self, channel: MoveChannel) -> None:
        """Move. If the call is cancelled before the successor goes on, this process goes on.

        Args:
            channel: The connection to the successor.

        Raises:
            MoveError: The successor does not go on, and this process does.
        """
        try:
            with anyio.fail_after(START_SECONDS):
                await channel.send(move.OFFER, {"version": move.VERSION})
                prepared = await channel.receive(move.PREPARED)
        except TimeoutError:
            raise MoveError(f"the new process was not prepared within {START_SECONDS:g} s") from None
        if prepared.body.get("version") != move.VERSION:
            raise MoveError(f"the new process speaks version {prepared.body.get('version')!r} of the move")
        self.pid = int(prepared.body["pid"])
        moved = False
        try:
            if not self._drains:
                await self._settle()
                with anyio.fail_after(AHEAD_SECONDS):
                    await self._send_ahead(channel)
            with move.without_garbage_collection(), anyio.fail_after(FROZEN_SECONDS):
                await self._pass_on(channel)
                await channel.receive(move.READY)
            with anyio.CancelScope(shield=True):
                moved = await self._commit(channel)
        except TimeoutError:
            raise MoveError("the new process was not ready in time") from None
        except LayerUnavailable as error:
            raise MoveError(f"the channel layer cannot be reached: {error}") from error
        finally:
            if not moved:
                self._go_on()
        if not moved:
            raise MoveError("the new process has ended before it took over")
        self.frozen_seconds = anyio.current_time() - self._frozen_at
        self._let_go()

    @property
    def summary(self) -> str:
        """The outcome for the open sockets, in words."""
        if self._drains:
            return f"{len(self._sockets)} sockets with TLS cannot be moved, and are closed as at any other stop"
        moved = ", ".join(f"{count} {kind}" for kind, count in sorted(self._moved.items(), reverse=True))
        return f"{moved or 'no'} sockets moved" + (f", {self._closed} closed" if self._closed else "")

    async def _settle(self) -> None:
        """Wait until every socket that cannot move now could have moved once, and no offer is in doubt.

        A client that reads slowly would always have something that is not written yet, if its app went on.
        """
        until = anyio.current_time() + SETTLE_SECONDS
        waiting = {each for each in self._movable() if each.hold_back() or not each.may_move}
        while waiting or not self._server.connections.may_move:
            if anyio.current_time() > until:
                break
            await anyio.sleep(POLL_SECONDS)
            waiting = {each for each in waiting if each in self._sockets and not (each.stays or each.may_move)}
            waiting = waiting or {each for each in self._movable() if each.hold_back()}
        if not self._server.connections.may_move:
            raise MoveError("offers are in doubt, because the channel layer has lost its data")

    async def _send_ahead(self, channel: MoveChannel) -> None:
        """Send the open sockets before their states, so that clients wait the shorter."""
        for part in _parts(list(self._movable())):
            still_open = [each for each in part if each in self._sockets and not each.stays]
            first = len(self._ahead)
            self._ahead.update({each: first + index for index, each in enumerate(still_open)})
            await channel.send(move.AHEAD, {"first": first}, [each.input.descriptor for each in still_open])

    async def _pass_on(self, channel: MoveChannel) -> None:
        """Stop, and send everything."""
        listening = [self._acceptor.descriptor]
        await self._acceptor.pause()
        self._frozen_at = anyio.current_time()
        if self._drains:
            await channel.send(move.STATE, {"identity": None}, listening)
            await channel.send(move.END)
            return
        server, connections = self._server, self._server.connections
        server.frozen = True
        connections.followers.hold()
        await connections.bus.freeze()
        await self._tasks.wait()  # they join and leave groups, and no more are started
        for listener in self._listeners:
            listener.hold()
        await self._hold_sockets()
        server.scheduler.hold()
        await checkpoint()  # callbacks that were due come to their end
        identity = await connections.bus.freeze()  # again, after all of this was posted
        if identity is None:
            raise MoveError("the channel layer lives within this process")
        self._moving = [each for each in self._movable() if each.may_move]
        with_client: set[int] = set()
        for part in _parts(self._moving):
            states = [each.export() for each in part]
            with_client.update(state["connection"]["number"] for state in states if state["connection"] is not None)
            self._moved.update(state["kind"] for state in states)
            body = {"sockets": states, "ahead": [self._ahead.get(each) for each in part]}
            await channel.send(move.SOCKETS, body, [each.input.descriptor for each in part if each not in self._ahead])
        listeners = [each.export(connections) for each in self._listeners]
        with_client.update(peer["connection"]["number"] for each in listeners for peer in each["peers"])
        listening += [each.descriptor for each in self._listeners]
        without_client = [each for each in connections if each.number not in with_client]
        state = {
            "identity": identity,
            "connections": connections.export(),
            "listeners": listeners,
            "without_client": [connections.export_connection(each) for each in without_client],
        }
        await channel.send(move.STATE, state, listening)
        await channel.send(move.END)

    async def _hold_sockets(self) -> None:
        """Hold every socket that can move, and refuse the others after a moment."""
        until = anyio.current_time() + STILL_SECONDS
        waiting: Sequence[Movable] = list(self._movable())
        while waiting:
            rest = []
            for each in waiting:
                if each.may_move:
                    each.input.hold()
                elif each in self._sockets and not each.stays:
                    rest.append(each)
            waiting = rest
            if anyio.current_time() > until:
                break
            if waiting:
                await anyio.sleep(POLL_SECONDS)
        for each in waiting:
            self._closed += 1
            self._server.connections.log.count("not moved", "a socket is closed, as its state cannot be moved")
            each.refuse_move()

    async def _commit(self, channel: MoveChannel) -> bool:
        """Let the successor go on, and return whether it does."""
        with suppress(MoveError):
            await channel.send(move.GO)
            with anyio.move_on_after(TAKE_SECONDS):
                await channel.receive(move.TAKEN)
                return True
            # It may hang. Only its end makes certain that two processes do not serve the same clients.
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            with anyio.move_on_after(KILL_SECONDS):
                await channel.receive(move.TAKEN)
                return True
        return False

    def _let_go(self) -> None:
        """Forget everything that the successor has."""
        if self._drains:
            return
        connections = self._server.connections
        connections.bus.give_away()
        connections.give_away()
        for each in self._moving:
            each.moved()
        for listener in self._listeners:
            listener.moved()
        self._server.frozen = False

    def _go_on(self) -> None:
        """Serve again."""
        server = self._server
        self._acceptor.resume()
        frozen, server.frozen = server.frozen, False
        if frozen:
            server.connections.bus.thaw()
            server.connections.followers.go_on()
            server.scheduler.release()
        for each in self._movable():
            each.go_on()
        if not frozen:
            return
        for listener in self._listeners:
            listener.go_on()

    def _movable(self) -> Iterator[Movable]:
        return (each for each in self._sockets if _is_movable(each) and not each.stays)


def _is_movable(holder: Holder) -> TypeGuard[Movable]:
    return hasattr(holder, "may_move")


def _parts(moving: Sequence[Movable]) -> Iterator[Sequence[Movable]]:
    for start in range(0, len(moving), move.DESCRIPTORS):
        yield moving[start : start + move.DESCRIPTORS]
