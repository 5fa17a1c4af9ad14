"""The successor of a move: it prepares to go on where the old process has stopped. See `move`."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import anyio

from asgibus.interface_server import move
from asgibus.interface_server.connections.registry import ConnectionRegistry
from asgibus.interface_server.http.protocol import HttpProtocol, HttpServer
from asgibus.interface_server.http.response import ResponseWriter
from asgibus.interface_server.move import Message, Movable, MovableListener, MoveChannel, MoveError
from asgibus.interface_server.terminator import Host
from asgibus.interface_server.websocket.protocol import WebSocketProtocol
from asgibus.protocol.events import Event


class ArrivingServer(HttpServer, Host, Protocol):
    """The server, as the arrival of its sockets sees it."""

    connections: ConnectionRegistry


class Arrival:
    """Takes sockets and identity of an old process over."""

    def __init__(self, channel: MoveChannel) -> None:
        """Prepare; `channel` is the connection to the old process."""
        self._channel = channel
        self._state: Message
        self._places: list[Mapping[str, Any]] = []  # of connections, in the queues
        self._ahead: dict[int, asyncio.Transport] = {}  # whose states are to come
        self._arrived: list[Movable | MovableListener] = []

    async def prepare(self) -> None:
        """Tell the old process that this one has started.

        Raises:
            MoveError: The old process speaks another version, or has given up.
        """
        offer = await self._channel.receive(move.OFFER)
        version = offer.body.get("version")
        if version != move.VERSION:
            reason = f"the new process reads version {move.VERSION} of the move, and not {version!r}"
            raise MoveError(reason)
        await self._channel.send(move.PREPARED, {"version": move.VERSION, "pid": os.getpid()})

    async def refuse(self, error: Exception) -> None:
        """Tell the old process why this one does not go on."""
        with suppress(MoveError), anyio.move_on_after(1):
            await self._channel.send(move.REFUSED, {"reason": str(error)})

    async def receive(self, server: ArrivingServer, listeners: Sequence[MovableListener]) -> None:
        """Receive everything. Neither a socket is read nor the bus written to.

        Args:
            server: The server.
            listeners: Its listeners for other protocols, which do not listen yet.

        Raises:
            MoveError: The old process has given up, or its state cannot be used here.
        """
        try:
            while (message := await self._channel.receive_any()).kind != move.END:
                if message.kind == move.AHEAD:
                    transports = await _transports(message.descriptors)
                    self._ahead.update(enumerate(transports, message.body["first"]))
                elif message.kind == move.SOCKETS:
                    await self._restore_sockets(server, message)
                elif message.kind == move.STATE:
                    self._state = message
                else:
                    raise MoveError(f"the old process sent {message.kind!r}")
            for transport in self._ahead.values():  # the old process has closed them meanwhile
                transport.abort()
            if self.identity is not None:
                self._restore_connections(server.connections)
                self._restore_listeners(server, listeners)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise MoveError(f"a state of the old process cannot be used here: {error!r}") from error

    @property
    def identity(self) -> Mapping[str, Any] | None:
        """The identity on the bus; None if the old process keeps it, with all of its sockets."""
        identity: Mapping[str, Any] | None = self._state.body["identity"]
        return identity

    @property
    def listening(self) -> socket.socket:
        """The listening socket."""
        return socket.socket(fileno=self._state.descriptors[0])

    def restore_places(self, connections: ConnectionRegistry) -> None:
        """Put the connections into their queues, once there is a place on the bus."""
        connections.restore_places(self._state.body["connections"], self._places)

    async def take(self) -> None:
        """Tell the old process that this one is ready, and wait until it lets go. Raises MoveError if it does not."""
        await self._channel.send(move.READY)
        await self._channel.receive(move.GO)
        await self._channel.send(move.TAKEN)
        self._channel.close()

    def go_on(self) -> None:
        """Read the sockets."""
        for each in self._arrived:
            each.go_on()

    async def _restore_sockets(self, server: ArrivingServer, message: Message) -> None:
        states = message.body["sockets"]
        server.now = server.connections.now = asyncio.get_running_loop().time()
        others = iter(await _transports(message.descriptors))
        for number, state in zip(message.body["ahead"], states, strict=True):
            transport = next(others) if number is None else self._ahead.pop(number)
            holder: HttpProtocol | WebSocketProtocol
            if state["kind"] == "http":
                holder = HttpProtocol(server)
                holder.restore(transport, state)
            else:
                holder = WebSocketProtocol(server, transport, ResponseWriter(transport, server.standard_headers))
                holder.restore(state)
            self._arrived.append(holder)
            if transport.is_closing():  # the client has reset the connection meanwhile
                server.loop.call_soon(holder.connection_lost, None)
            if state["connection"] is not None:
                self._places.append(state["connection"])

    def _restore_listeners(self, server: ArrivingServer, listeners: Sequence[MovableListener]) -> None:
        states = self._state.body["listeners"]
        if [each["kind"] for each in states] != [each.kind for each in listeners]:
            raise MoveError("the options --udp and --terminator are not those of the old process")
        for listener, state, descriptor in zip(listeners, states, self._state.descriptors[1:], strict=True):
            listener.restore(server, socket.socket(fileno=descriptor), state, server.connections)
            self._arrived.append(listener)
            self._places += [peer["connection"] for peer in state["peers"]]

    def _restore_connections(self, connections: ConnectionRegistry) -> None:
        body = self._state.body
        connections.restore(body["connections"])
        for state in body["without_client"]:
            connections.restore_connection(state, NoClient())
            self._places.append(state)


class NoClient:
    """The terminator of a connection whose client is gone, while its app has not learned of that."""

    write_paused = False

    def write_event(self, event: Event) -> None:
        """See `Terminator`."""

    def broadcast(self, event: Event, shared: dict[str, Any]) -> None:
        """See `Terminator`."""

    def keeps_up(self) -> bool:
        """See `Terminator`."""
        return True

    def pause(self) -> None:
        """See `Terminator`."""

    def resume(self) -> None:
        """See `Terminator`."""

    def fail(self, status: int, close_code: int) -> None:
        """See `Terminator`."""

    def flush(self) -> None:
        """See `Terminator`."""

    def abort(self) -> None:
        """See `Terminator`."""


class _Arriving(asyncio.Protocol):
    """The protocol of a socket whose state is not restored yet. Nothing is read meanwhile."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream socket has a full transport
        self.transport.pause_reading()

    def made(self) -> _Arriving:
        """Return the protocol, as a factory."""
        return self

    def pause(self) -> None:
        """Pause the transport again."""
        if not self.transport.is_closing():
            self.transport.pause_reading()


async def _transports(descriptors: Sequence[int]) -> list[asyncio.Transport]:
    """Return paused transports for these sockets, in their order."""
    loop = asyncio.get_running_loop()
    arriving = [_Arriving() for _ in descriptors]
    connecting = []
    for protocol, descriptor in zip(arriving, descriptors, strict=True):
        made = loop.connect_accepted_socket(protocol.made, socket.socket(fileno=descriptor))
        connecting.append(loop.create_task(made))
        # uvloop begins to read behind `connection_made`, whatever that says. The task is about to schedule that call.
        # The pause is scheduled next to it, so that no input is polled for between the two.
        loop.call_soon(loop.call_soon, protocol.pause)
    await asyncio.gather(*connecting)
    return [protocol.transport for protocol in arriving]
