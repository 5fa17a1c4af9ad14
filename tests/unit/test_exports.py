"""Public names of the package and the modules that export them."""

import importlib

import pytest

import asgibus

PUBLIC = {
    "asgibus": {"Connection", "connection", "stream_response"},
    "asgibus.channels": {"HandOverMixin"},
    "asgibus.compatibility": {
        "Interface",
        "UnknownInterface",
        "double_to_single_callable",
        "interface_of",
        "single_to_double_callable",
    },
    "asgibus.fastapi": {"Bus", "BusDep", "GroupSocket", "StreamResponse"},
    "asgibus.interface_server.terminator": {
        "ABORT",
        "OTHER_CLOSE",
        "OTHER_RECEIVED",
        "OTHER_SENT",
        "BusConnection",
        "BusConnections",
        "Event",
        "Factory",
        "Holder",
        "Host",
        "Listener",
        "SliceParser",
        "SlicedInput",
        "Terminator",
        "message_of",
        "other",
    },
    "asgibus.layers": {
        "Bus",
        "ChannelFull",
        "ChannelLayer",
        "Claim",
        "Handler",
        "InMemoryChannelLayer",
        "LayerError",
        "LayerUnavailable",
        "MessageTooLarge",
        "Offer",
        "RedisChannelLayer",
        "open_layer",
    },
    "asgibus.layers.streams": {
        "ABSENT_SECONDS",
        "BEGINNING",
        "Broadcast",
        "EntryTooLarge",
        "Offset",
        "Page",
        "Stream",
        "StreamError",
        "StreamLimits",
        "StreamReset",
        "StreamState",
        "StreamWriter",
        "WriterFenced",
        "parse_broadcast",
        "parse_offset",
    },
    "asgibus.starlette": {"Bus", "GroupSocket", "StreamResponse"},
    "asgibus.streams": {"sign"},
    "asgibus.testing": {"Bus", "VirtualWorker", "WebSocket"},
    "asgibus.testing.conformance": {
        "CHECKS",
        "SERVER_CHECKS",
        "SHARED_CHECKS",
        "SHARED_SERVER_CHECKS",
        "PRESENCE_CHECKS",
        "SHARED_STREAM_CHECKS",
        "STREAM_CHECKS",
        "Check",
        "LayerFactory",
        "run",
    },
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names(module: str) -> None:
    exported = importlib.import_module(module)
    assert set(exported.__all__) == PUBLIC[module]
    assert all(hasattr(exported, name) for name in PUBLIC[module])


@pytest.mark.parametrize(
    "module",
    [
        "asgibus.cli.interface",
        "asgibus.interface_server.server",
        "asgibus.cli.worker",
        "asgibus.worker.worker",
        "asgibus.protocol.stream",
        "asgibus.cli.run",
        "asgibus.layers.redis",
    ],
)
def test_each_package_is_importable_by_itself(module: str) -> None:
    importlib.import_module(module)


def test_connection_raises_for_a_scope_of_another_server() -> None:
    for scope in ({}, {"type": "http"}, {"type": "websocket", "extensions": {"tls": {}}}):
        with pytest.raises(RuntimeError, match=r"did not come over asgibus: run the app with asgi-interface APP"):
            asgibus.connection(scope)


def test_layer_errors_are_attributes_of_the_layer() -> None:
    from asgibus.layers import ChannelFull, ChannelLayer, LayerError, LayerUnavailable, MessageTooLarge

    assert ChannelLayer.ChannelFull is ChannelFull
    assert ChannelLayer.MessageTooLarge is MessageTooLarge
    assert all(issubclass(error, LayerError) for error in (ChannelFull, MessageTooLarge, LayerUnavailable))
