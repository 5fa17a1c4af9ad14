"""Ask a server's admin port, which was started with `--admin-port 0`."""

import urllib.error
import urllib.request

from support.processes import Process

ADMIN = r"admin port on (http://\S+)"


def readiness(server: Process) -> tuple[int, str]:
    """Return the answer of /readyz: the status and the reason."""
    try:
        with urllib.request.urlopen(f"{_url(server)}/readyz", timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def counts(server: Process) -> dict[str, int]:
    """Return the counts above 0 in /metrics, by their kind."""
    with urllib.request.urlopen(f"{_url(server)}/metrics", timeout=30) as response:
        text = response.read().decode()
    lines = [line.removeprefix("asgibus_events_total{kind=") for line in text.splitlines()]
    counts_by_kind = (line.rpartition("} ") for line in lines if line.startswith('"'))
    return {kind.strip('"'): int(float(value)) for kind, _, value in counts_by_kind if float(value)}


def _url(server: Process) -> str:
    return server.wait_for(ADMIN)[1]
