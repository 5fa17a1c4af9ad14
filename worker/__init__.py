"""The worker, `asgi-worker`: takes connections from the bus and runs the app for them.

`server` claims, starts and drains; one `session` is one run of the app; `lifespan` runs the app's start-up and
shut-down; `application` loads the app; `connection` is what the app sees of the bus.
"""
