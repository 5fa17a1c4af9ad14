"""`--log-config`: logging configured by a file."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml

from support.deadline import wait_until
from support.processes import Process

APP = "cli.simple_app:app"
Start = Callable[..., Process]

CONFIG = {
    "version": 1,
    "formatters": {"plain": {"format": "<%(name)s %(levelname)s> %(message)s"}},
    "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "plain", "stream": "ext://sys.stdout"}},
    "root": {"level": "INFO", "handlers": ["out"]},
}
INI = """[loggers]
keys=root
[handlers]
keys=out
[formatters]
keys=plain
[logger_root]
level=INFO
handlers=out
[handler_out]
class=StreamHandler
formatter=plain
args=(sys.stdout,)
[formatter_plain]
format=<%(name)s %(levelname)s> %(message)s
"""
YAML = yaml.safe_dump(CONFIG)
FILES = {"log.json": json.dumps(CONFIG), "log.yaml": YAML, "log.yml": YAML, "log.ini": INI}


@pytest.mark.parametrize("name", FILES)
def test_each_kind_of_file(start_interface: Start, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FILES[name])
    server = start_interface("--log-config", name, app=APP)
    httpx.get(server.url, trust_env=False)
    server.wait_for(r"<asgibus.access INFO> .*GET / ")
    server.wait_for("<asgibus.interface INFO> listening")


def test_a_worker_reads_the_file(redis_url: str, start_worker: Start, tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text(FILES["log.json"])
    worker = start_worker(APP, "--layer", redis_url, "--log-config", "log.json")
    worker.wait_for("<asgibus.worker INFO> worker ready")


def test_options_override_the_file(start_interface: Start, tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text(FILES["log.json"])
    path = tmp_path / "socket"
    server = start_interface("--log-config", "log.json", "--log-level", "error", "--uds", path, app=APP, ready=False)
    wait_until(path.exists)  # an earlier SIGINT may be lost in an import
    server.interrupt()
    server.wait()
    assert "INFO" not in server.log()
    server = start_interface("--log-config", "log.json", "--no-access-log", app=APP)
    httpx.get(server.url, trust_env=False)
    server.terminate()
    server.wait()
    assert "asgibus.access" not in server.log()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.json", "{", "JSONDecodeError"),
        ("log.json", "[]", "it holds no mapping"),
        ("log.json", '{"version": 2}', "ValueError: Unsupported version: 2"),
        ("log.yaml", "a: [", "ParserError"),
        ("log.json", json.dumps({"version": 1, "handlers": {"x": {"class": "no.Such"}}}), "No module named 'no'"),
        ("log.ini", "nonsense", "log.ini"),
        ("log.ini", "", "log.ini"),
    ],
)
def test_an_invalid_file(start_interface: Start, tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    server = start_interface("--log-config", name, app=APP, ready=False)
    assert server.wait() == 2
    (line,) = server.log().splitlines()
    assert line.startswith(f"Error: --log-config {name}: ")
    assert message in line


def test_a_formatter_in_the_project_folder_is_found(start_interface: Start, tmp_path: Path) -> None:
    """--log-config finds a formatter in --app-dir, also where the command is an installed script in another folder."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "own_logs.py").write_text(
        "import logging\nclass Shout(logging.Formatter):\n  def format(self, r): return 'SHOUT ' + super().format(r)\n"
    )
    config = {**CONFIG, "formatters": {"plain": {"()": "own_logs.Shout"}}}
    (tmp_path / "log.json").write_text(json.dumps(config))
    server = start_interface("--log-config", "log.json", "--app-dir", "project", app=APP)
    assert "SHOUT listening on" in server.log()


def test_records_handled_by_the_app_are_printed_once(start_interface: Start, tmp_path: Path) -> None:
    """Records of Django, whose logger has a handler and propagates in debug mode, are printed once."""
    (tmp_path / "logging_app.py").write_text(
        "import logging\n"
        "from cli import simple_app\n"
        "own = logging.getLogger('own')\n"
        "handler = logging.StreamHandler()\n"
        "handler.setLevel('ERROR')\n"
        "own.addHandler(handler)\n"
        "async def app(scope, receive, send):\n"
        "  if scope['type'] == 'http':\n"
        "    for logger in (own, logging.getLogger('own.child'), logging.getLogger('other')):\n"
        "      logger.warning('a warning of %s', logger.name)\n"
        "      logger.error('an error of %s', logger.name)\n"
        "  await simple_app.app(scope, receive, send)\n"
    )
    server = start_interface(app="logging_app:app")
    assert httpx.get(server.url, trust_env=False).status_code == 200
    for line in ("a warning of own\n", "an error of own\n", "an error of own.child\n", "an error of other\n"):
        assert server.log().count(line) == 1


DICT_CONFIG = (
    "logging.config.dictConfig({'version': 1, 'formatters': {'own': {'format': 'own: %(message)s'}},"
    " 'handlers': {'err': {'class': 'logging.StreamHandler', 'formatter': 'own'}},"
    " 'root': {'level': 'INFO', 'handlers': ['err']}})"
)


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("", "WARNING  a warning"),
        ("logging.basicConfig(level='INFO', format='own: %(message)s')", "own: a note"),
        (DICT_CONFIG, "own: a note"),
        ("logging.config.dictConfig({'version': 1, 'loggers': {'app': {'level': 'INFO'}}})", "INFO     a note"),
    ],
    ids=["nothing", "basicConfig", "dictConfig", "dictConfig of a logger"],
)
def test_an_app_may_set_up_logging(start_interface: Start, tmp_path: Path, setting: str, shown: str) -> None:
    """The logging settings of an app apply to the app and leave the log lines of the server unchanged."""
    (tmp_path / "logging_app.py").write_text(
        "import logging, logging.config\nfrom cli.simple_app import app\n"
        f"{setting}\nlogger = logging.getLogger('app')\nlogger.info('a note')\nlogger.warning('a warning')\n"
    )
    server = start_interface(app="logging_app:app")
    assert httpx.get(server.url, trust_env=False).status_code == 200
    server.terminate()
    server.wait()
    log = server.log()
    for text in (shown, "INFO     listening on", '"GET / HTTP/1.1" 200\n', "INFO     SIGTERM: stopping"):
        assert log.count(text) == 1, text
    assert log.count("a warning") == 1
    assert log.count("a note") == ("note" in shown)
