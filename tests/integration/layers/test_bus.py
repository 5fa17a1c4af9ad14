"""The servers' half of the contract, on every layer, beyond the checks of `test_conformance`."""

import asyncio

import pytest

from asgibus.layers.redis import heartbeat
from support.bus import MakeLayer, Recorder, until

pytestmark = pytest.mark.anyio


async def test_memberships_of_a_live_bus_are_renewed(make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.1)
    layer, reader = make_layer(group_expiry=1), Recorder()
    async with layer.bus("a", reader) as a:
        await a.join_group("group")
        await asyncio.sleep(1.3)  # by the clock of the store, which a test cannot set
        await layer.group_send("group", {"n": 1})
        await until(lambda: reader.frames)
