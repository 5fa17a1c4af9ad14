"""The WebSocket terminator: `protocol` has the class of a socket, over the sans-IO protocol of websockets."""
