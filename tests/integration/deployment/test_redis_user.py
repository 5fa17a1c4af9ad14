"""The rules for a user of Redis that the documentation gives are enough, and keep to the keys of the bus."""

import asyncio
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from asgibus.layers import open_layer
from support.processes import Process
from support.redis import RedisServer
from support.websocket import ws

APP = "deployment.proxied_app:app"
PAGE = Path(__file__).parents[3] / "docs" / "deployment" / "redis.md"


def rules() -> list[str]:
    """Return the ACL rules that the page sets for the user `asgibus`."""
    (line,) = re.findall(r"^ACL SETUSER asgibus (.*)$", PAGE.read_text(), re.MULTILINE)
    return str(line).split()


@pytest.fixture
def store(start_redis: Callable[..., RedisServer]) -> RedisServer:
    store = start_redis()
    with redis.Redis.from_url(store.url) as client:
        client.execute_command("ACL", "SETUSER", "asgibus", *rules())  # type: ignore[no-untyped-call]
    return store


def test_the_rules_allow_every_command_of_the_bus(
    store: RedisServer, start_worker: Callable[..., Process], start_interface: Callable[..., Process]
) -> None:
    url = store.url.replace("//", "//asgibus:SECRET@")
    workers = start_worker(APP, "--layer", url, "--processes", 2, "--resume", "--admin-port", 0, ready=False)
    interface = start_interface("--layer", url)
    workers.wait_for("supervisor ready")
    with ws(interface, "/") as socket:
        socket.send("before")
        before = json.loads(socket.recv(timeout=30))
        workers.send_signal(signal.SIGHUP)
        workers.wait_for("all processes are replaced")
        socket.send("after")
        after = json.loads(socket.recv(timeout=30))

    assert after["pid"] != before["pid"]
    assert asyncio.run(channels(url)) == ["now", "later", "to the group"]
    with redis.Redis.from_url(store.url) as client:
        assert client.execute_command("ACL", "LOG") == []  # type: ignore[no-untyped-call]


async def channels(url: str) -> list[str]:
    """Send two messages to a channel, one of them delayed, and one to a group; return the types received."""
    layer = open_layer(url)
    local = await layer.new_channel()
    await layer.group_add("group", local)
    await layer.send("work", {"type": "now"})
    await layer.send("work", {"type": "later"}, delay=0.1)
    await layer.group_send("group", {"type": "to the group"})
    received = [(await layer.receive(name))["type"] for name in ("work", "work", local)]
    await layer.channel_statistics("work")
    await layer.group_discard("group", local)
    await layer.flush()
    await layer.close()
    return received


@pytest.mark.parametrize("command", ["FLUSHALL", "CONFIG GET *", "KEYS *", "SHUTDOWN", "GET other"])
def test_the_rules_deny_other_commands(store: RedisServer, command: str) -> None:
    with (
        redis.Redis.from_url(store.url.replace("//", "//asgibus:SECRET@")) as client,
        pytest.raises(redis.exceptions.NoPermissionError),
    ):
        client.execute_command(*command.split())  # type: ignore[no-untyped-call]
