"""Presence in memory and in Redis is alike: hypothesis generates changes at two servers, and compares what is told."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pytest
from hypothesis import Phase, example, given, settings

from asgibus.layers import ChannelLayer, InMemoryChannelLayer, RedisChannelLayer
from asgibus.layers.contract import Bus, Handler
from asgibus.layers.presence import Announcements, Present
from support.deadline import HANG

GROUPS = ("g", "h")
JOIN = {"type": "websocket.send", "text": "+{user} {info} {count}"}
LEAVE = {"type": "websocket.send", "text": "-{user} {info} {count}"}


class Change(NamedTuple):
    """A change at one of two servers."""

    server: int
    group: str
    kind: str
    user: str
    """Also the number of a connection with a will."""
    number: int
    """The number of connections of the user, or the number of users above which nothing is told."""


CHANGES = st.lists(
    st.builds(
        Change,
        st.integers(0, 1),
        st.sampled_from("gggh"),
        st.sampled_from(["show"] * 4 + ["hide"] * 3 + ["announce"] * 2 + ["set", "clear", "execute", "restart"]),
        st.sampled_from("112"),
        st.integers(0, 2),
    ),
    min_size=15,
    max_size=50,
)

FORGOTTEN = [
    Change(0, "g", "announce", "1", 2),
    Change(1, "g", "show", "2", 1),
    Change(0, "g", "hide", "1", 0),
    Change(0, "g", "show", "1", 1),
]
"""A server forgets the events of a group when its last user has left, though another server has users."""


class World:
    """A layer with two servers, and a channel that is a member of all groups."""

    def __init__(self, layer: ChannelLayer, stack: AsyncExitStack) -> None:
        self.layer = layer
        self.stack = stack
        self.servers: list[tuple[AsyncExitStack, Bus]] = []

    async def begin(self) -> None:
        self.member = await self.layer.new_channel()
        for group in GROUPS:
            await self.layer.group_add(group, self.member)
        for _ in range(2):
            self.servers.append(await self.start())

    async def start(self) -> tuple[AsyncExitStack, Bus]:
        server = await self.stack.enter_async_context(AsyncExitStack())
        return server, await server.enter_async_context(self.layer.bus("interface", Handler()))

    async def apply(self, change: Change) -> list[str]:
        """Make a change. Return the texts that the member has got."""
        server, bus = self.servers[change.server]
        stored: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        presence, group, connection = bus.presence, change.group, int(change.user)
        if change.kind == "announce":
            join, leave = [(JOIN, None), (None, LEAVE), (JOIN, LEAVE)][change.number]
            presence.announce(group, Announcements(join, leave, 1 + connection))
        if change.kind in ("show", "announce"):
            present = Present(change.user, change.number, change.server, change.number)
            presence.show(group, present, stored.set_result, join={"more": 1})
        elif change.kind == "set":
            presence.set_will(connection, group, {"text": f"will {change}"}, stored.set_result)
        else:
            stored.set_result(None)
            if change.kind == "hide":
                presence.hide(group, change.user)
            elif change.kind == "clear":
                presence.clear_will(connection)
            elif change.kind == "execute":
                presence.execute_will(connection)
            else:
                await server.aclose()
                self.servers[change.server] = await self.start()
        assert await asyncio.wait_for(stored, HANG) is None
        await self.servers[change.server][1].presence.settle()
        return await self.heard(any_order=change.kind == "restart")

    async def heard(self, *, any_order: bool) -> list[str]:
        await self.layer.send(self.member, {"text": ""})
        texts: list[str] = []
        while text := (await asyncio.wait_for(self.layer.receive(self.member), HANG))["text"]:
            texts.append(text.rpartition(" ")[0] if any_order and text[0] == "-" else text)
        return sorted(texts) if any_order else texts

    async def state(self) -> Any:
        """Return who is where."""
        found = []
        for group in GROUPS:
            page = await self.layer.present(group)
            found.append((sorted(page.users), tuple(await self.layer.present_count(group))))
        return found


@pytest.mark.redis
def test_presence_in_memory_and_in_redis_agrees(redis_url: str) -> None:
    async def compare(changes: list[Change]) -> None:
        store = RedisChannelLayer(redis_url)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(store.close)
            worlds = [World(InMemoryChannelLayer(), stack), World(store, stack)]
            for world in worlds:
                await world.begin()
            for number, change in enumerate(changes):
                expected, told = [await world.apply(change) for world in worlds]
                assert told == expected, changes[: number + 1]
                expected, told = [await world.state() for world in worlds]
                assert told == expected, changes[: number + 1]

    @settings(phases=(Phase.explicit, Phase.generate))
    @example(FORGOTTEN)
    @given(CHANGES)
    def run(changes: list[Change]) -> None:
        asyncio.run(compare(changes))

    run()
