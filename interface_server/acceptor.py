"""Accepts the connections of one bound socket: plain, with TLS, and behind a proxy that speaks the PROXY protocol."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Protocol

import anyio

from asgibus.interface_server.proxy_headers import TrustedProxies
from asgibus.interface_server.proxy_protocol import MAX_LINE, Origin, ProxyHeader, ProxyProtocolError
from asgibus.interface_server.rejections import TOO_MANY, Refusals
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.interface_server.sockets import ListenError, host_and_port
from asgibus.interface_server.tls import Tls

logger = logging.getLogger("asgibus.interface")

ACCEPTS = 32  # in one turn of the event loop: each costs as much as a small request
REFUSED_AT_ONCE = 32  # sockets beyond --max-connections that are answered and closed in good order
RECEIVED_BYTES = (
    64 * 1024
)  # read of a connection that is closed at once: more than the request of a client in good faith
PAUSE_SECONDS = 1.0  # after an accept that failed because something ran out, file descriptors mostly
STOP_SECONDS = 1.0  # for the header or handshake of a connection that was accepted before the server stops
TOO_MANY_RESPONSE = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)


class Factory(Protocol):
    """Makes the protocol of a connection."""

    def __call__(self, origin: Origin | None, *, rejected: bool) -> asyncio.Protocol:
        """Make it. `rejected`: answer with 503, because too many sockets are open."""


class Acceptor:
    """Makes a protocol for each connection that is accepted, once its TLS handshake is done.

    `opened` says how many sockets are open; those whose header or handshake has not come count beside them.
    """

    def __init__(
        self,
        settings: InterfaceSettings,
        listening: socket.socket,
        tls: Tls,
        factory: Factory,
        counts: Counter[str],
        refusals: Refusals,
        opened: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._listening = listening
        self._tls = tls
        self._factory = factory
        self._counts = counts
        self._refusals = refusals
        self._opened = opened
        self._trusted = TrustedProxies(settings.forwarded_allow_ips)
        # Those whose header or handshake has not come yet. Plain tasks: a task group costs a tenth of a connection.
        self._beginning: set[asyncio.Task[None]] = set()
        self._paused: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def accepting(self) -> AsyncIterator[None]:
        """Accept as long as the context lasts; then the socket is closed, and whoever still comes is refused."""
        loop = asyncio.get_running_loop()
        with self._listening:
            self._listening.setblocking(False)
            self._listening.listen(self._settings.backlog)
            self._resume(loop)
            try:
                yield
            finally:
                if self._paused is not None:
                    self._paused.cancel()
                loop.remove_reader(self._listening)
                self._listening.close()
                with anyio.CancelScope(shield=True):
                    await self._end_beginning()

    async def _end_beginning(self) -> None:
        if self._beginning:
            await asyncio.wait(self._beginning, timeout=STOP_SECONDS)
        for task in self._beginning:
            task.cancel()
        if self._beginning:
            await asyncio.wait(self._beginning)

    async def reload(self) -> None:
        """Read the certificates again, for the handshakes to come. If they are bad, those in force stay."""
        try:
            self._tls.load()
        except ListenError as error:
            logger.error("The certificates stay as they are: %s", error)
            return
        logger.info("The certificates are read again")

    def _resume(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.add_reader(self._listening, self._accept, loop)

    def _accept(self, loop: asyncio.AbstractEventLoop) -> None:
        for _ in range(ACCEPTS):
            try:
                accepted, address = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue  # the client has left meanwhile
            except OSError as error:
                why = f"connections cannot be accepted for a moment: {error.strerror or error}"
                self._refusals.count("accept failed", why)
                loop.remove_reader(self._listening)
                self._paused = loop.call_later(PAUSE_SECONDS, self._resume, loop)
                return
            self._accepted(accepted, address, loop)

    def _accepted(self, accepted: socket.socket, address: object, loop: asyncio.AbstractEventLoop) -> None:
        most = self._settings.max_connections
        used = self._opened() + len(self._beginning)
        if self._settings.proxy_protocol and not self._trusted.trusts(
            address[0] if isinstance(address, tuple) else None
        ):
            self._refused("untrusted proxy", address, "it is no trusted proxy")
            accepted.close()
            return
        if used >= most:
            self._refusals.count(TOO_MANY, f"{used} sockets are open, and --max-connections is {most}")
        if used >= most + REFUSED_AT_ONCE:
            self._turn_away(accepted)
            return
        task = loop.create_task(self._begin(accepted, address, loop, refused=used >= most))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    def _turn_away(self, accepted: socket.socket) -> None:
        """Close a connection at once, with an answer where that costs nothing."""
        with accepted, suppress(OSError):
            if not self._settings.proxy_protocol and self._tls.context is None:
                accepted.setblocking(False)
                accepted.send(TOO_MANY_RESPONSE)
                accepted.recv(RECEIVED_BYTES)  # a socket that is closed with bytes unread is reset

    # The PROXY header is read from the bare socket, and not a byte more: what follows may be a handshake, which then
    # begins as on any other socket.

    async def _begin(
        self, accepted: socket.socket, address: object, loop: asyncio.AbstractEventLoop, *, refused: bool
    ) -> None:
        origin = None
        taken = False
        try:
            accepted.setblocking(False)
            if self._settings.proxy_protocol:
                with anyio.fail_after(self._settings.head_timeout):
                    origin = await _read_header(accepted)
            if accepted.family != socket.AF_UNIX:
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            taken = True
            await loop.connect_accepted_socket(
                partial(self._factory, origin, rejected=refused),
                accepted,
                ssl=self._tls.context,
                ssl_handshake_timeout=self._settings.head_timeout if self._tls.context is not None else None,
            )
        except ProxyProtocolError as error:
            self._refused("no PROXY header", address, f"no PROXY header: {error}")
        except (OSError, TimeoutError) as error:  # the client has left, or has not come to the point
            logger.debug("a connection from %s has not begun: %r", _text(address), error)
        except Exception:  # one connection's fault is no reason to lose the others
            self._counts["fault"] += 1
            logger.exception("a connection from %s could not begin", _text(address))
        finally:
            if not taken:
                accepted.close()

    def _refused(self, kind: str, address: object, why: str) -> None:
        self._counts[kind] += 1
        level = logging.WARNING if self._counts[kind] == 1 else logging.INFO  # a stranger must not fill the log
        logger.log(level, "a connection from %s was refused: %s", _text(address), why)


async def _read_header(connection: socket.socket) -> Origin:
    """Read a PROXY header and nothing of what follows it."""
    loop = asyncio.get_running_loop()
    header = ProxyHeader()
    while True:
        data = await loop.sock_recv(connection, 1)
        if not data:
            raise ProxyProtocolError("the connection was closed before it was complete")
        header.feed(data)
        while not header.complete:
            try:
                ahead = connection.recv(MAX_LINE, socket.MSG_PEEK)
            except BlockingIOError:
                break
            if not ahead:
                break
            connection.recv(header.feed(ahead))
        if header.complete:
            return header.origin


def _text(address: object) -> str:
    found = host_and_port(address)
    return found[0] if found else "a unix socket"
