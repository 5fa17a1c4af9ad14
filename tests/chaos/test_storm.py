"""Random faults of workers under load."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

from chaos.crowd import echo_and_room
from chaos.scale import LEASE, by_form
from support.processes import Process

pytestmark = pytest.mark.usefixtures("short_leases")

Start = Callable[..., Process]
Figures = Callable[[object], None]
SEED = 5


def test_random_faults_of_workers(start_chaos_interface: Start, start_chaos_worker: Start, figures: Figures) -> None:
    choice = random.Random(SEED)
    workers = [start_chaos_worker("--resume") for _ in range(3)]
    interfaces = [start_chaos_interface() for _ in range(2)]
    happened: Counter[str] = Counter()
    woken: list[threading.Timer] = []
    with echo_and_room(interfaces) as (echo, room):
        until = time.monotonic() + by_form(4, 120)
        while time.monotonic() < until:
            index = choice.randrange(len(workers))
            worker = workers[index]
            fault = choice.choice(["terminate", "kill", "terminate, then kill", "short pause", "long pause"])
            happened[fault] += 1
            if fault.startswith("terminate"):
                worker.terminate()
                if fault.endswith("kill"):
                    time.sleep(choice.uniform(0, 0.3))
                    worker.kill()
            elif fault == "kill":
                worker.kill()
            else:
                worker.pause()
                wake = threading.Timer(LEASE + 1.5 if fault == "long pause" else 1.0, worker.resume)
                wake.start()
                woken.append(wake)
            if not worker.running or fault == "terminate":
                workers[index] = start_chaos_worker("--resume")
            else:
                workers[index], workers[0] = workers[0], worker
            time.sleep(choice.uniform(0, 1.0))
        for wake in woken:
            wake.join()
        for crowd in (echo, room):
            crowd.wait_each_answered(30)
            report = crowd.finish(30)
            figures(f"{dict(happened)}, {crowd.label}: {report}")
            report.assert_whole(doubles=True)
            crowd.probe()
