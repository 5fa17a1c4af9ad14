"""Servers of another version on the same bus."""

from collections.abc import Callable

import pytest

from asgibus.layers import RedisChannelLayer
from asgibus.protocol.channels import shared_channel
from asgibus.protocol.connect_request import HTTP, REQUEST_VERSION
from support.admin import counts, readiness
from support.bus import Recorder, until
from support.processes import Process
from support.raw import RawClient

pytestmark = pytest.mark.anyio

APP = "end_to_end.pool_app:app"
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
    assert f"where version {REQUEST_VERSION} is understood" in readiness(worker)[1]
    assert worker.log().count("claims next to nothing") == 1
    assert counts(worker)["foreign version"] >= 1
    with RawClient(start_interface("--layer", redis_url)) as client:
        assert client.request("GET", "/").body == b"served"  # the next attempt reads a valid version
    assert readiness(worker) == (200, "ready\n")
