"""Payloads of servers and clients. All sizes are fixed, so that a client can count bytes."""

BODY = b"Hello, World!"
ECHO = "e" * 100
BROADCAST = "b" * 100
JOINED = "joined"
TRIGGER = "go"
