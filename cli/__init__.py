"""The commands `asgi-interface` and `asgi-worker`: options, logging, signals, supervisor and admin port."""
