"""The proxies of the documentation, started with the documented files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.processes import Process, Processes
from support.topologies import free_port

DEPLOY = Path(__file__).parents[3] / "deploy"

NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr notice;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {file};
}}
"""

CADDY = """
{{
    admin off
    default_bind 127.0.0.1
}}
import {file}
"""


@dataclass
class Proxy:
    """Address of a running proxy, which clients connect to."""

    url: str
    port: int
    process: Process
    uds: str = ""

    @property
    def ws_url(self) -> str:
        return self.url.replace("http", "ws", 1)


def replaced(text: str, *replacements: tuple[str, str]) -> str:
    """Return the text with replacements for a test; each replaced part must occur once."""
    for old, new in replacements:
        assert text.count(old) == 1, f"{old!r} does not occur once"
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def start_proxy(program: Callable[[str], str], shared_processes: Processes) -> Callable[..., Proxy]:
    """Provide a function that starts "nginx" or "caddy" with our configuration and the ports of the test."""

    folder = shared_processes.folder

    def start(name: str, first: int, second: int) -> Proxy:
        binary = program(name)
        port = free_port()
        servers = ("127.0.0.1:8001", f"127.0.0.1:{first}"), ("127.0.0.1:8002", f"127.0.0.1:{second}")
        ours, main = folder / f"ours.{name}", folder / f"main.{name}"
        if name == "nginx":
            text = (DEPLOY / "nginx.conf").read_text()
            ours.write_text(replaced(text, ("listen 80;", f"listen 127.0.0.1:{port};"), *servers))
            main.write_text(NGINX.format(folder=folder, file=ours))
            command, ready = [binary, "-p", str(folder), "-e", "stderr", "-c", str(main)], "start worker process "
        else:
            text = (DEPLOY / "Caddyfile").read_text()
            ours.write_text(replaced(text, ("example.com {", f"http://:{port} {{"), *servers))
            main.write_text(CADDY.format(file=ours))
            command, ready = [binary, "run", "--adapter", "caddyfile", "--config", str(main)], "serving initial"
        env = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
        process = shared_processes.start(name, command, ready=ready, env=env)
        return Proxy(f"http://127.0.0.1:{port}", port, process)

    return start
