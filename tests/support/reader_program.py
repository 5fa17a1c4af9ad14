"""A process that receives from a channel with three readers at once, which give up and come again: URL, channel, seed.

It writes a line for each message that it got: the number in it, and a digest of the rest.
"""

import asyncio
import hashlib
import os
import random
import sys
from typing import Any

from asgibus.layers import RedisChannelLayer
from asgibus.layers.codec import pack

READERS = 3


def digest(message: dict[str, Any]) -> str:
    """Return a digest of the message, its values and their types."""
    return hashlib.sha256(pack(message)).hexdigest()[:16]


async def read(layer: RedisChannelLayer, channel: str, dice: random.Random) -> None:
    while True:
        try:
            async with asyncio.timeout(dice.choice([0.0005, 0.002, 0.01, 10])):
                message = await layer.receive(channel)
        except TimeoutError:
            continue
        os.write(1, f"{message['n']} {digest(message)}\n".encode())


async def main(url: str, channel: str, seed: str) -> None:
    layer = RedisChannelLayer(url)
    async with asyncio.TaskGroup() as tasks:
        for number in range(READERS):
            tasks.create_task(read(layer, channel, random.Random(f"{seed} {number}")))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
