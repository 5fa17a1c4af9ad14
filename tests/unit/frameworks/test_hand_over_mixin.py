"""`HandOverMixin` of asgibus.channels on an async and a sync consumer, at a hand-over and at other disconnects."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from channels.consumer import AsyncConsumer, SyncConsumer
from channels.exceptions import StopConsumer
from django.conf import settings

from asgibus.channels import HandOverMixin
from asgibus.layers import InMemoryChannelLayer
from asgibus.worker.connection import Connection, Extension

pytestmark = pytest.mark.anyio

if not settings.configured:
    settings.configure(DATABASES={})  # of which consumers close old connections

DISCONNECT = {"type": "websocket.disconnect", "code": 1012}


class OfAsync(HandOverMixin, AsyncConsumer):
    async def websocket_disconnect(self, message: Any) -> None:
        self.ended = True

    async def websocket_receive(self, message: Any) -> None:
        self.received = True


class OfSync(HandOverMixin, SyncConsumer):
    def websocket_disconnect(self, message: Any) -> None:
        self.ended = True

    def websocket_receive(self, message: Any) -> None:
        self.received = True


def make(kind: type[Any], *, handed_over: bool | None, resumed: bool = False) -> Any:
    """Return a consumer; with `handed_over` None, that of another server."""
    consumer = kind()
    consumer.scope = {"type": "websocket", "extensions": {}}
    if handed_over is not None:
        session = cast(Any, SimpleNamespace(handed_over=handed_over, resumed=resumed))
        consumer.scope["extensions"]["asgibus"] = Extension(Connection(session), 1, resumed)
    consumer.channel_layer = InMemoryChannelLayer()
    consumer.channel_name = "specific.x!1"
    consumer.groups = ["chat"]
    consumer.ended = consumer.received = False
    return consumer


@pytest.mark.parametrize("kind", [OfAsync, OfSync])
async def test_a_hand_over_is_no_disconnect(kind: type[Any]) -> None:
    consumer = make(kind, handed_over=True)
    layer = consumer.channel_layer
    consumer.channel_name = await layer.new_channel()
    await layer.group_add("chat", consumer.channel_name)
    with pytest.raises(StopConsumer):
        await consumer.dispatch(DISCONNECT)
    assert not consumer.ended
    await layer.group_send("chat", {"type": "to.nobody"})
    await layer.send(consumer.channel_name, {"type": "last"})
    assert await layer.receive(consumer.channel_name) == {"type": "last"}


@pytest.mark.parametrize("kind", [OfAsync, OfSync])
@pytest.mark.parametrize("handed_over", [False, None])
async def test_all_else_reaches_the_consumer(kind: type[Any], handed_over: bool | None) -> None:
    consumer = make(kind, handed_over=handed_over)
    await consumer.dispatch({"type": "websocket.receive", "text": ""})
    assert consumer.received
    await consumer.dispatch(DISCONNECT)
    assert consumer.ended


@pytest.mark.parametrize("handed_over", [False, None])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_consumer_knows_whether_its_client_is_known(handed_over: bool | None, resumed: bool) -> None:
    expected = resumed and handed_over is not None
    assert make(OfAsync, handed_over=handed_over, resumed=resumed).resumed == expected
