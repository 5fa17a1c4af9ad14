"""The settings of a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from asgibus.layers.names import require_channel
from asgibus.layers.settings import (
    BACKLOG_BYTES,
    CAPACITY,
    EXPIRY_SECONDS,
    STREAM_BYTES,
    STREAM_ENTRIES,
    STREAM_KEPT_SECONDS,
    StreamLimits,
)
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class WorkerSettings(ServerSettings):
    """The settings of a worker. Times are in seconds, and sizes in bytes."""

    app: str
    """The app, as `module:attribute`."""

    resume_timeout: float = setting(
        60.0, Heading.BUS, "How long messages of the app to groups and channels wait while the layer is unavailable."
    )
    layer_backlog: int = setting(
        BACKLOG_BYTES,
        Heading.BUS,
        "Bytes of messages of the app to groups and channels that wait while the layer is unavailable; further sends "
        "wait until there is room.",
        kind=Kind.BYTES,
    )

    factory: bool = setting(False, Heading.APPLICATION, "APP is a function that returns the app.")
    app_dir: str = setting("", Heading.APPLICATION, "Look for APP here first.", kind=Kind.FOLDER, shown_default=".")
    interface: Literal["auto", "asgi3", "asgi2", "wsgi"] = setting(
        "auto", Heading.APPLICATION, "Interface of APP: detected from its signature, or as given."
    )
    lifespan: Mode = setting(
        "auto", Heading.APPLICATION, "Run the lifespan of the app: if the app supports it, always, or never."
    )
    shutdown_notice: bool = setting(
        False,
        Heading.APPLICATION,
        "When the worker stops, send lifespan.shutdown.notice to the lifespan of the app, before connections end. Only "
        "for apps that know it: others take it for the shut-down.",
    )
    # An idle WebSocket costs about 10 KB; lower it for apps that compute.
    concurrency: int = setting(
        10_000, Heading.APPLICATION, "Maximum number of connections that a worker serves at once."
    )
    protocols: tuple[str, ...] = setting(
        (),
        Heading.APPLICATION,
        "Also serve connections of this protocol, such as udp, for which an interface server has a terminator. "
        "Repeatable.",
        metavar="NAME",
        parse=_protocols,
    )
    # Requests wait for databases and other services for most of their time, so that about ten keep a core busy; and as
    # each thread may hold a connection to a database, ten such workers stay within the hundred that PostgreSQL allows.
    threads: int = setting(10, Heading.APPLICATION, "Requests that a WSGI app handles at once.")
    wsgi_max_body_size: int = setting(
        1024**3,
        Heading.APPLICATION,
        "Maximum size of a request body for a WSGI app, which gets whole bodies; a larger one is answered with 413.",
        kind=Kind.BYTES,
    )
    wsgi_response_buffer: int = setting(
        16 * 1024**2,
        Heading.APPLICATION,
        "Bytes of a response that a WSGI app may write ahead of a slow client; then its thread waits.",
        kind=Kind.BYTES,
    )
    wsgi_spool_size: int = setting(
        4 * 1024**3,
        Heading.APPLICATION,
        "Disk space in TMPDIR, for each worker, for request and response bodies of a WSGI app.",
        kind=Kind.BYTES,
    )

    resume: bool = setting(
        False,
        Heading.STOPPING,
        "WebSockets and event streams outlive this worker: the app runs for them again in another worker.",
    )
    handover: Literal["tell", "silent", "suspend"] = setting(
        "tell",
        Heading.STOPPING,
        "With --resume: at a hand-over the app gets websocket.disconnect; or is cancelled in its call of receive, so "
        "that it does not take the hand-over for a client that leaves; or is left waiting there until the process "
        "exits, for an app that takes a cancellation for a client that leaves, too.",
    )
    # A pool of database connections has ten to twenty, and a session and a user are read within 0.1 s.
    resume_rate: int = setting(
        50,
        Heading.STOPPING,
        "With --resume: number of WebSockets and event streams per second that a worker takes over from workers that "
        "died; 0 for no limit.",
        zero=True,
    )
    acknowledge: Literal["done", "taken"] = setting(
        "done",
        Heading.STOPPING,
        "An event of a client is acknowledged when the app is done with it (it asks for the next one, or returns), or "
        "already when the app has received it. If the worker dies, the next run gets all unacknowledged events.",
    )
    graceful_timeout: float = setting(
        30.0, Heading.STOPPING, "How long requests and messages may finish after SIGTERM or SIGINT."
    )
    max_requests: int | None = setting(
        None,
        Heading.STOPPING,
        "Number of connections, HTTP or WebSocket, or of messages after which the worker stops, give or take 10 %; "
        "with --processes another one replaces it. Clients that another worker has accepted do not count.",
        shown_default="none",
    )
    max_lifetime: float | None = setting(
        None,
        Heading.STOPPING,
        "Time after which the worker stops; with --processes another one replaces it.",
        shown_default="none",
    )

    channels: tuple[str, ...] = setting(
        (),
        Heading.BACKGROUND,
        "Run APP for the messages of this channel (scope type channel), and for no connections. Repeatable.",
        metavar="NAME",
        parse=_channels,
    )
    channel_concurrency: int = setting(
        10, Heading.BACKGROUND, "Messages of a channel that are handled at once; 1 keeps their order."
    )
    attempts: int = setting(
        5,
        Heading.BACKGROUND,
        "How often a message is tried if the app raises or its worker dies, after 1, 2, 4, ... seconds.",
    )
    dead_letter: str | None = setting(
        None,
        Heading.BACKGROUND,
        "Channel for messages that failed all attempts.",
        metavar="CHANNEL",
        shown_default="the channel's name with .dead behind it",
        parse=_channel_or_none,
    )
    at_most_once: bool = setting(
        False, Heading.BACKGROUND, "Never handle a message twice: it is lost if the app raises or the worker dies."
    )
    expiry: float = setting(
        EXPIRY_SECONDS,
        Heading.BACKGROUND,
        "Time after which an unread message expires: the same as in the layer of its senders.",
    )
    capacity: int = setting(
        CAPACITY, Heading.BACKGROUND, "Dead letters that a channel holds; when it is full, further ones are lost."
    )

    stream_entries: int = setting(
        STREAM_ENTRIES,
        Heading.STREAMS,
        "Entries that a stream of this worker keeps; the oldest ones fall off.",
    )
    stream_bytes: int = setting(
        STREAM_BYTES, Heading.STREAMS, "Bytes of entries that such a stream keeps.", kind=Kind.BYTES
    )
    stream_kept: float = setting(
        STREAM_KEPT_SECONDS, Heading.STREAMS, "Time for which such a stream is kept after its end."
    )

    @property
    def stream_limits(self) -> StreamLimits:
        """The limits of the streams that this worker writes. Raises ValueError if one is not valid."""
        return StreamLimits(self.stream_entries, self.stream_bytes, self.stream_kept)
