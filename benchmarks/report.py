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

PACKAGES = (
    "asgibus",
    "uvloop",
    "httptools",
    "hiredis",
    "uvicorn",
    "websockets",
    "fastapi",
    "django",
    "channels",
    "channels_redis",
)
REFERENCE = "uvicorn"
"""The peer that ratios are taken to."""
LIMIT = 0.9
"""Cores that the load client, with one thread, needs when it may be what limits a rate."""


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


HEAD = [
    "measure",
    "peer",
    "a second",
    "times uvicorn",
    "CPU µs each",
    "times uvicorn",
    "p50 alone, ms",
    "p50 ms",
    "p99 ms",
]
HEAD += ["busiest process", "client", "others", "also"]


def table(samples: Samples) -> str:
    """Return a line for each row and peer: medians over the repeats, in brackets the lowest and the highest."""
    lines = [HEAD]
    title = ""
    for (row, peer), found in samples.items():
        reference = samples.get((row, REFERENCE), []) if peer != REFERENCE else []
        parts = by_process([sample.cpu_us for sample in found], ",.0f")
        busiest = statistics.median(sample.busiest for sample in found)
        client = statistics.median(sample.client_cpu for sample in found)
        lines.append(
            [
                ROWS[row].title if ROWS[row].title != title else "",
                peer,
                spread([sample.rate for sample in found], ",.0f" if found[0].rate >= 100 else ",.1f"),
                spread(ratios(found, reference, lambda sample: sample.rate), ".2f"),
                spread([sample.cpu_total or None for sample in found], ",.0f") + (f": {parts}" if parts else ""),
                spread(ratios(found, reference, lambda sample: sample.cpu_total), ".2f"),
                spread([sample.alone_ms for sample in found], ".2f"),
                spread([sample.p50_ms for sample in found], ".1f"),
                middle([sample.p99_ms for sample in found], ".1f"),
                f"{found[0].busiest_name} {busiest:.0%}" if busiest else "",
                f"{client:.0%}{' (!)' if client >= LIMIT else ''}" if client else "",
                middle([sample.other_cpu for sample in found], ".0%") if client else "",
                also(found),
            ]
        )
        title = ROWS[row].title
    return drawn(lines)


def also(found: list[Sample]) -> str:
    """Return the figure that only some rows have: the memory of a socket, or the share of the fullest worker."""
    if found[0].memory_kb is not None:
        parts = by_process([sample.memory_kb or {} for sample in found], ".1f")
        total = spread([sample.memory_total for sample in found], ".1f")
        return f"{total} KB a socket" + (f": {parts}" if parts else "")
    if found[0].fullest is not None:
        return f"fullest worker {spread([sample.fullest for sample in found], '.0%')}"
    return ""


def ratios(found: list[Sample], reference: list[Sample], take: Callable[[Sample], float | None]) -> list[float]:
    """Return the ratios of a figure to that of another peer, each within a repeat, between neighbours in time."""
    pairs = zip(map(take, found), map(take, reference), strict=False)
    return [ours / theirs for ours, theirs in pairs if ours is not None and theirs]


def drawn(lines: list[list[str]]) -> str:
    """Return the cells as a Markdown table; the first line is the head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in ruled
    )


def middle(figures: list[float | None], form: str) -> str:
    """Return the median of several figures."""
    known = [figure for figure in figures if figure is not None]
    return format(statistics.median(known), form) if known else ""


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
    """Bound on a figure of the bus in one row: a minimum or a maximum, absolute or as a ratio to that of uvicorn."""

    row: str
    figure: str
    take: Callable[[Sample], float | None]
    bound: float
    at_least: bool = False
    relative: bool = False

    def line(self, samples: Samples, peer: str) -> str | None:
        """Return the verdict on the median of a peer, or None if a part of the figure was not measured."""
        ours = samples.get((self.row, peer), [])
        if self.relative:
            figures = ratios(ours, samples.get((self.row, REFERENCE), []), self.take)
        else:
            figures = [figure for sample in ours if (figure := self.take(sample)) is not None]
        if not figures:
            return None
        found = statistics.median(figures)
        reached = found >= self.bound if self.at_least else found <= self.bound
        what = f"{ROWS[self.row].name}: {self.figure}{f', times {REFERENCE}' if self.relative else ''}"
        form = ",.0f" if self.bound >= 1000 else ".2f"
        sign = "≥" if self.at_least else "≤"
        return f"{'reached' if reached else 'MISSED '}  {what}: {spread(figures, form)}, wanted {sign} {self.bound:,g}"


def _rate(sample: Sample) -> float:
    return sample.rate


def _cpu(sample: Sample) -> float:
    return sample.cpu_total


TARGETS = (
    Target("http-64", "requests/s", _rate, 0.8, at_least=True, relative=True),
    Target("http-64", "CPU a request", _cpu, 1.8, relative=True),
    Target("http-64", "p50 of one connection, ms", lambda sample: sample.alone_ms, 0.2),
    Target("echo-64", "messages/s", _rate, 0.85, at_least=True, relative=True),
    Target("fastapi-64", "requests/s", _rate, 1.05, at_least=True, relative=True),
    Target("fastapi-64-2", "requests/s", _rate, 0.85, at_least=True, relative=True),
    Target("fastapi-64-2", "CPU a request", _cpu, 1.35, relative=True),
    Target("fanout-8", "deliveries/s", _rate, 1.4, at_least=True, relative=True),
    Target("connect", "KB a socket", lambda sample: sample.memory_total, 11),
    Target("even-30", "share of the fullest worker", lambda sample: sample.fullest, 0.6),
    Target("even-400", "share of the fullest worker", lambda sample: sample.fullest, 0.1375),
    Target("start-up", "CPU", _cpu, 1.3, relative=True),
    Target("start-up-worker", "CPU", _cpu, 1.3, relative=True),
)


def report(samples: Samples) -> str:
    """Return the complete text: machine, table, and whether the targets are reached, compiled if that was measured."""
    facts = ", ".join(f"{name} {value}" for name, value in machine().items())
    peer = "compiled" if any(name == "compiled" for _, name in samples) else "bus"
    verdicts = [line for target in TARGETS if (line := target.line(samples, peer))]
    if verdicts:
        verdicts = [f"The aims of the project, `{peer}`:", "", *verdicts]
    return "\n\n".join(part for part in (facts, table(samples), "\n".join(verdicts)) if part)
