"""Both servers in one process: what `asgi-interface APP` runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import fields
from typing import Any

from asgibus.layers.contract import ChannelLayer
from asgibus.worker.application import ApplicationError, load_application
from asgibus.worker.lifespan import LifespanError
from asgibus.worker.server import Worker
from asgibus.worker.settings import WorkerSettings

EXPECTED = (ApplicationError, LifespanError)


async def serve_with_worker(
    options: Mapping[str, Any],
    layer: ChannelLayer,
    serve: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    """Run `serve` (an interface server) beside a worker: started after it, and stopped before it.

    `options` are those of the command; the worker takes the ones that it knows.
    Raises ApplicationError, LifespanError, and what `serve` raises.
    """
    names = {field.name for field in fields(WorkerSettings)}
    settings = WorkerSettings(**{name: value for name, value in options.items() if name in names})
    worker = Worker(settings, load_application(settings.app, app_dir=settings.app_dir, factory=settings.factory), layer)
    stop = asyncio.Event()
    ready = asyncio.Event()
    working = asyncio.create_task(worker.serve(stop, ready.set), name="worker")
    starting = asyncio.create_task(ready.wait(), name="worker ready")
    await asyncio.wait([working, starting], return_when=asyncio.FIRST_COMPLETED)
    starting.cancel()
    try:
        if not working.done():
            serving = asyncio.create_task(serve(), name="interface server")
            try:
                await asyncio.wait([serving, working], return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not serving.done():
                    serving.cancel()
                await asyncio.wait([serving])
            serving.result()
    finally:
        stop.set()
        await working
