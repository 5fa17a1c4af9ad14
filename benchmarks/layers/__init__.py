"""The channel layer on Redis beside those of channels_redis: messages between two processes. See ../README.md."""
