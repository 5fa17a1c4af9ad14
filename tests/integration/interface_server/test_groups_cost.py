"""Cost of a broadcast: one entry for each interface server and one encoding; no app is woken."""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import anyio
import pytest
import redis

from asgibus import Connection, connection
from asgibus.interface_server.websocket import protocol as websocket
from asgibus.layers import open_layer
from asgibus.layers.memory import MemoryBus
from support.bus import until
from support.deadline import wait_until
from support.in_process import serving_here
from support.members import Member
from support.servers import Servers, serving
from support.websocket import handshake

APP = "interface_server.groups_app:app"

OpenMembers = Callable[[int], list[Member]]


@pytest.fixture(scope="module")
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    with serving(request, APP, layer="redis", interfaces=2, workers=2) as servers:
        yield servers


@pytest.fixture
def store(servers: Servers) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(servers.layer, protocol=2) as client:
        yield client


@pytest.fixture
def open_members(servers: Servers) -> Iterator[OpenMembers]:
    """Provide a function that opens `count` members, on the interface servers in turn."""
    with ExitStack() as stack:

        def open_members(count: int) -> list[Member]:
            hosts = servers.interfaces
            return [stack.enter_context(Member(hosts[number % len(hosts)])) for number in range(count)]

        yield open_members


@pytest.fixture
def group() -> str:
    return f"group-{uuid.uuid4().hex}"


def count_entries(store: "redis.Redis") -> dict[str, int]:
    """Return the number of entries ever written to each mailbox, once acknowledgements (one a second) are over."""
    last: dict[str, int] = {}
    same = 0

    def settled() -> bool:
        nonlocal last, same
        now = {
            key.decode().partition(":mailbox:")[2]: store.xinfo_stream(key)["entries-added"]
            for key in store.scan_iter("*:mailbox:*")
        }
        same = same + 1 if now == last else 0
        last = now
        return same > 120

    wait_until(settled, what="silence on the bus")
    return last


@pytest.mark.redis
def test_a_broadcast_is_one_entry_per_interface_and_wakes_no_worker(
    servers: Servers, open_members: OpenMembers, group: str, store: "redis.Redis"
) -> None:
    members = open_members(20)
    for member in members:
        member.do("add", group=group)
    before = count_entries(store)

    async def broadcast() -> None:
        layer = open_layer(servers.layer)
        for number in range(25):
            await layer.group_send(group, {"type": "websocket.send", "text": f"{number}"})
        await layer.close()

    asyncio.run(broadcast())
    for member in members:
        assert [member.receive() for _ in range(25)] == [str(number) for number in range(25)]
    growth = {name: count - before.get(name, 0) for name, count in count_entries(store).items()}
    interfaces = {name: count for name, count in growth.items() if name.startswith("interface.")}
    assert list(interfaces.values()) == [25] * len(servers.interfaces)
    assert not any(count for name, count in growth.items() if name not in interfaces), "a worker was woken"


@pytest.mark.redis
def test_an_interface_without_members_is_in_no_group(
    open_members: OpenMembers, group: str, store: "redis.Redis"
) -> None:
    key = f"asgibus:group:{group}"
    first, second, third = open_members(3)
    first.do("add", group=group)
    third.do("add", group=group)
    assert store.zcard(key) == 1
    second.do("add", group=group)
    assert store.zcard(key) == 2
    first.do("discard", group=group)
    second.do("discard", group=group)
    wait_until(lambda: store.zcard(key) == 1, what="one interface server in the group")
    third.socket.close()
    wait_until(lambda: store.zcard(key) == 0, what="nobody in the group")


@pytest.mark.anyio
async def test_a_broadcast_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str | bytes] = []
    encode = websocket.encode_message

    def counting(message: str | bytes) -> bytes:
        encoded.append(message)
        return encode(message)

    async def join(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            raise ValueError(scope["type"])
        await receive()
        await connection(scope).group_add("all")
        await send({"type": "websocket.accept"})
        await receive()

    monkeypatch.setattr(websocket, "encode_message", counting)
    layer = open_layer("memory://")
    async with serving_here(join, layer) as port:
        streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
        for reader, writer in streams:
            writer.write(handshake("/"))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        for text in ("one", "two"):
            await layer.group_send("all", {"type": "websocket.send", "text": text})
        for reader, writer in streams:
            assert await reader.readexactly(10) == b"\x81\x03one\x81\x03two"
            writer.close()
            await writer.wait_closed()
    assert encoded == ["one", "two"]


@pytest.mark.anyio
async def test_group_add_waits_for_its_own_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """`group_add` returns when the layer has added this group, not at the answer for another one."""
    gate = anyio.Event()
    join_group = MemoryBus.join_group

    async def gated(bus: MemoryBus, group: str) -> None:
        await gate.wait()
        await join_group(bus, group)

    monkeypatch.setattr(MemoryBus, "join_group", gated)
    joined: list[str] = []
    second = anyio.Event()

    async def add(bus: Connection, group: str) -> None:
        await bus.group_add(group)
        joined.append(group)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal gate
        if scope["type"] != "websocket":
            raise ValueError(scope["type"])
        await receive()
        await send({"type": "websocket.accept"})
        bus = connection(scope)
        gate.set()
        await add(bus, "old")
        gate = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(add, bus, "new")
            tasks.start_soon(add, bus, "new")
            tasks.start_soon(add, bus, "old")
            await until(lambda: len(joined) > 1)
            assert joined == ["old", "old"]
            gate.set()
        second.set()
        await receive()

    async with serving_here(app, open_layer("memory://")) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(handshake("/"))
        await second.wait()
        assert joined == ["old", "old", "new", "new"]
        writer.close()
        await writer.wait_closed()
