"""A Redis behind TLS, a socket or Sentinels is reached in every form that Channels' users write."""

import asyncio
import random
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from asgibus.layers import LayerUnavailable, RedisChannelLayer
from asgibus.layers.redis.client import locate
from asgibus.layers.redis.config import read_hosts
from support.redis import RedisServer
from support.sentinel import SERVICE, SentinelSet
from support.topologies import PASSWORD, USER, redis_binary, tls_server

pytestmark = pytest.mark.anyio

SECRET = "s3cret"


async def check_layers(*hosts: Any) -> None:
    for host in hosts:
        layer = RedisChannelLayer([host])
        try:
            channel = await layer.new_channel()
            for name in (channel, "ordinary"):
                await layer.send(name, {"n": 1})
                assert await layer.receive(name) == {"n": 1}
        finally:
            await layer.close()


async def refusal(host: Any) -> str:
    layer = RedisChannelLayer([host])
    with pytest.raises(LayerUnavailable) as raised:
        await layer.send("a", {})
    await layer.close()
    return str(raised.value)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    with tls_server(redis_binary(), tmp_path_factory.mktemp("tls")) as server:
        yield server


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelSet]:
    with SentinelSet(redis_binary(), tmp_path_factory.mktemp("sentinel")) as servers:
        yield servers


@pytest.mark.redis
async def test_tls_and_a_user(tls: tuple[int, Path]) -> None:
    port, certificate = tls
    credentials = {"username": USER, "password": PASSWORD}
    trusted = {"ssl_ca_certs": str(certificate)}
    where = {"host": "127.0.0.1", "port": port}
    context = ssl.create_default_context(cafile=str(certificate))
    await check_layers(
        {**where, **credentials, "ssl": True, **trusted, "db": 1},
        {**where, **credentials, "ssl_context": context},
        {**where, **credentials, "ssl": True, "ssl_ca_data": certificate.read_text()},
        {**where, **credentials, "ssl": True, "ssl_cert_reqs": "none", "ssl_check_hostname": False},
        {**where, **credentials, "ssl": True, "ssl_cert_reqs": None},
        {"address": f"rediss://127.0.0.1:{port}", **credentials, **trusted},
        {"address": ("127.0.0.1", port), **credentials, "ssl": True, **trusted},
        {"address": f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}", **credentials},
    )
    assert "certificate verify failed" in await refusal({**where, **credentials, "ssl": True})
    assert "cannot be used" in await refusal({**where, **credentials})
    refused = await refusal({**where, **credentials, "password": SECRET, "ssl": True, **trusted})
    assert "WRONGPASS" in refused
    assert SECRET not in refused


@pytest.mark.redis
async def test_a_unix_socket_and_a_user(start_redis: Callable[..., RedisServer], tmp_path: Path) -> None:
    path = f"{tmp_path}/redis.sock"
    start_redis("--unixsocket", path, "--user", USER, "on", f">{SECRET}", "~asgibus:*", "&*", "+@all")
    credentials = {"username": USER, "password": SECRET}
    await check_layers(
        f"unix://{USER}:{SECRET}@{path}",
        {"address": f"unix://{path}", **credentials},
        {"unix_socket_path": path, **credentials, "db": 1},
        {"path": path, **credentials},
    )


@pytest.mark.redis
async def test_sentinels(sentinels: SentinelSet) -> None:
    await check_layers(
        sentinels.url,
        {"sentinels": sentinels.places, "master_name": SERVICE},
        {"sentinels": sentinels.places, "master_name": SERVICE, "db": 1, "sentinel_kwargs": {"socket_timeout": 1}},
        {"sentinels": [("127.0.0.1", 1), *sentinels.places], "master_name": SERVICE},
    )
    assert "no Sentinel names a master" in await refusal({"sentinels": sentinels.places, "master_name": "other"})
    assert not [task for task in asyncio.all_tasks() if "sentinel" in task.get_name()], (
        "no task asks the sentinels any more"
    )


@pytest.mark.redis
async def test_sentinels_with_a_password(sentinels: SentinelSet) -> None:
    passwords = [*sentinels.places]
    clients = [redis.Redis(host=host, port=port, protocol=2) for host, port in passwords]
    for client in clients:
        client.execute_command("ACL", "SETUSER", USER, "on", f">{SECRET}", "~*", "&*", "+@all")
        client.execute_command("ACL", "SETUSER", "default", "-@all", "+auth", "+ping")
    try:
        host = {"sentinels": sentinels.places, "master_name": SERVICE}
        await check_layers({**host, "sentinel_kwargs": {"username": USER, "password": SECRET}})
        assert "cannot be used" in await refusal(host)
    finally:
        for client in clients:
            client.execute_command("AUTH", USER, SECRET)
            client.execute_command("ACL", "SETUSER", "default", "+@all")
            client.close()


@pytest.mark.redis
async def test_the_search_for_a_master_can_be_cancelled_at_any_time(sentinels: SentinelSet) -> None:
    address, dice = read_hosts(sentinels.url)[0], random.Random(1)
    for _ in range(80):
        looking = asyncio.create_task(locate(address))
        for _ in range(dice.randrange(40)):
            await asyncio.sleep(0)
        if looking.done():
            assert looking.result() == ("127.0.0.1", sentinels.master.port)
        else:
            looking.cancel()
            await asyncio.wait([looking])
            assert looking.cancelled()
