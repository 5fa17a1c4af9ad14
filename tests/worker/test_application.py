"""Loading the user's app, and the one line that says why it cannot be."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asgibus.worker.application import ApplicationError, load_application

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


def test_no_such_attribute(write: Write) -> None:
    name = write(APP)
    assert refusal(f"{name}:other") == f"module {name!r} has no attribute 'other' for the app '{name}:other'"
    assert "no attribute 'app.x'" in refusal(f"{name}:app.x")


def test_a_syntax_error(write: Write) -> None:
    name = write("x = 1\ndef app(:\n")
    text = refusal(f"{name}:app")
    assert f"the app '{name}:app' cannot be loaded: SyntaxError: invalid syntax" in text
    assert text.endswith(f"{name}.py, line 2)")


def test_a_module_that_raises(write: Write) -> None:
    name = write("def fail():\n  raise ValueError('first\\nsecond')\nfail()\n")
    text = refusal(f"{name}:app")
    assert "cannot be loaded: ValueError: first second" in text
    assert f"{name}.py, line 2" in text


def test_a_module_that_lacks_another_one(write: Write) -> None:
    name = write("import app_missing_dependency\n")
    text = refusal(f"{name}:app")
    assert "ModuleNotFoundError: No module named 'app_missing_dependency'" in text
    assert f"{name}.py, line 1" in text


def test_a_factory_that_raises(write: Write) -> None:
    name = write("def make():\n  return 1 / 0\n")
    text = refusal(f"{name}:make", factory=True)
    assert "ZeroDivisionError" in text
    assert f"{name}.py, line 2" in text


def test_what_is_not_called(write: Write) -> None:
    name = write("app = {'not': 'an app'}\ndef make(): return 5\n")
    assert f"'{name}:app' is a dict, not an app: an app is called" in refusal(f"{name}:app")
    assert f"'{name}:make' is a int, not an ASGI app" in refusal(f"{name}:make", factory=True)
    assert "'dict' object is not callable" in refusal(f"{name}:app", factory=True)
