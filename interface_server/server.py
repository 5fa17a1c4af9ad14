"""The interface server: listens, keeps the clock, and stops gracefully."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeGuard

import anyio

from asgibus.interface_server.acceptor import Acceptor
from asgibus.interface_server.arrival import Arrival
from asgibus.interface_server.callback_tasks import CallbackTasks
from asgibus.interface_server.connections.registry import ConnectionRegistry
from asgibus.interface_server.departure import Departure
from asgibus.interface_server.http.protocol import HttpProtocol
from asgibus.interface_server.http.request import Peer, Request
from asgibus.interface_server.http.response import ResponseWriter, StandardHeaders
from asgibus.interface_server.http.streams import StreamEndpoint
from asgibus.interface_server.move import MovableListener, MoveChannel, MoveError, without_garbage_collection
from asgibus.interface_server.open_sockets import OpenSockets
from asgibus.interface_server.proxy_headers import TrustedProxies
from asgibus.interface_server.proxy_protocol import Origin
from asgibus.interface_server.read_scheduler import ReadScheduler, TerminatorInput
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.interface_server.sockets import ListenError, describe, host_and_port, listening_socket
from asgibus.interface_server.terminator import Holder, Host, Listener, SliceParser
from asgibus.interface_server.tls import Tls
from asgibus.interface_server.websocket.protocol import WebSocketProtocol
from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.contract import Statistics, statistics_of
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.streams.offsets import Offset
from asgibus.layers.streams.page import Page
from asgibus.protocol.channels import shared_channels

logger = logging.getLogger("asgibus.interface")

TICK_SECONDS = 0.25  # how exactly time limits are kept; one pass over all sockets each
PAUSE_SECONDS = 1.0  # between two ticks: a longer time is a pause of this process, and no client or worker is to blame
DRAIN_SECONDS = 5.0  # for the last frames to reach the bus; a layer that is away must not keep the process


class Server:
    """Serves the clients of one TCP listener, and of `listeners` for other protocols. Implements `Host`."""

    connections: ConnectionRegistry
    loop: asyncio.AbstractEventLoop
    scheduler: ReadScheduler
    _sockets: OpenSockets

    def __init__(
        self,
        settings: InterfaceSettings,
        layer: ChannelLayer,
        listeners: Sequence[Listener] = (),
        *,
        shared: bool = False,
    ) -> None:
        """Make a server that does nothing until `serve`.

        Args:
            settings: The settings.
            layer: The channel layer.
            listeners: Listeners for protocols other than HTTP and WebSocket.
            shared: Whether other processes listen at the same addresses.
        """
        self.settings = settings
        self.shared = shared
        self.standard_headers = StandardHeaders(server=settings.server_header, date=settings.date_header)
        self.now = 0.0
        """The event loop's time at the last tick, without the time for which this process was paused."""
        self.streams: StreamEndpoint | None = None
        """The streams that HTTP clients may read."""
        self._listeners = listeners
        self._layer = layer
        self._proxies = TrustedProxies(settings.forwarded_allow_ips) if settings.proxy_headers else None
        self._tls = Tls(settings)
        self._tasks = CallbackTasks()
        self._acceptor: Acceptor | None = None
        self._has_listeners = False  # whether they were moved from another process, and so have started
        self._moving = anyio.Lock()
        self._stopping = False
        self.frozen = False
        """Whether the clock of the connections stands still, because they move to another process, or have moved."""

    async def serve(
        self, stop: anyio.Event, ready: Callable[[str], None], predecessor: MoveChannel | None = None
    ) -> None:
        """Serve until `stop` is set, then stop gracefully.

        Args:
            stop: Ends the server.
            ready: Called with the address when the server listens.
            predecessor: The connection to the process in whose place this one goes on.

        Raises:
            ListenError: The address cannot be used.
            LayerUnavailable: The channel layer cannot be reached at the start.
            MoveError: The predecessor goes on itself.
        """
        self.loop = asyncio.get_running_loop()
        self._tls.load()
        self.connections = ConnectionRegistry(self.settings)
        if self.settings.streams is not None:
            self.streams = StreamEndpoint(self.settings, self._layer, self.connections, self._tasks, self.loop)
        self.scheduler = ReadScheduler(self.loop, self.connections.counts)
        self._sockets = OpenSockets(self.settings.max_connections, self.connections.log)
        self.now = self.connections.now = self.loop.time()
        if predecessor is not None:
            await self._take_over(Arrival(predecessor), stop, ready)
            return
        with listening_socket(self.settings) as listening:
            async with self._layer.bus("interface", self.connections) as bus:
                self.connections.on_bus(bus, self._tasks, self._read_page)
                await self._serve(listening, stop, ready)

    async def _take_over(self, arrival: Arrival, stop: anyio.Event, ready: Callable[[str], None]) -> None:
        """Go on where the old process stops."""
        try:
            await self._layer.connect()
            await arrival.prepare()
            self.scheduler.hold()
            with without_garbage_collection():
                await arrival.receive(self, [each for each in self._listeners if _is_movable(each)])
            identity, layer = arrival.identity, self._layer
            joining = layer.bus("interface", self.connections) if identity is None else None
            async with joining or layer.moved_bus(identity or {}, self.connections) as bus:
                self.connections.on_bus(bus, self._tasks, self._read_page)
                if identity is not None:
                    arrival.restore_places(self.connections)
                await arrival.take()
                if identity is not None:
                    bus.thaw()
                self.scheduler.release()
                arrival.go_on()
                self._has_listeners = identity is not None
                with arrival.listening as listening:
                    await self._serve(listening, stop, ready)
        except (MoveError, LayerUnavailable) as error:
            await arrival.refuse(error)
            raise

    async def _serve(self, listening: socket.socket, stop: anyio.Event, ready: Callable[[str], None]) -> None:
        """Serve on the bus until `stop` is set, then stop gracefully."""
        try:
            async with anyio.create_task_group() as clock:
                clock.start_soon(self._tick)
                await self._accept(listening, stop, ready)
                await self._drain()
                clock.cancel_scope.cancel()
        finally:
            await self._tasks.end(DRAIN_SECONDS)
        with anyio.move_on_after(DRAIN_SECONDS):
            await self.connections.bus.drain()

    async def _accept(self, listening: socket.socket, stop: anyio.Event, ready: Callable[[str], None]) -> None:
        """Accept clients until `stop` is set."""
        address = describe(listening, tls=self.settings.ssl_certfile is not None)
        acceptor = self._acceptor = Acceptor(
            self.settings,
            listening,
            self._tls,
            partial(HttpProtocol, self),
            self.connections.log,
            lambda: len(self._sockets),
        )
        async with acceptor.accepting():
            try:
                async with _listening(self._listeners, self, started=self._has_listeners):
                    ready(address)
                    await stop.wait()
                    async with self._moving:  # a move ends first, in one way or the other
                        pass
            finally:
                self._stopping = True

    async def _drain(self) -> None:
        """Close all sockets, at first gracefully."""
        timeout = self.settings.graceful_timeout
        end = anyio.current_time() + timeout
        await self._sockets.drain(min(self.settings.drain_period, timeout), late=_is_lasting)
        await self._sockets.wait_closed(end - anyio.current_time())
        if self._sockets:
            logger.warning("%d sockets were not closed within %g s and are aborted", len(self._sockets), timeout)
            self._sockets.abort()
            await self._sockets.wait_closed(DRAIN_SECONDS)
        with anyio.move_on_after(self.settings.presence_grace + DRAIN_SECONDS):
            await self.connections.users.settle()

    async def _tick(self) -> None:
        """Keep the clock: one task for all time limits, so that no request costs a timer."""
        paused = 0.0
        at = self.loop.time()
        while True:
            await anyio.sleep(TICK_SECONDS)
            before, at = at, self.loop.time()
            was_paused = at - before > PAUSE_SECONDS
            if was_paused:
                paused += at - before - TICK_SECONDS
            self.now = now = at - paused
            if self.frozen:
                continue
            self.connections.tick(now)
            if not was_paused:  # else what clients have sent meanwhile is read first
                self._sockets.expire(now)

    def why_not_movable(self) -> str | None:
        """Return why the server cannot move to another process, as a sentence; None if it can."""
        for listener in self._listeners:
            if not _is_movable(listener) or self.settings.ssl_certfile is not None:
                return f"sockets of the protocol {listener.kind} cannot be moved to another process"
        return "it has not started yet" if self._acceptor is None else self.ready()

    async def move(self, channel: MoveChannel, stop: anyio.Event) -> Departure:
        """Move sockets and identity to another process. Afterwards, stop this server.

        With TLS, whose state cannot be moved, only the listening socket moves: the open sockets are closed as at any
        other stop, and this process keeps its identity until then.

        Args:
            channel: The connection to the other process.
            stop: Ends the attempt: this process goes on, to stop gracefully.

        Raises:
            MoveError: This process goes on, because the other one cannot. The text says why.
        """
        acceptor = self._acceptor
        if (reason := self.why_not_movable()) or acceptor is None:
            raise MoveError(reason)
        drains = self.settings.ssl_certfile is not None
        departure = Departure(
            self,
            self._sockets,
            acceptor,
            self._tasks,
            [each for each in self._listeners if _is_movable(each)],
            drains=drains,
        )
        failure: MoveError | None = MoveError("this process has to stop")
        async with self._moving, anyio.create_task_group() as tasks:

            async def cancel_on_stop() -> None:
                await stop.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(cancel_on_stop)
            try:
                await departure.run(channel)
                failure = None
            except MoveError as error:
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return departure

    def reload_certificates(self) -> None:
        """Read the TLS certificates again, for new connections. If they are not valid, the old ones stay in force."""
        try:
            self._tls.load()
        except ListenError as error:
            logger.error("the certificates stay as they are: %s", error)
        else:
            logger.info("the certificates are read again")

    # For the admin port.

    def ready(self) -> str | None:
        """Return None if new clients are served, else the reason why not, as a sentence."""
        if self._stopping:
            return "stopping: no new sockets are accepted"
        if not self.connections.bus.available:
            return "the channel layer cannot be reached"
        if self.connections.bus.refusal is not None:
            return f"the channel layer takes nothing: {self.connections.bus.refusal}"
        return None

    def counts(self) -> dict[str, int]:
        """Return how often something was dropped, rejected or repaired, by kind."""
        return dict(self.connections.counts + self._layer.counts)

    def gauges(self) -> dict[str, int]:
        """Return how many sockets and connections are open."""
        followers = self.connections.followers
        return {
            "sockets": len(self._sockets),
            "connections": len(self.connections),
            "followers": len(followers),
            "followed streams": followers.streams,
            **self.connections.users.gauges(),
            "stream reads": 0 if self.streams is None else len(self.streams.readers),
        }

    async def channels(self) -> dict[str, Statistics]:
        """Return statistics of the channels on which connections are offered; none while the layer is away."""
        names = [*shared_channels(self.settings.pool, [listener.kind for listener in self._listeners])]
        names += [each for _, pool in self.settings.routes for each in shared_channels(pool)]
        return await statistics_of(self.connections.bus, [*dict.fromkeys(names)])

    async def _read_page(self, stream: str, after: Offset, limit: int) -> Page:
        return await self._layer.any_stream(stream).page(after, limit)

    # For the protocols of the sockets: see `Host`, `ServerContext` and `HttpServer`.

    def admit(self, holder: Holder) -> bool:
        """Add a socket that was accepted, and return False if `--max-connections` sockets are open already."""
        return self._sockets.admit(holder)

    def register(self, holder: Holder) -> None:
        """Add a socket that another protocol has handed over."""
        self._sockets.register(holder)

    def forget(self, holder: Holder) -> None:
        """Remove a socket that was closed, or handed over."""
        self._sockets.forget(holder)

    def sliced_input(self, transport: asyncio.Transport, parser: SliceParser) -> TerminatorInput:
        """Return the input of a socket of another protocol, which is parsed in slices."""
        return TerminatorInput(self.scheduler, transport, parser)

    def peer_of(self, transport: asyncio.Transport, origin: Origin | None) -> Peer:
        """Return the two ends of a socket, as a scope has them.

        Args:
            transport: The socket.
            origin: The addresses that the PROXY protocol has reported.
        """
        client = host_and_port(transport.get_extra_info("peername"))
        server = host_and_port(transport.get_extra_info("sockname"))
        if origin is not None and origin.known:
            client, server = origin.client, origin.server or server
        tls = transport.get_extra_info("ssl_object")
        if tls is None:
            return client, server, "http", {}
        return client, server, "https", {"tls": self._tls.extension(tls)}

    def proxies_for(self, peer: Peer) -> TrustedProxies | None:
        """Return a reader of forwarding headers if the peer is a trusted proxy."""
        proxies = self._proxies
        return proxies if proxies is not None and proxies.trusts_peer(peer[0]) else None

    def upgrade(self, request: Request, transport: asyncio.Transport, writer: ResponseWriter, tail: bytes) -> None:
        """Hand a socket over to the WebSocket protocol."""
        WebSocketProtocol(self, transport, writer).begin(request, tail)

    def check_slow_client(self, transport: asyncio.Transport) -> bool:
        """Return whether more than `--slow-client-buffer` bytes wait for a client, and count it if so."""
        if transport.get_write_buffer_size() <= self.settings.slow_client_buffer:
            return False
        text = "a client is too slow for what others send to it: %s"
        self.connections.log.count("slow client", text, self.settings.slow_client)
        return True


def _is_movable(listener: Listener) -> TypeGuard[MovableListener]:
    return hasattr(listener, "moved")


def _is_lasting(holder: Holder) -> bool:
    """Return whether a socket is an open WebSocket or an event stream, whose client is going to connect again."""
    if isinstance(holder, WebSocketProtocol):
        return holder.is_open
    return isinstance(holder, HttpProtocol) and holder.is_event_stream


@asynccontextmanager
async def _listening(listeners: Sequence[Listener], host: Host, *, started: bool) -> AsyncIterator[None]:
    """Listen for other protocols until the context ends. Raises ListenError.

    Args:
        listeners: The listeners.
        host: The server.
        started: Whether they listen already.
    """
    listening = [*listeners] if started else []
    try:
        for listener in listeners[len(listening) :]:
            try:
                address = await listener.start(host)
            except OSError as error:
                raise ListenError(f"cannot listen for {listener.kind}: {error.strerror or error}") from error
            listening.append(listener)
            logger.info("listening on %s", address)
        yield
    finally:
        for listener in listening:
            try:
                listener.stop()
            except Exception:  # the sockets must still be closed in good order
                logger.exception("the listener for %s failed as it was stopped", listener.kind)
