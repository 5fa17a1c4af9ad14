"""The page of metrics for Prometheus: what the servers of a process have counted, and the process itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from asgibus.layers.contract import Statistics

if TYPE_CHECKING:
    from asgibus.cli.admin import Health


class Metrics:
    """Of one process."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._registry = CollectorRegistry()
        self._counted = _Counted(health)
        self._registry.register(self._counted)
        ProcessCollector(registry=self._registry)

    async def page(self) -> tuple[bytes, str]:
        """The page as it is now, and its content type."""
        self._counted.channels = await self._health.channels()
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4


class _Counted(Collector):
    """Asks for the counts when they are scraped, so that counting costs the servers nothing but the adding up."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self.channels: Mapping[str, Statistics] = {}

    def collect(self) -> Iterable[Metric]:
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
            for name, channel in sorted(self.channels.items()):
                family.add_metric([name], value_of(channel))
            yield family
