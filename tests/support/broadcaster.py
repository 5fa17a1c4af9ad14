"""A program beside the servers that broadcasts numbered messages: URL, group, interval, seconds to wait for Redis.

It prints a JSON line for each call: the number, the seconds of the call, and the error, if it was LayerUnavailable.
"""

import asyncio
import json
import sys
import time

from asgibus.layers import LayerUnavailable, RedisChannelLayer

NAME = "program"
"""The sender that the members of the group see."""


async def main(url: str, group: str, interval: str, wait: str) -> None:
    layer = RedisChannelLayer(url, wait=float(wait))
    number = 0
    while True:
        message = {"type": "websocket.send", "text": f"{NAME} {number} 1 1"}
        began, reason = time.monotonic(), None
        try:
            await layer.group_send(group, message)
        except LayerUnavailable as error:
            reason = str(error)
        seconds = time.monotonic() - began
        print(json.dumps({"number": number, "at": began, "seconds": seconds, "error": reason}), flush=True)  # noqa: T201
        number += 1
        await asyncio.sleep(float(interval))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
