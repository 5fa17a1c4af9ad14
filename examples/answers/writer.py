"""The writer of answers: a background worker for the channel `answers`."""

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from model import tokens

from asgibus.layers.streams import StreamState, WriterFenced


async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: object) -> None:
    """Write the answer to one question into its stream.

    If this process dies, or raises, another one gets the same question and begins the answer anew.
    """
    assert scope["type"] == "channel"
    job = await receive()
    stream = scope["extensions"]["asgibus"]["layer"].stream(f"answer.{job['answer']}")
    if (await stream.info()).state is StreamState.ENDED:
        return  # the process that wrote it died before it could say that the job is done
    with suppress(WriterFenced):  # another process has the job: this one was cut off, and declared dead
        async with stream.writer(restart=True) as out:
            await out.append({"question": job["question"], "writer": os.getpid()})
            async for token in tokens(job["question"]):
                if out.cancelled:
                    await out.append({"stopped": True})
                    break
                await out.append({"text": token})
