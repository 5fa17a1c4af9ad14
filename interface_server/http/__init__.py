"""The HTTP/1.1 terminator: one object per socket, a parser for its requests, a writer for its responses."""
