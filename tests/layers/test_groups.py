"""Groups, on every layer: what is said in the log. What they do is checked in `test_conformance`."""

import logging

import pytest

from support.bus import MakeLayer

pytestmark = pytest.mark.anyio


async def test_a_full_member_misses_it_and_the_others_do_not(
    make_layer: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    layer = make_layer(capacity=1)
    await layer.group_add("group", "full")
    await layer.group_add("group", "free")
    await layer.send("full", {"n": 0})
    with caplog.at_level(logging.WARNING, logger="asgibus.layers"):
        await layer.group_send("group", {"n": 1})
    assert "group 'group': 1 of 2 members were full" in caplog.text
    assert await layer.receive("free") == {"n": 1}
    assert await layer.receive("full") == {"n": 0}
