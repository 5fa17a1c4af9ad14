"""Strawberry's GraphQL over HTTP and WebSocket, with the client gql in both protocols."""

import json
from collections.abc import Callable

import httpx
import pytest
from gql import Client, gql
from gql.transport.httpx import HTTPXAsyncTransport
from gql.transport.websockets import WebsocketsTransport
from serving import Site
from websockets.sync.client import connect

from support.deadline import wait_until

PROTOCOLS = ["graphql-transport-ws", "graphql-ws"]
BEGIN = {"graphql-transport-ws": "subscribe", "graphql-ws": "start"}


@pytest.fixture(scope="module")
def site(serve: Callable[..., Site]) -> Site:
    return serve("strawberry_app:app")


def websocket(site: Site, protocol: str) -> WebsocketsTransport:
    return WebsocketsTransport(url=site.ws_url, subprotocols=[protocol])


def test_a_query(client: httpx.Client) -> None:
    answer = client.post("/", json={"query": 'query { greeting(name: "Ann") }'})
    assert answer.json() == {"data": {"greeting": "hello Ann"}}
    assert "graphiql" in client.get("/", headers={"accept": "text/html"}).text.lower()


@pytest.mark.anyio
async def test_a_query_of_gql(site: Site) -> None:
    async with Client(transport=HTTPXAsyncTransport(site.url)) as session:
        assert await session.execute(gql('query { greeting(name: "Ann") }')) == {"greeting": "hello Ann"}


@pytest.mark.anyio
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_subscription_to_its_end(site: Site, protocol: str) -> None:
    async with Client(transport=websocket(site, protocol)) as session:
        numbers = [part["count"] async for part in session.subscribe(gql("subscription { count(target: 200) }"))]
        assert numbers == list(range(200))
        if protocol == "graphql-transport-ws":  # the older one has subscriptions alone
            assert await session.execute(gql('query { greeting(name: "Ben") }')) == {"greeting": "hello Ben"}


@pytest.mark.anyio
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_client_stops_a_subscription_and_disconnects(site: Site, protocol: str) -> None:
    name = f"stops {protocol}"
    async with Client(transport=websocket(site, protocol)) as session:
        async for part in session.subscribe(gql(f'subscription {{ clock(name: "{name}") }}')):
            if part["clock"] == 5:
                break
        assert [part["count"] async for part in session.subscribe(gql("subscription { count(target: 3) }"))] == [
            0,
            1,
            2,
        ]
    wait_until(lambda: f"{name} ended" in site.notes)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("how", ["closes", "breaks"])
def test_a_client_disconnects_during_a_subscription(site: Site, protocol: str, how: str) -> None:
    name = f"{how} {protocol}"
    query = f'subscription {{ clock(name: "{name}") }}'
    with connect(site.ws_url, subprotocols=[protocol]) as socket:
        socket.send(json.dumps({"type": "connection_init"}))
        socket.send(json.dumps({"type": BEGIN[protocol], "id": "1", "payload": {"query": query}}))
        while json.loads(socket.recv(15)).get("payload", {}) != {"data": {"clock": 5}}:
            pass
        if how == "breaks":
            socket.socket.shutdown(2)
    wait_until(lambda: f"{name} ended" in site.notes)
