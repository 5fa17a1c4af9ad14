"""The interface server, `asgi-interface`: terminates HTTP and WebSocket, and runs no user code.

`server` listens; `http` and `websocket` are the terminators, one object per socket; `connections` is the table of what
is open on the bus, and each `connection` in it is the interface's end of one session; `groups` fans broadcasts out.
"""
