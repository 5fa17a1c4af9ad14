"""Groups and options on every layer, beyond what is checked in `test_conformance`."""

import logging
import math

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


async def test_a_membership_may_be_shorter_than_a_second(make_layer: MakeLayer) -> None:
    layer = make_layer(group_expiry=0.4)
    await layer.group_add("group", "a")
    await layer.group_send("group", {"n": 1})
    assert await layer.receive("a") == {"n": 1}


@pytest.mark.parametrize("option", ["expiry", "group_expiry", "capacity"])
def test_options_are_numbers_above_0(new_layer: MakeLayer, option: str) -> None:
    for bad in (0, -1, True, "60", None):
        with pytest.raises(ValueError, match=f"a channel layer's {option} is a number above 0"):
            new_layer(**{option: bad})
    with pytest.raises(ValueError, match="channel_capacity of"):
        new_layer(channel_capacity={"a.*": 0})


@pytest.mark.parametrize("option", ["expiry", "group_expiry"])
def test_times_are_at_most_ten_years(new_layer: MakeLayer, option: str) -> None:
    for bad in (1e15, math.inf):
        with pytest.raises(ValueError, match=f"a channel layer's {option} is at most 315360000 seconds"):
            new_layer(**{option: bad})
