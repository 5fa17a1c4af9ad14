"""Results of one measurement, as a client reports them."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Tally:
    """Number of answers, deliveries, sockets or MB, duration, CPU seconds of the client, and each latency in seconds.

    fullest: The part (0 to 1) of all sockets that the worker with most of them has.
    """

    count: float
    seconds: float
    client_cpu: float
    waits: list[float] = field(default_factory=list)
    fullest: float | None = None

    def percentile(self, part: float) -> float | None:
        """Return the wait, in milliseconds, that this part (0 to 1) of all waits stays below."""
        if not self.waits:
            return None
        ordered = sorted(self.waits)
        return 1000 * ordered[min(len(ordered) - 1, int(part * len(ordered)))]

    def as_json(self) -> dict[str, float | None]:
        return {
            "count": self.count,
            "seconds": self.seconds,
            "client_cpu": self.client_cpu,
            "p50_ms": self.percentile(0.50),
            "p99_ms": self.percentile(0.99),
            "fullest": self.fullest,
        }
