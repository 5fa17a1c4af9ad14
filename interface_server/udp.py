"""The UDP terminator: one socket, and a connection for each remote address.

A datagram that cannot be passed on or sent at once is dropped and counted; there is no queue. The socket is read and
written directly, because a transport would buffer datagrams for which the kernel has no room.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

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

if TYPE_CHECKING:
    from asgibus.interface_server.connections.connection import Connection
    from asgibus.interface_server.connections.registry import ConnectionRegistry

logger = logging.getLogger("asgibus.interface")

PEER_WINDOW = 64 * 1024  # bytes of one peer that may wait for the app: two bursts of what a socket's buffer holds
READ_AT_ONCE = 64  # datagrams, before the event loop reads other sockets
LARGEST = 65_535  # bytes: no datagram is larger

Address = tuple[Any, ...]
"""An address of the socket module: (host, port), or (host, port, flow, scope) for IPv6."""


class UdpPeer:
    """One run of the app for one remote address. Implements `Terminator`."""

    __slots__ = ("_connection", "_listener", "_paused", "address", "received_at", "write_paused")

    _connection: BusConnection

    def __init__(self, listener: UdpListener, address: Address) -> None:
        self._listener = listener
        self.address = address
        self._paused = False
        self.received_at = listener.host.now
        """When the peer has sent its last datagram."""
        self.write_paused = False

    def begin(self, events: tuple[Event, ...]) -> None:
        """Open the connection, with the first datagrams."""
        listener = self._listener
        scope = {"client": self.address[:2], "server": listener.address[:2]}
        self._connection = listener.host.connections.open_other(
            UdpListener.kind, scope, self, events, window=PEER_WINDOW
        )

    def export(self, connections: ConnectionRegistry) -> dict[str, Any]:
        """Return the state, of types that msgpack knows, for another process."""
        return {
            "address": self.address,
            "silent": self._listener.host.now - self.received_at,
            "paused": self._paused,
            "connection": connections.export_connection(cast("Connection", self._connection)),
        }

    def restore(self, state: Mapping[str, Any], connections: ConnectionRegistry) -> None:
        """Go on with the peer of another process. `state` is the result of `export` there."""
        self.received_at -= state["silent"]
        self._paused = state["paused"]
        self._connection = connections.restore_connection(state["connection"], self)

    def received(self, data: bytes) -> None:
        """Pass on a datagram of the peer."""
        self.received_at = self._listener.host.now
        if self._paused:
            self._listener.count("udp window full")
        else:
            self._connection.event(_datagram(data))

    def disconnect(self, reason: str) -> None:
        """Tell the app that the peer is gone."""
        self._connection.client_gone(reason=reason)

    def write_event(self, event: Event) -> None:
        """See `Terminator`."""
        if event[0] == OTHER_SENT:
            self._listener.write(message_of(event)["bytes"], self.address)
            return
        self._listener.forget(self)
        unconsumed = self._unconsumed()
        if event[0] == ABORT or not self._connection.acked:  # a further run would fail, too
            self._listener.count("udp lost", len(unconsumed))
        elif unconsumed:
            self._listener.open_peer(self.address, unconsumed)

    def flush(self) -> None:
        """See `Terminator`. Nothing is buffered here."""

    def broadcast(self, event: Event, shared: dict[str, Any]) -> None:
        """See `Terminator`."""
        if not self._connection.plain(event):
            self._listener.count("broadcast out of place")

    def keeps_up(self) -> bool:
        """See `Terminator`. Nothing is buffered for a peer."""
        return True

    def pause(self) -> None:
        """See `Terminator`. Datagrams are dropped now."""
        self._paused = True

    def resume(self) -> None:
        """See `Terminator`."""
        self._paused = False

    def fail(self, status: int, close_code: int) -> None:
        """See `Terminator`. The next datagram begins a new run."""
        self._listener.forget(self)
        self._listener.count("udp lost", len(self._unconsumed()))

    def abort(self) -> None:
        """See `Terminator`."""
        self._listener.forget(self)
        self.disconnect("")

    def _unconsumed(self) -> tuple[Event, ...]:
        """Return the datagrams that no run has consumed."""
        return tuple(event for event in self._connection.unacknowledged if event[0] == OTHER_RECEIVED)


class UdpListener:
    """One UDP socket. Implements `Listener` and `Holder`."""

    kind = "udp"
    host: Host

    def __init__(self, address: tuple[str, int], settings: InterfaceSettings) -> None:
        self.address: Address = address
        self.deadline = math.inf
        self._timeout = settings.udp_timeout
        self._max_peers = settings.udp_max_peers
        self._peers: dict[Address, UdpPeer] = {}  # the one that was silent for longest is first
        self._socket: socket.socket | None = None

    @classmethod
    def at(cls, value: str | None, settings: InterfaceSettings) -> UdpListener:
        """Make a listener for HOST:PORT. See `Factory`."""
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
        """See `Listener`. The apps get a disconnect, and cannot send any more."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            while self._peers:
                self._disconnect_first("the server stops")
            self.host.forget(self)

    # The move to another process: see `move.MovableListener`.

    @property
    def descriptor(self) -> int:
        """The file descriptor of the socket."""
        assert self._socket is not None
        return self._socket.fileno()

    def hold(self) -> None:
        """Stop reading the socket until `go_on`."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)

    def go_on(self) -> None:
        """Read the socket, in the process that has it now."""
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket, self._readable)

    def export(self, connections: ConnectionRegistry) -> dict[str, Any]:
        """Return the state of all peers, of types that msgpack knows."""
        return {"kind": self.kind, "peers": [peer.export(connections) for peer in self._peers.values()]}

    def restore(
        self, host: Host, listening: socket.socket, state: Mapping[str, Any], connections: ConnectionRegistry
    ) -> None:
        """Take the socket and the peers of another process over; `go_on` follows."""
        listening.setblocking(False)
        self.host = host
        self.address = listening.getsockname()
        self._socket = listening
        host.admit(self)
        for each in state["peers"]:
            address = each["address"]
            peer = self._peers[address] = UdpPeer(self, address)
            peer.restore(each, connections)
            self.deadline = min(self.deadline, peer.received_at + self._timeout)

    def moved(self) -> None:
        """Let the socket and the peers go without a word."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._peers.clear()
            self.host.forget(self)

    # Called by the server.

    def expire(self, now: float) -> None:
        """See `Holder`. Forget the peers that were silent for too long."""
        self.deadline = math.inf
        while self._peers:
            first = next(iter(self._peers.values()))
            if first.received_at + self._timeout > now:
                self.deadline = first.received_at + self._timeout
                return
            self._disconnect_first("silent")

    def shut_down(self) -> None:
        """See `Holder`."""
        self.stop()

    def abort(self) -> None:
        """See `Holder`."""
        self.stop()

    # Called by the peers.

    def open_peer(self, address: Address, events: tuple[Event, ...]) -> None:
        """Begin a run of the app for a peer.

        Args:
            address: The address of the peer.
            events: Its first datagrams.
        """
        peer = self._peers[address] = UdpPeer(self, address)
        peer.begin(events)
        self.deadline = min(self.deadline, peer.received_at + self._timeout)

    def forget(self, peer: UdpPeer) -> None:
        """Remove a peer whose run has ended."""
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

    def count(self, kind: str, count: int = 1) -> None:
        """Count dropped datagrams.

        Args:
            kind: The reason, as the metrics name it.
            count: How many datagrams were dropped.
        """
        if count:
            self.host.connections.counts[kind] += count

    # Reading.

    def _readable(self) -> None:
        for _ in range(READ_AT_ONCE):
            if self._socket is None:
                return
            try:
                data, address = self._socket.recvfrom(LARGEST)
            except BlockingIOError:
                return
            except OSError as error:  # an ICMP error for a datagram that was sent
                logger.debug("the UDP socket reports: %s", error)
                return
            self._received(data, address)

    def _received(self, data: bytes, address: Address) -> None:
        peer = self._peers.pop(address, None)
        if peer is not None:
            self._peers[address] = peer  # as the last one
            peer.received(data)
        elif len(self._peers) < self._max_peers:
            self.open_peer(address, (_datagram(data),))
        else:
            self.count("udp too many peers")

    def _disconnect_first(self, reason: str) -> None:
        address = next(iter(self._peers))
        self._peers.pop(address).disconnect(reason)


def _datagram(data: bytes) -> Event:
    return other(OTHER_RECEIVED, {"type": "udp.receive", "bytes": data})


def parse_address(text: str) -> tuple[str, int]:
    """Return the address in `HOST:PORT` or `[HOST]:PORT`.

    Raises:
        ValueError: The text has another form. The message is one sentence.
    """
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    name = host[1:-1] if bracketed else host
    if not name or bracketed != (":" in name) or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"{text!r} is not of the form HOST:PORT, such as 127.0.0.1:9000 or [::1]:9000")
    return name, int(port)
