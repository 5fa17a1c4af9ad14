"""The write half of the Durable Streams protocol, as an app: PUT, POST and DELETE over `layer.stream`.

Only what the tests of the read half need. One process holds the writers of all streams, so it runs in one worker.
"""

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass, field

import asgibus
from asgibus.layers.errors import WriterFenced

LARGEST = 1024 * 1024  # bytes of one body
PART = 60_000  # bytes of one entry, at most


@dataclass
class Written:
    """A stream that this process writes."""

    writer: object
    content_type: str
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    sequence: str = ""
    closed: bool = False


streams: dict[str, Written] = {}
creating = asyncio.Lock()


class Refused(Exception):
    def __init__(self, status, **headers):
        super().__init__(status)
        self.status = status
        self.headers = headers


def shown(offset):
    """Return an offset as clients of the protocol have it."""
    epoch, number = offset.split("-")
    return f"{int(epoch):016d}-{int(number):016d}"


def media_type(content_type):
    return content_type.partition(";")[0].strip().lower()


def entries(body, content_type):
    """Return the entries of a body."""
    if len(body) > LARGEST:
        raise Refused(413)
    if media_type(content_type) != "application/json":
        return [body[start : start + PART] for start in range(0, len(body), PART)]
    try:
        value = json.loads(body)
    except ValueError:
        raise Refused(400) from None
    return value if isinstance(value, list) else [value]


async def put(layer, name, headers, body):
    content_type = headers.get("content-type", "application/octet-stream")
    if {"stream-ttl", "stream-expires-at", "stream-forked-from"} & headers.keys():
        raise Refused(501)
    closes = headers.get("stream-closed", "").lower() == "true"
    items = entries(body, content_type) if body else []
    async with creating:
        stream = streams.get(name)
        if stream is not None:
            if media_type(stream.content_type) != media_type(content_type) or stream.closed is not closes:
                raise Refused(409)
            return 200, answer(stream)
        writer = await layer.stream(name).writer(content_type=content_type).__aenter__()
        stream = streams[name] = Written(writer, content_type)
    async with stream.lock:
        await append(stream, items, closes=closes)
    location = f"http://{headers['host']}{headers['path']}"
    return 201, {"location": location, **answer(stream)}


async def post(layer, name, headers, body):
    stream = streams.get(name)
    if stream is None:
        raise Refused(404)
    closes = headers.get("stream-closed", "").lower() == "true"
    async with stream.lock:
        if stream.closed:
            if closes and not body:
                return 204, answer(stream)
            raise Refused(409, **answer(stream))
        if not body:
            if not closes:
                raise Refused(400)
            items = []
        else:
            content_type = headers.get("content-type", "")
            if not content_type:
                raise Refused(400)
            if media_type(content_type) != media_type(stream.content_type):
                raise Refused(409)
            items = entries(body, content_type)
            if not items:
                raise Refused(400)
        sequence = headers.get("stream-seq")
        if sequence is not None:
            if sequence <= stream.sequence:
                raise Refused(409)
            stream.sequence = sequence
        await append(stream, items, closes=closes)
        return 204, answer(stream)


async def append(stream, items, *, closes):
    for item in items:
        await stream.writer.append(item)
    await stream.writer.flush()
    if closes:
        await stream.writer.__aexit__(None, None, None)
        stream.closed = True


async def delete(layer, name, headers, body):
    stream = streams.pop(name, None)
    if stream is None:
        raise Refused(404)
    await layer.stream(name).delete()
    if not stream.closed:
        with suppress(WriterFenced):
            await stream.writer.__aexit__(None, None, None)
    return 204, {}


def answer(stream):
    headers = {"content-type": stream.content_type, "stream-next-offset": shown(stream.writer.offset)}
    return headers | {"stream-closed": "true"} if stream.closed else headers


async def app(scope, receive, send):
    assert scope["type"] == "http"
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    headers = {name.decode(): value.decode() for name, value in scope["headers"]} | {"path": scope["path"]}
    name = scope["path"].rpartition("/")[2]
    work = {"PUT": put, "POST": post, "DELETE": delete}.get(scope["method"])
    try:
        if work is None:
            raise Refused(405)
        status, sent = await work(asgibus.connection(scope).layer, name, headers, body)
    except Refused as refused:
        status, sent = refused.status, refused.headers
    sent = {"x-content-type-options": "nosniff", **sent}
    lines = [(key.replace("_", "-").encode(), value.encode()) for key, value in sent.items()]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": b""})
