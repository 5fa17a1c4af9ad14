"""Write or read a stream in a process: `python -m chaos.stream_peer write|read URL STREAM`. It prints what happens."""

import asyncio
import sys
import time

from asgibus.layers import LayerError, open_layer
from asgibus.layers.streams import Stream
from support import lease_times

STEP = 0.01


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


async def read(stream: Stream) -> None:
    expected = 0
    try:
        async for _, number in stream.read():
            say("got" if number == expected else "wrong", number)
            expected = number + 1
    except LayerError as error:
        say("failed", time.monotonic(), repr(error))
    else:
        say("ended", expected)


async def main(role: str, url: str, name: str) -> None:
    lease_times.shorten_if_requested()
    layer = open_layer(url)
    await {"write": write, "read": read}[role](layer.stream(name))
    await layer.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
