"""Fixtures that run a test on each layer: in memory, in Redis, and in Redis with encryption."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis

from asgibus.layers import ChannelLayer, InMemoryChannelLayer, RedisChannelLayer
from asgibus.layers.redis import heartbeat, redelivery
from support import lease_times
from support.bus import MakeLayer


@pytest.fixture
def admin(redis_url: str) -> Iterator["redis.Redis[bytes]"]:
    """Provide a client of the Redis of this test, to look at it and to change it."""
    with redis.Redis.from_url(redis_url, protocol=2, socket_timeout=30) as client:
        yield client


@pytest.fixture
def short_leases(short_leases: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the leases of this process too."""
    lease_times.shorten(monkeypatch.setattr)


@pytest.fixture
def regroup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the wait for the others after a loss of data; for tests whose processes are all in this one."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.3)
    monkeypatch.setattr(redelivery, "REGROUP_SECONDS", 1.2)


@pytest.fixture(params=["memory", *(pytest.param(kind, marks=pytest.mark.redis) for kind in ("redis", "redis sealed"))])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param != "memory":
        request.getfixturevalue("redis_url")
    return str(request.param)


@pytest.fixture
def new_layer(request: pytest.FixtureRequest, kind: str) -> MakeLayer:
    """Provide a layer that the test closes itself."""

    def new(**options: Any) -> ChannelLayer:
        if kind == "memory":
            return InMemoryChannelLayer(**options)
        keys = ["new", "old"] if kind == "redis sealed" else []
        return RedisChannelLayer(request.getfixturevalue("redis_url"), symmetric_encryption_keys=keys, **options)

    return new


@pytest.fixture
async def make_layer(new_layer: MakeLayer) -> AsyncIterator[MakeLayer]:
    """Provide a layer that is closed at the end of the test."""
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
