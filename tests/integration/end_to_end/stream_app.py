"""Large bodies: `/download` sends one, `/upload` takes one and answers with its hash, both at a given pace."""

import asyncio
import hashlib
import time
from typing import Any
from urllib.parse import parse_qs

MIB = 1 << 20
BLOCK = hashlib.shake_256(b"a block of noise").digest(MIB)


def block(number: int) -> bytes:
    """Return the mebibyte with this number; no two are alike."""
    return number.to_bytes(8) + BLOCK[8:]


class Pace:
    """A limit of mebibytes per second."""

    def __init__(self, mib_a_second: int) -> None:
        self.seconds = 1 / mib_a_second / MIB if mib_a_second else 0
        self.due = time.monotonic()

    def wait_for(self, size: int) -> float:
        """Return the seconds to wait after this many bytes."""
        self.due += size * self.seconds
        return self.due - time.monotonic()


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise ValueError(scope["type"])
    query = {key: int(values[0]) for key, values in parse_qs(scope["query_string"].decode()).items()}
    pace = Pace(query.get("pace", 0))
    if scope["path"] == "/download":
        length = query["mib"] * MIB
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % length)]})
        for number in range(query["mib"]):
            await send({"type": "http.response.body", "body": block(number), "more_body": True})
            if (seconds := pace.wait_for(MIB)) > 0:
                await asyncio.sleep(seconds)
        await send({"type": "http.response.body"})
        return
    digest = hashlib.sha256()
    event = {"more_body": True}
    while event["more_body"]:
        event = await receive()
        digest.update(event["body"])
        if (seconds := pace.wait_for(len(event["body"]))) > 0:
            await asyncio.sleep(seconds)
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": digest.hexdigest().encode()})
