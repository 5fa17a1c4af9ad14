"""The opening of a connection: what the interface server puts on a shared channel, and a worker makes a scope from."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from asgibus.protocol.events import Event, Headers

REQUEST_VERSION = 2  # raised with every change of the fields, of the events or of the frames

HTTP = "http"
WEBSOCKET = "websocket"

Address = tuple[str, int | None]


class ConnectRequest(NamedTuple):
    """One connection as the interface server saw it. Travels as a plain tuple, in this order."""

    version: int
    interface: str
    """The mailbox of the interface server; with the connection's number it is the reply channel."""
    connection: int
    attempt: int
    """1 for the first run of the app, counted up for each further one."""
    resumed: bool
    """Whether an earlier run has accepted the client, so that this one goes on with it."""
    handled: int
    """How many of the client's events earlier runs were done with."""
    window: int
    """Bytes that may be under way unacknowledged, each direction."""
    kind: str
    http_version: str = ""
    method: str = ""
    scheme: str = ""
    raw_path: bytes = b""
    query_string: bytes = b""
    root_path: str = ""
    headers: Headers = ()
    client: Address | None = None
    server: Address | None = None
    subprotocols: tuple[str, ...] = ()
    extensions: dict[str, Any] = {}  # noqa: RUF012 -- nobody alters what is to be packed
    expects_continue: bool = False
    events: tuple[Event, ...] = ()
    """The first events, numbered from 0: for HTTP the first part of the body, for a further run what is left."""
    state: bytes = b""
    """What the app saved in an earlier attempt, packed."""
    scope: dict[str, Any] | None = None
    """The scope of a connection that is neither HTTP nor WebSocket; what only these two have is then empty."""


def reply_channel(interface: str, connection: int) -> str:
    """The channel name on which a connection takes plain ASGI events from anyone."""
    return f"{interface}{connection}"


def build_scope(opening: ConnectRequest) -> dict[str, Any]:
    """The ASGI scope of a connection: "HTTP Connection Scope" or "WebSocket Connection Scope", version 2.5.

    That of HTTP says 2.3, as other servers do: from 2.4 on, Starlette looks only at what `send` raises, and would never
    learn that the client of a stream that has nothing to say is gone.

    Of any other kind it is what the terminator says. `state` and `extensions["asgibus"]` belong to the worker, which
    adds them.
    """
    if opening.scope is not None:
        own = {"type": opening.kind, "asgi": {"version": "3.0"}}
        return {**opening.scope, **own, "extensions": dict(opening.scope.get("extensions", {}))}
    raw_path = opening.raw_path
    path = (unquote_to_bytes(raw_path) if b"%" in raw_path else raw_path).decode("utf-8", "replace")
    scope: dict[str, Any] = {
        "type": opening.kind,
        "asgi": {"version": "3.0", "spec_version": "2.3" if opening.kind == HTTP else "2.5"},
        "http_version": opening.http_version,
        "scheme": opening.scheme,
        "path": opening.root_path + path,
        "raw_path": opening.root_path.encode() + raw_path if opening.root_path else raw_path,
        "query_string": opening.query_string,
        "root_path": opening.root_path,
        "headers": list(opening.headers),
        "client": opening.client,
        "server": opening.server,
        "extensions": dict(opening.extensions),
    }
    if opening.kind == HTTP:
        scope["method"] = opening.method
    else:
        scope["subprotocols"] = list(opening.subprotocols)
    return scope
