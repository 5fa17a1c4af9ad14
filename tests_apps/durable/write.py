"""Write numbers to a stream, 20 a second, until the end or SIGKILL: python write.py REDIS_URL PREFIX STREAM COUNT"""

import asyncio
import sys

from asgibus.layers import open_layer


async def main(url: str, prefix: str, name: str, count: int) -> None:
    layer = open_layer(url, prefix=prefix)
    async with layer.stream(name).writer() as out:
        for number in range(count):
            await out.append({"n": number})
            await out.flush()
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()
            await asyncio.sleep(0.05)
    await layer.close()


asyncio.run(main(*sys.argv[1:4], int(sys.argv[4])))
