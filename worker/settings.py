"""The settings of a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from asgibus.layers.names import require_channel
from asgibus.layers.settings import BACKLOG_BYTES, CAPACITY, EXPIRY_SECONDS
from asgibus.protocol.channels import require_protocol
from asgibus.protocol.settings import Heading, Kind, ServerSettings, setting
from asgibus.worker.lifespan import Mode


def _ordinary_channel(name: str) -> str:
    try:
        require_channel(name)
    except TypeError as error:
        raise ValueError(str(error)) from error
    if "!" in name:
        raise ValueError(f"{name!r} is process-local: only the process that made it can receive from it")
    return name


def _channels(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(_ordinary_channel, names)))


def _channel_or_none(name: str | None) -> str | None:
    return None if name is None else _ordinary_channel(name)


def _protocols(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(require_protocol, names)))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings(ServerSettings):
    """How a worker runs. Times in seconds, sizes in bytes."""

    app: str
    """The app, as `module:attribute`."""

    resume_timeout: float = setting(
        60.0,
        Heading.BUS,
        "How long what the app sends to groups and channels waits for a layer that is away.",
        kind=Kind.SECONDS,
    )
    layer_backlog: int = setting(
        BACKLOG_BYTES,
        Heading.BUS,
        "How much of what the app sends to groups and channels waits at once for a layer that is away; whoever sends "
        "more waits in turn.",
        kind=Kind.BYTES,
    )

    factory: bool = setting(False, Heading.APPLICATION, "APP is a function that gives the app.")
    app_dir: str = setting("", Heading.APPLICATION, "Look for APP here first.", kind=Kind.FOLDER, shown_default=".")
    interface: Literal["auto", "asgi3", "asgi2", "wsgi"] = setting(
        "auto", Heading.APPLICATION, "How APP is called: found out from its arguments, or as it is said here."
    )
    lifespan: Mode = setting(
        "auto", Heading.APPLICATION, "Run the app's start-up and shut-down: if it has one, always, or never."
    )
    # An idle WebSocket costs about 10 KB; lower it for apps that compute.
    concurrency: int = setting(
        10_000, Heading.APPLICATION, "Connections that a worker serves at once.", kind=Kind.COUNT
    )
    protocols: tuple[str, ...] = setting(
        (),
        Heading.APPLICATION,
        "Serve connections of this protocol, too, such as udp; an interface server must have a terminator for it. "
        "Repeatable.",
        metavar="NAME",
        parse=_protocols,
    )
    # Requests wait for databases and other services for most of their time, so that about ten keep a core busy; and as
    # each thread may hold a connection to a database, ten such workers stay within the hundred that PostgreSQL allows.
    threads: int = setting(10, Heading.APPLICATION, "Requests that a WSGI app runs at once.", kind=Kind.COUNT)
    wsgi_max_body_size: int = setting(
        1024**3,
        Heading.APPLICATION,
        "Largest body of a request to a WSGI app, which gets it when it is whole; a larger one is a 413.",
        kind=Kind.BYTES,
    )
    wsgi_response_buffer: int = setting(
        16 * 1024**2,
        Heading.APPLICATION,
        "How much of a response a WSGI app may write before a slow client has read it; then its thread waits.",
        kind=Kind.BYTES,
    )
    wsgi_spool_size: int = setting(
        4 * 1024**3,
        Heading.APPLICATION,
        "Disk space, in TMPDIR, for bodies of a WSGI app that wait for it or for a client, in each worker.",
        kind=Kind.BYTES,
    )

    resume: bool = setting(False, Heading.STOPPING, "WebSockets outlive this worker: the app runs again elsewhere.")
    acknowledge: Literal["done", "taken"] = setting(
        "done",
        Heading.STOPPING,
        "A client's event counts as dealt with when the app is done with it (it asks for the next one, or returns), or "
        "already when the app has taken it. What does not count when a worker dies is given to the next run.",
    )
    graceful_timeout: float = setting(
        30.0,
        Heading.STOPPING,
        "How long requests and messages may finish after SIGTERM or SIGINT.",
        kind=Kind.SECONDS,
    )
    max_requests: int | None = setting(
        None,
        Heading.STOPPING,
        "Connections, HTTP or WebSocket, or messages, after which the worker stops, give or take 10 %; with "
        "--processes another takes its place.",
        kind=Kind.COUNT,
        shown_default="none",
    )
    max_lifetime: float | None = setting(
        None,
        Heading.STOPPING,
        "After how long the worker stops; with --processes another takes its place.",
        kind=Kind.SECONDS,
        shown_default="none",
    )

    channels: tuple[str, ...] = setting(
        (),
        Heading.BACKGROUND,
        "Run APP for the messages of this channel, with scope type channel; for no connections. Repeatable.",
        metavar="NAME",
        parse=_channels,
    )
    channel_concurrency: int = setting(
        10,
        Heading.BACKGROUND,
        "Messages of a channel that are handled at once; 1 keeps their order.",
        kind=Kind.COUNT,
    )
    attempts: int = setting(
        5,
        Heading.BACKGROUND,
        "How often a message is tried, after 1, 2, 4, ... seconds, when the app raises or its worker dies.",
        kind=Kind.COUNT,
    )
    dead_letter: str | None = setting(
        None,
        Heading.BACKGROUND,
        "Where messages go that had their attempts.",
        metavar="CHANNEL",
        shown_default="the channel's name with .dead behind it",
        parse=_channel_or_none,
    )
    at_most_once: bool = setting(
        False,
        Heading.BACKGROUND,
        "Never handle a message twice: it is lost if the app raises or the worker dies.",
    )
    expiry: float = setting(
        EXPIRY_SECONDS,
        Heading.BACKGROUND,
        "After how long an unread message is dropped: as long as in the layer of those who send it.",
        kind=Kind.SECONDS,
    )
    capacity: int = setting(
        CAPACITY,
        Heading.BACKGROUND,
        "Dead letters that a channel holds; when it is full, a further one is lost.",
        kind=Kind.COUNT,
    )
