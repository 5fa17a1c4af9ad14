"""Helpers of all tests: real processes, real Redis, raw sockets."""
