"""HTTP requests while workers are killed."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

from asgibus.protocol.retry import CRASH_LIMIT
from chaos.notes import Notes
from chaos.scale import NOTICED, by_form
from support.deadline import in_time
from support.processes import Process
from support.raw import RawClient

pytestmark = pytest.mark.usefixtures("short_leases")

Start = Callable[..., Process]
Figures = Callable[[object], None]
PATIENCE = NOTICED + 5


def begin(interface: Process, method: str, target: str, body: bytes = b"") -> RawClient:
    client = RawClient(interface, timeout=PATIENCE)
    client.send(f"{method} {target} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    return client


def test_requests_of_a_killed_worker_run_again_or_fail(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    killed_worker = start_chaos_worker()
    interface = start_chaos_interface()
    body = bytes(50_000)
    with (
        begin(interface, "GET", "/slow?gate=open") as get,
        begin(interface, "HEAD", "/slow?gate=open") as head,
        begin(interface, "PUT", "/slow?gate=open", body) as put,
        begin(interface, "DELETE", "/slow?gate=open") as delete,
        begin(interface, "POST", "/slow?gate=open", body) as post,
        begin(interface, "PATCH", "/slow?gate=open", body) as patch,
        begin(interface, "GET", "/stream?gate=open") as stream,
    ):
        notes.wait("request", 7)
        assert stream.read_head()[1] == 200
        assert stream.read_chunk() == b"begun\n"
        killed = time.monotonic()
        killed_worker.kill()
        other = start_chaos_worker()
        assert stream.read_until_close() == b"", "a response that had begun ends without its end"
        cut = time.monotonic() - killed
        for client in (post, patch):
            assert client.read_response().status == 502
        refused = time.monotonic() - killed
        notes.wait("request", 4, PATIENCE, pid=other.pid)
        notes.open_gate("open")
        for method, client in (("GET", get), ("HEAD", head), ("PUT", put), ("DELETE", delete)):
            response = client.read_response(method)
            assert response.status == 200
            if method != "HEAD":
                answer = json.loads(response.body)
                assert answer["attempt"] == 2
                assert answer["pid"] == other.pid
                assert answer["length"] == (len(body) if method == "PUT" else 0)
    assert not notes.all("request", method="POST", attempt=2)
    figures(f"cut off after {cut:.2f} s, refused with 502 after {refused:.2f} s, GET, HEAD, PUT and DELETE run again")
    in_time(max(cut, refused), NOTICED)


def test_request_bodies_of_a_killed_worker(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes
) -> None:
    """A body that the interface server still has goes to the next worker; one that the killed worker read is lost."""
    killed_worker = start_chaos_worker()
    interface = start_chaos_interface()
    half, large = bytes(30_000), bytes(1_000_000)
    with (
        begin(interface, "PUT", "/slow?gate=open&name=large", large) as lost,
        RawClient(interface, timeout=PATIENCE) as uploading,
    ):
        uploading.send(b"PUT /fast?name=halves HTTP/1.1\r\nHost: test\r\nContent-Length: 60000\r\n\r\n" + half)
        notes.wait("request", name="large")
        notes.wait("part", name="halves", length=len(half))
        killed_worker.kill()
        other = start_chaos_worker()
        assert lost.read_response().status == 502
        notes.wait("part", timeout=PATIENCE, name="halves", length=len(half), attempt=2)
        uploading.send(half)
        response = uploading.read_response()
        assert response.status == 200
        answer = json.loads(response.body)
        assert (answer["length"], answer["attempt"], answer["pid"]) == (2 * len(half), 2, other.pid)


def test_unclaimed_requests_of_a_killed_worker_run_once(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    killed_worker = start_chaos_worker("--concurrency", 1)
    interface = start_chaos_interface("--graceful-timeout", 0.5)
    with begin(interface, "GET", "/slow?gate=open"):
        notes.wait("request")
        waiting = [begin(interface, method, "/fast") for method in ("GET", "POST", "GET", "POST")]
        killed_worker.kill()
        other = start_chaos_worker("--concurrency", 1)
        ready = time.monotonic()
        for client in waiting:
            with client:
                response = client.read_response()
                assert response.status == 200
                assert (json.loads(response.body)["attempt"], json.loads(response.body)["pid"]) == (1, other.pid)
        seconds = time.monotonic() - ready
        figures(f"4 unclaimed requests were answered {seconds:.3f} s after the next worker was ready")
        in_time(seconds, 1)  # no wait for the lease of the killed worker
        notes.open_gate("open")


def test_requests_under_load_while_workers_are_killed(
    start_chaos_interface: Start, start_chaos_worker: Start, figures: Figures
) -> None:
    """Each GET is answered. Each POST is answered, or rejected because the killed worker had received it."""
    workers = [start_chaos_worker() for _ in range(3)]
    interface = start_chaos_interface()
    statuses: Counter[tuple[str, object]] = Counter()
    slowest = [0.0]
    stop = threading.Event()

    def load(method: str) -> None:
        while not stop.is_set():
            with RawClient(interface, timeout=PATIENCE) as client:
                connected = True
                while connected and not stop.is_set():
                    begun = time.monotonic()
                    try:
                        response = client.request(method, "/fast", body=b"x" if method == "POST" else b"")
                    except (OSError, EOFError) as error:
                        statuses[method, repr(error)] += 1
                        return
                    statuses[method, response.status] += 1
                    slowest[0] = max(slowest[0], time.monotonic() - begun)
                    connected = response.get("connection") != "close"

    threads = [
        threading.Thread(target=load, args=(method,)) for method in ("GET", "POST") for _ in range(by_form(8, 32))
    ]
    for thread in threads:
        thread.start()
    try:
        for worker in workers[:2]:
            time.sleep(0.5)  # of load
            worker.kill()
        time.sleep(NOTICED)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    figures(f"{dict(statuses)}, the slowest after {slowest[0]:.2f} s")
    assert statuses["GET", 200] > 100
    assert statuses["POST", 200] > 100
    assert statuses.keys() <= {("GET", 200), ("POST", 200), ("POST", 502)}
    in_time(slowest[0], NOTICED)


def test_a_request_that_kills_its_worker(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, figures: Figures
) -> None:
    start_chaos_worker("--processes", 3)
    interface = start_chaos_interface()
    notes.wait("lifespan.startup", 3)
    begun = time.monotonic()
    with begin(interface, "GET", "/kill?name=get") as client:
        assert client.read_response().status == 502
    get = time.monotonic() - begun
    begun = time.monotonic()
    with begin(interface, "POST", "/kill?name=post") as client:
        assert client.read_response().status == 502
    post = time.monotonic() - begun
    assert len(notes.all("kill", name="get")) == CRASH_LIMIT
    assert len(notes.all("kill", name="post")) == 1
    with begin(interface, "GET", "/kill?name=once&kills=1") as client:
        assert client.read_response().status == 200
    figures(f"a GET killed five workers and was refused after {get:.2f} s, a POST one, after {post:.2f} s")
    interface.wait_for("ERROR")
