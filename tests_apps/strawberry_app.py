"""A GraphQL API with subscriptions, over both protocols."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import strawberry
from strawberry.asgi import GraphQL
from strawberry.subscriptions import GRAPHQL_TRANSPORT_WS_PROTOCOL, GRAPHQL_WS_PROTOCOL


def note(text: str) -> None:
    with Path("notes").open("a") as notes:
        notes.write(f"{text}\n")


@strawberry.type
class Query:
    """Queries."""

    @strawberry.field
    def greeting(self, name: str) -> str:
        return f"hello {name}"


@strawberry.type
class Subscription:
    """Subscriptions."""

    @strawberry.subscription
    async def count(self, target: int) -> AsyncGenerator[int, None]:
        for number in range(target):
            yield number
            await asyncio.sleep(0)

    @strawberry.subscription
    async def clock(self, name: str) -> AsyncGenerator[int, None]:
        number = 0
        try:
            while True:
                yield number
                number += 1
                await asyncio.sleep(0.01)
        finally:
            note(f"{name} ended")


app = GraphQL(
    strawberry.Schema(Query, subscription=Subscription),
    subscription_protocols=[GRAPHQL_TRANSPORT_WS_PROTOCOL, GRAPHQL_WS_PROTOCOL],
    keep_alive=True,
    keep_alive_interval=0.05,
)
