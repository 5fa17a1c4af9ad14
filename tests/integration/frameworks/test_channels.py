"""Tests of Channels alone: the layer of asgibus as its channel layer, groups, and background work."""

import json
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection

from frameworks.matrix import Site, Sites
from support.deadline import wait_until
from support.websocket import ws

pytestmark = pytest.mark.needs("channels")
ON_REDIS = [pytest.param("redis", marks=pytest.mark.redis)]
LAYER_PREFIX = "chat"


def receive_json(client: ClientConnection) -> Any:
    return json.loads(client.recv(timeout=30))


def get(site: Site, path: str) -> httpx.Response:
    return site.client.get(path)


def chat(first_site: Site, second_site: Site, name: str) -> None:
    """Chat with clients of both sites in one room, and with a view of each site."""
    red, blue = f"red-{name}", f"blue-{name}"
    with (
        ws(first_site.server, f"/chat/{red}") as first,
        ws(second_site.server, f"/chat/{red}") as second,
        ws(first_site.server, f"/chat/{blue}") as elsewhere,
    ):
        for client in (first, second, elsewhere):
            assert receive_json(client) == {"earlier": []}
        first.send("hello")
        assert (receive_json(first), receive_json(second)) == ({"line": "hello"}, {"line": "hello"})
        second.send(b"\x00\xff")
        assert first.recv(timeout=30) == second.recv(timeout=30) == b"\x00\xff"
        for site in (first_site, second_site):
            assert get(site, f"/announce/{red}/20").text == "announced"
            expected = [{"line": f"announcement {number}"} for number in range(20)]
            assert [receive_json(first) for _ in range(20)] == expected
            assert [receive_json(second) for _ in range(20)] == expected
        with ws(second_site.server, f"/chat/{red}") as latecomer:
            assert receive_json(latecomer) == {"earlier": ["hello"]}
        elsewhere.send("only here")
        assert receive_json(elsewhere) == {"line": "only here"}
        elsewhere.send("fill")
        assert receive_json(elsewhere) == {"sent": 3}


def test_a_chat_through_the_project_s_layer(site: Site) -> None:
    chat(site, site, site.setup)


@pytest.mark.parametrize("setup", ON_REDIS, indirect=True)
def test_a_chat_between_two_workers_and_uvicorn(site: Site, sites: Sites) -> None:
    """The servers and the project use one Redis, each under a prefix of its own."""
    sites.add_worker()
    chat(site, sites.get("uvicorn_redis"), "several")


def test_errors_of_the_layer(site: Site) -> None:
    filled = get(site, "/fill").json()
    assert filled == {"sent": 3, "error": "channel 'small.of-the-view' is at its capacity of 3 messages"}
    assert get(site, "/bad-name").text.startswith("channel names are 1 to 100 ASCII letters, digits, '.', '-' or '_'")


@pytest.mark.parametrize("setup", [*ON_REDIS, "memory"], indirect=True)
def test_a_view_broadcasts_to_a_group_of_the_bus(site: Site) -> None:
    with ws(site.server, "/everybody") as socket:
        socket.send("joined")
        assert socket.recv(5) == "joined"
        assert get(site, "/publish").text == "published"
        assert socket.recv(5) == "news"


def test_server_sent_events_of_a_consumer(site: Site) -> None:
    name = f"ticker-{site.setup}"
    with site.client.stream("GET", f"/ticker/{name}") as answer:
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(4)] == ["data: tick 0", "", "data: tick 1", ""]
    if site.ours:  # `send_body` raises; on uvicorn the consumer continues for ever
        wait_until(lambda: f"{name} left" in site.notes())


@pytest.mark.parametrize("setup", ON_REDIS, indirect=True)
def test_background_consumers(site: Site, sites: Sites) -> None:
    sites.add_worker("--channel", "work", prefix=LAYER_PREFIX)
    assert get(site, "/queue/one").text == "soon"
    assert get(site, "/queue/two").text == "soon"
    wait_until(lambda: set(get(site, "/lines/work").json()) == {"one done", "two done"})


@pytest.mark.parametrize("layer", [*ON_REDIS, "memory"])
def test_the_project_s_own_tests(layer: str, sites: Sites) -> None:
    command = ["-X", "dev", "-W", "error::ResourceWarning", "-m", "frameworks.channels_project.own_tests"]
    program = sites.run(*command, layer=layer, CHANNELS_PREFIX="own")
    program.wait_for("all is well")
    assert program.wait() == 0
    assert "Warning" not in program.log()
