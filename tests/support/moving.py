"""The move of a socket of `socket_harness` to another server, as two processes do it."""

from typing import Any, cast

from asgibus.interface_server.http.protocol import HttpProtocol, HttpServer
from asgibus.interface_server.http.response import ResponseWriter
from asgibus.interface_server.websocket.protocol import WebSocketProtocol
from asgibus.layers.codec import pack, unpack
from support.socket_harness import Socket, Transport


class Moved(Socket):
    """A socket that was moved from another server."""

    def __init__(self, old: Socket, **settings: Any) -> None:
        super().__init__(**settings)
        protocol = old.protocol
        assert protocol.may_move
        protocol.input.hold()
        assert not old.transport.reading
        state, table = unpack(pack((protocol.export(), old.connections.export())))
        protocol.moved()
        assert old.transport.closed
        old.turn()
        assert not old.transport.written, "the client must not notice"
        self.table.bus.offered = old.table.bus.offered  # so that the test can go on as the worker
        self._posted = old._posted
        self.transport = Transport(None)
        self.transport.reading = False
        self.connections.restore(table)
        server = cast(HttpServer, self)
        transport = cast(Any, self.transport)
        if state["kind"] == "http":
            HttpProtocol(server).restore(transport, state)
        else:
            writer = ResponseWriter(transport, self.standard_headers)
            WebSocketProtocol(server, transport, writer).restore(state)
        places = [] if state["connection"] is None else [state["connection"]]
        self.connections.restore_places(table, places)
        assert not self.transport.reading
        self.protocol.go_on()
        self.turn()
