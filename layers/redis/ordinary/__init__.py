"""Ordinary channels: receiving from them, and taking several messages at once."""
