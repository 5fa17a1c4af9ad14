"""The protocol between interface servers and workers, without IO: no clock, no socket, no `async`.

One *connection* at an interface server is joined to one *session* at a worker.

- `events`: ASGI events as compact tuples.
- `connect_request`: the offer of a connection, from which a worker builds the scope.
- `checks`: the validation of everything that comes from the bus.
- `states`: the state tables.
- `stream`: numbering, windows and acknowledgements of one connection, at one end.
- `router`: the frames of a mailbox and their streams.
- `retry`: when another run of the app may continue with a connection.
- `channels`: the names of the shared channels.
"""
