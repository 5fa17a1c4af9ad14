"""What the tests share: real processes, real Redis, raw sockets."""
