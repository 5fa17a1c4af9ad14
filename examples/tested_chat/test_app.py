import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from app import make_app
from websockets.exceptions import InvalidStatus

from asgibus.testing import Bus, WebSocket

pytestmark = pytest.mark.anyio


class Moderator:
    """Allows all but what is rude; a test can let it hang."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[str] = asyncio.Queue()
        self.hangs = False

    async def __call__(self, text: str) -> bool:
        self.asked.put_nowait(text)
        if self.hangs:
            await asyncio.Event().wait()
        return "rude" not in text


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def moderator() -> Moderator:
    return Moderator()


@pytest.fixture
async def bus(moderator: Moderator) -> AsyncIterator[Bus]:
    async with Bus(make_app(moderator), workers=2, resume=True) as bus:
        yield bus


async def say(socket: WebSocket, number: int, text: str) -> None:
    await socket.send(json.dumps({"number": number, "text": text}))


async def test_everybody_in_the_room_hears_what_is_said(bus: Bus) -> None:
    async with bus.websocket("/room/tea") as ann, bus.websocket("/room/tea") as bob:
        assert await ann.receive() == await bob.receive() == "welcome"
        await say(ann, 1, "hello")
        assert await ann.receive() == await bob.receive() == "hello"


async def test_what_is_rude_is_not_said(bus: Bus) -> None:
    async with bus.websocket("/room/tea") as ann:
        assert await ann.receive() == "welcome"
        await say(ann, 1, "rude words")
        await say(ann, 2, "kind words")
        assert await ann.receive() == "kind words"


async def test_an_announcement_comes_from_outside(bus: Bus) -> None:
    async with bus.websocket("/room/tea") as ann:
        assert await ann.receive() == "welcome"
        assert (await bus.http.post("/room/tea", content="tea is ready")).status_code == 204
        assert await ann.receive() == "tea is ready"


async def test_there_is_a_page_and_nothing_where_no_room_is(bus: Bus) -> None:
    assert "<title>tea</title>" in (await bus.http.get("/")).text
    assert (await bus.http.post("/room/", content="tea is ready")).status_code == 404
    with pytest.raises(InvalidStatus, match="403"):
        async with bus.websocket("/room/no%20such"):
            pass


async def test_a_deploy_goes_unnoticed(bus: Bus) -> None:
    async with bus.websocket("/room/tea") as ann:
        assert await ann.receive() == "welcome"
        await say(ann, 1, "before")
        assert await ann.receive() == "before"

        old = [*bus.workers]
        for worker in old:
            await bus.add_worker()
            await worker.drain()

        await say(ann, 2, "after")
        assert await ann.receive() == "after"  # and no second welcome
        assert bus.worker_of(ann) not in old


async def test_a_message_in_hand_when_the_worker_dies_is_said_once(bus: Bus, moderator: Moderator) -> None:
    async with bus.websocket("/room/tea") as ann:
        assert await ann.receive() == "welcome"
        moderator.hangs = True
        await say(ann, 1, "important")
        await moderator.asked.get()

        moderator.hangs = False
        await bus.worker_of(ann).kill()

        assert await moderator.asked.get() == "important"  # by the next run, in the other worker
        await say(ann, 2, "done")
        assert [await ann.receive(), await ann.receive()] == ["important", "done"]


async def test_a_message_that_the_client_repeats_is_said_once_whoever_serves_it(bus: Bus) -> None:
    async with bus.websocket("/room/tea") as ann:
        assert await ann.receive() == "welcome"
        await say(ann, 1, "once")
        assert await ann.receive() == "once"
        await bus.worker_of(ann).kill()
        await say(ann, 1, "once")
        await say(ann, 2, "next")
        assert await ann.receive() == "next"


async def test_an_announcement_whose_worker_dies_fails_and_is_not_tried_again(bus: Bus, moderator: Moderator) -> None:
    moderator.hangs = True
    async with asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(bus.http.post("/room/tea", content="tea is ready"))
        await moderator.asked.get()
        (worker,) = [worker for worker in bus.workers if worker.serving]
        await worker.kill()
        assert (await answer).status_code == 502
    assert moderator.asked.empty()
