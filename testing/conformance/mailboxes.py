"""Check mailboxes: frames, messages and broadcasts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.contract import Frame
from asgibus.layers.frames import FIRST_PROTOCOL_KIND, GROUP_MESSAGE, MESSAGE
from asgibus.testing.conformance.recorder import Recorder
from asgibus.testing.conformance.tools import (
    LayerFactory,
    another_layer,
    expect,
    expect_equal,
    expect_error,
    fresh_layer,
    until,
    within,
)

KIND = FIRST_PROTOCOL_KIND


async def check_frames_arrive_in_the_order_of_their_posting(make_layer: LayerFactory) -> None:
    """Check the order in each mailbox, and that frames of one turn of the event loop arrive together."""
    readers = [Recorder(), Recorder()]
    async with (
        fresh_layer(make_layer) as layer,
        layer.bus("a", readers[0]) as a,
        layer.bus("b", readers[1]) as b,
        layer.bus("c", Recorder()) as c,
    ):
        for number in range(300):
            c.post(a.mailbox, (KIND, number, b"bytes", "str"), 100)
            c.post(b.mailbox, (KIND, -number, None, (1, (2,))))
            if number % 50 == 0:
                await asyncio.sleep(0)
        await until(lambda: all(len(reader.frames) == 300 for reader in readers), what="the arrival of 600 frames")
        expect_equal(readers[0].frames, [(KIND, number, b"bytes", "str") for number in range(300)], "frames of a")
        expect_equal(readers[1].frames, [(KIND, -number, None, (1, (2,))) for number in range(300)], "frames of b")
        senders = {sender for reader in readers for sender, _ in reader.batches}
        expect_equal(senders, {c.mailbox}, "senders")
        expect(len(readers[0].batches) < 20, f"300 frames came in {len(readers[0].batches)} batches")


async def check_no_batch_is_empty(make_layer: LayerFactory) -> None:
    """Check that a handler is called with at least one frame.

    A store may still list leases that ended before this layer was opened, and a bus announces those, too.
    """

    class Counting(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.sizes: list[int] = []

        def batch(self, sender: str, frames: Sequence[Frame]) -> None:
            self.sizes.append(len(frames))
            super().batch(sender, frames)

    reader = Counting()
    async with fresh_layer(make_layer) as layer, layer.bus("a", reader) as a:
        a.post(a.mailbox, (KIND, 1))
        await within(a.posted(), "posted")
        await until(lambda: reader.frames, what="the arrival of a frame")
        expect(all(reader.sizes), f"batches of {reader.sizes} frames arrived")
        expect_equal(reader.frames, [(KIND, 1)], "frames")


async def check_frames_name_their_sender(make_layer: LayerFactory) -> None:
    """Check that frames name their sender and keep its order, also in the mailbox of the sender."""
    reader = Recorder()
    async with (
        fresh_layer(make_layer) as layer,
        layer.bus("a", reader) as a,
        layer.bus("b", Recorder()) as b,
        layer.bus("b", Recorder()) as c,
    ):
        for number in range(20):
            b.post(a.mailbox, (KIND, "b", number))
            c.post(a.mailbox, (KIND, "c", number))
            a.post(a.mailbox, (KIND, "a", number))
        await until(lambda: len(reader.frames) == 60, what="the arrival of 60 frames")
        for bus, name in ((a, "a"), (b, "b"), (c, "c")):
            frames = [frame for sender, frames in reader.batches if sender == bus.mailbox for frame in frames]
            expect_equal(frames, [(KIND, name, number) for number in range(20)], f"frames of {name}")


async def check_large_frames_arrive(make_layer: LayerFactory) -> None:
    """Check 4 MiB in flight."""
    reader = Recorder()
    part = bytes(64 * 1024)
    async with fresh_layer(make_layer) as layer, layer.bus("a", reader) as a, layer.bus("b", Recorder()) as b:
        for number in range(64):
            b.post(a.mailbox, (KIND, number, part), len(part))
        await until(lambda: len(reader.frames) == 64, what="the arrival of 64 frames")
        expect_equal([frame[1] for frame in reader.frames], list(range(64)), "the order of the frames")
        expect(all(frame[2] == part for frame in reader.frames), "a large frame came as another one")


async def check_posting_to_a_missing_mailbox_is_reported(make_layer: LayerFactory) -> None:
    """Check that the handler of the sender is called once, with the mailbox."""
    sender, reader = Recorder(), Recorder()
    async with fresh_layer(make_layer) as layer, layer.bus("b", sender) as b:
        async with layer.bus("a", reader) as a:
            gone = a.mailbox
            b.post(gone, (KIND, 1))
            await until(lambda: reader.frames, what="the arrival of a frame")
        b.post(gone, (KIND, 2))
        await until(lambda: sender.lost, what="that the frame was said to be lost")
        expect_equal(sender.lost, [gone], "mailboxes that were said to be gone")
        expect_equal(sender.frames, [], "frames of the sender")


async def check_messages_reach_local_channels_of_a_mailbox(make_layer: LayerFactory) -> None:
    """Check `send` and `group_send` to a process-local channel of a mailbox."""
    async with fresh_layer(make_layer) as layer:
        await _send_to_local_channel(layer, layer)


async def check_messages_of_another_layer_reach_local_channels_of_a_mailbox(make_layer: LayerFactory) -> None:
    """Check this from another layer object."""
    async with fresh_layer(make_layer) as layer, another_layer(make_layer) as other:
        await _send_to_local_channel(layer, other)


async def _send_to_local_channel(layer: ChannelLayer, other: ChannelLayer) -> None:
    reader = Recorder()
    async with layer.bus("a", reader) as a:
        await other.send(a.mailbox + "17", {"type": "x", "list": [1], "bytes": b"b"})
        await other.group_add("group", a.mailbox + "18")
        await other.group_send("group", {"n": 1})
        await until(lambda: len(reader.frames) == 2, what="the arrival of two messages")
        (first, second) = reader.frames
        expect_equal(first[:2], (MESSAGE, "17"), "the first frame")
        expect_equal((first[2]["type"], list(first[2]["list"]), first[2]["bytes"]), ("x", [1], b"b"), "its message")
        expect_equal(second, (MESSAGE, "18", {"n": 1}), "the second frame")
        expect_equal({sender for sender, _ in reader.batches}, {""}, "senders")


async def check_drain_waits_until_all_frames_are_delivered(make_layer: LayerFactory) -> None:
    """Check that drain can be called again, too."""
    reader = Recorder()
    async with fresh_layer(make_layer) as layer, layer.bus("a", reader) as a, layer.bus("b", Recorder()) as b:
        for number in range(100):
            b.post(a.mailbox, (KIND, number))
        await within(b.drain(), "drain")
        await within(b.drain(), "drain")
        await until(lambda: len(reader.frames) == 100, what="the arrival of 100 frames")


async def check_frames_posted_last_arrive(make_layer: LayerFactory) -> None:
    """Check frames that are posted just before the sender closes its mailbox."""
    reader = Recorder()
    async with fresh_layer(make_layer) as layer, layer.bus("a", reader) as a:
        async with layer.bus("b", Recorder()) as b:
            b.post(a.mailbox, (KIND, "last"))
            await within(b.drain(), "drain")
        await until(lambda: reader.frames, what="the arrival of the last frame")


async def check_a_broadcast_reaches_each_mailbox_once(make_layer: LayerFactory) -> None:
    """Check the mailboxes that are members of the group, and no others."""
    readers = [Recorder() for _ in range(3)]
    async with (
        fresh_layer(make_layer) as layer,
        layer.bus("a", readers[0]) as a,
        layer.bus("b", readers[1]) as b,
        layer.bus("c", readers[2]) as c,
    ):
        await a.join_group("group")
        await a.join_group("group")
        await b.join_group("group")
        await layer.group_send("group", {"n": 1})
        await b.leave_group("group")
        await b.leave_group("group")
        await layer.group_send("group", {"n": 2})
        last = (KIND, "last")
        for bus in (a, b, c):
            a.post(bus.mailbox, last)
        await until(
            lambda: all(reader.frames and reader.frames[-1] == last for reader in readers),
            what="the arrival of the last frames",
        )
        one, two = (GROUP_MESSAGE, "group", {"n": 1}), (GROUP_MESSAGE, "group", {"n": 2})
        received = [reader.frames[:-1] for reader in readers]
        expect_equal(
            received, [[one, two], [one], []], "frames of two members, one of which left, and of another mailbox"
        )


async def check_join_group_refuses_bad_names(make_layer: LayerFactory) -> None:
    """Check that join_group and leave_group raise TypeError."""
    async with fresh_layer(make_layer) as layer, layer.bus("a", Recorder()) as a:
        for name in ("a\n", "", "a!b"):
            await expect_error(TypeError, a.join_group(name), f"join_group({name!r})")
            await expect_error(TypeError, a.leave_group(name), f"leave_group({name!r})")


CHECKS = (
    check_frames_arrive_in_the_order_of_their_posting,
    check_no_batch_is_empty,
    check_frames_name_their_sender,
    check_large_frames_arrive,
    check_posting_to_a_missing_mailbox_is_reported,
    check_messages_reach_local_channels_of_a_mailbox,
    check_drain_waits_until_all_frames_are_delivered,
    check_frames_posted_last_arrive,
    check_a_broadcast_reaches_each_mailbox_once,
    check_join_group_refuses_bad_names,
)
SHARED_CHECKS = (check_messages_of_another_layer_reach_local_channels_of_a_mailbox,)
