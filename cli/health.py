"""The state of a process, as the admin port shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from asgibus.cli.run import ProcessLifecycle
from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.contract import Statistics


class AdminError(Exception):
    """The admin port cannot be listened on; the text says which, and why not."""


class Health(Protocol):
    """The state of a server. Its methods are called in the event loop and must not block."""

    def ready(self) -> str | None:
        """Return None if the server can take new connections, else the reason in one sentence."""

    def counts(self) -> Mapping[str, int]:
        """Return how often each kind of event happened since the start, such as "takeover" or "slow client"."""

    def gauges(self) -> Mapping[str, int]:
        """Return numbers of things that exist now, such as "connections"."""

    async def channels(self) -> Mapping[str, Statistics]:
        """Return the statistics of the channels that the process works for. Their names are few."""


class ProcessHealth:
    """The state of all servers of a process, as one."""

    def __init__(self, lifecycle: ProcessLifecycle, layer: ChannelLayer, *servers: Health) -> None:
        self._lifecycle = lifecycle
        self._layer = layer
        self._servers = servers

    def ready(self) -> str | None:
        """Return None if all servers are ready, else the first reason."""
        if not self._lifecycle.has_started:
            return self._lifecycle.status
        return next((reason for server in self._servers if (reason := server.ready()) is not None), None)

    def counts(self) -> Mapping[str, int]:
        """Return the sums. Each server's counts contain those of the layer, which count once."""
        counts = Counter(self._layer.counts)
        if self._lifecycle.has_started:
            for server in self._servers:
                counts += Counter(server.counts()) - self._layer.counts
        return counts

    def gauges(self) -> Mapping[str, int]:
        """Return the sums."""
        gauges: Counter[str] = Counter()
        if self._lifecycle.has_started:
            for server in self._servers:
                gauges.update(server.gauges())
        return gauges

    async def channels(self) -> Mapping[str, Statistics]:
        """Return the channels of all servers; none while the layer is away."""
        channels: dict[str, Statistics] = {}
        if self._lifecycle.has_started:
            for server in self._servers:
                channels |= await server.channels()
        return channels
