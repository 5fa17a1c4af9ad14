"""Both servers in one process: what `asgi-interface APP` runs."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import anyio

from asgibus.layers.contract import ChannelLayer
from asgibus.worker.lifespan import LifespanError
from asgibus.worker.loader import ApplicationError, application_of
from asgibus.worker.settings import WorkerSettings
from asgibus.worker.worker import Worker

EXPECTED = (ApplicationError, LifespanError)


def embedded_worker(settings: WorkerSettings, layer: ChannelLayer) -> Worker:
    """Return the worker for an interface server's process, with its app loaded. Raises ApplicationError."""
    app, settings = application_of(settings)
    return Worker(settings, app, layer)


async def serve_with_worker(
    worker: Worker, serve: Callable[[], Awaitable[None]], stop: anyio.Event, graceful_timeout: float
) -> None:
    """Run `serve` (an interface server) beside a worker, which is ready before it and stops after it.

    `stop` is what ends `serve`; both together get `graceful_timeout` seconds. Raises LifespanError, and what `serve`
    raises.
    """
    ready, stop_worker = anyio.Event(), anyio.Event()
    end = math.inf

    async def work() -> None:
        await worker.serve(stop_worker, ready.set)
        ready.set()  # or it was stopped before it was

    async def watch() -> None:
        nonlocal end
        await stop.wait()
        end = anyio.current_time() + graceful_timeout
        if not ready.is_set():
            stop_worker.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        tasks.start_soon(work)
        await ready.wait()
        if not stop.is_set():
            await serve()
        # What the interface server took of the graceful timeout, the worker has not.
        worker.graceful_timeout = max(0.0, min(graceful_timeout, end - anyio.current_time()))
        stop_worker.set()
