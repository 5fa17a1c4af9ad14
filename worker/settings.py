"""The worker's settings: one field per option of `asgi-worker`, with its default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from asgibus.layers.settings import BACKLOG_BYTES, CAPACITY, EXPIRY_SECONDS
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
    resume_timeout: float = 60.0
    """How long what the app sends to groups and channels waits for a layer that is away; then LayerUnavailable."""
    layer_backlog: int = BACKLOG_BYTES
    """Bytes of that which wait at once; whoever sends more waits in turn."""
    acknowledge: Literal["done", "taken"] = "done"
    """When a client's event counts as dealt with: when the app asks for the next one, or already when it gets it."""
    drain_period: float = 5.0
    """Over how long the WebSockets are handed over or closed, so that they do not all come back at once."""
    max_requests: int | None = None
    """Connections, HTTP or WebSocket, or messages, after which the worker drains and ends; None: no limit."""
    max_lifetime: float | None = None
    """After how long the worker drains and ends; None: no limit."""
    protocols: tuple[str, ...] = ()
    """Protocols beside HTTP and WebSocket whose connections the app serves, such as `udp`."""
    channels: tuple[str, ...] = ()
    """Ordinary channels whose messages the app handles; the worker then serves these, and no connections."""
    channel_concurrency: int = 10
    """Messages of each channel that are handled at once, each by an instance of the app; 1 keeps their order."""
    attempts: int = 5
    """How often a message is tried before it becomes a dead letter."""
    dead_letter: str | None = None
    """The channel of dead letters; None: the message's own channel and `.dead`."""
    at_most_once: bool = False
    """Whether a message is lost if the app fails at it or the worker dies, and never handled twice."""
    expiry: float = EXPIRY_SECONDS
    """After how long an unread message is dropped."""
    capacity: int = CAPACITY
    """How many unread messages a channel of dead letters holds."""
    interface: Literal["auto", "asgi3", "asgi2", "wsgi"] = "auto"
    """How the app is called; "auto": found out from its signature."""
    wsgi_max_body_size: int = 1024**3
    """Bytes of the body of one request to a WSGI app; a larger one is answered with 413."""
    wsgi_response_buffer: int = 16 * 1024**2
    """Bytes of a response that a WSGI app may write before its client has read them."""
    wsgi_spool_size: int = 4 * 1024**3
    """Bytes on disk that the bodies of requests to a WSGI app, and of its responses, may take up together."""
    threads: int = 10
    """Requests that run at once in a WSGI app.

    They wait for databases and other services for most of their time, so that about ten keep a core busy; and as each
    thread may hold a connection to a database, ten such workers stay within the hundred that PostgreSQL allows.
    """
