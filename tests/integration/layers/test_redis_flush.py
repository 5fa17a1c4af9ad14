"""When frames and offers leave a process whose event loop is busy."""

import asyncio
import time
from collections.abc import Callable

import pytest
import redis
import uvloop

from asgibus.layers.frames import FIRST_PROTOCOL_KIND
from asgibus.layers.redis.pipeline import TURN_SECONDS
from support.deadline import wait_until
from support.peers import place

BUSY_SECONDS = 4 * TURN_SECONDS


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_frames_and_offers_leave_while_the_event_loop_is_busy(
    new_loop: Callable[[], asyncio.AbstractEventLoop], redis_url: str, admin: "redis.Redis[bytes]"
) -> None:
    async def busy() -> None:
        async with place(redis_url, "asgibus") as sender, place(redis_url, "asgibus") as receiver:
            mailbox = f"asgibus:mailbox:{receiver.mailbox}"
            written = admin.xlen(mailbox)
            for number in range(3):
                sender.bus.post(receiver.mailbox, (FIRST_PROTOCOL_KIND, number))
                sender.bus.offer("http.request.test", number)
                time.sleep(BUSY_SECONDS)  # noqa: ASYNC251 - as an app that computes
            wait_until(lambda: admin.xlen(mailbox) > written)
            wait_until(lambda: admin.xlen("asgibus:shared:http.request.test") >= 1)
            await sender.bus.drain()
            await asyncio.to_thread(wait_until, lambda: len(receiver.handler.frames) == 3)
            assert [frame[1] for frame in receiver.handler.frames] == [0, 1, 2]
            assert admin.xlen("asgibus:shared:http.request.test") == 3

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(busy())
