"""The worker, `asgi-worker`: claims connections from the bus and runs the app for them.

`worker` claims connections and drains; a `session` is one run of the app; `connection` is the API of the bus for apps.
`loader` loads the app, `lifespan` runs its start-up and shut-down, and `wsgi` runs WSGI apps in threads. `background`
runs the app for messages of ordinary channels.
"""
