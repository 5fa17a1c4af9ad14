"""python-socketio with its own client and that of browsers: over WebSocket, and over polling with affinity."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import nicegui
import pytest
import socketio
from playwright.sync_api import Page
from serving import Site

WAIT = 15


@pytest.fixture(scope="module")
def site(serve: Callable[..., Site]) -> Site:
    return serve("socketio_app:app")


@pytest.fixture(scope="module")
def polling(serve: Callable[..., Site]) -> Site:
    """Provide a site with polling: all requests of a client must reach the process that has made its `sid`."""
    return serve("socketio_app:app", affinity=("/socket.io=learn:query:sid",), env={"TRANSPORTS": "polling websocket"})


class Person:
    """The client of a user, and the events that it received."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.client = socketio.AsyncClient(reconnection=False)
        self.received: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        for namespace in ("/", "/feed"):
            self.client.on("*", self._receive, namespace=namespace)
        self.client.on("connect_error", partial(self._receive, "connect_error"))

    async def _receive(self, event: str, data: Any = None) -> None:
        await self.received.put((event, data))

    async def next(self, event: str) -> Any:
        """Return the data of the next event of this name."""
        async with asyncio.timeout(WAIT):
            while True:
                name, data = await self.received.get()
                if name == event:
                    return data

    async def call(self, event: str, data: Any) -> Any:
        return await self.client.call(event, data, timeout=WAIT)


Meet = Callable[..., Any]


@pytest.fixture
async def meet(site: Site, anyio_backend: str) -> AsyncIterator[Meet]:
    """Connect a client: `await meet(name)`."""
    people: list[Person] = []

    async def connect(name: str, namespaces: tuple[str, ...] = ("/",)) -> Person:
        person = Person(name)
        people.append(person)
        await person.client.connect(
            site.url, auth={"name": name}, transports=["websocket"], namespaces=list(namespaces), wait_timeout=WAIT
        )
        return person

    yield connect
    for person in people:
        await person.client.disconnect()


@pytest.mark.anyio
async def test_rooms_span_the_workers(site: Site, meet: Meet) -> None:
    people, workers = [], set()
    while len(people) < 4 or len(workers) < len(site.workers):
        assert len(people) < 100, "one worker gets them all"
        people.append(await meet(f"person {len(people)}"))
        workers.add(await people[-1].call("enter", "lobby"))
    outsider = await meet("outsider")
    await people[0].client.emit("say", {"room": "lobby", "text": "grüß euch"})
    for person in people[1:]:
        assert await person.next("said") == {"by": "person 0", "text": "grüß euch"}
    await people[1].client.emit("leave", "lobby")
    assert await people[1].next("left") == {"room": "lobby"}
    await people[0].client.emit("say", {"room": "lobby", "text": "again"})
    assert await people[2].next("said") == {"by": "person 0", "text": "again"}
    assert people[1].received.empty()
    assert outsider.received.empty()


@pytest.mark.anyio
async def test_a_call_is_answered(meet: Meet) -> None:
    person = await meet("caller")
    assert await person.call("sum_of", (1, 2, 39)) == (42, "done")
    data = bytes(range(256)) * 1000
    assert await person.call("echo_bytes", data) == data[::-1]


@pytest.mark.anyio
async def test_a_namespace(meet: Meet) -> None:
    person = await meet("reader", ("/feed",))
    assert await person.next("hello")
    await person.client.emit("ask", 20, namespace="/feed")
    assert [await person.next("number") for _ in range(20)] == list(range(20))


@pytest.mark.anyio
async def test_disconnects_are_announced(meet: Meet) -> None:
    stays, leaves, breaks = await meet("stays"), await meet("leaves"), await meet("breaks")
    await leaves.client.disconnect()
    assert await stays.next("gone") == "leaves"
    breaks.client.eio.ws._conn.transport.abort()
    assert await stays.next("gone") == "breaks"


@pytest.mark.anyio
@pytest.mark.parametrize("transports", [["polling"], ["polling", "websocket"]])
async def test_polling(polling: Site, transports: list[str]) -> None:
    people = [Person(f"person {number}") for number in range(6)]
    workers = []
    for person in people:
        await person.client.connect(polling.url, auth={"name": person.name}, transports=transports)
        workers.append(await person.call("enter", "polling"))
        assert person.client.transport() == transports[-1]
    assert len(set(workers)) == len(polling.workers)
    ann, *others = people
    for number in range(10):
        await ann.client.emit("say", {"room": "polling", "text": str(number)})
        for person in others:
            assert await person.next("said") == {"by": ann.name, "text": str(number)}
    data = bytes(range(256)) * 1000
    assert await ann.call("echo_bytes", data) == data[::-1]
    await ann.client.disconnect()
    for person in others:
        assert await person.next("gone") == ann.name
    for person in others:
        await person.client.disconnect()


@pytest.mark.anyio
async def test_a_client_is_refused(site: Site) -> None:
    person = Person("stranger")
    await person.client.connect(site.url, auth={"token": "wrong"}, transports=["websocket"], wait=False)
    assert await person.next("connect_error") == {"message": "members only"}
    await person.client.disconnect()


@pytest.mark.parametrize("transports", [["websocket"], ["polling"], ["polling", "websocket"]])
def test_the_client_in_a_browser(polling: Site, page: Page, transports: list[str]) -> None:
    page.goto(polling.url)
    page.add_script_tag(path=Path(nicegui.__file__).parent / "static" / "socket.io.min.js")  # the client's own file
    result = page.evaluate(
        """async ([url, transports]) => {
            const connect = (name) => io(url, {transports, auth: {name}, forceNew: true});
            const [ann, ben, cem, dua] = ["Ann", "Ben", "Cem", "Dua"].map(connect);
            const received = [ben, cem, dua].map((socket) => new Promise((resolve) => socket.on("said", resolve)));
            const workers = new Set();
            for (const socket of [ann, ben, cem, dua]) workers.add(await socket.emitWithAck("enter", "browsers"));
            const sum = await ann.emitWithAck("sum_of", 1, 2, 39);
            const bytes = await ann.emitWithAck("echo_bytes", new Uint8Array([1, 2, 3]));
            ann.emit("say", {room: "browsers", text: "grüß dich"});
            const said = await Promise.all(received);
            const {engine} = ann.io;
            if (engine.transport.name !== transports.at(-1)) await new Promise((done) => engine.once("upgrade", done));
            const used = engine.transport.name;
            const closed = [ann, ben, cem, dua].map((socket) => new Promise((resolve) => {
                socket.io.engine.on("close", resolve);
                socket.close();
            }));
            await Promise.all(closed);
            return {sum, bytes: [...new Uint8Array(bytes)], said, used, workers: workers.size};
        }""",
        [polling.url, transports],
    )
    assert result.pop("workers") <= len(polling.workers)
    said = {"by": "Ann", "text": "grüß dich"}
    assert result == {"sum": 42, "bytes": [3, 2, 1], "said": [said] * 3, "used": transports[-1]}


def test_the_mounted_site(site: Site) -> None:
    assert httpx.get(site.url, trust_env=False).text == "the site beside it"
