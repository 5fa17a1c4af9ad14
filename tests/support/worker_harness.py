"""A worker with a bus and an app; the test is the interface server: it offers connections and reads frames."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio

import asgibus
from asgibus.layers import Bus, ChannelLayer, InMemoryChannelLayer, LayerUnavailable
from asgibus.layers.contract import Frame
from asgibus.layers.frames import ACK, EVENT, EVENT_OFFSET
from asgibus.protocol import events
from asgibus.protocol.channels import shared_channel
from asgibus.protocol.connect_request import HTTP, REQUEST_VERSION, WEBSOCKET, ConnectRequest
from asgibus.protocol.states import RunState
from asgibus.worker.settings import WorkerSettings
from asgibus.worker.worker import Worker
from support.bus import Recorder, until

App = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass
class Interface:
    """An interface server as the worker sees it."""

    bus: Bus
    layer: ChannelLayer
    recorder: Recorder
    worker: Worker
    stop: anyio.Event
    ended: asyncio.Task[None]
    numbers: int = 0
    offered: list[Any] = field(default_factory=list)

    def open(self, kind: str = HTTP, **fields: Any) -> int:
        self.numbers += 1
        values: dict[str, Any] = {
            "version": REQUEST_VERSION,
            "interface": self.bus.mailbox,
            "connection": self.numbers,
            "attempt": 1,
            "resumed": False,
            "handled": 0,
            "window": 2000,
            "kind": kind,
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "raw_path": b"/",
            "query_string": b"",
            "root_path": "",
            "headers": (),
            "client": None,
            "server": None,
            "subprotocols": (),
            "extensions": {},
            "expects_continue": False,
            "events": ((events.REQUEST_END, b""),) if kind == HTTP else (),
            "state": b"",
        }
        opening = ConnectRequest(**(values | fields))
        self.bus.offer(shared_channel(kind, "default"), tuple(opening))
        return opening.connection

    def frames(self, number: int) -> list[Frame]:
        return [frame for frame in self.recorder.frames if frame[1] == number]

    def events(self, number: int) -> list[Frame]:
        return [frame[EVENT_OFFSET:] for frame in self.frames(number) if frame[0] == EVENT]

    @property
    def owner(self) -> str:
        """Return the mailbox of the worker."""
        return self.worker.mailbox

    def post(self, *frames: Frame) -> None:
        """Send frames to the worker."""
        for frame in frames:
            self.bus.post(self.owner, frame)

    def send_texts(self, number: int, *texts: str, attempt: int = 1, start: int = 0) -> None:
        """Send messages of a client."""
        for sequence, text in enumerate(texts, start):
            self.post((EVENT, number, attempt, sequence, 0, events.MESSAGE_RECEIVED, text))

    def acknowledge(self, number: int, attempt: int = 1) -> None:
        """Acknowledge all events so far."""
        self.post((ACK, number, attempt, len(self.events(number))))

    async def accepted(self, **fields: Any) -> int:
        """Return a WebSocket that the app has accepted."""
        number = self.open(WEBSOCKET, **fields)
        await until(lambda: self.events(number), what="the accept")
        return number

    async def drain(self) -> None:
        """Stop the worker, and wait until the drain has reached its sessions."""
        sessions = self.worker._sessions.serving()
        self.stop.set()
        await until(lambda: all(session.run is not RunState.SERVING for session in sessions), what="the drain")

    async def last(self, number: int, code: int) -> list[Frame]:
        """Return the frames of a connection, once an event of that code is among them."""
        await until(lambda: any(event[0] == code for event in self.events(number)), what=events.NAMES[code])
        return self.frames(number)

    async def answer(self, number: int) -> list[Frame]:
        """Return the events of a response, once it is complete."""
        ends = {events.RESPONSE_END, events.RESPONSE, events.ABORT, events.CLOSE}
        await until(lambda: any(event[0] in ends for event in self.events(number)), what="the end of the response")
        return self.events(number)


@asynccontextmanager
async def running(app: App, **settings: Any) -> AsyncIterator[Interface]:
    """Provide a worker that runs `app`, until the context ends or the test stops it."""
    layer: ChannelLayer = InMemoryChannelLayer()
    worker = Worker(WorkerSettings(app="test", **({"graceful_timeout": 5.0} | settings)), app, layer)
    stop, ready = anyio.Event(), asyncio.Event()
    recorder = Recorder()
    async with layer.bus("interface", recorder) as bus:
        ended = asyncio.create_task(worker.serve(stop, ready.set))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([ended, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if ended.done():
            ended.result()
        yield Interface(bus, layer, recorder, worker, stop, ended)
        stop.set()
        await asyncio.wait_for(ended, 30)
        assert worker.gauges()["sessions"] == 0


async def hello(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] != "lifespan"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["raw_path"]})


def status_and_body(answer: list[Frame]) -> tuple[int, bytes]:
    """Return (status, body) of an answer, for any division into events."""
    status = next(event[1] for event in answer if event[0] in (events.RESPONSE, events.RESPONSE_START))
    body = b"".join(
        event[-1] for event in answer if event[0] in (events.RESPONSE, events.RESPONSE_BODY, events.RESPONSE_END)
    )
    return status, body


async def accept(scope: Any, receive: Any, send: Any) -> None:
    """Accept the client of a WebSocket."""
    assert scope["type"] == "websocket"
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})


class Calls:
    """An app that accepts the client of a WebSocket, and calls methods of its connection, one after another."""

    def __init__(self, *calls: Callable[[asgibus.Connection], Awaitable[Any]]) -> None:
        self.calls = calls
        self.outcome: list[Any] = []
        """The result of each call, or the exception that it has raised."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        for call in self.calls:
            try:
                self.outcome.append(await call(asgibus.connection(scope)))
            except (TypeError, ValueError, RuntimeError, LayerUnavailable) as error:
                self.outcome.append(error)
        self.outcome.append("done")
        await receive()

    async def outcomes(self) -> list[Any]:
        """Return the outcomes, once the last call has ended."""
        await until(lambda: self.outcome[-1:] == ["done"], what="the end of the calls")
        return self.outcome[:-1]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    await accept(scope, receive, send)
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": event["text"]})
