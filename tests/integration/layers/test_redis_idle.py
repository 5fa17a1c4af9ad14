"""Number of commands that an idle bus sends."""

import asyncio

import pytest
import redis

from support.peers import place

pytestmark = pytest.mark.anyio


async def test_an_idle_bus_costs_three_commands_a_second(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    """A beat sends two commands, the lease thread one, and each blocking read one in two seconds."""
    seconds = 3
    async with place(redis_url, "a") as one:
        one.bus.offer("x", (1,))
        claiming = asyncio.create_task(one.bus.claim(["x"], 1))
        one.bus.done((await claiming)[0])
        claiming = asyncio.create_task(one.bus.claim(["x"], 1))
        admin.zrem("a:processes", "grace")  # processes search for orphans often during the grace time
        await asyncio.sleep(1.5)
        with admin.monitor() as monitor:
            await asyncio.sleep(seconds)
            admin.echo("end")
            commands = []
            for each in monitor.listen():
                if each["command"].startswith("ECHO"):
                    break
                if each["client_type"] != "lua":
                    commands.append(each["command"].split()[0])
        one.bus.stop_claiming()
        await claiming
    reads = [command for command in commands if command in {"XREAD", "XREADGROUP"}]
    beats = [command for command in commands if command not in {"XREAD", "XREADGROUP"}]
    assert seconds <= len(beats) <= 3 * (seconds + 1)  # fewer on a busy machine
    assert set(beats) == {"EVAL", "EXPIRE"}
    assert len(reads) <= seconds + 2
