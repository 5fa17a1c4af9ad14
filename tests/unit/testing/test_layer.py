"""The layer of a virtual worker: an ordinary layer until the worker is killed."""

import asyncio
from typing import Any

import pytest

from asgibus.layers import ChannelLayer, InMemoryChannelLayer
from asgibus.testing import conformance
from asgibus.testing.layer import WorkerLayer
from support.bus import Recorder

pytestmark = pytest.mark.anyio


def make_layer(**options: Any) -> ChannelLayer:
    return WorkerLayer(InMemoryChannelLayer(**options))


@pytest.mark.parametrize(
    "check",
    [*conformance.CHECKS, *conformance.SERVER_CHECKS, *conformance.PRESENCE_CHECKS],
    ids=lambda check: check.__name__.removeprefix("check_"),
)
async def test_the_worker_layer_conforms(check: conformance.Check) -> None:
    await check(make_layer)


async def test_a_cut_layer_is_silent_and_cancels_its_calls() -> None:
    shared = InMemoryChannelLayer()
    layer = WorkerLayer(shared)
    mine, other = Recorder(), Recorder()
    async with shared.bus("interface", other) as interface, layer.bus("worker", mine) as worker:
        interface.post(worker.mailbox, (16, "on its way"))
        layer.cut()
        worker.post(interface.mailbox, (16, "final frame"))
        for call in (layer.send("channel", {}), layer.group_send("group", {}), layer.receive("channel")):
            with pytest.raises(asyncio.CancelledError):
                await call
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert other.dead == [worker.mailbox]
    assert (mine.frames, other.frames) == ([], [])
