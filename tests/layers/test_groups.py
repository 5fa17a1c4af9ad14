"""Groups, on every layer."""

import asyncio
import logging
from typing import Any

import pytest

from asgibus.layers import ChannelLayer
from support.bus import MakeLayer

pytestmark = pytest.mark.anyio


async def test_every_member_gets_a_copy_once(layer: ChannelLayer) -> None:
    local, other = await layer.new_channel(), await layer.new_channel()
    members = ["a", "b", local, other]
    for member in [*members, "a", local]:
        await layer.group_add("group", member)
    await layer.group_send("group", {"list": [1]})
    received = [await layer.receive(member) for member in members]
    assert received == [{"list": [1]}] * 4
    received[0]["list"].append(2)
    assert received[1:] == [{"list": [1]}] * 3
    await layer.group_send("group", {"last": True})
    assert [await layer.receive(member) for member in members] == [{"last": True}] * 4


async def test_who_is_no_member_gets_nothing(layer: ChannelLayer) -> None:
    local = await layer.new_channel()
    for member in ("a", local):
        await layer.group_add("group", member)
        await layer.group_discard("group", member)
        await layer.group_discard("group", member)
    await layer.group_add("other", local)
    await layer.group_send("group", {"n": 1})
    await layer.group_send("nobody", {"n": 1})
    for member in ("a", local):
        await layer.send(member, {"n": 2})
        assert await layer.receive(member) == {"n": 2}


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


async def test_a_membership_ends(make_layer: MakeLayer) -> None:
    layer = make_layer(group_expiry=1)
    await layer.group_add("group", "old")
    await asyncio.sleep(0.6)  # by the clock of the store, which a test cannot turn
    await layer.group_add("group", "new")  # which keeps the group, but not the other member
    await asyncio.sleep(0.6)  # likewise
    await layer.group_send("group", {"n": 1})
    assert await layer.receive("new") == {"n": 1}
    await layer.send("old", {"n": 2})
    assert await layer.receive("old") == {"n": 2}


@pytest.mark.parametrize("name", ["", "a\n", "a b", "a!b", "\u00e9", "x" * 101, None])
async def test_bad_group_names_are_refused(layer: ChannelLayer, name: Any) -> None:
    with pytest.raises(TypeError, match="group names"):
        await layer.group_add(name, "a")
    with pytest.raises(TypeError, match="group names"):
        await layer.group_discard(name, "a")
    with pytest.raises(TypeError, match="group names"):
        await layer.group_send(name, {})
