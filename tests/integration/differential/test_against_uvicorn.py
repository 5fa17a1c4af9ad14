"""Differential tests: this server and uvicorn get identical bytes, and each difference must be explained."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from differential.cases import CASES
from support.processes import Process, Processes
from support.raw import RawClient

PROBE = b"GET /probe HTTP/1.1\r\nHost: test\r\n\r\n"
PATIENCE = 1.0  # seconds until a missing response counts as none
UVICORN = r"running on http://127\.0\.0\.1:(\d+)"


@dataclass(frozen=True)
class Outcome:
    """Status and scope of each response, and whether the connection accepted another request afterwards."""

    responses: tuple[tuple[int, Any], ...]
    open: bool

    @property
    def statuses(self) -> list[int]:
        return [status for status, _ in self.responses]


def exchange(address: tuple[str, int], wire: bytes) -> Outcome:
    responses: list[tuple[int, Any]] = []
    method = "HEAD" if wire.startswith(b"HEAD") else "GET"
    with RawClient(address, timeout=PATIENCE) as client:
        try:
            client.send(wire)
            probed = False
            while True:
                response = client.read_response(method)
                seen = (
                    json.loads(response.body)
                    if response.get("content-type") == "application/json" and response.body
                    else None
                )
                if seen and seen["path"] == "/probe":
                    return Outcome(tuple(responses), True)
                if method == "HEAD" and probed:
                    return Outcome(tuple(responses), True)
                responses.append((response.status, seen))
                if not probed:
                    probed = True
                    client.send(PROBE)
        except (OSError, EOFError):
            return Outcome(tuple(responses), False)


# Explained differences, each with its reason and a rule. `ours` and `theirs` are the outcomes of the two servers.

Rule = Callable[[bytes, Outcome, Outcome], bool]


def refused(ours_status: int, theirs_status: int, mark: bytes = b"") -> Rule:
    """Return a rule: asgibus refuses a request that uvicorn serves (200) or refuses with another status."""

    def rule(wire: bytes, ours: Outcome, theirs: Outcome) -> bool:
        return mark in wire and (ours.statuses, theirs.statuses) == ([ours_status], [theirs_status]) and not ours.open

    return rule


def changed(key: str, change: Callable[[Any, Any], bool]) -> Rule:
    """Return a rule: both servers serve the request, and the scopes differ in one key only."""

    def rule(wire: bytes, ours: Outcome, theirs: Outcome) -> bool:
        if ours.open != theirs.open or ours.statuses != theirs.statuses:
            return False
        pairs = zip(ours.responses, theirs.responses, strict=True)
        return all(
            left == right or (left | {key: None} == right | {key: None} and change(left[key], right[key]))
            for (_, left), (_, right) in pairs
        )

    return rule


def without_host(headers: list[list[str]]) -> list[list[str]]:
    return [header for header in headers if header[0] != "host"]


def stripped(headers: list[list[str]]) -> list[list[str]]:
    return [[name, value.strip(" \t")] for name, value in headers]


EXPLAINED: dict[str, tuple[str, Rule]] = {
    "unknown method": (
        "501 is the status for a method that the server does not know, RFC 9110 section 9.1; uvicorn says 400",
        lambda wire, ours, theirs: b"Transfer-Encoding" not in wire and refused(501, 400)(wire, ours, theirs),
    ),
    "method of another protocol": (
        "CONNECT and SOURCE are for proxies and Icecast; uvicorn gives them to the app",
        lambda wire, ours, theirs: wire[:7] in {b"CONNECT", b"SOURCE "} and refused(501, 200)(wire, ours, theirs),
    ),
    "transfer coding not known": (
        "501 for a coding that the server does not understand, RFC 9112 section 6.1; uvicorn says 400",
        refused(501, 400, b"Transfer-Encoding"),
    ),
    "gzip, chunked": (
        "the app would get compressed bytes and take them for the body; uvicorn serves it so",
        refused(501, 200, b"Transfer-Encoding: gzip, chunked"),
    ),
    "chunked in HTTP/1.0": (
        "faulty framing, RFC 9112 section 6.1; uvicorn reads it as chunked",
        lambda wire, ours, theirs: (
            b"HTTP/1.0\r\n" in wire and refused(400, 200, b"Transfer-Encoding")(wire, ours, theirs)
        ),
    ),
    "star as a target": (
        "only OPTIONS has it, and nothing follows it, RFC 9112 section 3.2.4; uvicorn takes it for a path",
        refused(400, 200, b"GET *"),
    ),
    "URL without a path": (
        "it stands for the path /, RFC 9112 section 3.2.1 and RFC 9110 section 4.2.3; uvicorn refuses it",
        lambda wire, ours, theirs: (
            b" http://test" in wire and (ours.statuses, theirs.statuses, ours.open) == ([200], [400], True)
        ),
    ),
    "host of a URL": (
        "the host in the target counts and the Host header does not, RFC 9112 section 3.2.2; uvicorn leaves both",
        lambda wire, ours, theirs: (
            b"://" in wire.split(b"\r\n")[0]
            and changed("headers", lambda left, right: without_host(left) == without_host(right))(wire, ours, theirs)
        ),
    ),
    "host": (
        "exactly one valid Host in HTTP/1.1, never two, RFC 9112 section 3.2; uvicorn does not look",
        lambda wire, ours, theirs: wire.lower().count(b"host: test\r\n") == 0 and refused(400, 200)(wire, ours, theirs),
    ),
    "version": (
        "505 for versions that are not spoken here, and for RTSP; uvicorn answers them as HTTP",
        lambda wire, ours, theirs: (
            (wire.split(b"\r\n")[0][-3:] in {b"0.9", b"2.0"} or b" RTSP/" in wire)
            and refused(505, 200)(wire, ours, theirs)
        ),
    ),
    "HTTP/1.0 keep-alive": (
        "granted where the client asks for it; uvicorn closes after every HTTP/1.0 response",
        lambda wire, ours, theirs: (
            ours.responses == theirs.responses
            and (ours.open, theirs.open) == (True, False)
            and b"/1.0\r\n" in wire
            and b"keep-alive" in wire
        ),
    ),
    "white space behind a value": (
        "it is not part of the value, RFC 9110 section 5.5; uvicorn leaves it",
        changed("headers", lambda left, right: left == stripped(right)),
    ),
    "head too large": (
        "431 above --max-head-size or --max-headers; uvicorn with httptools has no limit",
        lambda wire, ours, theirs: (
            (len(wire) > 65_536 or wire.count(b"\r\n") > 128) and refused(431, 200)(wire, ours, theirs)
        ),
    ),
    "list in X-Forwarded-Proto": (
        "the last entry is that of the nearest proxy; uvicorn ignores a list",
        lambda wire, ours, theirs: (
            b"X-Forwarded-Proto: http, https" in wire
            and changed("scheme", lambda left, right: (left, right) == ("https", "http"))(wire, ours, theirs)
        ),
    ),
    "100 that nobody waits for": (
        "no 100 for HTTP/1.0, nor when the body is there, RFC 9110 section 10.1.1; uvicorn sends it at every receive",
        lambda wire, ours, theirs: (
            b"Expect: 100-continue" in wire
            and theirs.responses == ((100, None), *ours.responses)
            and ours.open == theirs.open
        ),
    ),
    "unknown expectation": (
        "417, RFC 9110 section 10.1.1; uvicorn ignores it",
        refused(417, 200, b"Expect: miracles"),
    ),
    "trailers": (
        "they are not headers of the request and must not be merged into them, RFC 9110 section 6.5.1; uvicorn does",
        changed("headers", lambda left, right: right == [*left, ["x-sum", "1"], ["host", "other"]]),
    ),
    "upgrade that is not taken": (
        "the request goes on as if it had not asked, RFC 9110 section 7.8; uvicorn drops its body",
        lambda wire, ours, theirs: (
            b"Upgrade: h2c" in wire
            and changed("body", lambda left, right: (left, right) == ("abc", ""))(wire, ours, theirs)
        ),
    ),
    "nonsense behind a request": (
        "the requests before it are answered first; uvicorn answers 400 in place of them",
        lambda wire, ours, theirs: (
            len(ours.statuses) == 2
            and ours.statuses[0] == 200
            and ours.statuses[1] in {400, 501}
            and theirs.statuses == [400]
            and not ours.open
        ),
    ),
}


def differences(
    app: str, explained: dict[str, tuple[str, Rule]], start_interface: Callable[..., Process], processes: Processes
) -> tuple[list[str], set[str]]:
    """Return the differences without a reason, and the reasons of the others."""
    server = start_interface(app=app)
    command = [sys.executable, "-m", "uvicorn", app, "--port", "0", "--http", "httptools", "--no-access-log"]
    uvicorn = processes.start("uvicorn", [*command, "--lifespan", "off"], ready=UVICORN)
    port = int(uvicorn.wait_for(UVICORN)[1])
    assert len(CASES) > 400
    unexplained, occurred = [], set()
    for name, wire in CASES.items():
        ours, theirs = exchange(("127.0.0.1", server.port), wire), exchange(("127.0.0.1", port), wire)
        if ours == theirs:
            continue
        rules = [label for label, (_, rule) in explained.items() if rule(wire, ours, theirs)]
        occurred.update(rules)
        if not rules:
            unexplained.append(f"{name}:\n  ours: {ours}\n  uvicorn: {theirs}")
    return unexplained, occurred


def test_every_difference_is_explained(start_interface: Callable[..., Process], processes: Processes) -> None:
    unexplained, occurred = differences("differential.echo_app:app", EXPLAINED, start_interface, processes)
    assert not unexplained, "\n".join(unexplained)
    assert set(EXPLAINED) - occurred == set(), "explanations of what no longer differs"


def test_differences_of_early_responses_are_explained(
    start_interface: Callable[..., Process], processes: Processes
) -> None:
    closed: tuple[str, Rule] = (
        "the head says that the connection ends if much of the body may still come; uvicorn reads on without limit",
        lambda wire, ours, theirs: (
            len(wire) > 65_536 and ours.responses == theirs.responses and (ours.open, theirs.open) == (False, True)
        ),
    )
    explained = EXPLAINED | {"much of the body to come": closed}
    unexplained, _ = differences("differential.early_app:app", explained, start_interface, processes)
    assert not unexplained, "\n".join(unexplained)
