"""Check the names of channels and groups."""

from __future__ import annotations

import string
from typing import Any

from asgibus.layers.names import MAX_NAME_LENGTH
from asgibus.testing.conformance.tools import (
    LayerFactory,
    another_layer,
    expect,
    expect_equal,
    expect_error,
    fresh_layer,
    receive,
)

LONGEST = "x" * MAX_NAME_LENGTH
CHARACTERS = string.ascii_letters + string.digits + ".-_"
GOOD = [*CHARACTERS, "..", "--", "-1", "00", "_a.B-c_", "a.", ".a", LONGEST, LONGEST[:-1] + "-"]
BAD: list[Any] = [
    *("", "a\n", "\na", "a b", "a:b", "a/b", "a*", "a{b}", "\u00e9", "\u0661", "a\x00", LONGEST + "x", None, b"a", 1)
]


async def check_every_legal_name_is_a_channel_and_a_group(make_layer: LayerFactory) -> None:
    """Check each character, alone and in odd places, the longest name, and that different names never collide."""
    async with fresh_layer(make_layer) as layer:
        for name in GOOD:
            await layer.send(name, {"to": name})
            await layer.group_add(name, name)
        for name in GOOD:
            await layer.group_send(name, {"group": name})
        for name in GOOD:
            expect_equal(await receive(layer, name), {"to": name}, f"message of channel {name!r}")
            expect_equal(await receive(layer, name), {"group": name}, f"message of group {name!r}")
            await layer.group_discard(name, name)


async def check_new_channels_differ_and_begin_with_their_prefix(make_layer: LayerFactory) -> None:
    """Check that a message goes to the channel that it was sent to, too."""
    async with fresh_layer(make_layer) as layer:
        names = []
        for prefix in ("specific", "chat.x", "-", "_._", "x" * 50):
            new = [await layer.new_channel(prefix) for _ in range(5)]
            expect(all(name.startswith(prefix + ".") for name in new), f"{new} do not begin with {prefix!r}")
            names += new
        default = await layer.new_channel()
        expect(default.startswith("specific."), f"{default} does not begin with 'specific.'")
        names.append(default)
        expect(all(name.count("!") == 1 and len(name) <= MAX_NAME_LENGTH for name in names), f"bad names: {names}")
        expect_equal(len(set(names)), len(names), "different names")
        for name in names:
            await layer.send(name, {"to": name})
        for name in reversed(names):
            expect_equal(await receive(layer, name), {"to": name}, f"message of {name}")


async def check_bad_channel_names_are_refused(make_layer: LayerFactory) -> None:
    """Check for TypeError that states the rule. `a!` may be a member of a group: it is a mailbox."""
    async with fresh_layer(make_layer) as layer:
        for name in [*BAD, "!", "!a", "a!b!c", "a!"]:
            calls = [layer.send(name, {}), layer.receive(name), layer.channel_statistics(name)]
            if name != "a!":
                calls += [layer.group_add("group", name), layer.group_discard("group", name)]
            for call in calls:
                error = await expect_error(TypeError, call, f"a call with the channel name {name!r}")
                expect("channel" in str(error), f"the error for {name!r} does not say the rule: {error}")


async def check_bad_group_names_are_refused(make_layer: LayerFactory) -> None:
    """Check for TypeError that states the rule."""
    async with fresh_layer(make_layer) as layer:
        for name in [*BAD, "!", "a!", "a!b"]:
            for call in (layer.group_add(name, "a"), layer.group_discard(name, "a"), layer.group_send(name, {})):
                error = await expect_error(TypeError, call, f"a call with the group name {name!r}")
                expect("group names" in str(error), f"the error for {name!r} does not say the rule: {error}")


async def check_bad_prefixes_are_refused(make_layer: LayerFactory) -> None:
    """Check for TypeError, also for a prefix that leaves no room within the longest name."""
    async with fresh_layer(make_layer) as layer:
        for prefix in [*BAD, "a!", "a!b", LONGEST]:
            await expect_error(TypeError, layer.new_channel(prefix), f"new_channel({prefix!r})")


async def check_only_the_owner_receives_from_a_local_channel(make_layer: LayerFactory) -> None:
    """Check that others get TypeError: they would wait for ever."""
    async with fresh_layer(make_layer) as layer, another_layer(make_layer) as other:
        error = await expect_error(TypeError, other.receive(await layer.new_channel()), "receive by another layer")
        expect("was made by another" in str(error), f"the error does not say why: {error}")


async def check_messages_to_an_ended_process_are_dropped(make_layer: LayerFactory) -> None:
    """Check that this is no error: the sender cannot know."""
    async with fresh_layer(make_layer) as layer:
        await layer.send("specific.0000000000000000!1", {"n": 1})
        await layer.group_add("group", "specific.0000000000000000!1")
        await layer.group_add("group", "a")
        await layer.group_send("group", {"n": 2})
        expect_equal(await receive(layer, "a"), {"n": 2}, "message of a member beside one that is gone")


CHECKS = (
    check_every_legal_name_is_a_channel_and_a_group,
    check_new_channels_differ_and_begin_with_their_prefix,
    check_bad_channel_names_are_refused,
    check_bad_group_names_are_refused,
    check_bad_prefixes_are_refused,
    check_only_the_owner_receives_from_a_local_channel,
    check_messages_to_an_ended_process_are_dropped,
)
