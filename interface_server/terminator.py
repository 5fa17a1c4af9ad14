"""The seam between a protocol's terminator and the rest of the interface server.

A terminator holds a client's socket. For each exchange on it (an HTTP request, a WebSocket) it opens a `Connection`,
gives it what the client sends, and is called with what the app sends. Another protocol needs only this:
docs/terminators.md says how.

`Terminator` is what a connection asks of it, `Holder` what the server's clock and its end do. Where a socket is one
client, as with TCP, both are one object. `Listener` is what accepts the clients, and `Host` what it is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from asgibus.protocol.events import ABORT, OTHER_CLOSE, OTHER_RECEIVED, OTHER_SENT, Event, message_of, other

if TYPE_CHECKING:
    from asgibus.interface_server.connections import Connections
    from asgibus.interface_server.settings import InterfaceSettings


__all__ = [
    "ABORT",
    "OTHER_CLOSE",
    "OTHER_RECEIVED",
    "OTHER_SENT",
    "Event",
    "Factory",
    "Holder",
    "Host",
    "Listener",
    "Terminator",
    "message_of",
    "other",
]


class Abortable(Protocol):
    """A socket that can be ended."""

    def abort(self) -> None:
        """End the socket at once."""


class Holding(Abortable, Protocol):
    """A socket to which some things are written only when a batch is through."""

    def flush(self) -> None:
        """Write what is still held: no more comes in this batch."""


class Terminator(Holding, Protocol):
    """What a `Connection` asks of the protocol that holds the socket. Nothing here may block or raise."""

    write_paused: bool
    """Whether the socket's write buffer is full: what is written waits for the client."""

    def write_event(self, event: Event) -> None:
        """An event of the app, legal in the connection's state; written at once, or held until `flush`."""

    def broadcast(self, event: Event, shared: dict[str, Any]) -> None:
        """An event for a whole group. `shared` keeps its encoded form from one member to the next."""

    def keeps_up(self) -> bool:
        """Asked while `write_paused`: whether more may be written for which nobody waits, as a message to its channel.

        False: it is too slow for that and misses it. It may be ended by this, too.
        """

    def pause(self) -> None:
        """Stop reading from the client: the app is behind."""

    def resume(self) -> None:
        """Read on."""

    def fail(self, status: int, close_code: int) -> None:
        """No worker serves this connection, or none any more: answer with the HTTP status, or the close code."""

    def abort(self) -> None:
        """End it at once."""


class Holder(Protocol):
    """What the server asks of whoever holds a socket. Nothing here may block or raise."""

    deadline: float
    """When `expire` is to be called, by the clock of the event loop."""

    def expire(self, now: float) -> None:
        """The deadline has passed."""

    def shut_down(self) -> None:
        """The server stops: end as soon as the running exchange allows it."""

    def abort(self) -> None:
        """End the socket at once."""


class Host(Protocol):
    """What the server gives a listener."""

    settings: InterfaceSettings
    connections: Connections
    """Where connections are opened, with `open_other`; its `counts` are told as metrics."""
    now: float
    """The event loop's time, as of the last tick: a quarter of a second exact."""
    shared: bool
    """Whether other processes listen at the same address: then bind with SO_REUSEPORT."""

    def admit(self, terminator: Holder, /) -> bool:
        """A socket was opened: from now on it is looked after. False if there are too many already."""

    def forget(self, terminator: Holder, /) -> None:
        """A socket has ended. The server stops when it has heard this of all of them."""


class Listener(Protocol):
    """What accepts the clients of one protocol, at one address."""

    kind: str
    """The scope type of its connections: 1 to 9 lower-case letters, digits or '-'."""

    async def start(self, host: Host) -> str:
        """Listen; returns where, for the log. Raises OSError or ListenError."""

    def stop(self) -> None:
        """Accept nobody any more. Those who were accepted are told to `shut_down` after this, by the server."""


FAULT = "a terminator failed, and its socket is cut: %s"


def cut(terminator: Abortable, counts: Counter[str]) -> str:
    """End the socket of a terminator that has raised, so that no other ends with it; returns its name, for the log."""
    counts["fault"] += 1
    with suppress(Exception):  # that it is at fault is known
        terminator.abort()
    return f"{type(terminator).__module__}.{type(terminator).__qualname__}"


Factory = Callable[["str | None", "InterfaceSettings"], Listener]
"""What an entry point of the group `asgibus.terminators` names.

It gets the VALUE of `--terminator NAME=VALUE`, or None, and all settings, and opens nothing yet. Raises ValueError with
a sentence for a value that it cannot use.
"""
