"""`python -m benchmarks`: start the peers, measure them in turn, print one table."""

import json
import resource
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from benchmarks.measures import ROWS, Row, Sample, measure
from benchmarks.peers import PEERS, Peer
from benchmarks.processes import BenchmarkError
from benchmarks.report import Samples, machine, report


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--row", "rows", multiple=True, type=click.Choice(list(ROWS)), help="Measure only this row; repeatable.")
@click.option("--peer", "peers", multiple=True, type=click.Choice(list(PEERS)), help="Only this peer; repeatable.")
@click.option("--seconds", default=3.0, show_default=True, help="Seconds of load for each measure.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="How often each is measured.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write every sample to this file.")
def main(rows: tuple[str, ...], peers: tuple[str, ...], seconds: float, repeats: int, output: Path | None) -> None:
    """Measure the bus on Redis, uvicorn with the app in process, and Channels 4 with channels_redis.

    Within a repeat the peers take turns row by row, because a shared machine is not equally fast all the time. Every
    figure is the median over the repeats, with the lowest and the highest in brackets.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    chosen = [row for name, row in ROWS.items() if not rows or name in rows]
    try:
        samples, failures = run(chosen, [name for name in PEERS if not peers or name in peers], seconds, repeats)
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from None
    if output is not None:
        found = [
            {"row": row, "peer": peer, **sample.as_json()} for (row, peer), each in samples.items() for sample in each
        ]
        output.write_text(json.dumps({"machine": machine(), "seconds": seconds, "samples": found}, indent=1) + "\n")
    print(report(samples))
    if failures:
        raise click.ClickException("\n".join(["some measures failed", *failures]))


def run(rows: list[Row], names: list[str], seconds: float, repeats: int) -> tuple[Samples, list[str]]:
    """Return all samples in the order of the table, and a line for each measurement that failed.

    Raises BenchmarkError when a peer cannot be started.
    """
    samples: Samples = {(row.name, name): [] for row in rows for name in names}
    failures: list[str] = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="asgibus-benchmark-")))
        peers: dict[str, Peer] = {}
        if any(row.kind != "idle" for row in rows):
            peers = {name: stack.enter_context(PEERS[name](directory)) for name in names}
        for repeat in range(repeats):
            for row in rows:
                # Every other repeat goes backwards, so that no peer always follows the same one.
                for name in names if repeat % 2 == 0 else reversed(names):
                    try:
                        if row.kind == "idle":
                            # A process that has worked has memory to spare for new sockets, so this takes a new one.
                            with PEERS[name](Path(tempfile.mkdtemp(dir=directory))) as fresh:
                                sample = measure(row, fresh, seconds)
                        else:
                            sample = measure(row, peers[name], seconds)
                    except BenchmarkError as error:
                        failures.append(f"{repeat + 1}: {row.title}, {name}: {error}")
                    else:
                        samples[row.name, name].append(sample)
                        progress(repeat, row, name, sample)
    return {key: found for key, found in samples.items() if found}, failures


def progress(repeat: int, row: Row, name: str, sample: Sample) -> None:
    """Print the last measurement to stderr."""
    figure = f"{sample.memory_total:.1f} KB a socket" if sample.memory_kb else f"{sample.rate:,.0f} a second"
    print(f"{repeat + 1}: {row.title}, {name}: {figure}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
