"""An interface server and a worker in the event loop of the test, where a test has to look or reach inside."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from asgibus.compatibility.callables import Application
from asgibus.interface_server.server import Server
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.layers.channel_layer import ChannelLayer
from asgibus.worker.settings import WorkerSettings
from asgibus.worker.worker import Worker


@asynccontextmanager
async def serving_here(
    app: Application, layer: ChannelLayer, worker_layer: ChannelLayer | None = None
) -> AsyncIterator[int]:
    """Serve `app` over `layer` while the context lasts; gives the port. Fails if that takes more than 30 s.

    `worker_layer`: the worker's own way to the same store.
    """
    stop, working, listening = anyio.Event(), anyio.Event(), anyio.Event()
    urls: list[str] = []

    def ready(place: str) -> None:
        urls.append(place)
        listening.set()

    worker = Worker(WorkerSettings(app=""), app, worker_layer or layer)
    server = Server(InterfaceSettings(port=0, access_log=False, graceful_timeout=1), layer)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.serve, stop, working.set)
            tasks.start_soon(server.serve, stop, ready)
            await working.wait()
            await listening.wait()
            try:
                yield int(urls[0].rpartition(":")[2])
            finally:
                stop.set()
