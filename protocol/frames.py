"""The frames between an interface server and a worker: tuples, in the entries of a mailbox.

Every frame names the connection (the interface's number for it) and the attempt (which run of the app it belongs to;
frames of an earlier attempt are ignored). The sender of a batch is named once, in the entry.
"""

from __future__ import annotations

from asgibus.layers.contract import FIRST_PROTOCOL_KIND

EVENT = FIRST_PROTOCOL_KIND  # (EVENT, connection, attempt, sequence number, acknowledged, code, field, …)
OWN = FIRST_PROTOCOL_KIND + 1  # (OWN, connection, attempt): the sender serves this connection
ACK = FIRST_PROTOCOL_KIND + 2  # (ACK, connection, attempt, acknowledged)
RESET = FIRST_PROTOCOL_KIND + 3  # (RESET, connection, attempt): the sender does not know this connection
RESEND = FIRST_PROTOCOL_KIND + 4  # (RESEND, connection, attempt, acknowledged): send again from that number on
PROBE = FIRST_PROTOCOL_KIND + 5  # (PROBE, connection, attempt, number): is all below it there? RESEND, ACK or RESET
ABANDONED = FIRST_PROTOCOL_KIND + 6  # (ABANDONED, connection, attempt): its claimant died before it named itself
SUPERSEDED = FIRST_PROTOCOL_KIND + 7  # (SUPERSEDED, connection, attempt): another run has taken this connection over

ACKNOWLEDGED = 4  # where an EVENT frame says how much of the other direction is dealt with
HEAD = 5  # where the event begins in an EVENT frame
