"""Streams in Redis: see `asgibus.layers.streams`."""
