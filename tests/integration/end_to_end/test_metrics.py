"""Prometheus metrics of the channels between the servers."""

import urllib.request
from collections.abc import Callable

from support.deadline import wait_until
from support.processes import Process
from support.raw import RawClient

Start = Callable[..., Process]


def metric(server: Process, name: str, channel: str) -> float | None:
    """Return the value of a channel metric from the admin port of the server, None if the metric is not exported."""
    where = server.wait_for(r"admin port on (http://\S+)")[1]
    with urllib.request.urlopen(f"{where}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    start = f'asgibus_channel_{name}{{channel="{channel}"}} '
    return next((float(line.removeprefix(start)) for line in lines if line.startswith(start)), None)


def test_the_metric_of_waiting_requests(start_interface: Start, start_worker: Start, redis_url: str) -> None:
    interface = start_interface("--layer", redis_url, "--route", "/slow=slow", "--admin-port", 0)
    channel = "http.request.slow"
    wait_until(lambda: metric(interface, "pending", channel) == 0)
    with RawClient(interface) as client:
        client.send(b"GET /slow HTTP/1.1\r\nHost: test\r\n\r\n")
        wait_until(lambda: metric(interface, "pending", channel) == 1)
        wait_until(lambda: (metric(interface, "oldest_seconds", channel) or 0) > 0)
        assert metric(interface, "pending", "http.request.default") == 0
        worker = start_worker(
            "end_to_end.pool_app:app", "--layer", redis_url, "--pool", "slow", "--admin-port", 0, env={"POOL": "slow"}
        )
        assert client.read_response().status == 200
    wait_until(lambda: metric(worker, "pending", channel) == 0)
    assert metric(worker, "messages_total", channel) == 1
    assert metric(worker, "oldest_seconds", channel) == 0
    assert metric(worker, "pending", "http.request.default") is None
