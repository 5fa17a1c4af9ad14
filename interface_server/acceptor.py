"""Accepting connections of one listening socket: plain, with TLS, and behind proxies that send a PROXY header."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Protocol

import anyio

from asgibus.interface_server.open_sockets import TOO_MANY, TOO_MANY_TEXT
from asgibus.interface_server.proxy_headers import TrustedProxies
from asgibus.interface_server.proxy_protocol import MAX_LINE, Origin, ProxyHeader, ProxyProtocolError
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.interface_server.sockets import host_and_port
from asgibus.interface_server.tls import Tls
from asgibus.protocol.counted_log import CountedLog

logger = logging.getLogger("asgibus.interface")

ACCEPTS = 32  # in one turn of the event loop: each costs as much as a small request
REJECTED_GRACEFULLY = 32  # connections beyond --max-connections that are answered and closed in good order
DISCARD_BYTES = 64 * 1024  # read of a connection that is closed at once: more than an ordinary request has
PAUSE_SECONDS = 1.0  # after an accept that failed for want of a resource, mostly of file descriptors
STOP_SECONDS = 1.0  # for the header or handshake of a connection that was accepted before the server stops
TOO_MANY_RESPONSE = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)


class Factory(Protocol):
    """Makes the protocol of a connection."""

    def __call__(self, origin: Origin | None, *, rejected: bool) -> asyncio.Protocol:
        """Make a protocol.

        Args:
            origin: The addresses that the PROXY protocol has reported.
            rejected: Whether to answer with 503, because too many sockets are open.
        """


class Acceptor:
    """Makes a protocol for each connection that is accepted, when its TLS handshake is done."""

    def __init__(
        self,
        settings: InterfaceSettings,
        listening: socket.socket,
        tls: Tls,
        factory: Factory,
        log: CountedLog,
        open_sockets: Callable[[], int],
    ) -> None:
        """Make an acceptor that does nothing until `accepting`.

        Args:
            settings: The settings of the server.
            listening: The bound socket.
            tls: The certificates.
            factory: Makes the protocols.
            log: Counts and logs rejected connections and faults.
            open_sockets: Returns how many sockets have a protocol.
        """
        self._settings = settings
        self._listening = listening
        self._tls = tls
        self._factory = factory
        self._log = log
        self._open_sockets = open_sockets
        self._trusted = TrustedProxies(settings.forwarded_allow_ips)
        # Connections whose header or handshake is incomplete. Plain tasks: a task group costs a tenth of a connection.
        self._pending: set[asyncio.Task[None]] = set()
        self._paused: asyncio.TimerHandle | None = None
        self._held = False  # whether the clients that wait are for another process

    @asynccontextmanager
    async def accepting(self) -> AsyncIterator[None]:
        """Accept connections as long as the context lasts. Then the listening socket is closed."""
        loop = asyncio.get_running_loop()
        with self._listening:
            self._listening.setblocking(False)
            self._listening.listen(self._settings.backlog)
            self._resume(loop)
            try:
                yield
            finally:
                if self._settings.fd is None and not self._held:  # else other processes serve the clients that wait
                    self._accept(loop)  # clients that the kernel has connected already would be reset
                if self._paused is not None:
                    self._paused.cancel()
                loop.remove_reader(self._listening)
                self._listening.close()
                with anyio.CancelScope(shield=True):
                    await self._end_pending()

    # The move to another process.

    @property
    def descriptor(self) -> int:
        """The file descriptor of the listening socket."""
        return self._listening.fileno()

    async def pause(self) -> None:
        """Accept nothing until `resume`, and wait until the protocols of all accepted connections are made.

        Clients wait in the kernel meanwhile. Connections whose header is late are closed.
        """
        self._held = True
        if self._paused is not None:
            self._paused.cancel()
        asyncio.get_running_loop().remove_reader(self._listening)
        await self._end_pending()

    def resume(self) -> None:
        """Accept again, after `pause`."""
        if self._held:
            self._held = False
            self._resume(asyncio.get_running_loop())

    async def _end_pending(self) -> None:
        if self._pending:
            await asyncio.wait(self._pending, timeout=STOP_SECONDS)
        for task in self._pending:
            task.cancel()
        if self._pending:
            await asyncio.wait(self._pending)

    def _resume(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.add_reader(self._listening, self._accept, loop)

    def _accept(self, loop: asyncio.AbstractEventLoop) -> None:
        for _ in range(ACCEPTS):
            try:
                accepted, address = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue  # the client has closed the connection meanwhile
            except OSError as error:
                text = "connections cannot be accepted for a moment: %s"
                self._log.count("accept failed", text, error.strerror or error)
                loop.remove_reader(self._listening)
                self._paused = loop.call_later(PAUSE_SECONDS, self._resume, loop)
                return
            self._accepted(accepted, address, loop)

    def _accepted(self, accepted: socket.socket, address: object, loop: asyncio.AbstractEventLoop) -> None:
        most = self._settings.max_connections
        used = self._open_sockets() + len(self._pending)
        if self._settings.proxy_protocol and not self._trusted.trusts(
            address[0] if isinstance(address, tuple) else None
        ):
            text = "a connection from %s was rejected: it is no trusted proxy"
            self._log.count("untrusted proxy", text, _text(address))
            accepted.close()
            return
        if used >= most:
            self._log.count(TOO_MANY, TOO_MANY_TEXT, used, most)
        if used >= most + REJECTED_GRACEFULLY:
            self._close_at_once(accepted)
            return
        task = loop.create_task(self._open(accepted, address, loop, rejected=used >= most))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    def _close_at_once(self, accepted: socket.socket) -> None:
        """Close a connection at once, with an answer if that needs no handshake."""
        with accepted, suppress(OSError):
            if not self._settings.proxy_protocol and self._tls.context is None:
                accepted.setblocking(False)
                accepted.send(TOO_MANY_RESPONSE)
                accepted.recv(DISCARD_BYTES)  # a socket that is closed with unread bytes is reset

    async def _open(
        self, accepted: socket.socket, address: object, loop: asyncio.AbstractEventLoop, *, rejected: bool
    ) -> None:
        """Read the PROXY header and do the TLS handshake, where they are due, and make the protocol."""
        origin = None
        handed_over = False
        try:
            accepted.setblocking(False)
            if self._settings.proxy_protocol:
                with anyio.fail_after(self._settings.head_timeout):
                    origin = await _read_header(accepted)
            if accepted.family != socket.AF_UNIX:
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            handed_over = True
            await loop.connect_accepted_socket(
                partial(self._factory, origin, rejected=rejected),
                accepted,
                ssl=self._tls.context,
                ssl_handshake_timeout=self._settings.head_timeout if self._tls.context is not None else None,
            )
        except ProxyProtocolError as error:
            text = "a connection from %s was rejected: no PROXY header: %s"
            self._log.count("no PROXY header", text, _text(address), error)
        except (OSError, TimeoutError) as error:  # the client has closed the connection, or was too slow
            logger.debug("a connection from %s has not begun: %r", _text(address), error)
        except Exception:  # a fault in one connection must not reach the others
            self._log.counts["fault"] += 1
            logger.exception("a connection from %s could not begin", _text(address))
        finally:
            if not handed_over:
                accepted.close()


async def _read_header(connection: socket.socket) -> Origin:
    """Read a PROXY header and no byte of what follows: a TLS handshake may follow, which needs the bare socket."""
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
