"""The sentinels do what the tests use them for."""

from pathlib import Path

import pytest
import redis

from support import redis as redis_support
from support.deadline import wait_until
from support.sentinel import SentinelSet


@pytest.fixture
def binary() -> str:
    source = redis_support.find()
    if source.kind != "binary":
        pytest.skip(f"a redis-server binary is needed, and there is: {source}")
    return source.detail


def test_the_replica_takes_over(binary: str, tmp_path: Path) -> None:
    with SentinelSet(binary, tmp_path) as servers:
        assert servers.current is servers.master
        with redis.Redis(port=servers.master.port, protocol=2) as client:
            client.set("a", "1")
            assert client.wait(1, 5000) == 1
        servers.master.kill()
        servers.wait_promoted()
        with redis.Redis(port=servers.replica.port, protocol=2) as client:
            assert client.get("a") == b"1"
            client.set("a", "2")
        wait_until(lambda: servers.current is servers.replica)
