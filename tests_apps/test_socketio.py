"""python-socketio with its own client and that of browsers: over WebSocket, and with one worker over polling, too."""

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
def one_worker(serve: Callable[..., Site]) -> Site:
    return serve("socketio_app:app", workers=1, env={"TRANSPORTS": "polling websocket"})


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
async def test_polling_with_one_worker(one_worker: Site, transports: list[str]) -> None:
    """Polling works with one worker, since all requests of a client must reach the same process."""
    ann, ben = Person("Ann"), Person("Ben")
    for person in (ann, ben):
        await person.client.connect(one_worker.url, auth={"name": person.name}, transports=transports)
        await person.call("enter", "polling")
    assert ann.client.transport() == transports[-1]
    for number in range(20):
        await ann.client.emit("say", {"room": "polling", "text": str(number)})
        assert await ben.next("said") == {"by": "Ann", "text": str(number)}
    data = bytes(range(256)) * 1000
    assert await ann.call("echo_bytes", data) == data[::-1]
    await ann.client.disconnect()
    assert await ben.next("gone") == "Ann"
    await ben.client.disconnect()


@pytest.mark.anyio
async def test_a_client_is_refused(site: Site) -> None:
    person = Person("stranger")
    await person.client.connect(site.url, auth={"token": "wrong"}, transports=["websocket"], wait=False)
    assert await person.next("connect_error") == {"message": "members only"}
    await person.client.disconnect()


def test_the_client_in_a_browser(site: Site, page: Page) -> None:
    page.goto(site.url)
    page.add_script_tag(path=Path(nicegui.__file__).parent / "static" / "socket.io.min.js")  # the client's own file
    result = page.evaluate(
        """async (url) => {
            const connect = (name) => io(url, {transports: ["websocket"], auth: {name}, forceNew: true});
            const [ann, ben] = [connect("Ann"), connect("Ben")];
            const received = new Promise((resolve) => ben.on("said", resolve));
            for (const socket of [ann, ben]) await socket.emitWithAck("enter", "browsers");
            const sum = await ann.emitWithAck("sum_of", 1, 2, 39);
            const bytes = await ann.emitWithAck("echo_bytes", new Uint8Array([1, 2, 3]));
            ann.emit("say", {room: "browsers", text: "grüß dich"});
            const said = await received;
            ann.close();
            ben.close();
            return {sum, bytes: [...new Uint8Array(bytes)], said};
        }""",
        site.url,
    )
    assert result == {"sum": 42, "bytes": [3, 2, 1], "said": {"by": "Ann", "text": "grüß dich"}}


def test_the_mounted_site(site: Site) -> None:
    assert httpx.get(site.url, trust_env=False).text == "the site beside it"
