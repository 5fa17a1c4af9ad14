"""Connecting to Redis: every kind of URL, and the error if the connection fails."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from asgibus.layers import LayerUnavailable, RedisChannelLayer, open_layer
from asgibus.layers.redis import client as redis_client
from asgibus.layers.redis.client import RedisConnection
from asgibus.layers.redis.config import read_hosts
from support.bus import Recorder
from support.redis import RedisServer
from support.topologies import free_port, make_certificate

pytestmark = pytest.mark.anyio

StartRedis = Callable[..., RedisServer]
SECRET = "s3cret"


async def check_layer(url: str) -> None:
    layer = open_layer(url)
    try:
        await layer.send("a", {"n": 1})
        assert await layer.receive("a") == {"n": 1}
        async with layer.bus("x", Recorder()) as bus:
            bus.offer("shared", (1,))
            (claim,) = await bus.claim(["shared"], 1)
            bus.done(claim)
    finally:
        await layer.close()


async def refusal(url: str) -> str:
    """Return the error line for this URL, which must be the same for every first call."""
    layer = open_layer(url)
    with pytest.raises(LayerUnavailable) as raised:
        await layer.send("a", {})
    with pytest.raises(LayerUnavailable):
        await layer.receive("a")
    with pytest.raises(LayerUnavailable):
        async with layer.bus("x", Recorder()):
            pass
    await layer.close()
    text = str(raised.value)
    assert "\n" not in text
    assert SECRET not in text
    return text


@asynccontextmanager
async def peer(answer: Callable[[bytes], bytes | None]) -> AsyncIterator[int]:
    """Run a server that answers all input with `answer`; None closes the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                answered = answer(data)
                if answered is None:
                    break
                writer.write(answered)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def test_no_server_listens() -> None:
    port = free_port()
    assert await refusal(f"redis://:{SECRET}@127.0.0.1:{port}/3") == (
        f"Redis at redis://127.0.0.1:{port}/3 cannot be used: Connection refused"
    )


async def test_no_sentinel_listens() -> None:
    port = free_port()
    text = await refusal(f"redis+sentinel://user:{SECRET}@127.0.0.1:{port}/bus/3")
    assert text.startswith(
        f"Redis at redis+sentinel://127.0.0.1:{port}/bus/3 cannot be used: no Sentinel names a master"
    )


async def test_no_unix_socket_exists(tmp_path: Path) -> None:
    assert await refusal(f"unix://{tmp_path}/none.sock") == (
        f"Redis at unix://{tmp_path}/none.sock cannot be used: No such file or directory"
    )


async def test_a_host_name_without_an_address() -> None:
    assert "Redis at redis://no-such-host.invalid:6379 cannot be used: " in await refusal(
        "redis://no-such-host.invalid"
    )


async def test_a_silent_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_client, "CONNECT_SECONDS", 0.2)
    async with peer(lambda data: b"") as port:
        assert (await refusal(f"redis://127.0.0.1:{port}")).endswith("cannot be used: no answer within 0.2 s")


async def test_a_peer_that_is_not_redis() -> None:
    async with peer(lambda data: b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        assert "cannot be used: the connection to Redis ended: Redis sent something that is not RESP" in await refusal(
            f"redis://127.0.0.1:{port}"
        )


async def test_a_redis_that_refuses_connections() -> None:
    """The error that Redis sends before it closes a new connection is the reason that the connection reports."""
    connection = RedisConnection(asyncio.get_running_loop())
    connection.data_received(b"-DENIED Redis is running in protected mode\r\n")
    assert connection.lost.result() == "Redis sent DENIED Redis is running in protected mode"


async def test_a_peer_that_closes_the_connection() -> None:
    async with peer(lambda data: None) as port:
        assert "the connection to Redis ended" in await refusal(f"redis://127.0.0.1:{port}")


async def test_a_redis_that_is_too_old() -> None:
    def answer(data: bytes) -> bytes:
        if b"INFO" in data:
            text = b"# Server\r\nredis_version:6.2.14\r\nrun_id:abc\r\n"
            return b"$%d\r\n%s\r\n" % (len(text), text)
        return b":1\r\n" if b"ID" in data else b"+OK\r\n"

    async with peer(answer) as port:
        text = await refusal(f"redis://127.0.0.1:{port}")
    assert text.endswith("it is version 6.2.14, and 7.0 or later is needed")


async def test_a_password(start_redis: StartRedis) -> None:
    server = start_redis("--requirepass", SECRET)
    url = server.url.removeprefix("redis://")
    assert "NOAUTH" in await refusal(server.url)
    assert "WRONGPASS" in await refusal(f"redis://:{SECRET}x@{url}")
    await check_layer(f"redis://:{SECRET}@{url}")
    await check_layer(f"redis://default:{SECRET}@{url}/2")


async def test_a_user(start_redis: StartRedis) -> None:
    server = start_redis("--user", "bus", "on", f">{SECRET}", "~asgibus:*", "&*", "+@all")
    url = server.url.removeprefix("redis://")
    assert "WRONGPASS" in await refusal(f"redis://somebody:{SECRET}@{url}")
    await check_layer(f"redis://bus:{SECRET}@{url}")


async def test_a_user_without_permission_for_info(start_redis: StartRedis) -> None:
    server = start_redis("--user", "bus", "on", f">{SECRET}", "~asgibus:*", "&*", "+@all", "-info")
    url = server.url.removeprefix("redis://")
    await check_layer(f"redis://bus:{SECRET}@{url}")


async def test_a_user_without_permission_for_the_keys(start_redis: StartRedis) -> None:
    server = start_redis("--user", "bus", "on", f">{SECRET}", "~other:*", "&*", "+@all")
    url = server.url.removeprefix("redis://")
    assert "NOPERM" in await refusal(f"redis://bus:{SECRET}@{url}")


async def test_a_unix_socket(start_redis: StartRedis, tmp_path: Path) -> None:
    start_redis("--unixsocket", f"{tmp_path}/redis.sock")
    await check_layer(f"unix://{tmp_path}/redis.sock")
    await check_layer(f"unix://{tmp_path}/redis.sock?db=2")


async def test_tls(start_redis: StartRedis, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make a certificate")
    certificate, key = tmp_path / "redis.crt", tmp_path / "redis.key"
    make_certificate(certificate, key)
    port = free_port()
    tls = ["--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    start_redis(*tls, "--tls-auth-clients", "no")
    url = f"rediss://127.0.0.1:{port}"
    await check_layer(f"{url}?ssl_ca_certs={certificate}")
    await check_layer(f"{url}?ssl_cert_reqs=none")
    assert "certificate verify failed" in await refusal(url)
    assert "cannot be used" in await refusal(f"rediss://localhost:{port}?ssl_ca_certs={certificate}")  # another name
    assert "cannot be used" in await refusal(f"redis://127.0.0.1:{port}")


async def test_the_address_of_a_layer_hides_the_password() -> None:
    for url, shown in (
        (f"redis://user:{SECRET}@host:1/2", "redis://host:1/2"),
        (f"rediss://:{SECRET}@[::1]", "rediss://[::1]:6379"),
        (f"unix://:{SECRET}@/run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
        (f"redis+sentinel://user:{SECRET}@a,b:1,[::1]:2/bus", "redis+sentinel://a:26379,b:1,[::1]:2/bus"),
        (f"redis+sentinel://:{SECRET}@a/bus/3", "redis+sentinel://a:26379/bus/3"),
    ):
        layer = open_layer(url)
        assert str(getattr(layer, "address", None)) == shown
        assert SECRET not in repr(getattr(layer, "address", None))


async def test_a_sentinel_url_is_parsed() -> None:
    address = read_hosts("redis+sentinel://us%3Aer:p%40ss%2F@a,[::1]:5/my-bus/7")[0]
    assert address.sentinels == (("a", 26379), ("::1", 5))
    assert (address.service, address.db) == ("my-bus", 7)
    assert (address.username, address.password) == ("us:er", "p@ss/")
    plain = read_hosts("redis+sentinel://a:1/bus/")[0]
    assert (plain.service, plain.db, plain.username, plain.password) == ("bus", 0, None, None)


async def test_a_redis_that_evicts_keys_is_logged_once(
    start_redis: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    evicts = start_redis("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    keeps = start_redis("--maxmemory", "100mb", "--maxmemory-policy", "noeviction")
    unbounded = start_redis("--maxmemory-policy", "allkeys-lru")
    for server in (evicts, keeps, unbounded):
        layer = RedisChannelLayer(server.url)
        for _ in range(2):
            await layer.send("ordinary", {})
            await layer.close()
    (line,) = [record.message for record in caplog.records if "maxmemory-policy" in record.message]
    assert evicts.url in line
    assert "Set maxmemory-policy noeviction" in line
