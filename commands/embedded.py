"""Both servers in one process: what `asgi-interface APP` runs."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields
from typing import Any

import anyio
from anyio.abc import TaskStatus

from asgibus.layers.contract import ChannelLayer
from asgibus.worker.application import ApplicationError, load_application
from asgibus.worker.lifespan import LifespanError
from asgibus.worker.server import Worker
from asgibus.worker.settings import WorkerSettings

EXPECTED = (ApplicationError, LifespanError)


async def serve_with_worker(
    options: Mapping[str, Any],
    layer: ChannelLayer,
    serve: Callable[[], Awaitable[None]],
    stop: anyio.Event,
) -> None:
    """Run `serve` (an interface server) beside a worker, which is ready before it and stops after it.

    `stop` is what ends `serve`; both together get the graceful timeout. `options` are those of the command; the worker
    takes the ones that it knows. Raises ApplicationError, LifespanError, and what `serve` raises.
    """
    names = {field.name for field in fields(WorkerSettings)}
    settings = WorkerSettings(**{name: value for name, value in options.items() if name in names})
    worker = Worker(settings, load_application(settings.app, app_dir=settings.app_dir, factory=settings.factory), layer)
    stop_worker = anyio.Event()

    async def work(*, task_status: TaskStatus[None]) -> None:
        await worker.serve(stop_worker, task_status.started)

    end = math.inf

    async def watch() -> None:
        nonlocal end
        await stop.wait()
        end = anyio.current_time() + settings.graceful_timeout

    async with anyio.create_task_group() as tasks:
        await tasks.start(work)
        tasks.start_soon(watch)
        await serve()
        # What the interface server took of the graceful timeout, the worker has not.
        worker.graceful_timeout = max(0.0, min(settings.graceful_timeout, end - anyio.current_time()))
        stop_worker.set()
