"""The admin port: /healthz, /readyz and /metrics, for probes and for Prometheus.

It is meant for an address that the public does not reach, and asks for no password. The parser of requests and the
encoder of responses are those of the interface server. The sockets are handled here, and not on a bus: they are few,
each has one request, and sockets that send none make room for others.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import anyio
from anyio.abc import SocketAttribute, SocketListener, SocketStream, TaskGroup

from asgibus.cli.health import AdminError, Health
from asgibus.interface_server.http.request import HEAD_TOO_LARGE, Request, RequestParser
from asgibus.interface_server.http.response import StandardHeaders, response_head
from asgibus.layers.contract import Statistics

if TYPE_CHECKING:
    from prometheus_client.core import Metric

logger = logging.getLogger("asgibus.admin")

MAX_HEAD_SIZE = 8 * 1024  # bytes; a probe sends some hundred
MAX_UNREAD = 64 * 1024  # bytes that are read after a request: what a client has sent by the time of the response
MAX_SOCKETS = 16  # probes come one by one; more is a mistake, and must not take file descriptors from clients
SECONDS = 5.0  # for a request's head to arrive, and again for its response to be read
RETRY_SECONDS = 0.2  # to accept when descriptors ran out
STANDARD = StandardHeaders(server=False, date=False)
TEXT = "text/plain; charset=utf-8"


@asynccontextmanager
async def admin(host: str, port: int, health: Health) -> AsyncIterator[str]:
    """Answer GET and HEAD of /healthz, /readyz and /metrics until the context ends.

    /healthz is always 200 and shows that the event loop runs. /readyz is 503, with the reason, while the process is
    not ready.

    Yields:
        The URL.

    Raises:
        AdminError: The port cannot be listened on.

    """
    try:
        listener = await anyio.create_tcp_listener(local_host=host, local_port=port, backlog=MAX_SOCKETS)
    except (OSError, ValueError, OverflowError) as error:  # ValueError: a name that no resolver takes
        reason = getattr(error, "strerror", None) or error
        raise AdminError(f"cannot listen on {host}:{port} for the admin port: {reason}") from error
    bound = listener.extra(SocketAttribute.local_port)  # noqa: S610  # not Django's
    url = f"http://{f'[{host}]' if ':' in host else host}:{bound}"
    sockets = _Sockets(_Pages(health))
    async with listener, anyio.create_task_group() as tasks:
        for each in listener.listeners:
            assert isinstance(each, SocketListener)
            tasks.start_soon(sockets.accept, each, tasks)
        logger.info("admin port on %s", url)
        try:
            yield url
        finally:
            tasks.cancel_scope.cancel()


class _Page(NamedTuple):
    status: int
    body: bytes
    content_type: str = TEXT

    def response(self, request: Request) -> bytes:
        """Return the response, after which the connection is closed."""
        headers = b"content-type: %b\r\ncache-control: no-store\r\n" % self.content_type.encode()
        if self.status == 405:
            headers += b"allow: GET, HEAD\r\n"
        head = response_head(
            self.status,
            headers,
            STANDARD,
            http_version="1.1",
            method="GET",
            keep_alive=False,
            whole=len(self.body),
        )
        return head.data if request.method == "HEAD" else head.data + self.body


class _Sockets:
    """The open sockets, oldest first. Each has one request; those that have none make room for new ones."""

    def __init__(self, pages: _Pages) -> None:
        self._pages = pages
        self._idle: dict[anyio.CancelScope, None] = {}
        self._answering: set[anyio.CancelScope] = set()

    async def accept(self, listener: SocketListener, tasks: TaskGroup) -> None:
        """Serve each socket in a task. anyio's own loop would end when file descriptors run out."""
        failed = False
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if not failed:
                    logger.warning("the admin port cannot accept for a moment: %s", error.strerror or error)
                failed = True
                await anyio.sleep(RETRY_SECONDS)
            else:
                failed = False
                tasks.start_soon(self.serve, stream)

    async def serve(self, stream: SocketStream) -> None:
        """Answer one request."""
        try:
            with anyio.CancelScope() as scope:
                if self._admit(scope):
                    await self._exchange(stream, scope)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError, RuntimeError):
            pass  # the client is gone (uvloop: "the handler is closed"), and nobody else waits for the response
        finally:
            self._idle.pop(scope, None)
            self._answering.discard(scope)
            with anyio.CancelScope(shield=True):
                await stream.aclose()

    def _admit(self, scope: anyio.CancelScope) -> bool:
        """Close the oldest idle socket if there are too many. Return False if none of them is idle."""
        if len(self._idle) + len(self._answering) >= MAX_SOCKETS:
            if not self._idle:
                return False
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            oldest.cancel()
        self._idle[scope] = None
        return True

    async def _exchange(self, stream: SocketStream, scope: anyio.CancelScope) -> None:
        request = Request(None, None, "http", {})
        try:
            with anyio.fail_after(SECONDS):
                request = await _read_request(stream)
                if scope in self._idle:
                    del self._idle[scope]
                    self._answering.add(scope)
                page = await self._pages.get(request)
        except TimeoutError:
            page = _Page(408, b"The request did not come in time.\n")
        with anyio.move_on_after(SECONDS):
            await stream.send(page.response(request))
            await stream.send_eof()
            if scope in self._answering:
                self._answering.discard(scope)
                self._idle[scope] = None
            # Closing with bytes unread would reset the connection, and the client might not see the response.
            unread = 0
            while unread <= MAX_UNREAD:
                unread += len(await stream.receive(MAX_HEAD_SIZE))


async def _read_request(stream: SocketStream) -> Request:
    """Read the head of a request, with an error if it must be rejected. Raises EndOfStream if the client leaves."""
    heads: list[Request] = []

    parser = RequestParser((None, None, "http", {}), MAX_HEAD_SIZE, heads.append)
    try:
        size = 0
        while not heads:
            data = await stream.receive(MAX_HEAD_SIZE - size)
            size += len(data)
            error = parser.feed(data)
            if size >= MAX_HEAD_SIZE:
                error = error or HEAD_TOO_LARGE  # the parser does not count empty lines before a request
            if error is not None and not heads:
                request = Request(None, None, "http", {})
                request.error = error
                heads.append(request)
    finally:
        parser.release()
    return heads[0]


class _Pages:
    """The three pages."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._metrics = _Metrics(health)
        self._pages: dict[bytes, Callable[[], Awaitable[_Page]]] = {
            b"/healthz": self._healthz,
            b"/readyz": self._readyz,
            b"/metrics": self._metrics.page,
        }

    async def get(self, request: Request) -> _Page:
        """Return the page for a request."""
        if request.error is not None:
            return _Page(request.error.status, f"{request.error.reason}\n".encode())
        page = self._pages.get(request.raw_path)
        if page is None:
            return _Page(404, b"There are /healthz, /readyz and /metrics.\n")
        if request.method not in ("GET", "HEAD"):
            return _Page(405, b"Only GET and HEAD.\n")
        try:
            return await page()
        except Exception:
            # An error in the counts must not end the servers whose counts they are.
            logger.exception("no response to %s", request.target.decode("latin-1"))
            return _Page(500, b"See the log.\n")

    async def _healthz(self) -> _Page:
        return _Page(200, b"ok\n")

    async def _readyz(self) -> _Page:
        reason = self._health.ready()
        return _Page(200, b"ready\n") if reason is None else _Page(503, f"{reason}\n".encode())


NO_METRICS = "/metrics needs prometheus-client: pip install 'asgibus[metrics]'"


class _Metrics:
    """The page for Prometheus. Counts are read when the page is asked for, so that counting costs nothing else."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._channels: Mapping[str, Statistics] = {}
        try:
            # Imported here: an extra, which takes a tenth of a command's start-up.
            from prometheus_client import CollectorRegistry, ProcessCollector  # noqa: PLC0415
        except ModuleNotFoundError:
            logger.warning("%s", NO_METRICS)
            self._registry = None
            return
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    async def page(self) -> _Page:
        """Return the page."""
        if self._registry is None:
            return _Page(501, f"{NO_METRICS}\n".encode())
        from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest  # noqa: PLC0415

        self._channels = await self._health.channels()
        return _Page(200, generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4)

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics, as the registry asks for them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415

        events = CounterMetricFamily("asgibus_events", "What happened since the start, by kind.", labels=["kind"])
        for kind, count in sorted(self._health.counts().items()):
            events.add_metric([kind], count)
        yield events
        for name, value in sorted(self._health.gauges().items()):
            yield GaugeMetricFamily(f"asgibus_{name.replace(' ', '_')}", f"Now: {name}.", value=value)
        families: list[tuple[CounterMetricFamily | GaugeMetricFamily, Callable[[Statistics], float]]] = [
            (
                CounterMetricFamily("asgibus_channel_messages", "Sent to a channel, by all.", labels=["channel"]),
                lambda channel: channel["messages_count"],
            ),
            (
                CounterMetricFamily("asgibus_channel_full", "Refused by a full channel.", labels=["channel"]),
                lambda channel: channel["channel_full_count"],
            ),
            (
                GaugeMetricFamily("asgibus_channel_pending", "Waiting in a channel.", labels=["channel"]),
                lambda channel: channel["messages_pending"],
            ),
            (
                GaugeMetricFamily("asgibus_channel_oldest_seconds", "The oldest has waited.", labels=["channel"]),
                lambda channel: channel["messages_max_age"],
            ),
        ]
        for family, value_of in families:
            for name, channel in sorted(self._channels.items()):
                family.add_metric([name], value_of(channel))
            yield family
