"""Load the user's app from `module:attribute`, as uvicorn takes it."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class ApplicationError(Exception):
    """The app cannot be loaded; the text says what, where and what to do, in one line."""


def load_application(target: str, *, app_dir: str = "", factory: bool = False) -> Application:
    """The ASGI 3 app at `module:attribute` (attribute may have dots; "app" if left out).

    `app_dir` is put in front of the import path. `factory=True`: the attribute is called without arguments and gives
    the app. Raises ApplicationError.
    """
    module_name, _, attribute = target.partition(":")
    attribute = attribute or "app"
    if not module_name:
        raise ApplicationError(f"the app {target!r} names no module: write module:attribute, such as main:app")
    sys.path.insert(0, str(Path(app_dir).resolve()))
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise ApplicationError(
                f"there is no module {module_name!r} for the app {target!r}: start in its folder, or use --app-dir"
            ) from error
        raise ApplicationError(_failed(target, error)) from error
    except Exception as error:  # the user's module may raise anything while it is imported
        raise ApplicationError(_failed(target, error)) from error
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise ApplicationError(
                f"module {module_name!r} has no attribute {attribute!r} for the app {target!r}"
            ) from None
    if factory:
        try:
            found = found()
        except Exception as error:  # the user's factory may raise anything
            raise ApplicationError(_failed(target, error)) from error
    if not callable(found):
        raise ApplicationError(f"{target!r} is a {type(found).__name__}, not an ASGI app: an app is called")
    application: Application = found
    return application


def _failed(target: str, error: Exception) -> str:
    """One line that says where in the user's code the import stopped."""
    frames = traceback.extract_tb(error.__traceback__)
    where = next((frame for frame in reversed(frames) if "importlib" not in frame.filename), None)
    place = f" ({where.filename}, line {where.lineno})" if where is not None and where.filename != __file__ else ""
    text = str(error)
    if isinstance(error, SyntaxError):
        place, text = f" ({error.filename}, line {error.lineno})", error.msg
    return " ".join(f"the app {target!r} cannot be loaded: {type(error).__name__}: {text}{place}".split())
