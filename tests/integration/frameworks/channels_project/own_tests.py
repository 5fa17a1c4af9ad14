"""Tests such as a Channels project has: `WebsocketCommunicator` drives the consumers. Run as a program."""

import asyncio
import json

from channels.testing import WebsocketCommunicator

from .asgi import app  # isort: skip - models can be imported once Django is set up
from frameworks.django_project.models import Line  # isort: skip


async def joined(room, earlier):
    communicator = WebsocketCommunicator(app, f"/chat/{room}")
    connected, _ = await communicator.connect(timeout=5)
    assert connected
    assert json.loads(await communicator.receive_from(timeout=5)) == {"earlier": earlier}
    return communicator


async def test_two_in_a_room_and_one_in_another():
    first, second, other = await joined("red", []), await joined("red", []), await joined("blue", [])
    await first.send_to(text_data="hello")
    for each in (first, second):
        assert json.loads(await each.receive_from(timeout=5)) == {"line": "hello"}
    await second.send_to(bytes_data=b"\x00\xff")
    for each in (first, second):
        assert await each.receive_from(timeout=5) == b"\x00\xff"
    assert await other.receive_nothing()
    await second.disconnect(timeout=5)
    late = await joined("red", ["hello"])
    await first.send_to(text_data="again")
    for each in (first, late):
        assert json.loads(await each.receive_from(timeout=5)) == {"line": "again"}
    for each in (first, other, late):
        await each.disconnect(timeout=5)


async def test_a_full_channel_is_the_error_of_channels():
    one = await joined("green", [])
    await one.send_to(text_data="fill")
    assert json.loads(await one.receive_from(timeout=5)) == {"sent": 3}
    await one.disconnect(timeout=5)


async def test_the_errors_of_the_layer_itself():
    from channels import exceptions
    from channels.layers import get_channel_layer

    from asgibus.layers import ChannelFull, MessageTooLarge

    layer = get_channel_layer()
    assert (layer.expiry, layer.group_expiry, layer.capacity) == (30, 3600, 50)
    assert layer is get_channel_layer()
    for _ in range(3):
        await layer.send("small.x", {"type": "x"})
    for kind in (exceptions.ChannelFull, ChannelFull, layer.ChannelFull):
        try:
            await layer.send("small.x", {"type": "x"})
        except kind as error:
            assert str(error) == "channel 'small.x' is at its capacity of 3 messages"  # noqa: PT017 - without pytest
        else:
            raise AssertionError("it was taken")
    try:
        await layer.send("large", {"type": "x", "bytes": bytes(17 << 20)})
    except MessageTooLarge as error:
        assert isinstance(error, getattr(exceptions, "MessageTooLarge", MessageTooLarge))  # noqa: PT017 - likewise
    await layer.flush()


async def main():
    from channels.layers import get_channel_layer

    await test_two_in_a_room_and_one_in_another()
    await test_a_full_channel_is_the_error_of_channels()
    await test_the_errors_of_the_layer_itself()
    await get_channel_layer().close()


if __name__ == "__main__":
    Line.objects.filter(room__in=["red", "green", "blue"]).delete()
    asyncio.run(main())
    asyncio.run(test_a_full_channel_is_the_error_of_channels())  # and once more, in another event loop
    print("all is well")  # noqa: T201 - a program of tests says so
