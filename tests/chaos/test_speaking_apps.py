"""Apps that broadcast by themselves, while Redis is away: no client notices, and no broadcast is lost."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from chaos.scale import by_form
from support.bus import until
from support.deadline import in_time
from support.processes import Process
from support.redis import RedisServer

pytestmark = pytest.mark.anyio

Start = Callable[..., Process]
Figures = Callable[[object], None]

SOCKETS = 100
ROOM = 10
RECOVERED = 8.0
"""Seconds after Redis is back: a connection that waits in silence has to be given up first."""


class Listener:
    """A client that only listens, and notes the numbers of each speaker."""

    def __init__(self, number: int) -> None:
        self.name = f"s{number}"
        self.room = f"room{number // ROOM}"
        self.heard: dict[str, list[int]] = defaultdict(list)
        self.latest = 0.0
        self.close: str | None = None

    async def listen(self, socket: ClientConnection) -> None:
        try:
            async for text in socket:
                speaker, _, number = str(text).partition(" ")
                self.heard[speaker].append(int(number))
                self.latest = time.monotonic()
        except ConnectionClosed as error:
            self.close = str(error)

    @property
    def holes(self) -> list[str]:
        """What it misses, has twice, or out of order, from the first number that it heard of each speaker on."""
        return [
            f"{self.name} heard of {speaker}: {numbers[at - 1]}, then {numbers[at]}"
            for speaker, numbers in self.heard.items()
            for at in range(1, len(numbers))
            if numbers[at] != numbers[at - 1] + 1
        ]


async def outage(server: RedisServer, how: str, seconds: float) -> None:
    """Take Redis away for so long."""
    if how == "silence":
        server.pause()
        await asyncio.sleep(seconds)  # the length of the outage
        server.resume()
        return
    await asyncio.to_thread(server.kill if how == "SIGKILL" else server.terminate)
    await asyncio.sleep(seconds)  # the length of the outage
    await asyncio.to_thread(server.start)


@pytest.mark.parametrize("how", ["SIGKILL", "SHUTDOWN", "silence"])
@pytest.mark.parametrize("seconds", by_form([3.0, 7.0], [1.0, 3.0, 7.0, 30.0]))
async def test_nobody_is_closed_and_nothing_is_lost_while_redis_is_away(
    how: str,
    seconds: float,
    start_redis: Callable[..., RedisServer],
    start_interface: Start,
    start_worker: Start,
    figures: Figures,
) -> None:
    server = start_redis()
    worker = start_worker("chaos.speaking_app:app", "--layer", server.url, "--resume", "--graceful-timeout", 3)
    interface = start_interface("--layer", server.url, "--no-access-log")
    listeners = [Listener(number) for number in range(SOCKETS)]
    options: dict[str, Any] = {"compression": None, "ping_interval": None, "proxy": None, "close_timeout": 1}
    async with asyncio.TaskGroup() as tasks:
        sockets = []
        for each in listeners:
            target = f"{interface.ws_url}/?name={each.name}&room={each.room}"
            sockets.append(await connect(target, **options))
            tasks.create_task(each.listen(sockets[-1]))
        await until_all_hear(listeners, time.monotonic())
        await outage(server, how, seconds)
        back = time.monotonic()
        await until_all_hear(listeners, back)
        recovered = time.monotonic() - back
        closed = [each.close for each in listeners if each.close is not None]
        for socket in sockets:
            await socket.close()
    holes = [hole for each in listeners for hole in each.holes]
    heard = sum(len(numbers) for each in listeners for numbers in each.heard.values())
    figures(f"{len(closed)} closed, {heard} messages heard, {len(holes)} missed, again after {recovered:.2f} s")
    assert closed == []
    assert holes == []
    assert "did not go out" not in worker.log()
    in_time(recovered, RECOVERED)


async def until_all_hear(listeners: list[Listener], since: float) -> None:
    """Wait until everybody has heard something since then, or is closed."""
    await until(lambda: all(each.latest > since or each.close for each in listeners))
    await asyncio.sleep(1.0)  # five more numbers of each, so that a hole shows
