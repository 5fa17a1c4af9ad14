"""Every check of `asgibus.testing.conformance`, on the memory layer and on Redis in every topology."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asgibus.layers import InMemoryChannelLayer, RedisChannelLayer
from asgibus.testing import conformance
from asgibus.testing.conformance import (
    CHECKS,
    PRESENCE_CHECKS,
    SERVER_CHECKS,
    SHARED_CHECKS,
    SHARED_SERVER_CHECKS,
    SHARED_STREAM_CHECKS,
    STREAM_CHECKS,
    Check,
    LayerFactory,
)
from support import redis as redis_support
from support.topologies import TOPOLOGIES, redis_binary

pytestmark = pytest.mark.anyio

SEALED = "redis, sealed"
SEVERAL_STORES = ("three shards", "cluster")
"""Stores that run every check as well: a layer sends other commands there, or to other servers."""

TRANSPORTS = (SEALED, "unix socket", "tls and user", "sentinel", "valkey")
"""Stores that run a few checks: only the connection to Redis differs, or the encoding of entries."""

SMOKE = (
    "messages_keep_their_order",
    "messages_of_many_sizes",
    "receive_waits",
    "capacity_is_exact_under_several_layers",
    "a_delayed_message_outlives_its_sender",
    "every_member_gets_a_copy_once",
    "large_frames_arrive",
    "a_broadcast_reaches_each_mailbox_once",
    "each_entry_is_claimed_once",
    "a_message_that_is_given_back_is_redelivered",
    "entries_are_kept_and_followed",
)
"""Names of checks, one for each kind of command."""


HEAVY = (
    "a_delayed_message_comes_when_it_is_due",
    "a_membership_ends",
    "an_ended_stream_expires",
    "a_message_has_a_limit",
    "a_waiting_reader_gets_delayed_messages",
    "expired_messages_are_never_delivered",
    "messages_of_many_sizes",
    "values_keep_their_types",
)
"""Names of checks that take long. Their commands go to one store, so several stores run them with `--long` only."""


@pytest.fixture(scope="module")
def make_layer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LayerFactory]:
    """Provide layers for all tests of a store, one after another: the checks empty the store themselves."""
    if request.param == "memory":
        yield InMemoryChannelLayer
    elif request.param in ("redis", SEALED):
        url = request.getfixturevalue("_real_redis")
        redis_support.empty(url)
        make = _on(url, **({"symmetric_encryption_keys": ["a secret"]} if request.param == SEALED else {}))
        yield make
        asyncio.run(_expect_no_leases(make))
    else:
        with TOPOLOGIES[request.param](redis_binary(), tmp_path_factory.mktemp("redis")) as hosts:
            make = _on(hosts)
            yield make
            asyncio.run(_expect_no_leases(make))


async def _expect_no_leases(make_layer: Callable[[], RedisChannelLayer]) -> None:
    """Check that every layer that the checks have closed has given its leases back."""
    layer = make_layer()
    for shard in layer._shards:
        leases = await (await shard.client()).pipeline.call("ZRANGE", shard.keys.processes, 0, -1)
        assert not leases, f"{shard.address} lists {leases} after the checks"
    await layer.close()


def _on(hosts: Any, **settings: Any) -> Callable[..., RedisChannelLayer]:
    def make(**options: Any) -> RedisChannelLayer:
        return RedisChannelLayer(hosts, **settings, **options)

    return make


def _name(check: Check) -> str:
    return getattr(check, "__name__", "").removeprefix("check_")


ONE_LAYER = CHECKS + SERVER_CHECKS + PRESENCE_CHECKS + STREAM_CHECKS
SEVERAL_LAYERS = SHARED_CHECKS + SHARED_SERVER_CHECKS + SHARED_STREAM_CHECKS
ALL = {_name(check): check for check in ONE_LAYER + SEVERAL_LAYERS}


@pytest.mark.parametrize("check", ONE_LAYER, ids=_name)
@pytest.mark.parametrize("make_layer", ["memory", pytest.param("redis", marks=pytest.mark.redis)], indirect=True)
async def test_every_layer(make_layer: LayerFactory, check: Check) -> None:
    await check(make_layer)


@pytest.mark.redis
@pytest.mark.parametrize("check", SEVERAL_LAYERS, ids=_name)
@pytest.mark.parametrize("make_layer", ["redis"], indirect=True)
async def test_several_layers(make_layer: LayerFactory, check: Check) -> None:
    await check(make_layer)


@pytest.mark.redis
@pytest.mark.parametrize(
    "check",
    [pytest.param(check, marks=pytest.mark.long, id=name) if name in HEAVY else check for name, check in ALL.items()],
    ids=_name,
)
@pytest.mark.parametrize("make_layer", SEVERAL_STORES, indirect=True)
async def test_several_stores(make_layer: LayerFactory, check: Check) -> None:
    await check(make_layer)


@pytest.mark.redis
@pytest.mark.parametrize("name", SMOKE)
@pytest.mark.parametrize("make_layer", TRANSPORTS, indirect=True)
async def test_every_transport(make_layer: LayerFactory, name: str) -> None:
    await ALL[name](make_layer)


class Forgetful(InMemoryChannelLayer):
    """Loses every third message."""

    number = 0

    async def send(self, channel: str, message: dict[str, Any], *, delay: float = 0.0) -> None:
        Forgetful.number += 1
        if Forgetful.number % 3:
            await super().send(channel, message, delay=delay)


async def test_run_reports_a_layer_that_loses_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [check for check in CHECKS if "keep_their_order" in _name(check) or "prefixes" in _name(check)]
    monkeypatch.setattr("asgibus.testing.conformance.tools.PATIENCE_SECONDS", 0.1)
    ((name, error),) = await conformance.run(Forgetful, some)
    assert name == "check_messages_keep_their_order"
    assert isinstance(error, AssertionError)
    assert await conformance.run(InMemoryChannelLayer, some) == []


async def test_timed_checks_tolerate_a_halt_but_no_early_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgibus.testing.conformance.tools.SLOWER", 1.0)

    class Halting(InMemoryChannelLayer):
        """Layer that blocks at the first send until the delays of the check are over."""

        halted = False

        async def send(self, channel: str, message: dict[str, Any], *, delay: float = 0.0) -> None:
            await super().send(channel, message, delay=delay)
            if not Halting.halted:
                Halting.halted = True
                time.sleep(0.5)  # noqa: ASYNC251 - the whole machine stops, as it were

    class Hasty(InMemoryChannelLayer):
        """Layer whose delays are a tenth too short."""

        async def send(self, channel: str, message: dict[str, Any], *, delay: float = 0.0) -> None:
            await super().send(channel, message, delay=delay * 0.9)

    by_the_clock = [check for check in CHECKS if "comes_when_it_is_due" in _name(check)]
    assert await conformance.run(Halting, by_the_clock) == []
    assert Halting.halted
    ((_, error),) = await conformance.run(Hasty, by_the_clock)
    assert "into" in str(error)


async def test_a_check_that_hangs_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check_for_ever(make_layer: LayerFactory) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(conformance, "CHECK_SECONDS", 0.05)
    ((name, error),) = await conformance.run(InMemoryChannelLayer, [check_for_ever])
    assert (name, type(error)) == ("check_for_ever", TimeoutError)


def test_checks_run_without_pytest_and_assertions() -> None:
    program = """
import asyncio, sys
from asgibus.layers import InMemoryChannelLayer
from asgibus.testing.conformance import CHECKS, run

class Wrong(InMemoryChannelLayer):
    async def new_channel(self, prefix="specific"):
        return "always.0!1"

failures = asyncio.run(run(Wrong, [check for check in CHECKS if "new_channels_differ" in check.__name__]))
assert False, "python -O passes this over"
print(len(failures), "pytest" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-O", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]
