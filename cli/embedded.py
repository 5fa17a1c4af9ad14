"""An interface server and a worker in one process: `asgi-interface APP`."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import anyio

from asgibus.layers.channel_layer import ChannelLayer
from asgibus.worker.loader import load_app
from asgibus.worker.settings import WorkerSettings
from asgibus.worker.worker import Worker


def embedded_worker(settings: WorkerSettings, layer: ChannelLayer) -> Worker:
    """Return a worker with its app loaded. Raises ApplicationError."""
    app, settings = load_app(settings)
    return Worker(settings, app, layer)


async def serve_with_worker(
    worker: Worker, serve: Callable[[], Awaitable[None]], stop: anyio.Event, graceful_timeout: float
) -> None:
    """Run an interface server beside a worker, which is ready before it and stops after it.

    Args:
        worker: The worker.
        serve: Runs the interface server.
        stop: Ends `serve`.
        graceful_timeout: Seconds that both together take at most to stop.

    Raises:
        LifespanError: The app's start-up failed.

    """
    ready, stop_worker = anyio.Event(), anyio.Event()
    end = math.inf

    async def work() -> None:
        await worker.serve(stop_worker, ready.set)
        ready.set()  # in case the worker was stopped before it was ready

    async def watch_stop() -> None:
        nonlocal end
        await stop.wait()
        end = anyio.current_time() + graceful_timeout
        if not ready.is_set():
            stop_worker.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch_stop)
        tasks.start_soon(work)
        await ready.wait()
        if not stop.is_set():
            await serve()
        # The worker has what the interface server has left of the graceful timeout.
        worker.graceful_timeout = max(0.0, min(graceful_timeout, end - anyio.current_time()))
        stop_worker.set()
