"""Channel layers of today and of the last release on one Redis."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.processes import environment

MESSAGE = {
    "type": "each.kind",
    "text": "\u00fc",
    "bytes": bytes(range(256)),
    "list": [1, -1, 2**63, 1.5, None, True, {}],
}


class Program:
    """A process with a layer. Each method is an order that it executes."""

    def __init__(self, python: str | Path, url: str, *keys: str) -> None:
        command = [str(python), "-P", "-m", "last_release.layer_program", url, *keys]
        pipe = subprocess.PIPE
        self._popen = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment(), text=True)

    def order(self, method: str, *arguments: Any) -> None:
        """Send an order without waiting for its answer."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps([method, *arguments]) + "\n")
        self._popen.stdin.flush()

    def answer(self) -> Any:
        """Wait for the answer to the oldest order."""
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        assert line, "the program has ended"
        return json.loads(line)

    def do(self, method: str, *arguments: Any) -> Any:
        self.order(method, *arguments)
        return self.answer()

    def send(self, channel: str, message: dict[str, Any], delay: float = 0.0) -> None:
        self.do("send", channel, repr(message), delay)

    def group_send(self, group: str, message: dict[str, Any]) -> None:
        self.do("group_send", group, repr(message))

    def receive(self, channel: str) -> dict[str, Any]:
        message: dict[str, Any] = ast.literal_eval(self.do("receive", channel))
        return message

    def close(self) -> None:
        with self._popen:  # closes its pipes, so that it ends, and waits for the end
            pass
        assert self._popen.returncode == 0


@pytest.fixture(params=[[], ["key"]], ids=["plain", "encrypted"])
def programs(request: pytest.FixtureRequest, last_release_python: Path, redis_url: str) -> Iterator[list[Program]]:
    """Provide a program of each release, the one of today first."""
    each = [Program(python, redis_url, *request.param) for python in (sys.executable, last_release_python)]
    yield each
    for program in each:
        program.close()


def both_ways(programs: list[Program]) -> list[list[Program]]:
    return [programs, programs[::-1]]


def test_a_channel(programs: list[Program]) -> None:
    for sender, receiver in both_ways(programs):
        sender.send("channel", MESSAGE)
        assert receiver.receive("channel") == MESSAGE


def test_a_channel_whose_reader_waits(programs: list[Program]) -> None:
    for sender, receiver in both_ways(programs):
        receiver.order("receive", "channel")
        sender.send("channel", {"type": "delayed"}, 0.6)
        sender.send("channel", {"type": "at.once"})
        assert ast.literal_eval(receiver.answer()) == {"type": "at.once"}
        assert receiver.receive("channel") == {"type": "delayed"}


def test_statistics(programs: list[Program]) -> None:
    for count, program in enumerate(programs, 1):
        program.send("counted", MESSAGE)
        for other in programs:
            statistics = other.do("channel_statistics", "counted")
            assert (statistics["messages_count"], statistics["messages_pending"]) == (count, count)


def test_process_local_channels_and_groups(programs: list[Program]) -> None:
    local = [program.do("new_channel") for program in programs]
    for program, channel in zip(programs, local, strict=True):
        program.do("group_add", "group", channel)
        program.do("group_add", "others", local[1 - local.index(channel)])  # one of the other process
    for sender in programs:
        for group in ("group", "others"):
            sender.group_send(group, MESSAGE)
            assert [program.receive(channel) for program, channel in zip(programs, local, strict=True)] == [MESSAGE] * 2
    for sender, receiver in both_ways(programs):
        sender.send(local[programs.index(receiver)], MESSAGE)
        assert receiver.receive(local[programs.index(receiver)]) == MESSAGE
    for program, channel in zip(programs, local, strict=True):
        program.do("group_discard", "group", local[1 - local.index(channel)])
    programs[0].group_send("group", {"type": "to.nobody"})
    programs[0].group_send("others", {"type": "to.all"})
    assert [program.receive(channel) for program, channel in zip(programs, local, strict=True)] == [
        {"type": "to.all"},
        {"type": "to.all"},
    ]
