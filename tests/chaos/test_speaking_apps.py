"""Apps that broadcast at intervals while Redis is away: no socket closes, and no broadcast is lost."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from chaos.scale import by_form
from support.bus import until
from support.deadline import in_time
from support.namespaces import Namespace
from support.processes import Process
from support.redis import RedisServer

pytestmark = pytest.mark.anyio

Start = Callable[..., Process]
Figures = Callable[[object], None]
Watch = Callable[[str, Callable[[], Awaitable[None]]], Awaitable[None]]

SOCKETS = by_form(50, 100)
ROOM = 10
SECONDS = by_form([1.5], [1.0, 3.0, 7.0, 30.0])
RECOVERED = 12.0
"""Seconds after Redis is back: a connection that waits in silence has to be given up first."""


class Receiver:
    """A client that only receives, and notes the numbers of each sender."""

    def __init__(self, number: int) -> None:
        self.name = f"s{number}"
        self.room = f"room{number // ROOM}"
        self.received: dict[str, list[int]] = defaultdict(list)
        self.latest = 0.0
        self.close: str | None = None

    async def receive(self, socket: ClientConnection) -> None:
        try:
            async for text in socket:
                sender, _, number = str(text).partition(" ")
                self.received[sender].append(int(number))
                self.latest = time.monotonic()
        except ConnectionClosed as error:
            self.close = str(error)

    @property
    def gaps(self) -> list[str]:
        """Return each number that is missing, double or out of order behind the first one of its sender."""
        return [
            f"{self.name} received of {sender}: {numbers[at - 1]}, then {numbers[at]}"
            for sender, numbers in self.received.items()
            for at in range(1, len(numbers))
            if numbers[at] != numbers[at - 1] + 1
        ]


@pytest.fixture
def watch(start_interface: Start, start_worker: Start, figures: Figures) -> Watch:
    """Check that clients receive all broadcasts over an outage of the Redis at a URL: `await watch(url, outage)`."""

    async def watch(url: str, outage: Callable[[], Awaitable[None]]) -> None:
        worker = start_worker("chaos.speaking_app:app", *("--layer", url, "--resume"), env={"OWN_LAYER": url})
        interface = start_interface("--layer", url, "--no-access-log")
        receivers = [Receiver(number) for number in range(SOCKETS)]
        options: dict[str, Any] = {"compression": None, "ping_interval": None, "proxy": None, "close_timeout": 1}
        async with asyncio.TaskGroup() as tasks:
            sockets = []
            for each in receivers:
                target = f"{interface.ws_url}/?name={each.name}&room={each.room}"
                sockets.append(await connect(target, **options))
                tasks.create_task(each.receive(sockets[-1]))
            await wait_until_all_receive(receivers, time.monotonic())
            await outage()
            back = time.monotonic()
            await wait_until_all_receive(receivers, back)
            recovered = time.monotonic() - back
            closed = [each.close for each in receivers if each.close is not None]
            for socket in sockets:
                await socket.close()
        gaps = [gap for each in receivers for gap in each.gaps]
        received = sum(len(numbers) for each in receivers for numbers in each.received.values())
        figures(
            f"{len(closed)} closed, {received} messages received, {len(gaps)} missed, again after {recovered:.2f} s"
        )
        assert closed == []
        assert gaps == []
        assert "did not go out" not in worker.log()
        in_time(recovered, RECOVERED)

    return watch


@pytest.mark.parametrize("how", ["SIGKILL", pytest.param("SHUTDOWN", marks=pytest.mark.long), "silence"])
@pytest.mark.parametrize("seconds", SECONDS)
async def test_broadcasts_survive_an_outage_of_redis(
    how: str, seconds: float, start_redis: Callable[..., RedisServer], watch: Watch
) -> None:
    server = start_redis()

    async def outage() -> None:
        if how == "silence":
            server.pause()
        else:
            await asyncio.to_thread(server.kill if how == "SIGKILL" else server.terminate)
        await asyncio.sleep(seconds)  # the length of the outage
        await asyncio.to_thread(server.resume if how == "silence" else server.start)

    await watch(server.url, outage)


@pytest.mark.parametrize("seconds", SECONDS)
async def test_broadcasts_survive_lost_packets(seconds: float, far: Namespace, far_url: str, watch: Watch) -> None:
    async def outage() -> None:
        far.lose_packets()
        await asyncio.sleep(seconds)  # the length of the outage
        far.heal()

    await watch(far_url, outage)


async def wait_until_all_receive(receivers: list[Receiver], since: float) -> None:
    """Wait until each client has received a message since then, or is closed."""
    await until(lambda: all(each.latest > since or each.close for each in receivers))
    await asyncio.sleep(1.0)  # five more numbers of each, so that a gap shows
