"""The servers on several stores and on a cluster keep the guarantees of one Redis."""

from collections.abc import Callable
from pathlib import Path

import pytest

from chaos.crowd import echo_and_room
from support.processes import Process
from support.topologies import TOPOLOGIES, redis_binary

pytestmark = pytest.mark.usefixtures("short_leases")

Start = Callable[..., Process]
Figures = Callable[[object], None]


@pytest.mark.parametrize("topology", ["three shards", "cluster"])
def test_connections_move_from_a_killed_worker(
    topology: str, start_chaos_interface: Start, start_chaos_worker: Start, tmp_path: Path, figures: Figures
) -> None:
    with TOPOLOGIES[topology](redis_binary(), tmp_path) as hosts:
        layer = " ".join(hosts)
        interfaces = [start_chaos_interface(layer=layer) for _ in range(2)]
        workers = [start_chaos_worker("--resume", layer=layer) for _ in range(2)]
        with echo_and_room(interfaces) as crowds:
            workers[0].kill()
            for crowd in crowds:
                crowd.wait_each_answered(15)
            for crowd in crowds:
                report = crowd.finish()
                figures(f"{crowd.label}: {report}")
                report.assert_whole(doubles=True)
                assert report.takeovers
        for server in (workers[1], *interfaces):
            server.terminate()
            server.wait(20)
