"""The app behind the UDP tests: a datagram names an action; others are answered with the process id and run."""

import asyncio
import itertools
import json
import logging
import os

import asgibus

RUNS = itertools.count(1)
GATE = asyncio.Event()


async def app(scope, receive, send):
    if scope["type"] == "http":
        GATE.set()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"http"})
        return
    assert scope["type"] == "udp"
    run = next(RUNS)
    try:
        for count in itertools.count(1):
            event = await receive()
            if event["type"] == "udp.disconnect":
                logging.getLogger("asgibus").info("disconnect of run %d: %s", run, event["reason"])
                try:
                    await send({"type": "udp.send", "bytes": b"too late"})
                except OSError as error:
                    logging.getLogger("asgibus").info("send in run %d: %s", run, error)
                return
            await answer(scope, send, run, count, event["bytes"])
            if event["bytes"].startswith(b"once"):
                return
    except Exception:
        if event["bytes"] != b"raise":
            raise
        raise RuntimeError(f"run {run} was told to") from None


async def answer(scope, send, run, count, data):
    reply = {"run": run, "count": count, "data": data[:20].decode(), "pid": os.getpid()}
    if data == b"raise":
        raise RuntimeError
    if data == b"hold":
        await GATE.wait()
    elif data == b"scope":
        reply["scope"] = {key: value for key, value in scope.items() if key not in ("extensions", "state")}
        reply["extensions"] = sorted(scope["extensions"])
    elif data == b"join":
        await asgibus.connection(scope).group_add("peers")
    elif data == b"tell":
        await asgibus.connection(scope).layer.group_send("peers", {"type": "udp.send", "bytes": b"told"})
        await asgibus.connection(scope).layer.group_send("peers", {"type": "line.send", "bytes": b"wrong"})
        return
    elif data == b"reply channel":
        layer = asgibus.connection(scope).layer
        await layer.send(asgibus.connection(scope).reply_channel, {"type": "udp.send", "bytes": b"by channel"})
        return
    elif data.startswith(b"invalid"):
        event = json.loads(data.removeprefix(b"invalid"))
        if "size" in event:
            event["bytes"] = bytes(event.pop("size"))
        try:
            await send(event)
        except (ValueError, TypeError, RuntimeError) as error:
            reply["error"] = f"{type(error).__name__}: {error}"
    elif data.startswith(b"echo"):
        await send({"type": "udp.send", "bytes": data})
        return
    await send({"type": "udp.send", "bytes": json.dumps(reply).encode()})


async def http_only(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError(f"what is {scope['type']}?")
    await app(scope, receive, send)
