"""Servers of another version on the same bus."""

import re
import sys
from collections.abc import Callable

import pytest
import redis
from websockets.exceptions import ConnectionClosed, InvalidStatus

from asgibus.layers import LayerUnavailable, RedisChannelLayer
from asgibus.layers.codec import pack
from asgibus.layers.versions import PAYLOAD, RELEASE, published
from asgibus.protocol.channels import shared_channel
from asgibus.protocol.connect_request import HTTP, REQUEST_VERSION
from support.admin import counts, readiness
from support.bus import Recorder, until
from support.deadline import wait_until
from support.processes import Process, Processes
from support.raw import RawClient
from support.websocket import ws

pytestmark = pytest.mark.anyio

APP = "end_to_end.pool_app:app"
INTERFACE = r"interface\.\w+!"
LATER_VERSION = """
from asgibus.layers.versions import Format
from asgibus.protocol import checks
checks.CONNECT_REQUEST, checks._WRITTEN = Format("connect requests", written=4, oldest=4, newest=4), 4
from asgibus.cli.worker import main
main()
"""
CHANNEL = shared_channel(HTTP, "default")


async def test_a_worker_gives_connections_of_another_version_back_to_others(
    start_interface: Callable[..., Process], start_worker: Callable[..., Process], redis_url: str
) -> None:
    worker = start_worker(APP, "--layer", redis_url, "--admin-port", 0, env={"POOL": "served"})
    foreign = [(REQUEST_VERSION + 1, "of a later version", number) for number in range(5)]
    layer = RedisChannelLayer(redis_url)
    async with layer.bus("interface", Recorder()) as interface, layer.bus("worker", Recorder()) as later:
        for opening in foreign:
            interface.offer(CHANNEL, opening)
        await until(lambda: readiness(worker)[0] == 503)
        read = []
        while len(read) < len(foreign):
            for claim in await later.claim([CHANNEL], 10):
                read.append(claim.entry)
                later.done(claim)
        await later.drain()
    await layer.close()
    assert sorted(read) == foreign
    assert f"reads version {REQUEST_VERSION}: upgrade this process" in readiness(worker)[1]
    assert worker.log().count("claims next to nothing") == 1
    assert counts(worker)["foreign version"] >= 1
    with RawClient(start_interface("--layer", redis_url)) as client:
        assert client.request("GET", "/").body == b"served"  # the next attempt reads a valid version
    assert readiness(worker) == (200, "ready\n")


async def test_a_process_that_does_not_understand_the_others_does_not_start(
    start_interface: Callable[..., Process], start_worker: Callable[..., Process], redis_url: str
) -> None:
    layer = RedisChannelLayer(redis_url)
    async with layer.bus("worker", Recorder()) as later:
        formats = published()["formats"] | {"payloads": (9, 8, 9)}
        with redis.Redis.from_url(redis_url) as admin:
            assert admin.hkeys("asgibus:releases") == [later.mailbox.encode()]
            admin.hset("asgibus:releases", later.mailbox, pack({"release": "9.0", "formats": formats}))
        for process in (
            start_interface("--layer", redis_url, ready=False),
            start_worker(APP, "--layer", redis_url, ready=False),
        ):
            assert process.wait() == 1
            line = process.log().strip()
            assert "\n" not in line
            assert f"{later.mailbox} is of asgibus 9.0 and this process of asgibus {RELEASE}" in line
            assert f"payloads have version 9 there and {PAYLOAD.written} here. Upgrade this process" in line
        sender = RedisChannelLayer(redis_url)
        with pytest.raises(LayerUnavailable, match="do not understand each other"):
            await sender.group_send("group", {"type": "never.sent"})
        await sender.close()
    await layer.close()
    start_interface("--layer", redis_url)
    with redis.Redis.from_url(redis_url) as admin:
        assert admin.hlen("asgibus:releases") == 1


@pytest.mark.parametrize(
    "odd", [b"no msgpack", pack(5), pack({"formats": 5}), pack({"formats": {"keys": ("a", 1)}}), None]
)
async def test_odd_releases_keep_no_process_from_starting(
    start_interface: Callable[..., Process], redis_url: str, odd: bytes | None
) -> None:
    layer = RedisChannelLayer(redis_url)
    async with layer.bus("worker", Recorder()) as other:
        with redis.Redis.from_url(redis_url) as admin:
            if odd is None:
                admin.delete("asgibus:releases")
                admin.set("asgibus:releases", "no hash")
            else:
                admin.hset("asgibus:releases", mapping={other.mailbox: odd, "worker.gone!": odd})
            start_interface("--layer", redis_url)
            wait_until(lambda admin=admin: b"worker.gone!" not in admin.hgetall("asgibus:releases"))
    await layer.close()


async def test_frames_of_another_version_are_dropped_loudly(
    start_worker: Callable[..., Process], redis_url: str
) -> None:
    worker = start_worker(APP, "--layer", redis_url, "--admin-port", 0, env={"POOL": "served"})
    mailbox = worker.wait_for("mailbox (worker.*!)")[1]
    with redis.Redis.from_url(redis_url) as admin:
        for _ in range(5):
            admin.xadd(f"asgibus:mailbox:{mailbox}", {"b": pack((PAYLOAD.newest + 1, "interface.x!", "unknown", 1))})
    wait_until(lambda: counts(worker).get("foreign version") == 5)
    assert worker.log().count(f"payloads have version {PAYLOAD.newest + 1}") == 1
    assert "upgrade this process" in worker.log()


async def test_clients_that_no_worker_can_serve_get_an_answer(
    start_interface: Callable[..., Process],
    start_worker: Callable[..., Process],
    processes: Processes,
    redis_url: str,
) -> None:
    """A worker reads only later versions. A request gets 503, a handshake 503, and an open WebSocket 1013."""
    layer = ("--layer", redis_url)
    worker = start_worker("last_release.mixed_app:app", *layer, "--resume")
    interface = start_interface(*layer, "--connect-timeout", 0.5, "--resume-timeout", 0.5, "--admin-port", 0)
    command = [sys.executable, "-c", LATER_VERSION, "last_release.mixed_app:app", *layer]
    with ws(interface, "/echo") as socket:
        socket.send("served")
        assert socket.recv(30) == "served"
        later = processes.start("later", command, ready="worker ready: ")
        worker.terminate()
        assert worker.wait() == 0
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(30)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013
    with RawClient(interface) as client:
        assert client.request("GET", "/bytes?size=1").status == 503
    with pytest.raises(InvalidStatus) as denied:
        ws(interface, "/echo")
    assert denied.value.response.status_code == 503
    assert re.search(rf"have version {REQUEST_VERSION}, .* reads version 4: upgrade {INTERFACE}", later.log())
    assert counts(interface)["no worker"] == 3
