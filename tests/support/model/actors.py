"""Actors of the model: clients with their sockets, interface servers, runs of the app, and workers.

The registry of connections and the `Worker` are the product's own; the sockets and the app are models. A message of a
client is its number; what a run of the app sends carries the run's attempt, its worker and a number of its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import anyio

import asgibus
from asgibus.interface_server.connections.registry import ConnectionRegistry
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.layers.channel_layer import ChannelLayer
from asgibus.protocol.events import ACCEPT, CLOSE, MESSAGE_SENT, Event
from asgibus.worker.session import Session
from asgibus.worker.settings import WorkerSettings
from asgibus.worker.worker import Worker
from support.model.bus import ModelBus, ModelLayer, SteppedLoop, Store
from support.recording import AtOnce

if TYPE_CHECKING:
    from support.model.world import World

FOR_EVER = 1e9
UNSENT = 8  # messages that an app holds back while its window is shut


@dataclass(eq=False)
class Client:
    """The terminator of a WebSocket, and the messages that its client sent and received."""

    world: World
    interface: Interface
    connection: Any = None
    sent: int = 0
    acked: int = 0  # a further run gets no message below this number
    left: bool = False
    closed: tuple[int, int] | None = None
    deaths: int = 0
    received: dict[int, tuple[str, int]] = field(default_factory=dict)  # attempt -> (worker, how many messages)
    plain: set[str] = field(default_factory=set)
    bases: dict[int, int] = field(default_factory=dict)  # attempt -> the first number that the run must get
    handed_over: dict[int, Run] = field(default_factory=dict)  # attempt -> the run that was handed over to this attempt
    accepted: bool = False
    deadline: float = 0.0
    write_paused: bool = False
    reading: bool = True

    @property
    def open(self) -> bool:
        return not self.left and self.closed is None and self.interface.bus.mailbox in self.world.store.buses

    # The seam of a terminator.

    def write_event(self, event: Event) -> None:
        assert self.closed is None, "nothing is written behind the end"
        if event[0] == ACCEPT:
            assert not self.accepted, "a client is accepted once"
            self.accepted = True
        elif event[0] == CLOSE:
            self.closed = event[1:3]
        elif event[0] == MESSAGE_SENT:
            if event[1].startswith("plain"):
                assert event[1] not in self.plain, "I4: taken twice"
                self.plain.add(event[1])
                return
            attempt, worker, number = event[1].split()[0].split(":")
            assert int(attempt) == self.connection.stream.attempt, "a superseded run must not write"
            assert worker == self.connection.peer
            before = self.received.get(int(attempt), (worker, 0))
            assert before == (worker, int(number)), "I10: in order, from one worker, without gap or duplicate"
            self.received[int(attempt)] = (worker, int(number) + 1)

    def pause(self) -> None:
        self.reading = False

    def resume(self) -> None:
        self.reading = True

    def keeps_up(self) -> bool:
        return True

    def fail(self, status: int, close_code: int) -> None:
        self.closed = (status, close_code)

    def abort(self) -> None:
        raise AssertionError("a frame was faulty")


class Interface:
    """An interface server."""

    def __init__(self, store: Store, mailbox: str, window: int) -> None:
        self.settings = InterfaceSettings(window=window, connect_timeout=FOR_EVER, resume_timeout=FOR_EVER)
        self.connections = ConnectionRegistry(self.settings)
        self.bus = ModelBus(store, mailbox, self.connections)
        self.connections.on_bus(self.bus, cast(Any, AtOnce()), cast(Any, None))
        self.declared_dead = False
        """Whether the server was declared dead: workers then give up hand-overs to it."""
        self.handed_over = 0  # the count at the last offer


@dataclass(eq=False)
class Run:
    """One run of the app, as the app sees it."""

    worker: Process
    client: Client
    attempt: int
    found: dict[str, Any]
    """The state at the start of the run."""
    taken: list[int] = field(default_factory=list)
    sent: int = 0
    disconnect_code: int | None = None
    refused: bool = False
    """Whether `send` has raised because the client is gone."""
    ended: bool = False
    permits: int = 0
    waiter: asyncio.Future[None] | None = None
    to_send: deque[str] = field(default_factory=deque)
    talker: asyncio.Future[None] | None = None

    async def permit(self) -> None:
        """Wait for a permit, so that the model controls the speed of the app."""
        while self.permits == 0:
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter
        self.permits -= 1

    def go_on(self, count: int) -> None:
        self.permits += count
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def send_text(self, text: str) -> None:
        if len(self.to_send) < UNSENT:
            self.to_send.append(text)
        if self.talker is not None and not self.talker.done():
            self.talker.set_result(None)

    async def talk(self, send: Any, session: Session) -> None:
        try:
            while True:
                while not self.to_send:
                    self.talker = asyncio.get_running_loop().create_future()
                    await self.talker
                text = f"{self.attempt}:{self.worker.mailbox}:{self.sent}"
                before = session.stream.next_number
                self.sent += 1
                await send({"type": "websocket.send", "text": f"{text} {self.to_send.popleft()}"})
        except OSError:  # the client is gone, or another run's
            self.sent -= session.stream.next_number == before  # else the message was posted before the error


class Process:
    """A worker with a loop of its own."""

    def __init__(self, world: World, mailbox: str) -> None:
        self.world = world
        self.mailbox = mailbox
        self.loop = SteppedLoop()
        self.loop.advance(world.now)
        self.stop = anyio.Event()
        settings = WorkerSettings(app="model", resume=True, lifespan="off", graceful_timeout=15.0, drain_period=0.1)
        self.worker = Worker(settings, self.app, cast(ChannelLayer, ModelLayer(world.store, mailbox)))
        self.killed = False
        self.task = self.loop.create_task(self.worker.serve(self.stop, lambda: None))
        self.loop.run_ready()

    @property
    def bus(self) -> ModelBus:
        return cast(ModelBus, self.worker.bus)

    @property
    def sessions(self) -> list[Session]:
        return [*self.worker._sessions]

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        connection = asgibus.connection(scope)
        mailbox, number = connection.reply_channel.split("!")
        client = self.world.by_number[f"{mailbox}!", int(number)]
        run = Run(self, client, connection.attempt, dict(connection.state), permits=3 if self.world.quick else 0)
        self.world.began(run, resumed=connection.resumed)
        talker: asyncio.Task[None] | None = None
        try:
            await run.permit()
            assert (await receive())["type"] == "websocket.connect"
            await run.permit()
            await send({"type": "websocket.accept"})
            talker = asyncio.create_task(run.talk(send, connection._session))
            while True:
                await run.permit()
                event = await receive()
                if event["type"] == "websocket.disconnect":
                    run.disconnect_code = event["code"]
                    break
                if not self.killed:
                    self.world.event_taken(run, int(event["text"].split()[0]))
                connection.state["next"] = run.taken[-1] + 1
                if run.taken[-1] % 3 == 0:
                    await connection.save_state()
            await run.permit()  # cleaning up
        except OSError:
            run.refused = True
        finally:
            run.ended = True
            if talker is not None:
                talker.cancel()

    def kill(self) -> None:
        """End the process as SIGKILL does: no further effect is visible to others."""
        self.killed = True
        self.bus.up = False
        self.bus.outbox.clear()
        self.world.store.buses.pop(self.mailbox, None)
        self.end()

    def end(self) -> None:
        """Let the loop end, without effects on other processes."""
        self.bus.up = False
        self.task.cancel()
        for _ in range(100):
            self.loop.advance(self.loop.time() + 1.0)
            if self.task.done():
                break
        assert self.task.done()
        self.loop.run_ready()
        self.loop.close()
