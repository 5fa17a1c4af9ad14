"""An app that answers with the head of the request as JSON, without reading the body."""

import json

from differential.echo_app import KEYS


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = json.dumps({key: scope[key] for key in KEYS}, default=lambda value: value.decode("latin-1")).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
