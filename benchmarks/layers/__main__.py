"""`python -m benchmarks.layers`: one Redis, the layers in turn, one table."""

import json
import resource
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from benchmarks.layers.measures import measure
from benchmarks.layers.report import Samples, report
from benchmarks.layers.rows import PEERS, ROWS
from benchmarks.peers import start_redis
from benchmarks.processes import BenchmarkError
from benchmarks.report import machine


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--row", "rows", multiple=True, type=click.Choice(list(ROWS)), help="Measure only this row; repeatable.")
@click.option("--peer", "peers", multiple=True, type=click.Choice(PEERS), help="Only this peer; repeatable.")
@click.option("--loop", type=click.Choice(["asyncio", "uvloop"]), default="asyncio", show_default=True)
@click.option("--seconds", default=3.0, show_default=True, help="Seconds of load for each measure.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="How often each is measured.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write every sample to this file.")
def main(
    rows: tuple[str, ...], peers: tuple[str, ...], loop: str, seconds: float, repeats: int, output: Path | None
) -> None:
    """Measure the channel layer on Redis beside the two of channels_redis.

    Within a repeat the peers take turns row by row, because a shared machine is not equally fast all the time. Every
    figure is the median over the repeats, with the lowest and the highest in brackets.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    names = [name for name in ROWS if not rows or name in rows]
    try:
        samples, failures = run(names, [peer for peer in PEERS if not peers or peer in peers], loop, seconds, repeats)
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from None
    if output is not None:
        found = [
            {"row": row, "peer": peer, **sample.as_json()} for (row, peer), each in samples.items() for sample in each
        ]
        facts = {"machine": machine(), "loop": loop, "seconds": seconds, "samples": found}
        output.write_text(json.dumps(facts, indent=1) + "\n")
    print(report(samples, loop))
    if failures:
        raise click.ClickException("\n".join(["some measures failed", *failures]))


def run(rows: list[str], peers: list[str], loop: str, seconds: float, repeats: int) -> tuple[Samples, list[str]]:
    """Return all samples in the order of the table, and a line for each measurement that failed.

    Raises BenchmarkError when Redis cannot be started.
    """
    samples: Samples = {(row, peer): [] for row in rows for peer in peers}
    failures: list[str] = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="asgibus-benchmark-")))
        redis, url = start_redis(stack, directory / "redis.log")
        for repeat in range(repeats):
            for row in rows:
                # Every other repeat goes backwards, so that no peer always follows the same one.
                for peer in peers if repeat % 2 == 0 else reversed(peers):
                    try:
                        sample = measure(ROWS[row], peer, redis, url, loop, seconds)
                    except BenchmarkError as error:
                        failures.append(f"{repeat + 1}: {ROWS[row].title}, {peer}: {error}")
                    else:
                        samples[row, peer].append(sample)
                        print(
                            f"{repeat + 1}: {ROWS[row].title}, {peer}: {sample.rate:,.0f} a second",
                            file=sys.stderr,
                            flush=True,
                        )
    return {key: found for key, found in samples.items() if found}, failures


if __name__ == "__main__":
    main()
