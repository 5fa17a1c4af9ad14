"""The interface server, `asgi-interface`: terminates HTTP, WebSocket and UDP, and runs no user code.

`server` listens; `http.protocol` and `websocket.protocol` are the terminators, one object per socket, and `udp` is one
for all peers of its socket; `plugins` finds those of other packages, and `terminator` is the seam for all.
`connections` is the table of what is open on the bus, and each `connection` in it is the interface's end of one
session; `groups` fans broadcasts out.
"""
