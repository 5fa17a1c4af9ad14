"""The session between the two ends of a connection, without IO: no clock, no socket, no `async`.

One *connection* at an interface server is joined to one *session* at a worker. `events` are what ASGI says about a
connection, as compact tuples; `frames` carry them; `states` are the tables of what may follow what; `session` numbers,
keeps and bounds what is under way in one direction and the other; `opening` is the first message, on a shared channel.
"""
