"""Pools: the distribution of connections over workers."""

from collections.abc import Callable

from support.processes import Process
from support.raw import RawClient
from support.websocket import BINARY, RawWebSocket

APP = "end_to_end.pool_app:app"

Start = Callable[..., Process]


def test_connections_go_to_the_workers_of_their_pool(
    start_interface: Start, start_worker: Start, redis_url: str
) -> None:
    for name in ("default", "chat", "heavy"):
        start_worker(APP, "--layer", redis_url, "--pool", name, env={"POOL": name})
    routed = start_interface(
        *("--layer", redis_url, "--route", "/ws/heavy=heavy", "--route", "/ws=chat", "--route", "/idle=nobody"),
        *("--route", "/café=chat"),
        *("--connect-timeout", 1),
    )
    heavy = start_interface("--layer", redis_url, "--pool", "heavy")
    for server, path, pool in (
        (routed, "/", b"default"),
        (routed, "/w", b"default"),
        (routed, "/ws", b"chat"),
        (routed, "/ws/room?path=/ws/heavy", b"chat"),
        (routed, "/ws/heavy/x", b"heavy"),
        (routed, "/%77s/heavy%2Fx", b"heavy"),  # the decoded path decides
        (routed, "/caf%C3%A9/menu", b"chat"),
        (heavy, "/", b"heavy"),
        (heavy, "/ws", b"heavy"),
    ):
        with RawClient(server) as client:
            assert client.request("GET", path).body == pool
        with RawWebSocket(server, path) as client:
            assert client.read_frame() == (BINARY, pool)
    with RawClient(routed) as client:
        assert client.request("GET", "/idle").status == 503
    routed.wait_for("is one running for their pool")


def test_pool_and_routes_from_environment_variables(
    start_interface: Start, start_worker: Start, redis_url: str
) -> None:
    env = {"ASGIBUS_LAYER": redis_url, "ASGIBUS_POOL": "blue"}
    start_worker(APP, env=env | {"POOL": "blue"})
    server = start_interface(env=env | {"ASGIBUS_ROUTE": "/red=red /blue=blue", "ASGIBUS_CONNECT_TIMEOUT": 1})
    for path, status in (("/", 200), ("/blue", 200), ("/red", 503)):
        with RawClient(server) as client:
            assert client.request("GET", path).status == status


def test_two_apps_in_one_pool_are_logged(start_worker: Start, redis_url: str) -> None:
    """The log warns of two apps in one pool: usually two deployments that share a Redis by mistake."""
    other = "end_to_end.load_app:app"
    first = start_worker(APP, "--layer", redis_url)
    separate = [start_worker(other, "--layer", redis_url, option, "other") for option in ("--pool", "--prefix")]
    same = start_worker(APP, "--layer", redis_url)
    second = start_worker(other, "--layer", redis_url)
    second.wait_for(f"runs another app for the pool 'default': {APP}, where this worker runs {other}")
    second.terminate()
    second.wait()
    third = start_worker(APP, "--layer", redis_url)
    third.wait_for("worker ready: ")
    third.terminate()
    third.wait()
    assert not [worker for worker in (first, *separate, same, third) if "runs another app" in worker.log()]
