"""An app that answers with the scope and body of the request as JSON."""

import json

KEYS = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers")


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    parts, more = [], True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        parts.append(event["body"])
        more = event["more_body"]
    seen = {key: scope[key] for key in KEYS} | {"body": b"".join(parts)}
    body = json.dumps(seen, default=lambda value: value.decode("latin-1")).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
