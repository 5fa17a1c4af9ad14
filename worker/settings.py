"""The worker's settings: one field per option of `asgi-worker`, with its default."""

from __future__ import annotations

from dataclasses import dataclass

from asgibus.worker.lifespan import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """How a worker runs. Times in seconds."""

    app: str
    app_dir: str = ""
    factory: bool = False
    layer: str = "redis://127.0.0.1:6379"
    prefix: str = "asgibus"
    pool: str = "default"
    concurrency: int = 10_000
    """Connections served at once. An idle WebSocket costs about 10 KB; lower it for apps that compute."""
    lifespan: Mode = "auto"
    graceful_timeout: float = 30.0
