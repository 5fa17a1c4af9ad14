"""The worker's settings: one field per option of `asgi-worker`, with its default."""

from __future__ import annotations

from dataclasses import dataclass, field

from asgibus.worker.lifespan import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """How a worker runs. Times in seconds."""

    app: str
    app_dir: str = ""
    factory: bool = False
    layer: str = "redis://127.0.0.1:6379"
    prefix: str = "asgibus"
    encryption_keys: tuple[str, ...] = field(default=(), repr=False)
    """Secrets: the first encrypts what goes through Redis, all decrypt."""
    pool: str = "default"
    concurrency: int = 10_000
    """Connections served at once. An idle WebSocket costs about 10 KB; lower it for apps that compute."""
    lifespan: Mode = "auto"
    graceful_timeout: float = 30.0
    resume: bool = False
    """Whether a WebSocket outlives this worker: the app runs for it again elsewhere."""
    drain_period: float = 5.0
    """Over how long the WebSockets are handed over or closed, so that they do not all come back at once."""
    max_requests: int | None = None
    """Connections, HTTP or WebSocket, after which the worker drains and ends; None: no limit."""
    max_lifetime: float | None = None
    """After how long the worker drains and ends; None: no limit."""
