"""An app whose clients follow the stream that their path names, and a page that does, at `/page/NAME`."""

from typing import Any
from urllib.parse import parse_qs

import asgibus

PAGE = """<!doctype html><title>A stream</title><p id="numbers"></p><p id="log"></p><script>
const source = new EventSource("/NAME")
const numbers = document.querySelector("#numbers"), log = document.querySelector("#log")
source.onmessage = (event) => { numbers.textContent += event.data + " " }
source.onerror = () => { log.textContent += ["reconnects ", "", "closed "][source.readyState] }
for (const kind of ["end", "reset"]) source.addEventListener(kind, () => { log.textContent += kind + " " })
</script>"""


async def app(scope: Any, receive: Any, send: Any) -> None:
    name = scope["path"].removeprefix("/")
    if name.startswith("page/"):
        headers = [(b"content-type", b"text/html")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": PAGE.replace("NAME", name[5:]).encode()})
    elif scope["type"] == "http":
        await asgibus.stream_response(scope, receive, send, name)
    else:
        await follow(scope, receive, send, name)


async def follow(scope: Any, receive: Any, send: Any, name: str) -> None:
    assert scope["type"] == "websocket"
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    after = parse_qs(scope["query_string"].decode()).get("after", [None])[0]
    await asgibus.connection(scope).follow(name, after=after)
    while (await receive())["type"] != "websocket.disconnect":
        pass
