"""Processes that receive from one channel, and are killed: each message is received once."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asgibus.layers import ChannelFull, RedisChannelLayer
from support import clocks
from support.bus import until
from support.clocks import WallClock
from support.reader_program import READERS, digest

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

PROGRAM = Path(__file__).parents[2] / "support" / "reader_program.py"
HOUR = 3600


class Reader:
    """A process with readers."""

    def __init__(self, folder: Path, number: int, url: str, channel: str, env: dict[str, str] | None = None) -> None:
        self.out = folder / f"reader{number}"
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM), url, channel, str(number)],
                stdout=out,
                env=env and {**os.environ, **env},
            )

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def lines(self) -> list[str]:
        """Return the lines that the process wrote."""
        return self.out.read_text().splitlines()


@pytest.fixture
def readers() -> Iterator[list[Reader]]:
    readers: list[Reader] = []
    yield readers
    for reader in readers:
        reader.kill()


def messages(count: int) -> Iterator[dict[str, Any]]:
    """Return messages of every type, and of sizes up to a mebibyte."""
    dice = random.Random(3)
    for number in range(count):
        size = 2 ** dice.randrange(20) if number % 50 == 0 else dice.randrange(200)
        values = [dice.randbytes(size), "\x00ü\U0001f600" * dice.randrange(5), dice.random(), None, True]
        values += [dice.randrange(-(2**63), 2**63), [], {}, [1, [b"", ""]], {"": {"k": b"v"}}]
        yield {"n": number, "values": dice.sample(values, dice.randrange(len(values)))}


async def send_all(layer: RedisChannelLayer, channel: str, count: int) -> dict[int, str]:
    """Send so many messages, and wait while the channel is full. Return their digests by number."""
    sent = {}
    dice = random.Random(4)
    for message in messages(count):
        delay = dice.choice([0.0] * 9 + [0.05])
        while True:
            try:
                await layer.send(channel, message, delay=delay)
            except ChannelFull:
                await asyncio.sleep(0.002)
            else:
                break
        sent[message["n"]] = digest(message)
    return sent


def all_lines(readers: list[Reader]) -> list[str]:
    return [line for reader in readers for line in reader.lines()]


@pytest.mark.parametrize(("count", "kills"), [(500, 4), pytest.param(1500, 12, marks=pytest.mark.long)])
async def test_cancelled_and_killed_readers_repeat_no_message(
    count: int, kills: int, redis_url: str, tmp_path: Path, readers: list[Reader]
) -> None:
    layer = RedisChannelLayer(redis_url)
    channel = "A-z_0.9"
    readers.extend(Reader(tmp_path, number, redis_url, channel) for number in range(3))
    sending = asyncio.create_task(send_all(layer, channel, count))
    for kill in range(kills):
        await until(lambda k=kill: len(all_lines(readers)) > (k + 1) * count // (kills + 2), 30)  # type: ignore[misc]
        readers[kill].kill()
        readers.append(Reader(tmp_path, len(readers), redis_url, channel))
    sent = await asyncio.wait_for(sending, 30)
    await until(lambda: len(all_lines(readers)) >= count - kills * READERS, 30)
    assert (await layer.channel_statistics(channel))["messages_count"] == count
    received = Counter(int(line.split()[0]) for line in all_lines(readers))
    assert set(received.values()) == {1}, "each to one, once"
    assert all(sent[int(number)] == text for number, text in map(str.split, all_lines(readers))), "as it was sent"
    # A killed process may have received one message with each of its readers, which is lost.
    assert count - len(received) <= kills * READERS
    await layer.close()


async def test_readers_work_with_any_clock_of_their_host(redis_url: str, tmp_path: Path, readers: list[Reader]) -> None:
    if clocks.library() is None:
        pytest.skip("libfaketime is not installed")
    layer = RedisChannelLayer(redis_url)
    for number, offset in enumerate((-HOUR, HOUR)):
        clock = WallClock(tmp_path / f"clock{number}")
        clock.step(offset)
        readers.append(Reader(tmp_path, number, redis_url, f"late{number}", clock.env))
    for number in range(2):
        for message in range(20):
            await layer.send(f"late{number}", {"n": message})
    await until(lambda: all(len(reader.lines()) == 20 for reader in readers), 20)
    for reader in readers:
        assert sorted(int(line.split()[0]) for line in reader.lines()) == list(range(20))
    await layer.close()
