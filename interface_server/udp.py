"""The UDP terminator: one socket, and a connection for each remote address that is heard from.

Whatever cannot be had at once is dropped and counted, as UDP may: there is no queue here. The socket is written and
read directly, because a transport would keep datagrams that the kernel has no room for.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from typing import Any

from asgibus.interface_server.settings import InterfaceSettings
from asgibus.interface_server.sockets import ListenError
from asgibus.interface_server.terminator import (
    ABORT,
    OTHER_RECEIVED,
    OTHER_SENT,
    BusConnection,
    Event,
    Host,
    message_of,
    other,
)

logger = logging.getLogger("asgibus.interface")

PEER_WINDOW = 64 * 1024  # bytes of one peer that may wait for the app: two bursts of what a socket's buffer holds
READ_AT_ONCE = 64  # datagrams, before other sockets get their turn
LARGEST = 65_535  # bytes, more than any datagram has

Address = tuple[Any, ...]
"""As the socket module has it: (host, port), or (host, port, flow, scope) for IPv6."""


class UdpPeer:
    """One run of the app for one remote address. See `Terminator` for the seam."""

    __slots__ = ("_connection", "_listener", "_paused", "address", "heard", "write_paused")

    def __init__(self, listener: UdpListener, address: Address, events: tuple[Event, ...]) -> None:
        self._listener = listener
        self.address = address
        self._paused = False
        self.heard = listener.host.now
        """When it sent something last."""
        self.write_paused = False
        scope = {"client": address[:2], "server": listener.address[:2]}
        self._connection: BusConnection = listener.host.connections.open_other(
            UdpListener.kind, scope, self, events, window=PEER_WINDOW
        )

    def received(self, data: bytes) -> None:
        """A datagram came from it."""
        self.heard = self._listener.host.now
        if self._paused:
            self._listener.count("udp window full")
        else:
            self._connection.event(_datagram(data))

    def leave(self, why: str) -> None:
        """It was silent, or the server stops: the app is told."""
        self._connection.client_gone(reason=why)

    def write_event(self, event: Event) -> None:
        """See `Terminator`."""
        if event[0] == OTHER_SENT:
            self._listener.write(message_of(event)["bytes"], self.address)
            return
        self._listener.forget(self)
        waiting = self._waiting()
        if event[0] == ABORT or not self._connection.acked:  # another run would fare no better
            self._listener.count("udp lost", len(waiting))
        elif waiting:
            self._listener.meet(self.address, waiting)

    def flush(self) -> None:
        """See `Terminator`: nothing is held here."""

    def broadcast(self, event: Event, shared: dict[str, Any]) -> None:
        """See `Terminator`."""
        if not self._connection.plain(event):
            self._listener.count("broadcast out of place")

    def keeps_up(self) -> bool:
        """See `Terminator`: nothing is kept for a peer."""
        return True

    def pause(self) -> None:
        """See `Terminator`: what comes is dropped."""
        self._paused = True

    def resume(self) -> None:
        """See `Terminator`."""
        self._paused = False

    def fail(self, status: int, close_code: int) -> None:
        """See `Terminator`: the next datagram begins anew."""
        self._listener.forget(self)
        self._listener.count("udp lost", len(self._waiting()))

    def abort(self) -> None:
        """See `Terminator`."""
        self._listener.forget(self)
        self.leave("")

    def _waiting(self) -> tuple[Event, ...]:
        """The datagrams that no run has taken."""
        return tuple(event for event in self._connection.unacknowledged if event[0] == OTHER_RECEIVED)


class UdpListener:
    """One UDP socket. See `Listener` and `Holder` for the seam."""

    kind = "udp"
    host: Host

    def __init__(self, address: tuple[str, int], settings: InterfaceSettings) -> None:
        self.address: Address = address
        self.deadline = math.inf
        self._timeout = settings.udp_timeout
        self._most = settings.udp_max_peers
        self._peers: dict[Address, UdpPeer] = {}  # who was silent for longest stands first
        self._socket: socket.socket | None = None

    @classmethod
    def at(cls, value: str | None, settings: InterfaceSettings) -> UdpListener:
        """The listener for HOST:PORT. See `Factory`."""
        return cls(parse_address(value or ""), settings)

    async def start(self, host: Host) -> str:
        """See `Listener`."""
        name, port = self.address
        where = f"udp://{f'[{name}]' if ':' in name else name}"
        if host.shared and not port:
            raise ListenError(f"cannot listen on {where}:0: several processes need a port that all of them know")
        listening = socket.socket(socket.AF_INET6 if ":" in name else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            if host.shared:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listening.setblocking(False)
            listening.bind((name, port))
        except OSError as error:
            listening.close()
            raise ListenError(f"cannot listen on {where}:{port}: {error.strerror or error}") from error
        self.host = host
        self.address = listening.getsockname()
        self._socket = listening
        host.admit(self)
        asyncio.get_running_loop().add_reader(listening, self._readable)
        return f"{where}:{self.address[1]}"

    def stop(self) -> None:
        """See `Listener`: the apps are told, and nothing is sent for them any more."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            while self._peers:
                self._leave_first("the server stops")
            self.host.forget(self)

    # Holder.

    def expire(self, now: float) -> None:
        """See `Holder`: part with those who were silent for too long."""
        self.deadline = math.inf
        while self._peers:
            first = next(iter(self._peers.values()))
            if first.heard + self._timeout > now:
                self.deadline = first.heard + self._timeout
                return
            self._leave_first("silent")

    def shut_down(self) -> None:
        """See `Holder`."""
        self.stop()

    def abort(self) -> None:
        """See `Holder`."""
        self.stop()

    # For the peers.

    def meet(self, address: Address, events: tuple[Event, ...]) -> None:
        """Begin a run of the app for a peer, with its first datagrams."""
        peer = self._peers[address] = UdpPeer(self, address, events)
        self.deadline = min(self.deadline, peer.heard + self._timeout)

    def forget(self, peer: UdpPeer) -> None:
        """A peer's run has ended."""
        if self._peers.get(peer.address) is peer:
            del self._peers[peer.address]

    def write(self, data: bytes, address: Address) -> None:
        """Send a datagram, or drop it."""
        if self._socket is None:
            return
        try:
            self._socket.sendto(data, address)
        except OSError as error:  # no room in the kernel, no way to the peer, or larger than this address family takes
            self.count("udp not sent")
            logger.debug("a datagram of %d bytes to %s was not sent: %s", len(data), address, error)

    def count(self, what: str, count: int = 1) -> None:
        """Something was dropped."""
        if count:
            self.host.connections.counts[what] += count

    # From the socket.

    def _readable(self) -> None:
        for _ in range(READ_AT_ONCE):
            if self._socket is None:
                return
            try:
                data, address = self._socket.recvfrom(LARGEST)
            except BlockingIOError:
                return
            except OSError as error:  # what the network says of a datagram that we sent
                logger.debug("the UDP socket says: %s", error)
                return
            self._received(data, address)

    def _received(self, data: bytes, address: Address) -> None:
        peer = self._peers.pop(address, None)
        if peer is not None:
            self._peers[address] = peer  # behind all others
            peer.received(data)
        elif len(self._peers) < self._most:
            self.meet(address, (_datagram(data),))
        else:
            self.count("udp too many peers")

    def _leave_first(self, why: str) -> None:
        address = next(iter(self._peers))
        self._peers.pop(address).leave(why)


def _datagram(data: bytes) -> Event:
    return other(OTHER_RECEIVED, {"type": "udp.receive", "bytes": data})


def parse_address(text: str) -> tuple[str, int]:
    """The address in `HOST:PORT` or `[HOST]:PORT`. Raises ValueError with a sentence."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    name = host[1:-1] if bracketed else host
    if not name or bracketed != (":" in name) or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"{text!r} is not of the form HOST:PORT, such as 127.0.0.1:9000 or [::1]:9000")
    return name, int(port)
