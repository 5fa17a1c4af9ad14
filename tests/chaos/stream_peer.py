"""Write or read a stream in a process: `python -m chaos.stream_peer write|read URL STREAM`. It prints what happens.

`app` is for a worker of background messages: it writes the stream that a message names, anew at each delivery.
"""

import asyncio
import os
import sys
import time
from typing import Any

from asgibus.layers import LayerError, open_layer
from asgibus.layers.streams import Stream, StreamReset
from support import lease_times

STEP = 0.01
JOB = 200
"""Entries of a stream that `app` writes."""


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201 - the test reads it


async def write(stream: Stream) -> None:
    async with stream.writer() as out:
        number = 0
        while not out.cancelled:
            await out.append(number)
            say("appended", number)
            number += 1
            await asyncio.sleep(STEP)


async def app(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "channel"
    message = await receive()
    say("writes", os.getpid())
    async with scope["extensions"]["asgibus"]["layer"].stream(message["stream"]).writer(restart=True) as out:
        for number in range(JOB):
            await out.append(number)
            await asyncio.sleep(STEP)


async def read(stream: Stream) -> None:
    expected, after = 0, None
    while True:
        try:
            async for _, number in stream.read(after):
                say("got" if number == expected else "wrong", number)
                expected = number + 1
        except StreamReset as reset:
            say("reset", time.monotonic(), reset.why)
            expected, after = 0, reset.resume
        except LayerError as error:
            say("failed", time.monotonic(), repr(error))
            return
        else:
            say("ended", expected)
            return


async def main(role: str, url: str, name: str) -> None:
    lease_times.shorten_if_requested()
    layer = open_layer(url)
    await {"write": write, "read": read}[role](layer.stream(name))
    await layer.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
