"""Loading the user's app, and the one-line error if that fails."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asgibus.worker.loader import ApplicationError, load_app, load_application
from asgibus.worker.settings import WorkerSettings

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module; its name is one that no other test has."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def write(source: str) -> str:
        name = f"app_{abs(hash(tmp_path))}_{len(list(tmp_path.iterdir()))}"
        (tmp_path / f"{name}.py").write_text(source)
        return name

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("app_"):
            del sys.modules[name]


APP = "async def app(scope, receive, send): pass\n"


def refusal(target: str, **options: object) -> str:
    with pytest.raises(ApplicationError) as raised:
        load_application(target, **options)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_an_app(write: Write) -> None:
    name = write(APP)
    assert load_application(f"{name}:app") is load_application(name) is sys.modules[name].app


def test_dots_in_the_attribute(write: Write) -> None:
    name = write(APP + "class site:\n  class inner:\n    app = staticmethod(app)\n")
    assert load_application(f"{name}:site.inner.app") is sys.modules[name].app


def test_a_module_in_a_package(write: Write, tmp_path: Path) -> None:
    write("")
    (tmp_path / "app_package").mkdir()
    (tmp_path / "app_package" / "__init__.py").touch()
    (tmp_path / "app_package" / "main.py").write_text(APP)
    assert load_application("app_package.main:app") is sys.modules["app_package.main"].app
    assert "no module 'app_package.other'" in refusal("app_package.other:app")


def test_the_app_dir(write: Write, tmp_path: Path) -> None:
    write("")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "app_in_sub.py").write_text(APP)
    assert "there is no module 'app_in_sub'" in refusal("app_in_sub:app")
    assert load_application("app_in_sub:app", app_dir="sub") is sys.modules["app_in_sub"].app


def test_a_factory(write: Write) -> None:
    name = write(APP + "def make(): return app\n")
    assert load_application(f"{name}:make", factory=True) is sys.modules[name].app


def test_no_such_module(write: Write) -> None:
    write("")
    assert "there is no module 'app_none' for the app 'app_none:app'" in refusal("app_none:app")
    assert "--app-dir" in refusal("app_none:app")


def test_no_module_named() -> None:
    for target in ("", ":app"):
        assert "names no module" in refusal(target)


@pytest.mark.parametrize(
    ("target", "meant"),
    [
        ("main.py", "main:app"),
        ("./shop/main.py", "shop.main:app"),
        ("../shop/main.py:site", "shop.main:site"),
        ("shop/main:site", "shop.main:site"),
        ("shop.main.site", "shop.main:site"),
    ],
)
def test_the_error_for_a_path_or_a_dotted_name_suggests_the_reference(write: Write, target: str, meant: str) -> None:
    write("")
    assert refusal(target).endswith(f": write module:attribute, such as {meant}")


def test_no_such_attribute(write: Write) -> None:
    name = write(APP)
    text = refusal(f"{name}:other")
    assert text.startswith(f"module {name!r} (")
    assert text.endswith(f"{name}.py) has no attribute 'other' for the app '{name}:other'")
    assert "no attribute 'app.x'" in refusal(f"{name}:app.x")


def test_a_syntax_error(write: Write) -> None:
    name = write("x = 1\ndef app(:\n")
    text = refusal(f"{name}:app")
    assert f"the app '{name}:app' cannot be loaded: SyntaxError: invalid syntax" in text
    assert text.endswith(f"{name}.py, line 2)")


def test_an_error_in_a_module(write: Write) -> None:
    name = write("def fail():\n  raise ValueError('first\\nsecond')\nfail()\n")
    text = refusal(f"{name}:app")
    assert "cannot be loaded: ValueError: first second" in text
    assert f"{name}.py, line 2" in text


def test_a_missing_import_of_a_module(write: Write) -> None:
    name = write("import app_missing_dependency\n")
    text = refusal(f"{name}:app")
    assert "ModuleNotFoundError: No module named 'app_missing_dependency'" in text
    assert f"{name}.py, line 1" in text


def test_an_error_in_a_factory(write: Write) -> None:
    name = write("def make():\n  return 1 / 0\n")
    text = refusal(f"{name}:make", factory=True)
    assert "ZeroDivisionError" in text
    assert f"{name}.py, line 2" in text


def test_near_names_are_suggested(write: Write, tmp_path: Path) -> None:
    name = write("import os\nasync def application(scope, receive, send): pass\nclass site:\n  handler = application\n")
    assert "; did you mean 'application'?" in refusal(f"{name}:applicaton")
    assert "; did you mean 'application'?" in refusal(name)
    assert "; did you mean 'handler'?" in refusal(f"{name}:site.handle")
    assert "did you mean" not in refusal(f"{name}:os_")
    (tmp_path / "app_shop").mkdir()
    (tmp_path / "app_shop" / "__init__.py").touch()
    (tmp_path / "app_shop" / "main.py").write_text(APP)
    assert refusal("app_shop:app").endswith("; it is a package, with the module 'app_shop.main'")
    assert refusal("app_shop.mian:app").endswith("; did you mean 'main'?")
    assert "did you mean 'app_shop'" in refusal("app_sohp:app")


def test_an_error_in_an_attribute(write: Write) -> None:
    name = write("def __getattr__(name): return 1 / 0\n")
    assert "ZeroDivisionError: division by zero" in refusal(f"{name}:app")


def test_a_traceback_shows_the_causes_of_the_error(write: Write) -> None:
    name = write(
        "def make():\n  try:\n    {}['a']\n  except KeyError as error:\n    raise ValueError('no a') from error\n"
    )
    with pytest.raises(ApplicationError) as raised:
        load_application(f"{name}:make", factory=True)
    trace = raised.value.trace
    assert trace.count("Traceback (most recent call last)") == 2
    assert "KeyError: 'a'" in trace
    assert trace.endswith("ValueError: no a\n")
    assert "asgibus" not in trace


def test_values_other_than_apps(write: Write) -> None:
    name = write("app = {'not': 'an app'}\ndef make(): return 5\n")
    assert f"'{name}:app' is of type dict, not an app: an app can be called" in refusal(f"{name}:app")
    assert f"'{name}:make' is of type int, not an app" in refusal(f"{name}:make", factory=True)
    assert f"'{name}:app' is of type dict, not an app" in refusal(f"{name}:app", factory=True)


def opened(app: str, **settings: object) -> tuple[object, WorkerSettings]:
    return load_app(WorkerSettings(app=app, **settings))  # type: ignore[arg-type]


def opening_refused(app: str, **settings: object) -> str:
    with pytest.raises(ApplicationError) as raised:
        opened(app, **settings)
    assert "\n" not in str(raised.value)
    return str(raised.value)


WSGI = "def app(environ, start_response): pass\n"


def test_an_asgi_3_app_is_unchanged(write: Write) -> None:
    name = write(APP)
    app, settings = opened(name)
    assert app is sys.modules[name].app
    assert (settings.interface, settings.concurrency) == ("asgi3", 10_000)


def test_a_wsgi_app_serves_http_only(write: Write) -> None:
    name = write(WSGI)
    assert opened(name)[1].interface == "wsgi"
    assert "is a WSGI app: messages of channels are for ASGI apps" in opening_refused(name, channels=("work",))
    assert "it has HTTP alone, and cannot serve udp" in opening_refused(name, protocols=("udp",))


def test_the_given_interface_is_used(write: Write) -> None:
    name = write("def app(*args): pass\n")
    message = opening_refused(name)
    assert message == (
        f"the app '{name}': function app(*args) does not show by its arguments whether it is ASGI 3, ASGI 2 or WSGI: "
        "say --interface asgi3, asgi2 or wsgi"
    )
    for interface in ("asgi3", "asgi2", "wsgi"):
        assert opened(name, interface=interface)[1].interface == interface


def test_a_factory_without_the_option(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    name = write(APP + "def make(): return app\nclass App:\n  async def __call__(self, scope, receive, send): pass\n")
    assert opened(f"{name}:make")[0] is sys.modules[name].app
    assert f"'{name}:make' takes no arguments, so it is taken for a factory" in caplog.text
    assert isinstance(opened(f"{name}:App")[0], sys.modules[name].App)
    assert "--interface" in opening_refused(f"{write('def make(): return print')}:make")


def test_an_async_factory(write: Write) -> None:
    name = write(APP + "async def make(): return app\n")
    for factory in (True, False):
        assert "is an async function: a factory is called" in opening_refused(f"{name}:make", factory=factory)
