"""An interface server and workers that all tests of a module share, where a process for each would be slow."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from support import redis as redis_support
from support.processes import Process, Processes

LAYERS = ["memory", pytest.param("redis", marks=pytest.mark.redis)]
"""For `@pytest.fixture(params=LAYERS)`."""


@dataclass(frozen=True)
class Servers:
    """Running servers. On the memory layer the only interface server is also the worker."""

    interfaces: Sequence[Process]
    workers: Sequence[Process]
    layer: str

    @property
    def all(self) -> list[Process]:
        return list(dict.fromkeys((*self.interfaces, *self.workers)))


@contextmanager
def serving(
    request: pytest.FixtureRequest,
    app: str,
    *options: object,
    layer: str,
    interfaces: int = 1,
    workers: int = 1,
    worker_options: Sequence[object] = (),
) -> Iterator[Servers]:
    """Run interface servers and workers of `app` during the context, then check them as `start_interface` does.

    `options` are for the interface servers, `worker_options` for workers that are not within one. `layer` is "memory"
    (one process) or "redis" (emptied first: no test that shares them may use the fixture `redis_url`). The app may log
    tracebacks.
    """
    folder = request.getfixturevalue("tmp_path_factory").mktemp("servers")
    processes = Processes(folder)
    try:
        if layer == "memory":
            process = processes.start_interface(*options, app=app, allow_traceback=True)
            yield Servers([process], [process], "memory://")
        else:
            url = request.getfixturevalue("_real_redis")
            redis_support.empty(url)
            working = [
                processes.start_worker(app, "--layer", url, *worker_options, allow_traceback=True)
                for _ in range(workers)
            ]
            listening = [processes.start_interface("--layer", url, *options) for _ in range(interfaces)]
            yield Servers(listening, working, url)
    finally:
        faults = processes.end()
    assert not faults, "\n".join(faults)
