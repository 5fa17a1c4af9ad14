"""The table, the targets and the machine, as text."""

import os
import platform
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from benchmarks.measures import ROWS, Sample

Samples = dict[tuple[str, str], list[Sample]]
"""The samples of each (row, peer), in the order of the repeats."""

PACKAGES = ("asgibus", "uvloop", "httptools", "hiredis", "uvicorn", "websockets", "channels", "channels_redis")


def machine() -> dict[str, str]:
    """Return a description of the machine that the figures depend on."""
    redis = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=False).stdout
    facts = {
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "redis": next((word[2:] for word in redis.split() if word.startswith("v=")), "none"),
    }
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "none"
    return facts


def table(samples: Samples) -> str:
    """Return one line for each row and peer: medians over the repeats, in brackets the lowest and the highest."""
    head = [
        "measure",
        "peer",
        "per second",
        "p50 ms",
        "p99 ms",
        "CPU-ms each",
        "of which",
        "KB a socket",
        "client",
        "others",
    ]
    lines = [head]
    for (name, peer), found in samples.items():
        idle = found[0].memory_kb is not None
        parts = [sample.memory_kb or {} for sample in found] if idle else [sample.cpu_ms for sample in found]
        lines.append(
            [
                ROWS[name].title,
                peer,
                "" if idle else spread([sample.rate for sample in found], ",.0f"),
                spread([sample.p50_ms for sample in found], ".2f"),
                spread([sample.p99_ms for sample in found], ".2f"),
                "" if idle else spread([sample.cpu_total for sample in found], ".3f"),
                by_process(parts, ".1f" if idle else ".3f"),
                spread([sample.memory_total for sample in found], ".1f"),
                f"{statistics.median(sample.client_cpu for sample in found):.0%}",
                spread([sample.other_cpu for sample in found], ".0%"),
            ]
        )
    return drawn(lines)


def drawn(lines: list[list[str]]) -> str:
    """Return the cells as a table; the first line is the head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in ruled
    )


def spread(figures: list[float | None] | list[float], form: str) -> str:
    """Return the median, and in brackets the lowest and the highest of several figures."""
    known = [figure for figure in figures if figure is not None]
    if not known:
        return ""
    middle = format(statistics.median(known), form)
    return middle if len(known) == 1 else f"{middle} ({min(known):{form}}-{max(known):{form}})"


def by_process(samples: list[dict[str, float]], form: str) -> str:
    """Return the median of each process, where there are several."""
    if len(samples[0]) == 1:
        return ""
    return ", ".join(f"{name} {statistics.median(one[name] for one in samples):{form}}" for name in samples[0])


@dataclass(frozen=True, slots=True)
class Target:
    """Bound on a figure of the bus in one row: a minimum or a maximum, absolute or as a ratio to a peer's figure."""

    row: str
    figure: str
    take: Callable[[Sample], float | None]
    bound: float
    at_least: bool
    peer: str | None = None

    def line(self, samples: Samples) -> str | None:
        """Return the verdict on the median, or None if a part of the figure was not measured.

        A ratio is taken within each repeat, between neighbours in time, before the median.
        """
        ours = [self.take(sample) for sample in samples.get((self.row, "bus"), [])]
        theirs: list[float | None] = [1.0] * len(ours)
        if self.peer is not None:
            theirs = [self.take(sample) for sample in samples.get((self.row, self.peer), [])]
        ratios = [one / other for one, other in zip(ours, theirs, strict=False) if one is not None and other]
        if not ratios:
            return None
        found = statistics.median(ratios)
        reached = found >= self.bound if self.at_least else found <= self.bound
        what = f"{ROWS[self.row].title}: {self.figure}" + (f", times {self.peer}" if self.peer else "")
        sign = "≥" if self.at_least else "≤"
        form = ",.0f" if self.bound >= 1000 else ".2f"
        return f"{'reached' if reached else 'MISSED '}  {what}: {spread(ratios, form)}, wanted {sign} {self.bound:,g}"


TARGETS = (
    Target("http-64", "requests/s", lambda sample: sample.rate, 0.85, True, "uvicorn"),
    Target("http-64", "CPU a request", lambda sample: sample.cpu_total, 2, False, "uvicorn"),
    Target("http-1", "p50 ms", lambda sample: sample.p50_ms, 0.45, False),
    Target("echo-64", "messages/s", lambda sample: sample.rate, 0.8, True, "uvicorn"),
    Target("fanout-8", "deliveries/s", lambda sample: sample.rate, 80_000, True),
    Target("fanout-8", "deliveries/s", lambda sample: sample.rate, 30, True, "channels"),
    Target("idle", "KB a socket", lambda sample: sample.memory_total, 25, False),
)


def report(samples: Samples) -> str:
    """Return the complete text: machine, table, targets."""
    facts = ", ".join(f"{name} {value}" for name, value in machine().items())
    verdicts = [line for target in TARGETS if (line := target.line(samples))]
    return "\n\n".join(part for part in (facts, table(samples), "\n".join(verdicts)) if part)
