"""Process-local channels: their messages, and the loops in which their mailbox is read."""
