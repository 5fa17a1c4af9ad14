"""One suite for every layer: `make_layer` makes the memory layer in one run of a test, the Redis layer in
the next, and the Redis layer with encryption in the last.

fakeredis does not stand in for Redis here, only for the scripts (`test_redis_scripts.py`): the blocking reads of its
server cannot be ended. Without a real Redis half of the suite is skipped, and said to be.
"""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from asgibus.layers import ChannelLayer, InMemoryChannelLayer, RedisChannelLayer
from support.bus import MakeLayer


@pytest.fixture(params=["memory", *(pytest.param(kind, marks=pytest.mark.redis) for kind in ("redis", "redis sealed"))])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param != "memory":
        request.getfixturevalue("redis_url")
    return str(request.param)


@pytest.fixture
def new_layer(request: pytest.FixtureRequest, kind: str) -> MakeLayer:
    """A layer that the test closes itself."""

    def new(**options: Any) -> ChannelLayer:
        if kind == "memory":
            return InMemoryChannelLayer(**options)
        keys = ["new", "old"] if kind == "redis sealed" else []
        return RedisChannelLayer(request.getfixturevalue("redis_url"), symmetric_encryption_keys=keys, **options)

    return new


@pytest.fixture
async def make_layer(new_layer: MakeLayer) -> AsyncIterator[MakeLayer]:
    """A layer that is closed at the end of the test."""
    made: list[ChannelLayer] = []

    def make(**options: Any) -> ChannelLayer:
        made.append(new_layer(**options))
        return made[-1]

    yield make
    for layer in made:
        await layer.close()


@pytest.fixture
def layer(make_layer: MakeLayer) -> ChannelLayer:
    return make_layer()
