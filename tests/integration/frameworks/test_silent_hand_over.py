"""`--handover silent` and `suspend`: chats as they are written for each framework take no deploy for a leave.

The clients chat while the worker is replaced, three times in a row. Each client waits for the answer to a message
before it sends the next one, so that lost, doubled and disordered messages show.
"""

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect

from support.bus import until
from support.deadline import HANG
from support.processes import Process

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

Start = Callable[..., Process]

CASES = [
    ("silent", "fastapi", ("chat", "tasks", "first")),
    ("silent", "channels", ("chat", "thread")),
    ("silent", "litestar", ("chat",)),
    # Their code for a leave is called from a `finally`, or from a cancellation.
    ("suspend", "starlette", ("endpoint", "ticking")),
    ("suspend", "litestar", ("chat", "listener")),
    ("suspend", "quart", ("chat",)),
    pytest.param("suspend", "fastapi", ("chat", "tasks", "first"), marks=pytest.mark.long),
    pytest.param("suspend", "channels", ("chat", "thread"), marks=pytest.mark.long),
]
"""The end of a run, and the framework of the chat, with its paths."""

CLIENTS = 4
"""Clients of each path."""

ROUNDS = 3

QUIET = 0.3
"""Seconds without a message after which the others' last messages have arrived."""

COMPLAINT = re.compile(
    r"^.*\b(?:WARNING|ERROR|CRITICAL)\b.*|^.*(?:Traceback|never retrieved|was destroyed).*", re.MULTILINE
)


class Client:
    """A client that sends numbers, and waits for the answer to each."""

    def __init__(self, path: str, number: int) -> None:
        self.name = f"{path}-{number}"
        self.target = f"/{path}/{self.name}"
        self.answered = 0
        self.heard: list[str] = []
        self.socket: ClientConnection

    async def open(self, server: Process) -> None:
        self.socket = await connect(f"{server.ws_url}{self.target}", compression=None, proxy=None)

    async def chat(self, until: Callable[[], bool]) -> None:
        while not until():
            await self.socket.send(str(self.answered))
            async with asyncio.timeout(HANG):
                while not (text := str(await self.socket.recv())).startswith("you: "):
                    self.heard.append(text)
            assert text == f"you: {self.answered}", self.name
            self.answered += 1
            await asyncio.sleep(0.05)

    async def read_what_is_left(self) -> None:
        """Read until nothing comes for a while."""
        with suppress(TimeoutError):
            while True:
                async with asyncio.timeout(QUIET):
                    self.heard.append(str(await self.socket.recv()))

    async def wait_for_an_answer(self) -> None:
        before = self.answered
        await until(lambda: self.answered > before)


@pytest.fixture
def notes(tmp_path: Path) -> Callable[[str], list[str]]:
    """Provide `notes("left")`: the names of the clients that the app has noted with this word."""

    def notes(word: str) -> list[str]:
        path = tmp_path / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.removeprefix(f"{word} ") for line in lines if line.startswith(f"{word} ")]

    return notes


@pytest.mark.parametrize(("handover", "framework", "paths"), CASES)
async def test_a_chat_does_not_notice_that_its_worker_is_replaced(
    handover: str,
    framework: str,
    paths: tuple[str, ...],
    start_interface: Start,
    start_worker: Start,
    redis_url: str,
    notes: Callable[[str], list[str]],
) -> None:
    workers: list[Process] = []

    def start() -> None:
        app, options = f"frameworks.moving.{framework}_chat:app", ("--resume", "--drain-period", "0.2")
        options += ("--handover", handover)
        workers.append(start_worker(app, "--layer", redis_url, *options, env={"LAYER_URL": redis_url}))

    await asyncio.to_thread(start)
    interface = start_interface("--layer", redis_url, "--no-access-log")
    clients = [Client(path, number) for path in paths for number in range(CLIENTS)]
    for client in clients:
        await client.open(interface)
    replaced = False
    async with asyncio.TaskGroup() as chats:
        for client in clients:
            chats.create_task(client.chat(lambda: replaced))
        for _ in range(ROUNDS):
            for client in clients:
                await client.wait_for_an_answer()
            await asyncio.to_thread(start)
            workers[-2].terminate()
            assert await asyncio.to_thread(workers[-2].wait) == 0
        replaced = True
    assert notes("left") == []
    # A consumer of Channels has no place for a clean-up other than `disconnect`, which is for a client that leaves.
    ended = 0 if handover == "suspend" or framework == "channels" else ROUNDS
    for client in clients:
        assert notes("cleaned up").count(client.name) == ended, client.name
        assert not [text for text in client.heard if "left the chat" in text]
    if framework == "channels":  # a consumer that sends to a client that is gone raises, without `disconnect`
        await asyncio.gather(*(client.read_what_is_left() for client in clients))
    for number, client in enumerate(clients, 1):
        await client.socket.close()
        await until(lambda count=number: len(notes("left")) >= count, what=f"the end of {client.name}")  # type: ignore[misc]
        assert notes("left")[-1] == client.name
    if framework == "fastapi":
        for word in ("released", "freed"):
            assert {name: notes(word).count(name) for name in notes(word)} == {
                client.name: ended + 1 for client in clients if client.target.startswith("/chat/")
            }
    for worker in workers:
        assert COMPLAINT.findall(worker.log()) == []


async def test_a_worker_within_an_interface_server_suspends_runs_too(
    start_interface: Start, start_worker: Start, redis_url: str, notes: Callable[[str], list[str]]
) -> None:
    app, options = "frameworks.moving.starlette_chat:app", ("--layer", redis_url, "--resume", "--handover", "suspend")
    embedded = start_interface(*options, app=app)
    client = Client("endpoint", 1)
    await client.open(start_interface("--layer", redis_url))
    await client.socket.send("one")
    assert await client.socket.recv() == "you: one"
    await asyncio.to_thread(start_worker, app, *options)
    embedded.terminate()
    assert await asyncio.to_thread(embedded.wait) == 0
    assert notes("left") == []
    await client.socket.send("two")
    assert await client.socket.recv() == "you: two"
    await client.socket.close()
    await until(lambda: notes("left") == [client.name])
