"""`python -m benchmarks`: start the peers, measure them in turn, print one table."""

import json
import resource
import sys
from pathlib import Path

import click

from benchmarks.measures import ROWS, Row, Sample, measure
from benchmarks.peers import Launcher, launchers
from benchmarks.processes import BenchmarkError
from benchmarks.report import Samples, machine, report
from benchmarks.start_up import measure_starts

PEERS = ("bus", "compiled", "uvicorn", "channels")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--row", "rows", multiple=True, type=click.Choice(list(ROWS)), help="Measure only this row; repeatable.")
@click.option("--peer", "peers", multiple=True, type=click.Choice(PEERS), help="Only this peer; repeatable.")
@click.option("--seconds", default=3.0, show_default=True, help="Seconds of load for each measure.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="How often each is measured.")
@click.option("--compiled", type=click.Path(exists=True, path_type=Path), help="Python with a compiled asgibus.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write every sample to this file.")
def main(
    rows: tuple[str, ...],
    peers: tuple[str, ...],
    seconds: float,
    repeats: int,
    compiled: Path | None,
    output: Path | None,
) -> None:
    """Measure the bus on Redis, uvicorn with the app in process, and Channels 4 with channels_redis.

    Within a repeat the peers take turns row by row, because a shared machine is not equally fast all the time. Every
    figure is the median over the repeats, with the lowest and the highest in brackets.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    chosen = [row for name, row in ROWS.items() if not rows or name in rows]
    if compiled is None and (not peers or "compiled" in peers):
        print("The peer `compiled` is left out: --compiled names no Python with a compiled asgibus.", file=sys.stderr)
    found = {name: launcher for name, launcher in launchers(compiled).items() if not peers or name in peers}
    samples, failures = run(chosen, found, seconds, repeats)
    if output is not None:
        found_samples = [
            {"row": row, "peer": peer, **sample.as_json()} for (row, peer), each in samples.items() for sample in each
        ]
        text = json.dumps({"machine": machine(), "seconds": seconds, "samples": found_samples}, indent=1)
        output.write_text(f"{text}\n")
    print(report(samples))
    if failures:
        raise click.ClickException("\n".join(["some measures failed", *failures]))


def run(rows: list[Row], peers: dict[str, Launcher], seconds: float, repeats: int) -> tuple[Samples, list[str]]:
    """Return all samples in the order of the table, and a line for each measurement that failed."""
    samples: Samples = {(row.name, name): [] for row in rows for name in peers if name in row.peers}
    failures: list[str] = []
    for repeat in range(repeats):
        for row in rows:
            # Every other repeat goes backwards, so that no peer always follows the same one.
            names = [name for name in peers if name in row.peers]
            for name in names if repeat % 2 == 0 else reversed(names):
                try:
                    if row.kind == "start":
                        sample = measure_starts(row, name, peers[name])
                    else:
                        sample = measure(row, peers[name], seconds)
                except BenchmarkError as error:
                    failures.append(f"{repeat + 1}: {row.name}, {name}: {error}")
                else:
                    samples[row.name, name].append(sample)
                    progress(repeat, row, name, sample)
    return {key: found for key, found in samples.items() if found}, failures


def progress(repeat: int, row: Row, name: str, sample: Sample) -> None:
    """Print the last measurement to stderr."""
    figures = f"{sample.rate:,.1f} a second, {sample.cpu_total:,.0f} µs of CPU each"
    print(f"{repeat + 1}: {row.name}, {name}: {figures}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
