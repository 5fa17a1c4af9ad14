"""A program with a channel layer of its own. It executes orders and answers them, each in one line of JSON.

An order is a method of the layer and its arguments. Messages are written as Python, because JSON has no bytes.
"""

import ast
import asyncio
import json
import sys

from asgibus.layers import RedisChannelLayer


async def execute(layer, method, *arguments):
    if method == "send":
        channel, message, delay = arguments
        await layer.send(channel, ast.literal_eval(message), delay=delay)
    elif method == "group_send":
        group, message = arguments
        await layer.group_send(group, ast.literal_eval(message))
    elif method == "receive":
        return repr(await layer.receive(*arguments))
    else:
        return await getattr(layer, method)(*arguments)
    return None


async def main(url, *keys):
    layer = RedisChannelLayer(url, symmetric_encryption_keys=keys)
    while line := await asyncio.to_thread(sys.stdin.readline):
        answer = await execute(layer, *json.loads(line))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    await layer.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
