"""Tools of the checks: layers over the store, and expectations that describe a failure.

`assert` is not used, because `python -O` leaves it out.
"""

from __future__ import annotations

import asyncio
import reprlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any, Protocol, TypeVar

from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.contract import Message
from asgibus.layers.errors import ChannelFull
from asgibus.layers.settings import CAPACITY, EXPIRY_SECONDS, GROUP_EXPIRY_SECONDS, Pattern

T = TypeVar("T")
E = TypeVar("E", bound=Exception)

PATIENCE_SECONDS = 10.0  # for messages that arrive within milliseconds on an idle machine
SILENCE_SECONDS = 0.1  # in which earlier messages would have arrived
SLOWER = 5.0  # factor for the second try of a check that depends on times


class LayerFactory(Protocol):
    """Makes layer objects over one store, if the store can be shared. The check closes them."""

    def __call__(
        self,
        *,
        expiry: float = EXPIRY_SECONDS,
        group_expiry: float = GROUP_EXPIRY_SECONDS,
        capacity: int = CAPACITY,
        channel_capacity: Mapping[Pattern, int] | None = None,
    ) -> ChannelLayer: ...


def by_the_clock(
    check: Callable[[LayerFactory, float], Awaitable[None]],
) -> Callable[[LayerFactory], Awaitable[None]]:
    """Repeat a check that failed once, slower: a machine that stops for a moment must not fail a good layer.

    Args:
        check: Gets the layer factory and the length of a second, by which it has to count.
    """

    @wraps(check)
    async def patient(make_layer: LayerFactory) -> None:
        try:
            await check(make_layer, 0.5)
        except AssertionError:
            await check(make_layer, SLOWER)

    return patient


@asynccontextmanager
async def another_layer(make_layer: LayerFactory, **options: Any) -> AsyncIterator[ChannelLayer]:
    """Yield a layer over the store, and close it at the end."""
    layer = make_layer(**options)
    try:
        yield layer
    finally:
        await layer.close()


@asynccontextmanager
async def fresh_layer(make_layer: LayerFactory, **options: Any) -> AsyncIterator[ChannelLayer]:
    """Yield a layer over the store, without any messages or groups, and close it at the end."""
    async with another_layer(make_layer, **options) as layer:
        await layer.flush()
        yield layer


async def both_kinds(layer: ChannelLayer) -> tuple[str, str]:
    """Return an ordinary channel and a process-local one."""
    return "some.channel", await layer.new_channel()


def expect(condition: object, message: str) -> None:
    """Raise AssertionError with this message unless the condition is true."""
    if not condition:
        raise AssertionError(message)


def expect_equal(got: object, expected: object, what: str) -> None:
    """Raise AssertionError unless both are equal. Its text shows how they begin."""
    expect(got == expected, f"{what}: expected {_SHORT.repr(expected)}, got {_SHORT.repr(got)}")


async def expect_error(kind: type[E], call: Awaitable[object], what: str) -> E:
    """Return the error of this kind that the call raises. Raises AssertionError if there is none."""
    try:
        await within(call, what)
    except kind as error:
        return error
    raise AssertionError(f"{what}: {kind.__name__} was expected, and nothing was raised")


async def expect_silence(layer: ChannelLayer, channel: str) -> None:
    """Raise AssertionError if a message can be received from the channel."""
    try:
        async with asyncio.timeout(SILENCE_SECONDS):
            message = await layer.receive(channel)
    except TimeoutError:
        return
    raise AssertionError(f"nothing was expected from {channel}, and {_SHORT.repr(message)} came")


async def within(call: Awaitable[T], what: str, seconds: float = PATIENCE_SECONDS) -> T:
    """Return the result of the call. Raises AssertionError if it takes too long."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await call
    except TimeoutError:
        if limit.expired():
            raise AssertionError(f"{what}: nothing for {seconds:g} s") from None
        raise


async def receive(layer: ChannelLayer, channel: str) -> Message:
    """Return the next message of a channel. Raises AssertionError without one."""
    return await within(layer.receive(channel), f"a message was expected from {channel}", PATIENCE_SECONDS)


async def receive_all(layer: ChannelLayer, channel: str, number: int) -> list[Message]:
    """Return the next messages of a channel. Raises AssertionError if there are fewer."""
    return [await receive(layer, channel) for _ in range(number)]


async def send_when_there_is_room(layer: ChannelLayer, channel: str, message: Message) -> None:
    """Send a message, and retry while the channel is full."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                return await layer.send(channel, message)
            except ChannelFull:
                await asyncio.sleep(0.001)


async def refused(
    layer: ChannelLayer, channel: str, message: Message, maker: ChannelLayer | None = None
) -> ChannelFull:
    """Return the error of a send to a full channel.

    A sender may learn late that a process-local channel is full. Messages that it sends until then have to be dropped,
    and counted by the layer that has made the channel, which is `maker` if that is another layer.

    Raises:
        AssertionError: The channel takes too many messages.
    """
    before = (await (maker or layer).channel_statistics(channel))["channel_full_count"]
    dropped = 0
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                await layer.send(channel, message)
            except ChannelFull as error:
                full = error
                break
            dropped += 1
            expect("!" in channel, f"the full {channel} took a message")
            await asyncio.sleep(0.001)
    await count_dropped(maker or layer, channel, before + dropped)
    return full


async def count_dropped(layer: ChannelLayer, channel: str, number: int) -> None:
    """Wait until a channel has dropped or refused so many messages."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await layer.channel_statistics(channel))["channel_full_count"] < number:  # noqa: ASYNC110  # no event
            await asyncio.sleep(0.001)


async def until(condition: Callable[[], T], seconds: float = PATIENCE_SECONDS, what: str = "the condition") -> T:
    """Poll every 2 ms until the condition is true, and return it. Raises AssertionError after `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not (answer := condition()):
        expect(asyncio.get_running_loop().time() < deadline, f"{what} did not come true within {seconds:g} s")
        await asyncio.sleep(0.002)
    return answer


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = 20
