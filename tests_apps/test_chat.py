"""The chat of FastAPI's documentation on two workers: each room is in one of them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from signal import SIGKILL, SIGTERM

import httpx
import pytest
from serving import Site
from websockets.asyncio.client import ClientConnection, connect

pytestmark = pytest.mark.anyio

ROOMS = ("red", "green", "blue", "white")
WAIT = 20


@pytest.fixture
def site(serve: Callable[..., Site]) -> Site:
    return serve(
        "chat_app:app",
        "--resume",
        "--handover",
        "silent",
        workers=3,
        affinity=("path:/ws/{room}", "path:/rooms/{room}"),
    )


@pytest.fixture
async def stack(anyio_backend: str) -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def join(site: Site, stack: AsyncExitStack, room: str, number: int) -> ClientConnection:
    url = f"{site.ws_url}/ws/{room}/{number}"
    return await stack.enter_async_context(connect(url, proxy=None, ping_interval=None))


async def announce(client: httpx.AsyncClient, room: str, text: str) -> tuple[int, int]:
    """Announce a text to a room. Return the process that has the room, and how many it reached."""
    answer = await client.post(f"/rooms/{room}", params={"text": text})
    assert answer.status_code == 200
    return answer.json()["pid"], answer.json()["reached"]


async def read(sockets: list[ClientConnection], text: str) -> None:
    async with asyncio.timeout(WAIT):
        for socket in sockets:
            assert await socket.recv() == text


@pytest.mark.parametrize("signal", [SIGTERM, SIGKILL])
async def test_everybody_in_a_room_is_reached(
    signal: int, site: Site, stack: AsyncExitStack, pytestconfig: pytest.Config
) -> None:
    client = await stack.enter_async_context(httpx.AsyncClient(base_url=site.url, trust_env=False, timeout=WAIT))
    rooms = {room: [await join(site, stack, room, number) for number in range(5)] for room in ROOMS}
    homes = {}
    for room, sockets in rooms.items():
        await sockets[0].send("hello")
        await read(sockets, "Client #0 says: hello")
        homes[room], reached = await announce(client, room, "attention")
        assert reached == 5
        await read(sockets, "attention")
    if pytestconfig.getoption("--on") == "uvicorn":
        return
    assert len({*homes.values()}) == len(site.workers)

    (ending,) = [worker for worker in site.workers if worker.pid == homes["red"]]
    if signal == SIGKILL:
        ending.kill()
    else:
        ending.terminate()
    joined = await asyncio.gather(*(join(site, stack, "red", number) for number in range(5, 8)))
    sockets = [*rooms["red"], *joined]
    reached, home = 0, 0
    async with asyncio.timeout(WAIT):
        while reached < 8:  # the sockets follow within a moment
            home, reached = await announce(client, "red", "again")
    assert home != ending.pid
    async with asyncio.timeout(WAIT):
        for socket in sockets:
            while (text := await socket.recv()) != "again":
                assert "left" not in text
    for process in (site.server, *site.workers):
        process.mark()  # a death is a reason for warnings
