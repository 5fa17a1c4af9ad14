"""A layer in use on a Redis Cluster whose slots move and whose masters fail."""

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.crc import key_slot

from asgibus.layers import LayerUnavailable, RedisChannelLayer, open_layer
from asgibus.layers.frames import FIRST_PROTOCOL_KIND
from asgibus.layers.redis.config import CLUSTER_SHARDS, CLUSTER_TAGS
from support.bus import Recorder, until
from support.cluster import MASTERS, Cluster
from support.topologies import make_certificate, redis_binary

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

KIND = FIRST_PROTOCOL_KIND
PROMOTED = 20.0
"""Seconds within which a replica takes over: the nodes wait two before they ask each other."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(redis_binary(), tmp_path) as cluster:
        yield cluster


@pytest.fixture
def cluster_with_replicas(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(redis_binary(), tmp_path, replicas=True) as cluster:
        yield cluster


def tag_of(layer: RedisChannelLayer, name: str) -> str:
    return layer._shards.shard_for(name).address.tag


def test_cluster_shards_are_spread_over_the_slots() -> None:
    assert [key_slot(tag.encode()) * CLUSTER_SHARDS // 16384 for tag in CLUSTER_TAGS] == list(range(CLUSTER_SHARDS))


def test_a_prefix_holds_no_hash_tag() -> None:
    for prefix in ("{chat}", "a{b", "{}"):
        with pytest.raises(ValueError, match="prefix holds no"):
            open_layer("redis+cluster://127.0.0.1", prefix=prefix)
        open_layer("redis://127.0.0.1", prefix=prefix)


def test_no_password_is_shown() -> None:
    layer = RedisChannelLayer([{"cluster_nodes": [("a", 1), ("b", 2)], "username": "bus", "password": "s3cret"}])
    assert str(layer.address) == "redis+cluster://a:1,b:2"


async def check_layer(layer: RedisChannelLayer) -> None:
    """Use channels and groups of several slots, and the bus."""
    names = [f"name.{number}" for number in range(40)]
    assert {tag_of(layer, name) for name in names} > set(CLUSTER_TAGS[:1])
    local, reader = await layer.new_channel(), Recorder()
    for number, name in enumerate(names):
        await layer.send(name, {"n": number})
        await layer.group_add(name, local)
        await layer.group_send(name, {"n": number})
    for number, name in enumerate(names):
        assert await layer.receive(name) == await layer.receive(local) == {"n": number}
    async with layer.bus("a", reader) as bus:
        bus.post(bus.mailbox, (KIND, 1))
        await until(lambda: reader.frames == [(KIND, 1)])


async def test_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "redis.crt", tmp_path / "redis.key"
    make_certificate(certificate, key)
    with Cluster(redis_binary(), tmp_path, tls=(certificate, key)) as cluster:
        nodes = [("127.0.0.1", cluster.port(server)) for server in cluster.servers]
        context = ssl.create_default_context(cafile=str(certificate))
        for host in (
            {"cluster_nodes": nodes, "ssl_ca_certs": str(certificate)},
            {"cluster_nodes": nodes, "ssl_context": context},
            {"cluster_nodes": nodes, "ssl": True, "ssl_cert_reqs": "none"},
        ):
            layer = RedisChannelLayer([host])
            await check_layer(layer)
            await layer.close()
        for server in cluster.servers:
            admin = cluster.admin(server)
            admin.acl_setuser(
                "bus", enabled=True, passwords=["+s3cret"], keys=["*"], channels=["*"], categories=["+@all"]
            )
        for url in (
            f"{cluster.url}?ssl_ca_certs={certificate}",
            f"{cluster.url.replace('//', '//bus:s3cret@')}?ssl_cert_reqs=none",
        ):
            layer = RedisChannelLayer(url)
            await check_layer(layer)
            await layer.close()
        layer = RedisChannelLayer(cluster.url, wait=1)
        with pytest.raises(LayerUnavailable, match="certificate verify failed"):
            await layer.send("a", {})
        layer = RedisChannelLayer(f"{cluster.url.replace('//', '//bus:wr0ng@')}?ssl_cert_reqs=none", wait=1)
        with pytest.raises(LayerUnavailable, match="WRONGPASS") as refused:
            await layer.send("a", {})
        assert "wr0ng" not in str(refused.value)


async def test_slots_move_during_traffic(cluster: Cluster) -> None:
    """Messages and frames that are sent while slots move arrive once and in order."""
    one, two = RedisChannelLayer(cluster.url), RedisChannelLayer(cluster.url)
    first, second = Recorder(), Recorder()
    received: list[int] = []
    stopped = False

    async def receive() -> None:
        while True:
            received.append((await two.receive("ordinary"))["n"])

    async with one.bus("a", first) as a, two.bus("b", second) as b:
        await b.join_group("group")
        local = await two.new_channel()
        reading = asyncio.create_task(receive())

        async def send_all_kinds() -> int:
            number = 0
            while not stopped:
                await one.send("ordinary", {"n": number})
                await one.group_send("group", {"n": number})
                a.post(b.mailbox, (KIND, number))
                await one.send(local, {"n": number})
                assert await two.receive(local) == {"n": number}
                number += 1
                await asyncio.sleep(0.002)  # the rate of the traffic
            return number

        sending = asyncio.create_task(send_all_kinds())
        for name in ("ordinary", "group", b.mailbox, local.partition("!")[0] + "!"):
            before = len(received)
            owner = cluster.owner(tag_of(one, name))
            target = next(server for server in cluster.servers if server is not owner)
            await asyncio.to_thread(cluster.move, tag_of(one, name), target)
            await until(lambda count=before + 20: len(received) > count or sending.done(), 20)  # type: ignore[misc]
        stopped = True
        count = await sending
        assert count > 80
        await until(lambda: len(received) == count)
        await until(lambda: len(second.frames) == 2 * count)
        reading.cancel()
    assert received == list(range(count))
    assert [frame[1] for frame in second.frames if frame[0] == KIND] == list(range(count))
    assert [frame[2]["n"] for frame in second.frames if frame[0] != KIND] == list(range(count))
    for layer in (one, two):
        await layer.close()


async def test_a_replica_replaces_a_killed_master(cluster_with_replicas: Cluster) -> None:
    """The bus works, groups are complete and posted frames arrive when a replica has replaced a failed master."""
    cluster = cluster_with_replicas
    one, two = RedisChannelLayer(cluster.url), RedisChannelLayer(cluster.url)
    first, second = Recorder(), Recorder()
    async with one.bus("a", first) as a, two.bus("b", second) as b:
        await b.join_group("group")
        a.post(b.mailbox, (KIND, "before"))
        await one.group_send("group", {"n": "before"})
        await until(lambda: len(second.frames) == 2)
        victim = cluster.owner(tag_of(one, b.mailbox))
        assert victim in cluster.servers[:MASTERS]
        await asyncio.to_thread(victim.kill)
        a.post(b.mailbox, (KIND, "meanwhile"))
        await until(
            lambda: (KIND, "meanwhile") in second.frames or (second.interruptions and first.interruptions), PROMOTED
        )
        sent = False
        while not sent:  # the call fails until the failover is complete
            try:
                await one.group_send("group", {"n": "after"})
            except LayerUnavailable:
                continue
            sent = True
        await until(lambda: {"n": "after"} in [frame[-1] for frame in second.frames])
        a.post(b.mailbox, (KIND, "after"))
        await until(lambda: (KIND, "after") in second.frames)
        assert [frame for frame in second.frames if frame == (KIND, "before")] == [(KIND, "before")]
        assert b.mailbox not in first.dead
    for layer in (one, two):
        await layer.close()
