"""Faults of selected connections through the TCP proxy."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import redis

from support.deadline import wait_until
from support.raw import RawClient
from support.tcp_proxy import TcpProxy


@pytest.fixture
def proxy(redis_url: str) -> Iterator[TcpProxy]:
    parts = urlsplit(redis_url)
    with TcpProxy((parts.hostname or "", parts.port or 6379)) as proxy:
        yield proxy


def named(proxy: TcpProxy, name: str) -> RawClient:
    """Open a connection with this name and read the first reply."""
    client = RawClient(("127.0.0.1", proxy.port))
    client.send(b"*3\r\n$6\r\nCLIENT\r\n$7\r\nSETNAME\r\n$%d\r\n%s\r\n" % (len(name), name.encode()))
    assert client.read_until(b"\r\n") == b"+OK\r\n"
    return client


def test_a_proxy_without_faults_relays_everything(proxy: TcpProxy) -> None:
    with redis.Redis.from_url(proxy.url, protocol=2) as client:
        client.set("a", b"x" * 500_000)
        assert client.get("a") == b"x" * 500_000


def test_a_reply_is_cut_in_its_middle(proxy: TcpProxy) -> None:
    with named(proxy, "a!mailbox") as cut, named(proxy, "a!claims") as spared:
        proxy.cut_reply("mailbox", least=10)
        cut.send(b"PING\r\n")
        assert cut.read_until(b"\r\n") == b"+PONG\r\n"  # too short
        cut.send(b"ECHO 0123456789\r\n")
        assert cut.read_exactly(8) == b"$10\r\n012"
        with pytest.raises(ConnectionResetError):
            cut.read_exactly(1)
        assert proxy.cuts == {"a!mailbox": 1}
        assert proxy.armed() == 0
        spared.send(b"ECHO 0123456789\r\n")
        assert spared.read_until(b"\r\n0123456789\r\n")
        wait_until(lambda: proxy.names() == ["a!claims"])


def test_a_blackhole_releases_its_data_when_healed(proxy: TcpProxy) -> None:
    with named(proxy, "a-writer") as silent, named(proxy, "a!claims") as spared:
        proxy.blackhole("writer")
        silent.send(b"PING\r\n")
        spared.send(b"PING\r\n")
        assert spared.read_until(b"\r\n") == b"+PONG\r\n"
        silent.assert_silent()
        proxy.heal()
        assert silent.read_until(b"\r\n") == b"+PONG\r\n"


def test_answers_are_delayed(proxy: TcpProxy) -> None:
    with named(proxy, "a-writer") as slow:
        proxy.delay(30, "writer")
        slow.send(b"PING\r\n")
        slow.assert_silent()
        proxy.heal()
        assert slow.read_until(b"\r\n") == b"+PONG\r\n"


def test_connections_are_reset(proxy: TcpProxy) -> None:
    with named(proxy, "a-writer") as first, named(proxy, "b-writer") as second, named(proxy, "c!claims") as spared:
        assert proxy.reset("writer") == 2
        for client in (first, second):
            with pytest.raises(ConnectionResetError):
                client.read_exactly(1)
        spared.send(b"PING\r\n")
        assert spared.read_until(b"\r\n") == b"+PONG\r\n"
