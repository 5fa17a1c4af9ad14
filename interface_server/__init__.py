"""The interface server, `asgi-interface`: terminates HTTP, WebSocket and UDP, and runs no user code.

`server` listens and keeps the clock. `acceptor` accepts clients for `http.protocol`, one object per socket;
`websocket.protocol` takes sockets over from it. `connections` is the bus's side: what passes between clients and
workers. `terminator` has the interfaces between both sides, `udp` is a protocol that needs no more than these, and
`plugins` finds those of other packages.
"""
