"""Addresses of Redis in every form of `CHANNEL_LAYERS`."""

import ssl
from typing import Any

import pytest
import redis

from asgibus.layers import RedisChannelLayer
from asgibus.layers.redis.config import read_hosts

pytestmark = pytest.mark.anyio

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("hosts", "shown"),
    [
        ("redis://h:1/2", "redis://h:1/2"),
        (["redis://h"], "redis://h:6379"),
        (["redis://[::1]:1"], "redis://[::1]:1"),
        (("redis://h",), "redis://h:6379"),
        ([("h", 1)], "redis://h:1"),
        ([["h", 1]], "redis://h:1"),
        ([("h", "1")], "redis://h:1"),
        ([{"address": "redis://h:1/2"}], "redis://h:1/2"),
        ([{"address": ("h", 1)}], "redis://h:1"),
        ([{"address": "redis://h:1/2", "db": 3}], "redis://h:1/3"),
        ([{"address": "rediss://h:1"}], "rediss://h:1"),
        ([{"address": "unix:///run/redis.sock"}], "unix:///run/redis.sock"),
        ([{"host": "h"}], "redis://h:6379"),
        ([{"port": 1}], "redis://127.0.0.1:1"),
        ([{"host": "h", "port": "1", "db": "2"}], "redis://h:1/2"),
        ([{"host": "h", "port": 1, "db": 2, "ssl": True}], "rediss://h:1/2"),
        ([{"host": "h", "ssl": False}], "redis://h:6379"),
        ([{"host": "h", "ssl": False, "ssl_cert_reqs": "required"}], "redis://h:6379"),
        ([{"unix_socket_path": "/run/redis.sock", "db": 1}], "unix:///run/redis.sock?db=1"),
        ([{"path": "/run/redis.sock"}], "unix:///run/redis.sock"),
        ([{"host": "h", "socket_timeout": 5, "retry_on_timeout": True, "max_connections": 3}], "redis://h:6379"),
        ([{"sentinels": [("a", 1), ["b", 2]], "master_name": "m"}], "redis+sentinel://a:1,b:2/m"),
        ([{"sentinels": [("a", 1)], "master_name": "m", "db": 3}], "redis+sentinel://a:1/m/3"),
        ([{"sentinels": [("a", 1)], "master_name": "m", "sentinel_kwargs": None}], "redis+sentinel://a:1/m"),
        (["redis+sentinel://a,b:2/m"], "redis+sentinel://a:26379,b:2/m"),
        (None, "redis://127.0.0.1:6379"),
        ([{"address": "rediss://h", "ssl_cert_reqs": None}], "rediss://h:6379"),
        ([{"host": "h", "ssl": ssl.create_default_context()}], "rediss://h:6379"),
    ],
)
async def test_valid_hosts(hosts: Any, shown: str) -> None:
    layer = RedisChannelLayer(hosts)
    assert str(layer.address) == shown


async def test_user_names_and_passwords() -> None:
    for host in (
        f"redis://bus:{SECRET}@h",
        {"address": "redis://h", "username": "bus", "password": SECRET},
        {"address": ("h", 6379), "username": "bus", "password": SECRET},
        {"host": "h", "username": "bus", "password": SECRET},
        {"sentinels": [("h", 1)], "master_name": "m", "username": "bus", "password": SECRET},
    ):
        (address,) = read_hosts([host])
        assert (address.username, address.password) == ("bus", SECRET)
        assert SECRET not in f"{address} {address!r}"
    behind = {"sentinels": [("h", 1)], "master_name": "m", "sentinel_kwargs": {"username": "s", "password": SECRET}}
    (address,) = read_hosts([behind])
    assert (address.sentinel_username, address.sentinel_password) == ("s", SECRET)
    assert (address.username, address.password) == (None, None)
    assert SECRET not in f"{address} {address!r}"


async def test_a_host_is_not_altered() -> None:
    host = {"sentinels": [("h", 1)], "master_name": "m", "sentinel_kwargs": {"password": SECRET}, "db": 1}
    before = {**host}
    read_hosts([host])
    read_hosts([host])
    assert host == before


async def test_a_given_ssl_context_is_used() -> None:
    context = ssl.create_default_context()
    for host in ({"host": "h", "ssl_context": context}, {"address": "rediss://h", "ssl_context": context}):
        (address,) = read_hosts([host])
        assert address.tls is context
    (address,) = read_hosts([{"host": "h", "ssl": True, "ssl_cert_reqs": "none"}])
    assert address.tls is not None
    assert address.tls.verify_mode is ssl.CERT_NONE


@pytest.mark.parametrize(
    ("host", "message"),
    [
        (f"http://:{SECRET}@h", "redis://"),
        (f":{SECRET}@h", "redis://"),
        (b"redis://h", "none of them"),
        (("h",), "none of them"),
        (("h", 0), "'port' is a number from 1 to 65535"),
        (("h", 65536), "'port' is a number"),
        (("h", "port"), "'port' is a number"),
        (("", 1), "none of them"),
        (("h", True), "'port' is a number"),
        (("h", 1, SECRET), "none of them"),
        (6379, "none of them"),
        (None, "none of them"),
        ({"adress": f"redis://:{SECRET}@h"}, "no argument 'adress': perhaps 'address' was meant"),
        ({"host": "h", "passwort": SECRET}, "perhaps 'password' was meant"),
        ({"host": "h", "connection_class": redis.asyncio.SSLConnection}, "write 'ssl': True"),
        ({"host": ""}, "host"),
        ({"host": 1}, "host"),
        ({"host": "h", "port": "x"}, "port"),
        ({"host": "h", "port": 0}, "port"),
        ({"host": "h", "port": None}, "port"),
        ({"host": "h", "db": "x"}, "db"),
        ({"host": "h", "db": -1}, "db"),
        ({"host": "h", "username": 1, "password": SECRET}, "username"),
        ({"host": "h", "password": [SECRET]}, "password"),
        ({"address": {"host": "h"}}, "address"),
        ({"address": None, "password": SECRET}, "none of them"),
        ({"host": "h", "ssl": True, "ssl_ca_certs": "/no/such/file"}, "TLS files"),
        ({"host": "h", "ssl": True, "ssl_context": "context"}, "ssl_context"),
        ({"sentinels": [("h", 1)], "password": SECRET}, "master_name"),
        ({"sentinels": [], "master_name": "m"}, "sentinels"),
        ({"sentinels": None, "master_name": "m"}, "sentinels"),
        ({"sentinels": "h", "master_name": "m"}, "sentinels"),
        ({"sentinels": [("h", "x")], "master_name": "m"}, "'port' is a number"),
        ({"master_name": "m", "password": SECRET}, "sentinels"),
        ({"sentinels": [("h", 1)], "master_name": "m", "sentinel_kwargs": [SECRET]}, "sentinel_kwargs"),
        ({"sentinels": [("h", 1)], "master_name": "m", "passwort": SECRET}, "perhaps 'password' was meant"),
    ],
)
async def test_invalid_hosts(host: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as raised:
        RedisChannelLayer([host])
    assert message in str(raised.value)
    assert SECRET not in str(raised.value)


async def test_ignored_arguments_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    RedisChannelLayer([{"host": "h", "password": SECRET, "socket_timeout": SECRET, "retry": None, 1: SECRET}])
    RedisChannelLayer(f"redis://:{SECRET}@h?socket_timeout=5&{SECRET}=1&{SECRET}")
    dict_line, url_line = caplog.messages
    assert dict_line == "connection arguments that asgibus does not use are ignored: 1, retry, socket_timeout"
    assert url_line.startswith("options in the layer's URL are ignored: asgibus uses only db, username, password, ssl_")
    assert SECRET not in caplog.text


@pytest.mark.parametrize("hosts", [{"host": "h"}, 1, b"redis://h", {("h", 1)}])
async def test_invalid_lists_of_hosts(hosts: Any) -> None:
    with pytest.raises(ValueError, match="hosts is a list of hosts, not a"):
        RedisChannelLayer(hosts)


# For real.
