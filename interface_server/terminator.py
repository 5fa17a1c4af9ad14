"""The interfaces between a protocol's terminator and the rest of the interface server.

A terminator handles one exchange with a client, such as an HTTP request or a WebSocket. It opens a connection on the
bus, passes the client's events to it, and is called with the events of the app. docs/terminators.md explains how a
package adds a protocol.

- `Listener` accepts the clients at one address.
- `Terminator` is called by a `BusConnection`, the connection that it has opened.
- `Holder` owns a socket and is called by the server. With TCP, terminator and holder are one object.
- `Host` is the server, as listeners see it.
- `SlicedInput` holds what a client over TCP has sent, and has a `SliceParser` parse it fairly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from asgibus.protocol.events import ABORT, OTHER_CLOSE, OTHER_RECEIVED, OTHER_SENT, Event, message_of, other

if TYPE_CHECKING:
    import asyncio

    from asgibus.interface_server.settings import InterfaceSettings

__all__ = [
    "ABORT",
    "OTHER_CLOSE",
    "OTHER_RECEIVED",
    "OTHER_SENT",
    "BusConnection",
    "BusConnections",
    "Event",
    "Factory",
    "Holder",
    "Host",
    "Listener",
    "SliceParser",
    "SlicedInput",
    "Terminator",
    "message_of",
    "other",
]


class Abortable(Protocol):
    """A socket that can be aborted."""

    def abort(self) -> None:
        """Close the socket at once, without writing what is buffered."""


class Flushable(Abortable, Protocol):
    """A socket that may buffer writes until the end of a batch."""

    def flush(self) -> None:
        """Write everything that is buffered: the batch has ended."""


class Terminator(Flushable, Protocol):
    """The protocol side of a connection. Its methods must not block or raise."""

    @property
    def write_paused(self) -> bool:
        """Whether the write buffer of the socket is full, so that writes wait for the client."""

    def write_event(self, event: Event) -> None:
        """Write an event of the app, at once or at the next `flush`. The event is legal in the connection's state."""

    def broadcast(self, event: Event, shared: dict[str, Any]) -> None:
        """Write an event that was sent to a group.

        Args:
            event: The event.
            shared: A dict that is passed to every member, to encode the event only once.
        """

    def keeps_up(self) -> bool:
        """Return whether the client can take a broadcast although `write_paused` is true.

        If not, the client misses the event; the terminator may also close the client here.
        """

    def pause(self) -> None:
        """Stop reading from the client, because the app is too slow."""

    def resume(self) -> None:
        """Continue to read from the client."""

    def fail(self, status: int, close_code: int) -> None:
        """Answer the client with an error, because no worker serves this connection.

        Args:
            status: The HTTP status, for a request or a handshake.
            close_code: The close code, for an open WebSocket.
        """


class SharedWriter(Terminator, Protocol):
    """A terminator whose connections can follow streams."""

    def write_shared(self, events: Sequence[Event], shared: dict[str, Any]) -> None:
        """Write events that other connections get too. The caller has seen whether the socket has room.

        Args:
            events: The events, in their order.
            shared: A dict that is passed to every connection, to encode the events only once.
        """

    def detach(self) -> None:
        """Go on with a response that no run of the app sends any more. Only responses are detached."""


class Holder(Abortable, Protocol):
    """The owner of a socket. Its methods must not block or raise."""

    deadline: float
    """The time at which the server calls `expire`, by the clock of the event loop."""

    def expire(self, now: float) -> None:
        """Handle that the deadline has passed.

        Args:
            now: The time by the clock of the event loop, in seconds.
        """

    def shut_down(self) -> None:
        """Close the socket as soon as the current exchange allows it, because the server stops."""


class SliceParser(Abortable, Protocol):
    """A terminator over TCP whose input is parsed in slices."""

    def parse(self, data: bytes, /) -> None:
        """Parse the next bytes of the client, at most 4 KiB."""


class SlicedInput(Protocol):
    """The input of one socket, which is parsed in slices so that no client delays the others.

    In each turn of the event loop, the server parses input of all sockets for at most 10 ms. While input waits for a
    later turn, the socket is not read.
    """

    def feed(self, data: bytes, /) -> None:
        """Add bytes that have arrived. `SliceParser.parse` gets them, now or in a later turn of the event loop."""

    def pause(self) -> None:
        """Stop reading the socket and parsing, because the app is too slow. To be called by `Terminator.pause`."""

    def resume(self) -> None:
        """Continue to read and parse. To be called by `Terminator.resume`."""


class BusConnection(Protocol):
    """A connection on the bus, as its terminator sees it."""

    @property
    def acked(self) -> int:
        """The number of the client's events that a run of the app has consumed."""

    @property
    def unacknowledged(self) -> list[Event]:
        """The client's events that no run of the app has consumed."""

    def event(self, event: Event, /) -> None:
        """Send an event of the client to the app."""

    def client_gone(self, code: int = 1006, reason: str = "") -> None:
        """End the connection, and tell the app, because the client is gone. Nothing is written after this.

        Args:
            code: The close code, for a WebSocket.
            reason: The reason, for people to read.
        """

    def acknowledge(self) -> None:
        """Let the app send more, because `Terminator.write_paused` has become false."""

    def plain(self, event: Event, /) -> bool:
        """Handle an event of a broadcast, and return False if it was not for this connection."""


class BusConnections(Protocol):
    """Opens connections on the bus."""

    counts: Counter[str]
    """Dropped and rejected items by kind. Exported as metrics."""

    def open_other(
        self,
        kind: str,
        scope: dict[str, Any],
        terminator: Terminator,
        events: tuple[Event, ...] = (),
        *,
        window: int | None = None,
    ) -> BusConnection:
        """Offer a connection to the workers, which is open from the start.

        Args:
            kind: The scope type.
            scope: The scope of the app, without `type` and `asgi`.
            terminator: The terminator of the connection.
            events: The client's first events.
            window: How many bytes may be unacknowledged in each direction; by default `--window`.

        Raises:
            TypeError: The scope holds a value that a message cannot hold.
        """


class Host(Protocol):
    """The server, as listeners and terminators see it."""

    settings: InterfaceSettings
    now: float
    """The time of the event loop at the last tick, in seconds; a tick takes a quarter of a second."""
    shared: bool
    """Whether other processes listen at the same address, so that the listener must set SO_REUSEPORT."""

    @property
    def connections(self) -> BusConnections:
        """The open connections."""

    def admit(self, terminator: Holder, /) -> bool:
        """Register an open socket, and return False if `--max-connections` sockets are open already."""

    def forget(self, terminator: Holder, /) -> None:
        """Remove a socket that has been closed. The server ends when no socket is left."""

    def sliced_input(self, transport: asyncio.Transport, parser: SliceParser, /) -> SlicedInput:
        """Return the input of a socket, whose `data_received` has to call `SlicedInput.feed`.

        Args:
            transport: The socket.
            parser: The terminator that parses the input.
        """


class Listener(Protocol):
    """Accepts the clients of one protocol at one address."""

    kind: str
    """The scope type of the connections: 1 to 9 lower-case letters, digits or '-'."""

    async def start(self, host: Host) -> str:
        """Start listening.

        Args:
            host: The server.

        Returns:
            The address, for the log.

        Raises:
            OSError: The address cannot be used; or ListenError.
        """

    def stop(self) -> None:
        """Stop accepting clients. Afterwards the server calls `shut_down` of every open socket."""


FAULT = "a terminator failed, and its socket is aborted: %s"


def abort_faulty(terminator: Abortable, counts: Counter[str]) -> str:
    """Count a terminator that has raised, abort its socket, and return the name of its class for the log.

    Every call of a terminator is guarded in this way, so that a fault in one socket does not reach the others.
    """
    counts["fault"] += 1
    with suppress(Exception):  # the fault is logged by the caller
        terminator.abort()
    return f"{type(terminator).__module__}.{type(terminator).__qualname__}"


Factory = Callable[["str | None", "InterfaceSettings"], Listener]
"""The type of an entry point of the group `asgibus.terminators`.

A factory is called with the VALUE of `--terminator NAME=VALUE`, or None, and with all settings. It returns a listener
that is not open yet, or raises ValueError with one sentence if the value is not valid.
"""
