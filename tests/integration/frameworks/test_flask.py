"""Flask beside an ASGI app: the sockets are held by workers of another pool, and its views speak to them."""

from collections.abc import Callable

import httpx

from support.processes import Process
from support.websocket import ws


def test_views_speak_to_the_sockets_of_another_pool(
    redis_url: str, start_interface: Callable[..., Process], start_worker: Callable[..., Process]
) -> None:
    start_worker("frameworks.flask_app:app", "--layer", redis_url)
    start_worker("frameworks.asgi2_app:app", "--layer", redis_url, "--pool", "live")
    server = start_interface("--layer", redis_url, "--route", "/everybody=live")
    with ws(server, "/everybody") as one, ws(server, "/everybody") as other:
        other.send("joined")
        assert other.recv(5) == "joined"
        answer = httpx.post(f"{server.url}/publish", data={"text": "größer"}, trust_env=False)
        assert answer.text == "published"
        assert other.recv(5) == "größer"
        while one.recv(5) != "größer":
            pass
