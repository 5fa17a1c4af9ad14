"""A chat in forty lines; `docs/first-steps.md` explains it."""

import asgibus

PAGE = b"""<!doctype html><html lang=en><title>chat</title>
<ul id=said aria-live=polite></ul><input id=text autofocus aria-label=message placeholder="say something">
<script>
const socket = new WebSocket(`ws://${location.host}/ws`)
socket.onmessage = event => said.append(Object.assign(document.createElement("li"), {textContent: event.data}))
socket.onclose = event => said.append(`closed: ${event.code}`)
text.onchange = () => { socket.send(text.value); text.value = "" }
</script>"""


async def app(scope, receive, send):
    if scope["type"] == "http":
        headers = [(b"content-type", b"text/html")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": PAGE})
    elif scope["type"] == "websocket":
        await chat(asgibus.connection(scope), receive, send)


async def chat(connection, receive, send):
    await receive()  # websocket.connect
    await send({"type": "websocket.accept"})
    await connection.group_add("chat")
    count = connection.state.get("count", 0)
    while (event := await receive())["type"] == "websocket.receive":
        count += 1
        connection.state["count"] = count
        await connection.save_state()
        text = f"{count}: {event['text']} (run {connection.attempt})"
        await connection.group_send("chat", {"type": "websocket.send", "text": text})
