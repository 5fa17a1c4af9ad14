"""Connections without sockets and bus: posts, offers and writes are recorded, and the test acts as the worker."""

import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

from asgibus.interface_server.connections.registry import ConnectionRegistry
from asgibus.interface_server.http.request import Request
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.layers.codec import pack, unpack
from asgibus.layers.contract import Bus
from asgibus.layers.frames import CLAIMED, DEAD, EVENT, EVENT_OFFSET
from asgibus.layers.memory.streams import MemoryStreams
from asgibus.layers.offers import Offer
from asgibus.layers.presence import Announcements, Present, PresentPage
from asgibus.layers.streams.messages import StreamMessages
from asgibus.protocol.connect_request import WEBSOCKET, ConnectRequest
from asgibus.protocol.events import ACCEPT, CLOSE, MESSAGE_SENT, Event

WORKER = "worker.1!"
OTHER = "worker.2!"

Frame = tuple[Any, ...]


class RecordingPresence:
    """Records users and wills. The test answers when `late` is set."""

    lasts = True

    def __init__(self) -> None:
        self.late = False
        self.answers: list[Callable[[str | None], None]] = []
        self.users: dict[str, dict[str, Present]] = {}
        self.announced: dict[str, Announcements] = {}
        self.wills: dict[int, tuple[str, Any]] = {}
        self.executed: list[int] = []

    def show(self, group: str, present: Present, on_stored: Any = None, *, join: Any = None) -> None:
        self.users.setdefault(group, {})[present.user] = present
        self._answer(on_stored)

    def hide(self, group: str, user: str) -> None:
        self.users.get(group, {}).pop(user, None)

    def announce(self, group: str, announcements: Announcements) -> None:
        self.announced[group] = announcements

    def set_will(self, connection: int, group: str, event: Any, on_stored: Any) -> None:
        self.wills[connection] = group, event
        self._answer(on_stored)

    def clear_will(self, connection: int) -> None:
        del self.wills[connection]

    def execute_will(self, connection: int) -> None:
        del self.wills[connection]
        self.executed.append(connection)

    async def page(self, group: str, cursor: str | None = None) -> PresentPage:
        return PresentPage(list(self.users.get(group, {}).values()), None)

    async def settle(self) -> None:
        pass

    def _answer(self, on_stored: Callable[[str | None], None] | None) -> None:
        if on_stored is not None and self.late:
            self.answers.append(on_stored)
        elif on_stored is not None:
            on_stored(None)


class RecordingBus:
    """A bus that records posts and offers."""

    mailbox = "interface.1!"
    available = True
    in_sight = True  # whether the state of all offers is known

    def __init__(self) -> None:
        self.posted: list[tuple[str, Frame]] = []
        self.offered: list[Offer] = []
        self.again: list[Offer] = []
        self.on_lost: list[Callable[[], None]] = []
        self.withdrawn: list[Offer] = []
        self.groups: list[str] = []
        self.presence = RecordingPresence()

    def post(self, mailbox: str, frame: Frame, size: int = 0) -> None:
        self.posted.append((mailbox, frame))

    def offer(self, channel: str, entry: Any, *, once: bool = False) -> Offer:
        self.offered.append(Offer(channel, once=once, state=entry, size=len(pack(entry))))
        return self.offered[-1]

    def offer_again(self, offer: Offer, on_lost: Callable[[], None]) -> None:
        self.again.append(offer)
        self.on_lost.append(on_lost)

    def withdraw(self, offer: Offer) -> bool:
        self.withdrawn.append(offer)
        return self.in_sight

    def export_offer(self, offer: Offer) -> Any:
        return {"channel": offer.channel, "once": offer.once, "size": offer.size, "state": pack(offer.state)}

    def restore_offer(self, values: Any) -> Offer:
        state = ConnectRequest._make(unpack(values["state"]))
        self.offered.append(Offer(values["channel"], values["once"], state, values["size"]))
        return self.offered[-1]

    async def join_group(self, group: str) -> None:
        self.groups.append(group)

    async def leave_group(self, group: str) -> None:
        self.groups.remove(group)


class AtOnce:
    """A task group for coroutines that never wait."""

    def start_soon(self, function: Any, *args: Any) -> None:
        coroutine: Coroutine[Any, None, None] = function(*args)
        try:
            coroutine.send(None)
        except StopIteration:
            return
        raise AssertionError(f"{function} waits")


class RecordingTerminator:
    """A terminator without a socket."""

    def __init__(self) -> None:
        self.deadline = 0.0
        self.write_paused = False
        self.written: list[Event] = []
        self.failed: list[tuple[int, int]] = []
        self.reading = True
        self.aborted = False
        self.faulty = False

    @property
    def messages(self) -> list[str]:
        """Return the messages that the client of a WebSocket received."""
        return [event[1] for event in self.written if event[0] == MESSAGE_SENT]

    def write_event(self, event: Event) -> None:
        if self.faulty:
            raise ZeroDivisionError
        self.written.append(event)

    def broadcast(self, event: Event, shared: dict[str, Any]) -> None:
        self.written.append(event)

    def write_shared(self, events: Sequence[Event], shared: dict[str, Any]) -> None:
        self.written += events

    def detach(self) -> None:
        pass

    def keeps_up(self) -> bool:
        return True

    def pause(self) -> None:
        self.reading = False

    def resume(self) -> None:
        self.reading = True

    def fail(self, status: int, close_code: int) -> None:
        self.failed.append((status, close_code))

    def abort(self) -> None:
        self.aborted = True


class Table:
    """A table of connections on a recording bus."""

    def __init__(self, **settings: Any) -> None:
        self.bus = RecordingBus()
        self.connections = ConnectionRegistry(InterfaceSettings(**settings))
        messages = StreamMessages(cast(Any, None), cast(Any, None), cast(Any, None))  # of writers that get none
        self.streams = MemoryStreams(messages, time.monotonic, Counter())
        self.connections.on_bus(cast(Bus, self.bus), cast(Any, AtOnce()), self.streams.page)

    def open(
        self, kind: str = WEBSOCKET, events: tuple[Event, ...] = (), method: str = "GET"
    ) -> tuple[Any, RecordingTerminator]:
        terminator = RecordingTerminator()
        request = Request(None, None, "http", {})
        request.raw_path, request.kind, request.method = b"/", kind, method
        return self.connections.open(request, cast(Any, terminator), events), terminator

    def open_accepted(
        self, *, resumable: bool = True, subprotocol: str | None = None
    ) -> tuple[Any, RecordingTerminator]:
        """Return a WebSocket that WORKER has accepted."""
        connection, terminator = self.open()
        self.frames(accept(connection.number, resumable=resumable, subprotocol=subprotocol))
        return connection, terminator

    def frames(self, *frames: Frame, sender: str = WORKER) -> None:
        self.connections.batch(sender, frames)

    def dead(self, mailbox: str = WORKER) -> None:
        self.frames((DEAD, mailbox, True), sender="")

    def pass_time(self, seconds: float = 5.0) -> None:
        """Let time pass; the default is enough for a connection that waits for its next offer."""
        self.connections.tick(self.connections.now + seconds)

    def posted(self, mailbox: str = WORKER) -> list[Frame]:
        """Return the frames posted to a worker since the last call."""
        posted = [frame for to, frame in self.bus.posted if to == mailbox]
        self.bus.posted = [(to, frame) for to, frame in self.bus.posted if to != mailbox]
        return posted

    def events(self, mailbox: str = WORKER) -> list[Event]:
        """Return the events among the frames that `posted` returns."""
        return [frame[EVENT_OFFSET:] for frame in self.posted(mailbox) if frame[0] == EVENT]

    @property
    def openings(self) -> list[ConnectRequest]:
        """Return the connect requests that were offered."""
        return [offer.state for offer in self.bus.offered]


def claim_frame(number: int, attempt: int = 1) -> Frame:
    return (CLAIMED, number, attempt)


def accept(
    number: int,
    *,
    attempt: int = 1,
    sequence: int = 0,
    acked: int = 0,
    resumable: bool = False,
    subprotocol: str | None = None,
) -> Frame:
    return (EVENT, number, attempt, sequence, acked, ACCEPT, subprotocol, b"", resumable)


def message(number: int, sequence: int, text: str, *, attempt: int = 1, acked: int = 0) -> Frame:
    return (EVENT, number, attempt, sequence, acked, MESSAGE_SENT, text)


def close(number: int, sequence: int, code: int = 1000, *, attempt: int = 1) -> Frame:
    return (EVENT, number, attempt, sequence, 0, CLOSE, code, "")
