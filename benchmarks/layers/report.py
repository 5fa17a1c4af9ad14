"""The table and the verdicts, as text."""

import statistics

from benchmarks.layers.measures import Sample
from benchmarks.layers.rows import PEERS, ROWS
from benchmarks.report import by_process, drawn, machine, spread

Samples = dict[tuple[str, str], list[Sample]]
"""The samples of each (row, peer), in the order of the repeats."""


def table(samples: Samples) -> str:
    """Return one line for each row and peer: medians over the repeats, in brackets the lowest and the highest."""
    lines = [["measure", "peer", "per second", "CPU-ms each", "of which", "lost", "twice", "others"]]
    for (name, peer), found in samples.items():
        lines.append(
            [
                ROWS[name].title,
                peer,
                spread([sample.rate for sample in found], ",.0f"),
                spread([sample.cpu_total for sample in found], ".4f"),
                by_process([sample.cpu_ms for sample in found], ".4f"),
                str(sum(sample.lost for sample in found)),
                str(sum(sample.doubled for sample in found)),
                f"{statistics.median(sample.other_cpu for sample in found):.0%}",
            ]
        )
    return drawn(lines)


def verdict(name: str, samples: Samples) -> str | None:
    """Return whether asgibus beats the better of the others in a row, None if one of them was not measured.

    Ratios are taken within each repeat, between neighbours in time, before the median.
    """
    ours, *theirs = (samples.get((name, peer), []) for peer in PEERS)
    if not ours or not all(theirs):
        return None
    best = [max(each, key=lambda sample: sample.rate) for each in zip(*theirs, strict=False)]
    rates: list[float | None] = [one.rate / other.rate for one, other in zip(ours, best, strict=False)]
    costs: list[float | None] = [one.cpu_total / other.cpu_total for one, other in zip(ours, best, strict=False)]
    whole = not any(sample.lost or sample.doubled for sample in ours)
    ahead = whole and statistics.median(rate for rate in rates if rate is not None) > 1
    return (
        f"{'ahead ' if ahead else 'BEHIND'}  {ROWS[name].title}: {spread(rates, '.2f')} times the rate of the faster "
        f"other, {spread(costs, '.2f')} times its CPU{'' if whole else '; NOT WHOLE'}"
    )


def report(samples: Samples, loop: str) -> str:
    """Return the complete text: machine, table, verdicts."""
    facts = ", ".join(f"{name} {value}" for name, value in {**machine(), "event loop": loop}.items())
    verdicts = [line for name in ROWS if (line := verdict(name, samples))]
    return "\n\n".join(part for part in (facts, table(samples), "\n".join(verdicts)) if part)
