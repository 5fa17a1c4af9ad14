"""Groups whose messages are kept: clients that join with an offset, on a whole bus."""

import json
from typing import Any

import pytest

import asgibus
from asgibus.testing import Bus
from asgibus.testing.websocket import WebSocket

pytestmark = pytest.mark.anyio

KEEP = 5


async def room(scope: Any, receive: Any, send: Any) -> None:
    """Run the calls that the client asks for, and send it their results."""
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    connection = asgibus.connection(scope)
    while (event := await receive())["type"] == "websocket.receive":
        name, *arguments = json.loads(event["text"])
        if name == "join":
            outcome = await connection.group_add("room", after=arguments[0], reset='{"text": "missing"}')
        elif name == "leave":
            outcome = await connection.group_discard("room")
        elif name == "plain":
            outcome = await connection.group_send("room", {"type": "websocket.send", "text": arguments[0]})
        else:
            text = json.dumps({"text": arguments[0], "offset": "<offset>"})
            message = {"type": "websocket.send", "text": text}
            outcome = await connection.group_send("room", message, keep=KEEP, id=arguments[1], placeholder="<offset>")
        await send({"type": "websocket.send", "text": json.dumps({"did": name, "outcome": outcome})})


class Client:
    """A client of the room. It notes the messages that it gets while it waits for an outcome."""

    def __init__(self, socket: WebSocket) -> None:
        self.socket = socket
        self.got: list[Any] = []

    async def call(self, *call: Any) -> Any:
        await self.socket.send(json.dumps(call))
        while "did" not in (message := json.loads(await self.socket.receive())):
            self.got.append(message)
        return message["outcome"]

    async def texts(self, count: int) -> list[str]:
        """Return the texts of all messages, which are so many."""
        while len(self.got) < count:
            self.got.append(json.loads(await self.socket.receive()))
        return [message["text"] for message in self.got]


async def test_a_client_gets_what_is_kept_and_what_comes() -> None:
    async with Bus(room) as bus, bus.websocket("/") as first, bus.websocket("/") as second, bus.websocket("/") as third:
        early, late, back = Client(first), Client(second), Client(third)
        await early.call("join", None)
        assert await early.call("send", "one", "id1") is True
        assert await early.call("send", "one", "id1") is False
        assert await early.call("send", "two", "id2") is True
        assert await early.texts(2) == ["one", "two"]
        await late.call("join", "0")
        await back.call("join", early.got[0]["offset"])
        assert await late.texts(2) == ["one", "two"]
        assert await back.texts(1) == ["two"]
        await early.call("send", "three", "id3")
        await early.call("plain", '{"text": "not kept"}')
        for client, whole in ((early, 4), (late, 4), (back, 3)):
            assert sorted((await client.texts(whole))[-2:]) == ["not kept", "three"]
        offsets = [
            {each["text"]: each["offset"] for each in client.got if "offset" in each} for client in (early, late)
        ]
        assert offsets[0] == offsets[1]
        await late.call("leave")
        await early.call("send", "four", "id4")
        await early.texts(5)
        assert await late.call("plain", '{"text": "by one who has left"}') is True
        assert len(late.got) == 4, "who has left gets nothing any more"
        await late.call("join", offsets[0]["three"])
        assert (await late.texts(5))[4:] == ["four"]


async def test_what_is_not_kept_any_more_is_said() -> None:
    async with Bus(room) as bus, bus.websocket("/") as first, bus.websocket("/") as second:
        early, late = Client(first), Client(second)
        await early.call("join", None)
        for number in range(KEEP + 3):
            await early.call("send", str(number), f"id{number}")
        await early.texts(KEEP + 3)
        await late.call("join", early.got[0]["offset"])
        assert await late.texts(1 + KEEP) == ["missing", *(str(number) for number in range(3, KEEP + 3))]


async def test_a_kept_event_goes_to_all_members() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        connection = asgibus.connection(scope)
        event = {"type": "websocket.send", "text": "a"}
        try:
            await connection.group_send("room", event, keep=1, exclude=connection.reply_channel)
        except ValueError as error:
            await send({"type": "websocket.send", "text": str(error)})
        await receive()

    async with Bus(app) as bus, bus.websocket("/") as socket:
        assert "an event that is kept goes to all members" in str(await socket.receive())
