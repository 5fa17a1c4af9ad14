"""Programs and commands on the pages, as a reader pastes them.

A program is a block of Python that begins with a comment which names its file, such as `# main.py`.
"""

import ast
import builtins
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from runpy import run_path
from unittest.mock import ANY

import click
import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from asgibus.cli.interface import command as interface_command
from asgibus.cli.worker import command as worker_command
from support.deadline import HANG
from support.processes import Process, Processes
from support.raw import RawClient
from support.websocket import ws

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^(<!-- shows \S+ -->\n)?```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NAME = re.compile(r"# ([\w/]+\.py)\n")
COMMANDS = {"asgi-interface": interface_command, "asgi-worker": worker_command}
UVICORN_READY = r"Uvicorn running on (http://\S+)"
REDIS = "redis://127.0.0.1:6379"

PROGRAMS = {
    "answers.md": ["main.py", "myproject/asgi.py", "myproject/urls.py", "myproject/views.py", "writer.py"],
    "background.md": ["main.py", "send.py"],
    "durable-streams.md": ["main.py"],
    "event-streams.md": ["main.py"],
    "frameworks/asgi2.md": ["myproject/main.py"],
    "frameworks/channels.md": [f"myproject/{name}.py" for name in ("asgi", "consumers", "follow", "lobby")],
    "frameworks/django.md": [f"myproject/{name}.py" for name in ("asgi", "publish", "signals", "urls", "views")],
    "frameworks/fastapi.md": ["lobby.py", "myproject/main.py", "past.py"],
    "frameworks/flask.md": ["myproject/main.py", "myproject/sockets.py"],
    "frameworks/litestar.md": ["myproject/main.py"],
    "frameworks/quart.md": ["myproject/main.py"],
    "frameworks/starlette.md": ["myproject/main.py"],
    "groups.md": ["chat.py", "main.py"],
    "layers.md": ["check.py", "script.py", "test_layer.py"],
    "presence.md": ["main.py"],
    "security.md": ["myproject/main.py"],
    "streams.md": ["main.py"],
    "survival.md": ["endpoint.py", "main.py", "noticed.py", "orders.py", "ticks.py"],
    "terminators.md": ["main.py"],
    "testing.md": ["conftest.py", "test_main.py"],
}
"""The programs that the tests below run."""

Start = Callable[..., Process]
Paste = Callable[..., Path]


def label(page: Path) -> str:
    return str(page.relative_to(ROOT).as_posix()).removeprefix("docs/")


def blocks(page: Path) -> list[str]:
    """Return the Python blocks of a page, except blocks that show a file of the repository."""
    return [textwrap.dedent(code) for shown, code in BLOCK.findall(page.read_text()) if not shown]


def programs(page: Path) -> dict[str, str]:
    named = ((NAME.match(code), code) for code in blocks(page))
    return {name[1]: code for name, code in named if name}


def undefined(code: str) -> set[str]:
    """Return the names that a block uses and does not define."""
    tree = ast.parse(code)
    used, defined = set(), set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else defined).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).partition(".")[0])
    return used - defined


# Files shown on pages.


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_pages_show_current_files_of_the_repository(page: Path) -> None:
    shown = run_path(str(ROOT / "scripts" / "pages"))["shown"]
    assert page.read_text() == shown(page.read_text()), "run scripts/pages"


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_programs_on_a_page_name_their_file_and_are_tested(page: Path) -> None:
    for code in blocks(page):
        compile(code, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
        if NAME.match(code):
            assert not undefined(code), f"{page.name} shows a program that cannot run"
        elif re.search(r"^(import|from) ", code, re.MULTILINE):
            assert undefined(code), f"{page.name} shows a program without the name of its file:\n{code}"
    assert sorted(programs(page)) == PROGRAMS.get(label(page), [])


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_options_on_a_page_exist(page: Path) -> None:
    text = page.read_text().replace("\\\n", " ")
    lines = re.findall(r"^(?:    |\$ )?(asgi-(?:interface|worker) .*)$", text, re.MULTILINE)
    inline = re.findall(r"`(asgi-(?:interface|worker) [^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for line in [*lines, *inline]:
        if "…" in line or "..." in line:
            continue
        name, *arguments = shlex.split(" ".join(line.split()), comments=True)
        command = COMMANDS[name]
        try:
            with suppress(click.BadOptionUsage):  # without its value, as in running text
                command.make_parser(click.Context(command)).parse_args([*arguments])
        except click.NoSuchOption as error:
            pytest.fail(f"{label(page)} has {line!r}: {error.format_message()}")


# Programs on pages.


@pytest.fixture
def paste(tmp_path: Path) -> Paste:
    """Write programs of a page into a folder, as their names say. `redis` takes the place of the usual URL."""

    def paste(page: str, redis: str = REDIS, only: str = "") -> Path:
        for name, code in programs(ROOT / "docs" / page).items():
            if only in name:
                (tmp_path / name).parent.mkdir(exist_ok=True)
                (tmp_path / name).write_text(code.replace(REDIS, redis))
        return tmp_path

    return paste


def python(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Run Python in this folder; return its output."""
    result = subprocess.run(
        [sys.executable, *arguments], check=False, cwd=folder, capture_output=True, text=True, timeout=50, env=env
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def run_pytest(folder: Path, *files: str) -> str:
    """Run the tests in this folder with the plugin of anyio alone, since others take a second to load."""
    env = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return python(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "anyio", *files, env=env)


def wait_for_message(socket: ClientConnection, text: str) -> None:
    """Wait for this message; others may come first."""
    while socket.recv(timeout=HANG) != text:
        pass


@pytest.mark.parametrize("page", ["asgi2", "fastapi", "litestar", "quart", "starlette"])
def test_the_app_of_a_framework(page: str, paste: Paste, start_interface: Start) -> None:
    server = start_interface("--app-dir", paste(f"frameworks/{page}.md"), app="myproject.main:app")
    with ws(server, "/everybody") as ann, ws(server, "/everybody") as bob:
        ann.send("ann is in")
        wait_for_message(ann, "ann is in")
        bob.send("hello")
        wait_for_message(bob, "hello")
        wait_for_message(ann, "hello")
        if page != "asgi2":
            answer = httpx.post(f"{server.url}/publish", content="news", trust_env=False)
            assert answer.is_success
            assert "published" in answer.text
            wait_for_message(ann, "news")
            wait_for_message(bob, "news")


def test_flask_with_an_app_for_websockets(
    paste: Paste, redis_url: str, start_interface: Start, start_worker: Start
) -> None:
    folder = paste("frameworks/flask.md")
    start_worker("myproject.main:app", "--app-dir", folder, "--layer", redis_url)
    start_worker("myproject.sockets:app", "--app-dir", folder, "--layer", redis_url, "--pool", "live")
    server = start_interface("--layer", redis_url, "--route", "/ws=live")
    with ws(server, "/ws") as client:
        while True:  # until the client is in the group
            assert httpx.post(f"{server.url}/publish", content="hello", trust_env=False).text == "published"
            try:
                assert client.recv(timeout=0.5) == "hello"
                return
            except TimeoutError:
                pass


def test_django(tmp_path: Path, paste: Paste, start_interface: Start) -> None:
    python(tmp_path, "-m", "django", "startproject", "myproject", ".")
    server = start_interface("--app-dir", paste("frameworks/django.md"), app="myproject.asgi:application")
    with httpx.stream("GET", f"{server.url}/events", trust_env=False, timeout=HANG) as events:
        assert next(events.iter_text()) == "data: tick 0\n\n"
    assert httpx.get(f"{server.url}/publish", trust_env=False).text == "published"
    assert httpx.get(f"{server.url}/static/admin/css/base.css", trust_env=False).is_success


def test_channels(tmp_path: Path, paste: Paste, start_interface: Start) -> None:
    python(tmp_path, "-m", "django", "startproject", "myproject", ".")
    server = start_interface("--app-dir", paste("frameworks/channels.md"), app="myproject.asgi:application")
    headers = {"origin": server.url}
    with ws(server, "/everybody", **headers) as ann, ws(server, "/everybody", **headers) as bob:
        ann.send("ann is in")
        wait_for_message(ann, "ann is in")
        bob.send("hello")
        wait_for_message(ann, "hello")
    with pytest.raises(InvalidStatus, match="403"), ws(server, "/everybody", origin="https://other.example"):
        pass


@pytest.mark.parametrize(
    ("page", "app", "path", "server"),
    [
        ("groups.md", "chat:app", "/", "asgibus"),
        ("frameworks/fastapi.md", "past:app", "/rooms/tea", "asgibus"),
        ("frameworks/fastapi.md", "past:app", "/rooms/tea", "uvicorn"),
    ],
)
def test_a_room_with_a_past(page: str, app: str, path: str, server: str, paste: Paste, processes: Processes) -> None:
    if server == "uvicorn":
        command = [sys.executable, "-m", "uvicorn", app, "--port", "0", "--app-dir", str(paste(page))]
        process = processes.start("uvicorn", command, ready=UVICORN_READY)
        process.url = process.wait_for(UVICORN_READY)[1]
    else:
        process = processes.start_interface("--app-dir", paste(page), app=app)
    with ws(process, path) as ann:
        for text in ("one", "two"):
            ann.send(text)
        said = [json.loads(ann.recv(HANG)) for _ in range(2)]
        assert [each["said"] for each in said] == ["one", "two"]
        with ws(process, f"{path}?after={said[0]['offset']}") as bob:
            assert json.loads(bob.recv(HANG)) == said[1]
            ann.send("three")
            assert [json.loads(client.recv(HANG))["said"] for client in (ann, bob)] == ["three", "three"]
    with ws(process, f"{path}?after=1764541234567-1") as late:
        assert json.loads(late.recv(HANG)) == {"missing": True}
        assert [json.loads(late.recv(HANG))["said"] for _ in range(3)] == ["one", "two", "three"]


def test_a_group(paste: Paste, start_interface: Start) -> None:
    server = start_interface("--app-dir", paste("groups.md"), app="main:app")
    with ws(server, "/") as ann, ws(server, "/") as bob:
        ann.send("ann is in")
        wait_for_message(ann, "ann is in")
        bob.send("hello")
        wait_for_message(ann, "hello")


@pytest.mark.parametrize("program", ["presence.md main:app /", "frameworks/fastapi.md lobby:app /lobby"])
def test_the_lobby(program: str, paste: Paste, start_interface: Start) -> None:
    page, app, path = program.split()
    server = start_interface("--app-dir", paste(page), "--presence-grace", "0.1", app=app)
    with ws(server, f"{path}?user=ann") as ann:
        assert read_json(ann) == {"there": {"ann": "Ann"}}
        with ws(server, f"{path}?user=bob") as bob:
            assert read_json(ann) == {"joined": "bob", "info": {"name": "Bob"}}
            assert read_json(bob) == {"there": {"ann": "Ann", "bob": "Bob"}}
        assert read_json(ann) == {"left": "bob"}
        if app == "lobby:app":
            httpx.post(f"{server.url}/log-out-everywhere?user=ann", trust_env=False).raise_for_status()
            with pytest.raises(ConnectionClosed) as closed:
                ann.recv(HANG)
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "signed out")


USERS = """
import django
from django.core.management import call_command
from django.test import Client

django.setup()
call_command("migrate", verbosity=0)

from django.contrib.auth.models import User

for name in ("ann", "bob"):
    client = Client()
    client.force_login(User.objects.create_user(name))
    print(client.cookies["sessionid"].value)
"""


VIEWS = """
import asgibus
from django.contrib.auth import logout
from django.http import HttpResponse
from myproject import signals


async def write(request):
    async with asgibus.connection(request.scope).stream("answer.one").writer() as out:
        await out.append("hello")
        await out.wait_cancelled()
    return HttpResponse("written")


urlpatterns += [
    path("logout", lambda request: logout(request) or publish(request)),
    path("write", write),
]
"""
"""Views for the tests, beside those of the page."""


def test_presence_and_streams_with_channels(tmp_path: Path, paste: Paste, start_interface: Start) -> None:
    python(tmp_path, "-m", "django", "startproject", "myproject", ".")
    paste("frameworks/django.md")
    project = paste("frameworks/channels.md") / "myproject"
    code = (project / "asgi.py").read_text()
    paths = 'path("lobby", Lobby.as_asgi()), path("answers/<slug:answer>", Answer.as_asgi()), path("everybody"'
    imports = "from myproject.lobby import Lobby; from myproject.follow import Answer\n"
    code = code.replace('path("everybody"', paths).replace(
        "from myproject.consumers", imports + "from myproject.consumers"
    )
    (project / "asgi.py").write_text(code)
    with (project / "urls.py").open("a") as urls:
        urls.write(VIEWS)
    env = os.environ | {"DJANGO_SETTINGS_MODULE": "myproject.settings"}
    sessions = [f"sessionid={key}" for key in python(tmp_path, "-c", USERS, env=env).split()]
    server = start_interface("--app-dir", tmp_path, "--presence-grace", "0.1", app="myproject.asgi:application")

    def lobby(session: str) -> ClientConnection:
        return ws(server, "/lobby", origin=server.url, additional_headers={"Cookie": session})

    with pytest.raises(InvalidStatus, match="403"), lobby("sessionid=none"):
        pass
    with lobby(sessions[0]) as ann:
        assert read_json(ann) == {"there": [{"name": "ann"}]}
        with lobby(sessions[1]) as bob:
            assert read_json(ann) == {"joined": "2", "info": {"name": "bob"}}
            assert read_json(bob) == {"there": [{"name": "ann"}, {"name": "bob"}]}
            httpx.get(f"{server.url}/logout", headers={"Cookie": sessions[1]}, trust_env=False)
            with pytest.raises(ConnectionClosed) as closed:
                bob.recv(HANG)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4001
        assert read_json(ann) == {"left": "2"}
    with ThreadPoolExecutor() as threads, ws(server, "/answers/one", origin=server.url) as viewer:
        written = threads.submit(httpx.get, f"{server.url}/write", trust_env=False, timeout=HANG)
        entry = read_json(viewer)
        assert entry == {"stream": "answer.one", "offset": ANY, "data": "hello"}
        viewer.send("stop")
        assert read_json(viewer) == {"stream": "answer.one", "offset": ANY, "end": True}
        assert written.result().text == "written"


def read_json(client: ClientConnection) -> object:
    return json.loads(client.recv(timeout=HANG))


def test_the_app_that_counts_messages(paste: Paste, start_interface: Start) -> None:
    server = start_interface("--app-dir", paste("survival.md"), app="main:app")
    with ws(server, "/") as client:
        client.send("one")
        client.send("two")
        assert [client.recv(timeout=HANG) for _ in range(3)] == ["welcome", "message 1", "message 2"]


def test_the_event_stream(paste: Paste, start_interface: Start) -> None:
    server = start_interface("--app-dir", paste("event-streams.md"), app="main:app")
    response = httpx.get(f"{server.url}/progress", headers={"last-event-id": "99"}, trust_env=False)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.splitlines() == ['data: {"percent": 100}', "id: 100", ""]


def test_the_stream_that_is_kept_and_followed(paste: Paste, start_interface: Start) -> None:
    server = start_interface("--app-dir", paste("streams.md"), app="main:app")
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=HANG) as client:
        assert client.post("/answers/one").status_code == 200
        body = client.get("/answers/one").text
        ids = re.findall("^id: (.+)$", body, re.MULTILINE)
        assert 'data: "word"\n\n' in body
        assert body.endswith(f"id: {ids[-1]}\nevent: end\ndata: null\n\n")
        assert client.get("/answers/one", headers={"Last-Event-ID": ids[-1]}).status_code == 204
    with ws(server, f"/answers/one?after={ids[-3]}") as client:
        messages = [json.loads(client.recv(timeout=HANG)) for _ in range(2)]
    assert messages[0] == {"stream": "one", "offset": ids[-1], "data": "word"}
    assert messages[1] == {"stream": "one", "offset": ids[-1], "end": True}


def test_the_stream_over_http(paste: Paste, start_interface: Start) -> None:
    env = {"ASGIBUS_STREAMS_KEY": "0123456789abcdef"}
    options = ("--app-dir", paste("durable-streams.md"), "--streams", "/streams")
    server = start_interface(*options, app="main:app", env=env)
    url = httpx.post(f"{server.url}/answers", trust_env=False).json()["url"]
    assert httpx.get(f"{server.url}{url}", trust_env=False).headers["stream-up-to-date"] == "true"
    events = httpx.get(f"{server.url}{url}&offset=-1&live=sse", trust_env=False, timeout=HANG).text
    assert '"streamClosed":true' in events
    whole = httpx.get(f"{server.url}{url}", trust_env=False)
    assert whole.text == "All of this was written once , and can be read by many . "
    assert httpx.get(f"{server.url}{url.partition('&')[0]}", trust_env=False).status_code == 403


def test_the_app_that_places_orders(paste: Paste, start_interface: Start) -> None:
    server = start_interface("--app-dir", paste("survival.md"), app="orders:app")
    with ws(server, "/") as client:
        for order in ("tea", "milk"):
            client.send(order)
            assert client.recv(timeout=HANG) == f"order {order} is placed"


def test_the_endpoint_that_knows_a_hand_over(
    paste: Paste, redis_url: str, start_interface: Start, start_worker: Start
) -> None:
    options = ("--app-dir", paste("survival.md"), "--layer", redis_url, "--resume")
    old = start_worker("endpoint:Chat", *options, "--handover", "silent")
    server = start_interface("--layer", redis_url)
    with ws(server, "/") as client:
        client.send("hello")
        assert client.recv(timeout=HANG) == "you said hello"
        new = start_worker("endpoint:Chat", *options, "--handover", "silent")
        old.terminate()
        assert old.wait() == 0
        client.send("again")
        assert client.recv(timeout=HANG) == "you said again"
    new.wait_for("left")
    assert "left" not in old.log()


def test_the_apps_that_know_that_their_worker_stops(
    paste: Paste, redis_url: str, start_interface: Start, start_worker: Start
) -> None:
    options = ("--app-dir", paste("survival.md"), "--layer", redis_url)
    ticks = start_worker("ticks:app", *options, "--pool", "ticks")
    noticed = start_worker("noticed:app", *options, "--shutdown-notice")
    server = start_interface("--layer", redis_url, "--route", "/ticks=ticks")
    with (
        httpx.stream("GET", f"{server.url}/ticks", trust_env=False, timeout=HANG) as answer,
        RawClient(server) as waiting,
    ):
        parts = answer.iter_text()
        assert next(parts) == "tick\n"
        waiting.send(b"GET /wait HTTP/1.1\r\nHost: test\r\n\r\n")
        with RawClient(server) as other:  # it has reached the app when a later one is answered
            assert other.request("GET", "/other").status == 404
        for worker in (ticks, noticed):
            worker.terminate()
        assert "".join(parts).endswith("continue elsewhere\n")
        assert waiting.read_response().body == b"this server is stopping"
    assert [worker.wait() for worker in (ticks, noticed)] == [0, 0]


def test_the_app_that_checks_origins(paste: Paste, start_interface: Start) -> None:
    server = start_interface("--app-dir", paste("security.md"), app="myproject.main:app")
    for origin in (None, "https://chat.example.org"):
        with ws(server, "/", origin=origin) as client:
            client.send("hello")
            assert client.recv(timeout=HANG) == "hello"
    with pytest.raises(InvalidStatus, match="403"), ws(server, "/", origin="https://other.example"):
        pass


def test_background_work(paste: Paste, redis_url: str, start_worker: Start) -> None:
    folder = paste("background.md", redis_url)
    channels = ["--channel", "thumbnails", "--channel", "mails"]
    worker = start_worker("main:app", *channels, "--app-dir", folder, "--layer", redis_url)
    python(folder, "send.py")
    worker.wait_for(r"thumbnails \{'type': 'thumbnail.make', 'name': 'cat.png'\}")
    worker.wait_for(r"mails \{'type': 'mail.send', 'to': 'someone'\}")


@pytest.mark.parametrize("app", ["main:app", "myproject.asgi:application"])
def test_answers(
    app: str, tmp_path: Path, paste: Paste, redis_url: str, start_interface: Start, start_worker: Start
) -> None:
    if app != "main:app":
        python(tmp_path, "-m", "django", "startproject", "myproject", ".")
    bus = ("--app-dir", paste("answers.md"), "--layer", redis_url)
    start_worker(app, *bus)
    start_worker("writer:app", "--channel", "answers", *bus)
    server = start_interface("--layer", redis_url)
    with httpx.Client(base_url=server.url, trust_env=False, timeout=HANG) as client:
        answer = client.post("/ask", params={"question": "Why?"}).text.strip('"')
        with client.stream("GET", f"/answers/{answer}") as response:
            lines = response.iter_lines()
            while 'data: {"text":"Why? "}' not in next(lines):
                pass
            assert client.post(f"/answers/{answer}/stop").text.lower() == "true"
            rest = [*lines]
        assert 'data: {"stopped":true}' in rest
        assert "event: end" in rest
        *_, last = (line.removeprefix("id: ") for line in rest if line.startswith("id: "))
        assert client.get(f"/answers/{answer}", headers={"last-event-id": last}).status_code == 204


def test_a_script_with_a_layer(paste: Paste, redis_url: str) -> None:
    assert "'image': 17" in python(paste("layers.md", redis_url), "script.py")


def test_the_checks_for_a_layer(paste: Paste) -> None:
    folder = paste("layers.md")
    assert python(folder, "check.py") == ""
    some = "keep_their_order"  # the program has run all checks
    assert " passed" in run_pytest(folder, "-k", some, "test_layer.py")


def test_the_tests_of_an_app(paste: Paste) -> None:
    paste("groups.md")
    folder = paste("testing.md", only="test_main")  # the other one is for tests that want a bus
    assert "1 passed" in run_pytest(folder)
    paste("testing.md")
    (folder / "test_bus.py").write_text(
        "import pytest\n\n\n@pytest.mark.anyio\nasync def test_it(bus):\n    assert len(bus.workers) == 2\n"
    )
    assert "2 passed" in run_pytest(folder)


def test_udp(paste: Paste, start_interface: Start) -> None:
    server = start_interface("--app-dir", paste("terminators.md"), "--udp", "127.0.0.1:0", app="main:app")
    port = int(server.wait_for(r"udp://127.0.0.1:(\d+)")[1])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(HANG)
        client.sendto(b"hello", ("127.0.0.1", port))
        assert client.recv(100) == b"hello"
