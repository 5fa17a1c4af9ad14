"""The Model Context Protocol with its own client: streamable HTTP, without and with sessions, and event streams."""

from collections.abc import Callable

import httpx
import pytest
from mcp import Client
from mcp.client.sse import sse_client
from serving import Site

MODES = ["auto", "legacy"]


@pytest.fixture(scope="module")
def site(serve: Callable[..., Site]) -> Site:
    return serve("mcp_app:app")


@pytest.fixture(scope="module")
def sessions(serve: Callable[..., Site]) -> Site:
    """Provide a site with sessions: the process that has made one must get all of its requests."""
    return serve("mcp_app:app", affinity=("/mcp=learn:header:Mcp-Session-Id",), env={"MCP_MODE": "sessions"})


@pytest.fixture(scope="module")
def events(serve: Callable[..., Site]) -> Site:
    """Provide a site with event streams: the process with the stream must get the posts."""
    return serve("mcp_app:app", affinity=("learn:query:session_id",), env={"MCP_MODE": "events"})


async def check_client(client: Client) -> None:
    tools = await client.list_tools()
    assert [tool.name for tool in tools.tools] == ["add", "slowly", "worker"]
    for number in range(10):
        assert (await client.call_tool("add", {"a": number, "b": 2})).content[0].text == str(number + 2)
    steps = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        steps.append((done, total))

    result = await client.call_tool("slowly", {"steps": 20}, progress_callback=progress)
    assert result.content[0].text == "20 steps done"
    assert steps == [(step, 20) for step in range(1, 21)]
    assert (await client.read_resource("greeting://Ann")).contents[0].text == "hello Ann"
    assert "x = 1" in (await client.get_prompt("review", {"code": "x = 1"})).messages[0].content.text


@pytest.mark.anyio
@pytest.mark.parametrize("mode", MODES)
async def test_streamable_http(site: Site, mode: str) -> None:
    for _ in range(3):
        async with Client(f"{site.url}/mcp", mode=mode) as client:
            await check_client(client)


async def worker_of(client: Client) -> str:
    """Return the one worker that serves a client."""
    (worker,) = {(await client.call_tool("worker", {})).content[0].text for _ in range(4)}
    return str(worker)


@pytest.mark.anyio
async def test_sessions(sessions: Site) -> None:
    workers = set()
    while len(workers) < len(sessions.workers):
        async with Client(f"{sessions.url}/mcp", mode="legacy") as client:
            await check_client(client)
            workers.add(await worker_of(client))


@pytest.mark.anyio
async def test_event_streams(events: Site) -> None:
    workers = set()
    while len(workers) < len(events.workers):
        async with Client(sse_client(f"{events.url}/sse"), mode="legacy") as client:
            await check_client(client)
            workers.add(await worker_of(client))


def test_a_client_closes_its_event_stream(events: Site) -> None:
    with httpx.stream("GET", f"{events.url}/sse", trust_env=False) as answer:
        assert next(answer.iter_lines()) == "event: endpoint"
    assert httpx.get(f"{events.url}/missing", trust_env=False).status_code == 404  # the server still answers
