"""The load client: one thread, raw non-blocking sockets, bytes counted instead of parsed."""
