"""The interface server: listens, keeps the clock, and stops gracefully."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import anyio

from asgibus.interface_server.acceptor import Acceptor
from asgibus.interface_server.callback_tasks import CallbackTasks
from asgibus.interface_server.connections.registry import Connections
from asgibus.interface_server.http.protocol import HttpProtocol
from asgibus.interface_server.http.request import Peer, Request
from asgibus.interface_server.http.response import ResponseWriter, StandardHeaders
from asgibus.interface_server.proxy_headers import TrustedProxies
from asgibus.interface_server.proxy_protocol import Origin
from asgibus.interface_server.read_scheduler import ReadScheduler
from asgibus.interface_server.rejections import TOO_MANY, Refusals
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.interface_server.sockets import ListenError, describe, host_and_port, listening_socket
from asgibus.interface_server.terminator import FAULT, Holder, Host, Listener, cut
from asgibus.interface_server.tls import Tls
from asgibus.interface_server.websocket.protocol import WebSocketProtocol
from asgibus.layers.contract import ChannelLayer, Statistics, statistics_of
from asgibus.protocol.channels import shared_channels
from asgibus.protocol.pacing import staggered

logger = logging.getLogger("asgibus.interface")

TICK_SECONDS = 0.25  # how exactly time limits are kept; one pass over all sockets each
CHECK_TICKS = 4  # what was written and not acknowledged with an event is acknowledged this often
PROBE_TICKS = 20  # what was sent and is not acknowledged for as long is asked after: it may be lost
PAUSE_SECONDS = 1.0  # between two ticks: more is a pause of this process, and no worker's or client's fault
DRAIN_SECONDS = 5.0  # for the last words to reach the bus; a layer that is away must not keep the process
WRITE_HIGH_WATER = 64 * 1024  # bytes in a socket's write buffer at which its session's window stays shut


class Server:
    """Terminates the sockets of one TCP listener, and those of `listeners`, for other protocols: it is their `Host`.

    `shared`: other processes listen at the same addresses. `serve` is the whole life.
    """

    connections: Connections
    loop: asyncio.AbstractEventLoop
    scheduler: ReadScheduler

    def __init__(
        self,
        settings: InterfaceSettings,
        layer: ChannelLayer,
        listeners: Sequence[Listener] = (),
        *,
        shared: bool = False,
    ) -> None:
        self.settings = settings
        self.shared = shared
        self._listeners = listeners
        self.standard_headers = StandardHeaders(server=settings.server_header, date=settings.date_header)
        self.now = 0.0
        """The event loop's time, as of the last tick, without the times in which this process stood still."""
        self.half_close = settings.ssl_certfile is None  # TLS knows no half-closed connection
        self._layer = layer
        self._proxies = TrustedProxies(settings.forwarded_allow_ips) if settings.proxy_headers else None
        self._tls = Tls(settings)
        self._acceptor: Acceptor | None = None
        self._terminators: set[Holder] = set()
        self._emptied = anyio.Event()
        self._draining = False

    def ready(self) -> str | None:
        """None if new sockets are served; else why not, in a sentence."""
        if self._draining:
            return "stopping: no new sockets are taken"
        if not self.connections.bus.available:
            return "the channel layer cannot be reached"
        if self.connections.bus.refusal is not None:
            return f"the channel layer takes nothing: {self.connections.bus.refusal}"
        return None

    def counts(self) -> dict[str, int]:
        """What went wrong or was repaired so far, by what it was."""
        return dict(self.connections.counts + self._layer.counts)

    def gauges(self) -> dict[str, int]:
        """How much there is of what, now."""
        return {"sockets": len(self._terminators), "connections": len(self.connections)}

    async def channels(self) -> dict[str, Statistics]:
        """The channels on which it offers; none while the layer is away."""
        names = [*shared_channels(self.settings.pool, [listener.kind for listener in self._listeners])]
        names += [each for _, pool in self.settings.routes for each in shared_channels(pool)]
        return await statistics_of(self.connections.bus, [*dict.fromkeys(names)])

    async def serve(self, stop: anyio.Event, ready: Callable[[str], None]) -> None:
        """Listen, call `ready` with where, serve until `stop` is set, then stop gracefully.

        Raises ListenError and LayerUnavailable, both at the start only.
        """
        self.loop = asyncio.get_running_loop()
        self._tls.load()
        listening = listening_socket(self.settings)
        try:
            self.connections = Connections(self.settings)
            self.scheduler = ReadScheduler(self.loop, self.connections.counts)
            self._refusals = Refusals(self.connections.counts)
            async with self._layer.bus("interface", self.connections) as bus:
                tasks = CallbackTasks()
                self.connections.on_bus(bus, tasks)
                self.now = self.connections.now = self.loop.time()
                try:
                    async with anyio.create_task_group() as clock:
                        clock.start_soon(self._tick)
                        await self._accept(listening, stop, ready)
                        clock.cancel_scope.cancel()
                finally:
                    await tasks.end(DRAIN_SECONDS)
                with anyio.move_on_after(DRAIN_SECONDS):
                    await bus.drain()
        finally:
            listening.close()

    async def _accept(self, listening: socket.socket, stop: anyio.Event, ready: Callable[[str], None]) -> None:
        where = describe(listening, tls=self.settings.ssl_certfile is not None)
        acceptor = Acceptor(
            self.settings,
            listening,
            self._tls,
            partial(HttpProtocol, self),
            self.connections.counts,
            self._refusals,
            lambda: len(self._terminators),
        )
        async with acceptor.accepting():
            self._acceptor = acceptor
            try:
                async with _listening(self._listeners, self):
                    ready(where)
                    await stop.wait()
            finally:
                self._draining = True
                self._acceptor = None
        end = anyio.current_time() + self.settings.graceful_timeout
        await self._let_go(min(self.settings.drain_period, self.settings.graceful_timeout))
        await self._empty(end - anyio.current_time())
        if self._terminators:
            logger.warning(
                "%d sockets were not done within %g s and are cut",
                len(self._terminators),
                self.settings.graceful_timeout,
            )
            for terminator in list(self._terminators):
                try:
                    terminator.abort()
                except Exception:  # one socket's fault is no reason to lose the others
                    logger.exception(FAULT, self._cut(terminator))
            await self._empty(DRAIN_SECONDS)

    async def _let_go(self, seconds: float) -> None:
        """Tell every socket to end: open WebSockets one after another, the others at once."""
        websockets = []
        for terminator in list(self._terminators):
            if isinstance(terminator, WebSocketProtocol) and terminator.is_open:
                websockets.append(terminator)
            else:
                self._shut_down(terminator)
        start = anyio.current_time()
        for offset, websocket in staggered(websockets, seconds):
            await anyio.sleep_until(start + offset)
            if websocket in self._terminators:
                self._shut_down(websocket)

    def _shut_down(self, terminator: Holder) -> None:
        try:
            terminator.shut_down()
        except Exception:  # one socket's fault is no reason to lose the others
            logger.exception(FAULT, self._cut(terminator))

    def _cut(self, terminator: Holder) -> str:
        self.forget(terminator)  # it is not asked again, even if it cannot be ended
        return cut(terminator, self.connections.counts)

    async def reload_certificates(self) -> None:
        """Read the TLS certificates again, for new connections; if they are bad, say so and keep those in force."""
        if self._acceptor is not None:
            await self._acceptor.reload()

    async def _empty(self, seconds: float) -> None:
        """Wait until every socket has ended, at most that long."""
        with anyio.move_on_after(seconds):
            while self._terminators:
                self._emptied = anyio.Event()
                await self._emptied.wait()

    async def _tick(self) -> None:
        """Keep the clock: one task for all time limits, so that no request costs a timer."""
        ticks = 0
        paused = 0.0
        at = self.loop.time()
        while True:
            await anyio.sleep(TICK_SECONDS)
            ticks += 1
            before, at = at, self.loop.time()
            stood_still = at - before > PAUSE_SECONDS
            if stood_still:
                paused += at - before - TICK_SECONDS
            self.now = now = at - paused
            self.connections.tick(now)
            if ticks % CHECK_TICKS == 0:
                self.connections.check(stalled=ticks % PROBE_TICKS == 0)
            if stood_still:
                continue  # what clients have sent meanwhile is read first
            for terminator in [each for each in self._terminators if each.deadline <= now]:
                try:
                    terminator.expire(now)
                except Exception:  # one socket's fault is no reason to lose the others
                    logger.exception(FAULT, self._cut(terminator))

    # For the terminators.

    def admit(self, terminator: Holder) -> bool:
        """A socket was accepted; False if there are too many already."""
        self._terminators.add(terminator)
        if self._draining:  # its TLS handshake took until now
            self.loop.call_soon(self._shut_down, terminator)
        opened, most = len(self._terminators), self.settings.max_connections
        if opened > most:
            self._refusals.count(TOO_MANY, f"{opened} sockets are open, and --max-connections is {most}")
            return False
        return True

    def register(self, terminator: Holder) -> None:
        """Add a socket that another protocol has handed over."""
        self._terminators.add(terminator)

    def forget(self, terminator: Holder) -> None:
        """A terminator's socket has ended, or was handed over."""
        self._terminators.discard(terminator)
        if not self._terminators:
            self._emptied.set()

    def peer_of(self, transport: asyncio.Transport, origin: Origin | None) -> Peer:
        """What a scope says about a socket: client, server, scheme, extensions; `origin` if a proxy has told it."""
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)
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

    def is_slow(self, transport: asyncio.Transport) -> bool:
        """Whether so much waits for this client that it may not get more for which nobody waits."""
        if transport.get_write_buffer_size() <= self.settings.slow_client_buffer:
            return False
        self.connections.counts["slow client"] += 1
        if self.connections.counts["slow client"] == 1 or self.settings.slow_client == "close":
            logger.warning("a client is too slow for what others send to it: %s", self.settings.slow_client)
        return True


@asynccontextmanager
async def _listening(listeners: Sequence[Listener], host: Host) -> AsyncIterator[None]:
    """Listen for further protocols until the context ends. Raises ListenError."""
    started: list[Listener] = []
    try:
        for listener in listeners:
            try:
                where = await listener.start(host)
            except OSError as error:
                raise ListenError(f"cannot listen for {listener.kind}: {error.strerror or error}") from error
            started.append(listener)
            logger.info("Listening on %s", where)
        yield
    finally:
        for listener in started:
            try:
                listener.stop()
            except Exception:  # the sockets are still to be closed in good order
                logger.exception("the listener for %s failed as it was stopped", listener.kind)
