"""The server, as the protocols of its sockets see it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from asgibus.interface_server.read_scheduler import ReadScheduler
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.interface_server.terminator import Holder

if TYPE_CHECKING:
    from asgibus.interface_server.connections.registry import ConnectionRegistry


class SocketRegistry(Protocol):
    """The open sockets of a server."""

    now: float
    """The time of the event loop at the last tick, in seconds."""

    def register(self, holder: Holder, /) -> None:
        """Add a socket that another protocol has handed over."""

    def forget(self, holder: Holder, /) -> None:
        """Remove a socket that was closed, or handed over."""


class ServerContext(SocketRegistry, Protocol):
    """Everything that a protocol over TCP needs of the server."""

    settings: InterfaceSettings
    loop: asyncio.AbstractEventLoop
    scheduler: ReadScheduler
    connections: ConnectionRegistry
    """The open connections; opens new ones on the bus."""

    def admit(self, holder: Holder, /) -> bool:
        """Add a socket that was accepted, and return False if `--max-connections` sockets are open already."""

    def check_slow_client(self, transport: asyncio.Transport, /) -> bool:
        """Return whether more than `--slow-client-buffer` bytes wait for a client, and count it if so."""
