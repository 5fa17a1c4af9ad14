"""Accepts the connections of one bound socket: plain, with TLS, and behind a proxy that speaks the PROXY protocol."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import anyio
from anyio.abc import TaskGroup

from asgibus.interface_server.listeners import ListenError, host_and_port, listen
from asgibus.interface_server.proxy import TrustedProxies
from asgibus.interface_server.proxy_protocol import MAX_LINE, Origin, ProxyHeader, ProxyProtocolError
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.interface_server.tls import Tls

logger = logging.getLogger("asgibus.interface")

PAUSE_SECONDS = 1.0  # after an accept that failed because something ran out, file descriptors mostly

Factory = Callable[[Origin | None], asyncio.Protocol]


class Acceptor:
    """Makes a protocol for each connection that is accepted, once its TLS handshake is done."""

    def __init__(
        self, settings: InterfaceSettings, listening: socket.socket, tls: Tls, factory: Factory, counts: Counter[str]
    ) -> None:
        self._settings = settings
        self._listening = listening
        self._tls = tls
        self._factory = factory
        self._counts = counts
        self._server: asyncio.Server | None = None
        self._trusted = TrustedProxies(settings.forwarded_allow_ips)
        self._beginning: set[socket.socket] = set()  # those whose header or handshake has not come yet

    @asynccontextmanager
    async def accepting(self) -> AsyncIterator[None]:
        """Accept as long as the context lasts; then the socket is closed, and whoever still comes is refused."""
        with self._listening:
            if not self._settings.proxy_protocol:
                self._server = await self._serve()
                try:
                    yield
                finally:
                    self._server.close()
                return
            self._listening.setblocking(False)
            self._listening.listen(self._settings.backlog)
            async with anyio.create_task_group() as beginning:
                async with anyio.create_task_group() as accepting:
                    accepting.start_soon(self._accept, beginning)
                    yield
                    accepting.cancel_scope.cancel()
                self._listening.close()
                beginning.cancel_scope.cancel()

    async def reload(self) -> None:
        """Read the certificates again, for the handshakes to come. If they are bad, those in force stay."""
        try:
            self._tls.load()
        except ListenError as error:
            logger.error("The certificates stay as they are: %s", error)
            return
        if self._server is not None:
            # Another server on the same socket, since the old context keeps what it once trusted.
            old, self._server = self._server, await self._serve()
            old.close()
        logger.info("The certificates are read again")

    async def _serve(self) -> asyncio.Server:
        # A copy of the descriptor: a server closes its own when it ends, and another may follow.
        copy = self._listening.dup()
        try:
            return await listen(copy, partial(self._factory, None), self._tls.context, self._settings)
        except BaseException:
            copy.close()
            raise

    # With PROXY headers. The header is read from the bare socket, and not a byte more: what follows may be a handshake,
    # which then begins as on any other socket.

    async def _accept(self, beginning: TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(self._listening)
            except ConnectionError:
                continue  # the client has left meanwhile
            except OSError as error:
                logger.error("connections cannot be accepted for a moment: %s", error.strerror or error)
                await anyio.sleep(PAUSE_SECONDS)
                continue
            if not self._trusted.trusts(address[0] if isinstance(address, tuple) else None):
                self._refused("untrusted proxy", address, "it is no trusted proxy")
                accepted.close()
            elif len(self._beginning) >= self._settings.max_connections:
                accepted.close()
            else:
                self._beginning.add(accepted)
                beginning.start_soon(self._begin, accepted, address)

    async def _begin(self, accepted: socket.socket, address: object) -> None:
        loop = asyncio.get_running_loop()
        taken = False
        try:
            with anyio.fail_after(self._settings.head_timeout):
                origin = await _read_header(accepted)
            if accepted.family != socket.AF_UNIX:
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            taken = True
            await loop.connect_accepted_socket(
                partial(self._factory, origin),
                accepted,
                ssl=self._tls.context,
                ssl_handshake_timeout=self._settings.head_timeout if self._tls.context is not None else None,
            )
        except ProxyProtocolError as error:
            self._refused("no PROXY header", address, f"no PROXY header: {error}")
        except (OSError, TimeoutError) as error:  # the client has left, or has not come to the point
            logger.debug("a connection from %s has not begun: %r", _text(address), error)
        finally:
            self._beginning.discard(accepted)
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
