"""Flask beside an ASGI app: workers of another pool serve the sockets, and views of Flask broadcast to them."""

from collections.abc import Callable

import httpx

from support.processes import Process
from support.websocket import ws


def test_views_broadcast_to_sockets_of_another_pool(
    redis_url: str, start_interface: Callable[..., Process], start_worker: Callable[..., Process]
) -> None:
    start_worker("frameworks.flask_app:app", "--layer", redis_url)
    start_worker("frameworks.asgi2_app:app", "--layer", redis_url, "--pool", "live")
    server = start_interface("--layer", redis_url, "--route", "/everybody=live")
    with ws(server, "/everybody") as first, ws(server, "/everybody") as second:
        second.send("joined")
        assert second.recv(5) == "joined"
        answer = httpx.post(f"{server.url}/publish", data={"text": "größer"}, trust_env=False)
        assert answer.text == "published"
        assert second.recv(5) == "größer"
        while first.recv(5) != "größer":
            pass
