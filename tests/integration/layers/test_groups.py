"""Groups and options on every layer, beyond the checks of `test_conformance`."""

import logging
import math
import re

import pytest

from support.bus import MakeLayer, until

pytestmark = pytest.mark.anyio


async def test_only_the_full_member_misses_a_broadcast(make_layer: MakeLayer, caplog: pytest.LogCaptureFixture) -> None:
    layer = make_layer(capacity=1)
    await layer.group_add("group", "full")
    await layer.group_add("group", "free")
    await layer.send("full", {"n": 0})
    with caplog.at_level(logging.INFO, logger="asgibus.layers"):
        await layer.group_send("group", {"n": 1})
    assert "1 of 2 channels over capacity in group group" in caplog.text
    assert await layer.receive("free") == {"n": 1}
    assert await layer.receive("full") == {"n": 0}


async def test_log_lines_about_full_members_are_throttled(
    make_layer: MakeLayer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgibus.layers.over_capacity.SUMMARY_SECONDS", 0.5)
    layer = make_layer(capacity=1)
    for member in ("a", "b"):
        await layer.group_add("group", member)
    with caplog.at_level(logging.INFO, logger="asgibus.layers"):
        for number in range(51):
            await layer.group_send("group", {"n": number})
        assert layer.counts["channel full"] == 100
        assert caplog.messages[0] == "2 of 2 channels over capacity in group group"

        def count_missed() -> int:
            """Return how many messages the log reports as missed."""
            log = "\n".join(caplog.messages)
            summaries = re.findall(r"which missed (\d+) messages", log)
            return 2 * log.count("2 of 2 channels over capacity") + sum(map(int, summaries))

        await until(lambda: count_missed() == 100)
        assert len(caplog.messages) < 20  # fewer than the broadcasts, also on a slow machine
        await layer.group_send("group", {"n": 51})
        await until(lambda: count_missed() == 102)


async def test_layers_have_the_attributes_of_channels_redis(make_layer: MakeLayer) -> None:
    layer, other = make_layer(channel_capacity={"chat.*": 7}), make_layer()
    name = await layer.new_channel("chat")
    assert name.startswith(f"chat.{layer.client_prefix}!")
    assert layer.client_prefix != other.client_prefix
    with pytest.raises(AssertionError):
        await other.receive(name)
    channel = f"specific.{layer.client_prefix}!made-up"
    await layer.send(channel, {"n": 1})
    assert await layer.receive(channel) == {"n": 1}
    assert (layer.get_capacity(name), layer.get_capacity("b")) == (7, layer.capacity)
    assert layer.valid_channel_name(name, receive=True)
    assert layer.valid_group_name("group")
    for call in (layer.valid_channel_name, layer.valid_group_name):
        with pytest.raises(TypeError):
            call("not a name")
    await layer.close_pools()
    await layer.send("a", {"n": 2})
    assert await layer.receive("a") == {"n": 2}


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
