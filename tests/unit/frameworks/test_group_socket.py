"""`GroupSocket` and `Bus` of asgibus.starlette on the bus, and the same as dependencies of FastAPI."""

import asyncio
import importlib
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedOK

import asgibus.starlette
from asgibus.fastapi import BusDep
from asgibus.fastapi import GroupSocket as GroupSocketDep
from asgibus.starlette import Bus, GroupSocket
from asgibus.testing import Bus as InProcessBus
from asgibus.testing import WebSocket as Client

pytestmark = pytest.mark.anyio

Handler = Callable[[GroupSocket, Bus, "Ends"], Awaitable[None]]
Ends = Counter[str]


@asynccontextmanager
async def serving(handler: Handler, **options: object) -> AsyncIterator[tuple[InProcessBus, Ends]]:
    """Serve a handler at `/`; yield the bus, and what the handler counts."""
    ends: Ends = Counter()

    async def endpoint(websocket: WebSocket) -> None:
        await handler(GroupSocket.of(websocket), Bus.of(websocket), ends)

    app = Starlette(routes=[WebSocketRoute("/", endpoint)])
    async with InProcessBus(app, **({"workers": 2, "resume": True} | options)) as bus:
        yield bus, ends


async def chat(socket: GroupSocket, bus: Bus, ends: Ends) -> None:
    try:
        async with socket.joined("chat", "others"):
            ends["resumed" if socket.resumed else "joined"] += 1
            async for text in socket.iter_text():
                await bus.send("chat", text, exclude=socket if text.startswith("psst") else None)
            ends["left"] += 1
    except WebSocketDisconnect:
        ends["disconnected"] += 1
    finally:
        ends["finally"] += 1


async def said(text: str, sender: Client, *others: Client) -> None:
    await sender.send(text)
    assert [await client.receive() for client in (sender, *others)] == [text] * (1 + len(others))


async def test_a_message_may_exclude_its_sender() -> None:
    async with serving(chat) as (bus, _), bus.websocket("/") as ann:
        await said("hello", ann)
        async with bus.websocket("/") as bob:
            await said("hi", bob, ann)
            await ann.send("psst")
            await said("last", ann)
            assert [await bob.receive() for _ in range(2)] == ["psst", "last"]


async def test_a_client_that_leaves_has_left() -> None:
    async with serving(chat) as (bus, ends):
        async with bus.websocket("/") as ann:
            await said("hello", ann)
        while not ends["finally"]:
            await anyio.lowlevel.checkpoint()
        assert ends == {"joined": 1, "left": 1, "finally": 1}


@pytest.mark.parametrize("handover", ["tell", "silent"])
async def test_nobody_leaves_at_a_hand_over(handover: str) -> None:
    async with serving(chat, handover=handover) as (bus, ends), bus.websocket("/") as ann:
        await said("hello", ann)
        async with bus.websocket("/") as bob:
            await said("hi", bob, ann)
            for number in range(3):
                await bus.add_worker(resume=True, handover=handover)
                await bus.worker_of(ann).drain()
                await said(f"still here {number}", ann, bob)
            assert ends["joined"] == 2
            assert ends["resumed"] == ends["finally"] >= 3
            assert not ends["left"]
            assert not ends["disconnected"]


@pytest.mark.parametrize("handover", ["tell", "silent"])
async def test_a_handler_whose_tasks_receive_and_send_is_cancelled_as_a_whole(handover: str) -> None:
    async def two_tasks(socket: GroupSocket, bus: Bus, ends: Ends) -> None:
        async def read() -> None:
            async for text in socket.iter_text():
                await bus.send("chat", text)
            ends["left"] += 1

        async with socket.joined("chat"), anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            try:
                await anyio.sleep_forever()
            finally:
                ends["cancelled"] += 1

    async with serving(two_tasks, handover=handover) as (bus, ends), bus.websocket("/") as ann:
        await said("hello", ann)
        await bus.worker_of(ann).drain()
        await said("still here", ann)
        assert ends == {"cancelled": 1}


async def test_a_block_that_is_left_early_leaves_the_group() -> None:
    async def for_a_while(socket: GroupSocket, bus: Bus, ends: Ends) -> None:
        async with socket.joined("chat"):
            await bus.send("chat", "inside")
            assert await socket.receive_text() == "leave"
        await bus.send("chat", "outside")
        await socket.send_text("the end")
        await socket.close()

    async with serving(for_a_while) as (bus, _), bus.websocket("/") as ann:
        assert await ann.receive() == "inside"
        await ann.send("leave")
        assert await ann.receive() == "the end"
        with pytest.raises(ConnectionClosedOK):
            await ann.receive()


async def test_a_block_that_is_cancelled_leaves_the_group() -> None:
    async def until_told(socket: GroupSocket, bus: Bus, ends: Ends) -> None:
        with anyio.CancelScope() as scope:
            async with socket.joined("chat"):
                await bus.send("chat", "inside")
                await socket.receive()
                scope.cancel()
                await anyio.sleep_forever()
        await bus.send("chat", "outside")
        await socket.send_text("the end")
        await socket.close()

    async with serving(until_told) as (bus, _), bus.websocket("/") as ann:
        assert await ann.receive() == "inside"
        await ann.send("leave")
        assert await ann.receive() == "the end"


async def test_a_handler_may_accept_by_itself() -> None:
    async def choosy(socket: GroupSocket, bus: Bus, ends: Ends) -> None:
        await socket.accept("chat.v2")
        async with socket.joined("chat"):
            await bus.send_json("chat", {"protocol": socket.scope["subprotocols"]})
            await socket.receive()

    async def accepted(socket: GroupSocket, bus: Bus, ends: Ends) -> None:
        async with socket.joined("chat", subprotocol="chat.v2", headers=[(b"x-room", b"chat")]):
            await socket.receive()

    for handler in (choosy, accepted):
        async with serving(handler) as (bus, _), bus.websocket("/", subprotocols=["chat.v1", "chat.v2"]) as ann:
            assert ann.subprotocol == "chat.v2"
            if handler is choosy:
                assert await ann.receive() == '{"protocol":["chat.v1","chat.v2"]}'


async def test_an_invalid_name_raises_in_the_handler() -> None:
    async with serving(chat_in_a_bad_room) as (bus, _), bus.websocket("/") as ann:
        assert await ann.closed() == 1011
        assert isinstance(bus.errors.pop(), TypeError)


async def chat_in_a_bad_room(socket: GroupSocket, bus: Bus, ends: Ends) -> None:
    async with socket.joined("no such room"):
        pass


async def test_the_dependencies_of_fastapi() -> None:
    app = FastAPI()

    @app.websocket("/{room}")
    async def room(socket: GroupSocketDep, room: str, bus: BusDep) -> None:
        async with socket.joined(room):
            assert isinstance(socket, GroupSocket)
            assert bus.layer is socket.connection.layer
            await bus.send(room, f"{type(socket).__name__} in {room}")
            await socket.receive()

    @app.post("/{room}")
    async def post(room: str, text: str, bus: BusDep) -> None:
        await bus.send(room, text.encode())

    async with InProcessBus(app) as bus, bus.websocket("/tea") as ann:
        assert await ann.receive() == "GroupSocket in tea"
        (await bus.http.post("/tea", params={"text": "posted"})).raise_for_status()
        assert await ann.receive() == b"posted"


@pytest.mark.parametrize(
    ("face", "package", "module"),
    [
        ("starlette", "starlette", "starlette.requests"),
        ("fastapi", "fastapi", "fastapi"),
        ("channels", "channels", "channels.exceptions"),
    ],
)
def test_a_missing_package_is_named(face: str, package: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"asgibus.{face}", raising=False)
    monkeypatch.setattr(asgibus, face, None, raising=False)
    with pytest.raises(ImportError, match=rf"^asgibus\.{face} needs the package {package}: pip install {package}$"):
        importlib.import_module(f"asgibus.{face}")


@pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient` is deprecated")
def test_the_test_client_of_starlette() -> None:
    from starlette.testclient import TestClient

    async def endpoint(websocket: WebSocket) -> None:
        socket = GroupSocket.of(websocket)
        async with socket.joined("chat", "others"):
            assert not socket.resumed
            with pytest.raises(RuntimeError, match="did not come over asgibus"):
                _ = socket.connection
            async for text in socket.iter_text():
                await Bus.of(socket).send("chat", text, exclude=socket if text == "psst" else None)

    app = Starlette(routes=[WebSocketRoute("/", endpoint)])
    with (
        TestClient(app) as client,
        client.websocket_connect("/") as ann,
        client.websocket_connect("/") as bob,
    ):
        for text in ("psst", "hello"):
            ann.send_text(text)
        assert ann.receive_text() == "hello"
        assert [bob.receive_text() for _ in range(2)] == ["psst", "hello"]


# Users and presence.

JOIN = {"type": "websocket.send", "text": "+{user}"}
LEAVE = {"type": "websocket.send", "text": "-{user} {info}"}


async def lobby(websocket: WebSocket) -> None:
    socket, bus = GroupSocket.of(websocket), Bus.of(websocket)
    with pytest.raises(RuntimeError, match="identify"):
        async with socket.joined("lobby", present=True):
            pass
    await socket.identify(websocket.query_params["user"], {"n": 1})
    async with socket.joined("lobby", present=True, join=JOIN, leave=LEAVE):
        there = (await bus.layer.present("lobby")).users
        await socket.send_text(",".join(sorted(each.user for each in there)))
        async for text in socket.iter_text():
            if text == "close":
                await bus.layer.user_close("bob", 4001, "signed out")
            else:
                await bus.layer.user_send(text, {"type": "websocket.send", "text": "for you"})


async def test_who_is_in_a_group() -> None:
    app = Starlette(routes=[WebSocketRoute("/", lobby)])
    async with InProcessBus(app, presence_grace=0) as bus, bus.websocket("/?user=ann") as ann:
        assert await ann.receive() == "ann"
        async with bus.websocket("/?user=bob") as bob:
            assert [await ann.receive(), await bob.receive()] == ['+"bob"', "ann,bob"]
            await ann.send("bob")
            assert await bob.receive() == "for you"
            await ann.send("close")
            assert await bob.closed() == 4001
        assert await ann.receive() == '-"bob" {"n":1}'


@pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient` is deprecated")
def test_who_is_in_a_group_on_another_server() -> None:
    from starlette.testclient import TestClient

    app = Starlette(routes=[WebSocketRoute("/", lobby)])
    with TestClient(app) as client, client.websocket_connect("/?user=ann") as ann:
        assert ann.receive_text() == "ann"
        with client.websocket_connect("/?user=bob") as bob:
            assert [ann.receive_text(), bob.receive_text()] == ['+"bob"', "ann,bob"]
            ann.send_text("bob")
            assert bob.receive_text() == "for you"
            ann.send_text("close")
            assert bob.receive() == {"type": "websocket.close", "code": 4001, "reason": "signed out"}
        assert ann.receive_text() == '-"bob" {"n":1}'


# Groups with a past, on the bus and on another server.

Connect = Callable[[str], AbstractAsyncContextManager[Client]]


@asynccontextmanager
async def on_asgibus(app: Starlette) -> AsyncIterator[Connect]:
    async with InProcessBus(app) as bus:
        yield bus.websocket


@asynccontextmanager
async def on_uvicorn(app: Starlette) -> AsyncIterator[Connect]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="websockets-sansio"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 -- uvicorn has no event for that
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]

    @asynccontextmanager
    async def websocket(path: str) -> AsyncIterator[Client]:
        async with connect(f"ws://127.0.0.1:{port}{path}", proxy=None) as client:
            yield Client(client, 5)

    try:
        yield websocket
    finally:
        server.should_exit = True
        await serving


async def room_with_a_past(websocket: WebSocket) -> None:
    socket, bus = GroupSocket.of(websocket), Bus.of(websocket)
    after = websocket.query_params.get("after")
    async with socket.joined("room", after=after, reset='{"missing": true}'), socket.joined("hall"):
        async for message in socket.iter_text():
            kind, _, text = message.partition(" ")
            if kind == "plain":
                outcome = await bus.send_json("room", {"text": text}, exclude=socket)
            elif kind == "hall":
                outcome = await bus.send_json("hall", {"text": text}, keep=1)
            else:
                said = {"offset": "<offset>", "text": text}
                outcome = await bus.send_json("room", said, keep=2, id=text, placeholder="<offset>")
            await socket.send_json({"outcome": outcome})


class Guest:
    """A client of the room. A message that is kept, and one that is not, may overtake each other."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.offsets: dict[str, str] = {}
        self._got: list[Any] = []

    async def send(self, message: str) -> bool:
        await self.client.send(message)
        while True:
            got = json.loads(await self.client.receive())
            if "outcome" in got:
                return bool(got["outcome"])
            self._got.append(got)

    async def texts(self, count: int) -> list[str]:
        """Return the texts of the next so many messages."""
        while len(self._got) < count:
            self._got.append(json.loads(await self.client.receive()))
        got, self._got = self._got[:count], self._got[count:]
        self.offsets.update({each["text"]: each["offset"] for each in got if "offset" in each})
        return [each.get("text", "missing") for each in got]


@pytest.mark.parametrize("serve", [on_asgibus, on_uvicorn])
async def test_a_group_with_a_past(serve: Callable[[Starlette], AbstractAsyncContextManager[Connect]]) -> None:
    app = Starlette(routes=[WebSocketRoute("/", room_with_a_past)])
    async with serve(app) as connected, connected("/") as first:
        ann = Guest(first)
        assert await ann.send("keep one")
        assert not await ann.send("keep one")
        assert await ann.send("keep two")
        assert await ann.texts(2) == ["one", "two"]
        async with connected("/?after=0") as second, connected(f"/?after={ann.offsets['one']}") as third:
            bob, cem = Guest(second), Guest(third)
            assert await bob.texts(2) == ["one", "two"]
            assert await cem.texts(1) == ["two"]
            assert await cem.send("keep three")
            assert await bob.send("hall four")
            assert await ann.send("plain five")
            assert sorted(await bob.texts(3)) == ["five", "four", "three"]
            assert sorted(await cem.texts(3)) == ["five", "four", "three"]
            assert sorted(await ann.texts(2)) == ["four", "three"]
            assert bob.offsets | cem.offsets == ann.offsets
        async with connected(f"/?after={ann.offsets['one']}") as late:
            assert await Guest(late).texts(2) == ["two", "three"]
        assert await ann.send("keep six")
        async with connected(f"/?after={ann.offsets['one']}") as late:
            assert await Guest(late).texts(3) == ["missing", "three", "six"]
        async with connected("/?after=yesterday") as odd:
            assert await Guest(odd).texts(3) == ["missing", "three", "six"]


@pytest.mark.parametrize("serve", [on_asgibus, on_uvicorn])
async def test_a_past_that_is_not_possible(
    serve: Callable[[Starlette], AbstractAsyncContextManager[Connect]],
) -> None:
    async def refused(websocket: WebSocket) -> None:
        socket, bus = GroupSocket.of(websocket), Bus.of(websocket)
        with pytest.raises(ValueError, match="an offset is that of one group"):
            async with socket.joined("a", "b", after="1764541234567-1"):
                pass
        with pytest.raises(ValueError, match="a message that is kept goes to all members"):
            await bus.send("a", "text", keep=1, exclude=socket)
        with pytest.raises(ValueError, match="pass keep"):
            await bus.send("a", "text", id="1")
        async with socket.joined("a", "b", after="0"):
            await bus.send("b", b"kept", keep=1)
            await socket.receive()

    app = Starlette(routes=[WebSocketRoute("/", refused)])
    async with serve(app) as connected, connected("/") as ann:
        assert await ann.receive() == b"kept"


@pytest.mark.parametrize("serve", [on_asgibus, on_uvicorn])
async def test_faults_of_an_app_raise_on_each_server(
    serve: Callable[[Starlette], AbstractAsyncContextManager[Connect]],
) -> None:
    async def wrong(websocket: WebSocket) -> None:
        socket, bus = GroupSocket.of(websocket), Bus.of(websocket)
        await socket.accept()
        with pytest.raises(TypeError, match="a message is text or bytes, not dict: send_json sends objects"):
            await bus.send("a", {})  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="call `identify` before"):
            async with socket.joined("a", present=True):
                pass
        with pytest.raises(ValueError, match="need present=True"):
            async with socket.joined("a", join=JOIN):
                pass
        await socket.identify("ann", {"n": 1})
        with pytest.raises(RuntimeError, match="a connection has one user"):
            await socket.identify("bob")
        with pytest.raises(ValueError, match=r"websocket\.nonsense"):
            async with socket.joined("a", present=True, join={"type": "websocket.nonsense"}):
                pass
        async with socket.joined("a", present=True):
            await socket.identify("ann", {"n": 2})
            await socket.send_json([each.info for each in (await bus.layer.present("a")).users])
            await socket.receive()

    app = Starlette(routes=[WebSocketRoute("/", wrong)])
    async with serve(app) as connected, connected("/") as ann:
        assert json.loads(await ann.receive()) == [{"n": 2}]
