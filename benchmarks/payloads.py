"""Payloads of servers and clients. All sizes are fixed, so that a client can count bytes."""

BODY = b"Hello, World!"
ECHO = "e" * 100
BROADCAST = "b" * 100
JOINED = "joined"
TRIGGER = "go"

TRANSFER = 8 * 1024 * 1024
"""Bytes of a body that is uploaded or downloaded."""
PART = 64 * 1024
"""Bytes of one event of a download, as a file response of Starlette sends it."""
PID_DIGITS = 10
"""Digits of the process id that `/pid` sends, with leading zeros."""
