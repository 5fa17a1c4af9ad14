"""One layer object in several event loops: `async_to_sync` makes a new one for every call."""

import asyncio
import gc
import threading
from typing import Any

import pytest

from asgibus.layers import ChannelLayer
from asgibus.layers.contract import FIRST_PROTOCOL_KIND
from support.bus import MakeLayer, Recorder, until

KIND = FIRST_PROTOCOL_KIND


def test_one_loop_after_another_without_close(new_layer: MakeLayer) -> None:
    layer = new_layer()

    async def use(number: int) -> Any:
        await layer.send("ordinary", {"n": number})
        local = await layer.new_channel()
        await layer.group_add("group", local)
        await layer.group_send("group", {"n": -number})
        return (await layer.receive(local))["n"]

    assert [asyncio.run(use(number)) for number in range(1, 6)] == [-1, -2, -3, -4, -5]

    async def collect() -> list[Any]:
        received = [(await layer.receive("ordinary"))["n"] for _ in range(5)]
        await layer.close()
        return received

    assert asyncio.run(collect()) == [1, 2, 3, 4, 5]
    gc.collect()  # what was left open would warn now


def test_loops_in_several_threads_at_once(new_layer: MakeLayer) -> None:
    layer = new_layer(capacity=1000)
    received: dict[int, list[int]] = {number: [] for number in range(3)}
    errors: list[BaseException] = []

    async def talk(me: int) -> None:
        """Each sends 30 messages to the next one, over an ordinary channel."""
        for number in range(30):
            await layer.send(f"to.{(me + 1) % 3}", {"n": number})
        async with asyncio.timeout(20):
            while len(received[me]) < 30:
                received[me].append((await layer.receive(f"to.{me}"))["n"])
        await layer.close()

    def run(me: int) -> None:
        try:
            asyncio.run(talk(me))
        except BaseException as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(me,)) for me in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert all(numbers == list(range(30)) for numbers in received.values())


@pytest.mark.anyio
async def test_a_bus_in_another_thread(layer: ChannelLayer) -> None:
    """Frames, offers and claims cross from loop to loop."""
    here, there = Recorder(), Recorder()
    mailboxes: dict[str, str] = {}
    claimed: list[Any] = []
    finish = threading.Event()

    async def serve() -> None:
        async with layer.bus("there", there) as bus:
            mailboxes["there"] = bus.mailbox

            async def claim() -> None:
                while claims := await bus.claim(["x"], 5):
                    for each in claims:
                        claimed.append(each.entry)
                        bus.post(mailboxes["here"], (KIND, "claimed", *each.entry))
                        bus.done(each)

            claiming = asyncio.create_task(claim())
            await asyncio.to_thread(finish.wait)
            bus.stop_claiming()
            await claiming
        await layer.close()

    async with layer.bus("here", here) as bus:
        mailboxes["here"] = bus.mailbox
        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        try:
            await until(lambda: "there" in mailboxes)
            for number in range(50):
                bus.post(mailboxes["there"], (KIND, number))
                bus.offer("x", (number,))
            await until(lambda: len(here.frames) == 50 and len(there.frames) == 50)
        finally:
            finish.set()
            await asyncio.to_thread(thread.join)
    assert there.frames == [(KIND, number) for number in range(50)]
    assert here.frames == [(KIND, "claimed", number) for number in range(50)]
    assert claimed == [(number,) for number in range(50)]
