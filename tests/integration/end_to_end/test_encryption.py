"""Servers with encryption keys: the responses to clients, with the right keys and with wrong ones."""

from collections.abc import Callable
from pathlib import Path

from support.admin import readiness
from support.processes import Process
from support.raw import RawClient
from support.websocket import BINARY, RawWebSocket

APP = "end_to_end.pool_app:app"
DROPPED = "as all like it will be"

Start = Callable[..., Process]


def get(server: Process) -> int:
    with RawClient(server) as client:
        return client.request("GET", "/").status


def test_clients_are_served_with_keys(
    start_interface: Start, start_worker: Start, redis_url: str, tmp_path: Path
) -> None:
    """Keys from a file or the environment serve clients, also with the next key known and under supervisors."""
    file = tmp_path / "keys"
    file.write_text("now\nnext\n")
    env = {"POOL": "served"}
    worker = start_worker(*(APP, "--layer", redis_url, "--encryption-key", f"@{file}", "--processes", 2), env=env)
    server = start_interface("--layer", redis_url, env={"ASGIBUS_ENCRYPTION_KEY": "next now"})
    for _ in range(5):
        with RawClient(server) as client:
            assert client.request("GET", "/").body == b"served"
        with RawWebSocket(server, "/") as client:
            assert client.read_frame() == (BINARY, b"served")
    assert "was dropped" not in worker.log() + server.log()


def test_a_worker_with_a_wrong_key_logs_one_line_and_its_clients_get_503(
    start_interface: Start, start_worker: Start, redis_url: str
) -> None:
    worker = start_worker(APP, "--layer", redis_url, "--encryption-key", "wrong", env={"POOL": "wrong"})
    server = start_interface("--layer", redis_url, "--encryption-key", "right", "--connect-timeout", 0.5)
    for _ in range(3):
        assert get(server) == 503
    with RawWebSocket(server, "/", answered=False) as client:
        assert client.read_answer() == 503
    worker.wait_for("give this process that encryption key")
    assert worker.log().count("claims next to nothing") == 1
    worker.terminate()
    start_worker(APP, "--layer", redis_url, "--encryption-key", "right", env={"POOL": "right"})
    assert get(server) == 200


def test_one_worker_with_a_wrong_key_among_several(start_interface: Start, start_worker: Start, redis_url: str) -> None:
    def start(key: str) -> Process:
        options = ("--layer", redis_url, "--encryption-key", key, "--admin-port", 0)
        return start_worker(APP, *options, env={"POOL": key})

    odd = start("wrong")
    server = start_interface("--layer", redis_url, "--encryption-key", "right", "--connect-timeout", 5)
    even = [start("right") for _ in range(2)]
    assert [get(server) for _ in range(20)] == [200] * 20
    with RawWebSocket(server, "/") as client:
        assert client.read_frame() == (BINARY, b"right")
    odd.wait_for("give this process that encryption key")
    assert odd.log().count("claims next to nothing") == 1
    status, reason = readiness(odd)
    assert status == 503
    assert "sealed with the key" in reason
    assert [readiness(worker)[0] for worker in even] == [200, 200]


def test_an_interface_without_the_key_of_its_worker_answers_in_time(
    start_interface: Start, start_worker: Start, redis_url: str
) -> None:
    """A client gets an error in time if the interface server lacks the new key of its worker."""
    env = {"POOL": "default", "ASGIBUS_ENCRYPTION_KEY": "new old"}
    start_worker(APP, "--layer", redis_url, "--graceful-timeout", 1, env=env)
    server = start_interface("--layer", redis_url, "--encryption-key", "old", "--connect-timeout", 0.5)
    for _ in range(2):
        assert get(server) == 503
    server.wait_for("give this process that encryption key")
    assert server.log().count(DROPPED) == 1
