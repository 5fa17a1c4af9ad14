"""Loading of the app from `module:attribute`, as in uvicorn, and its adaptation to ASGI 3."""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from asgibus.compatibility.callables import Application, double_to_single_callable
from asgibus.compatibility.channels import is_of_channels, without_late_errors
from asgibus.compatibility.interfaces import Interface, UnknownInterface, interface_of, takes
from asgibus.worker.app_error import AppError, line_of, trace_of
from asgibus.worker.session import ClientDisconnected
from asgibus.worker.settings import WorkerSettings

logger = logging.getLogger("asgibus.worker")


class ApplicationError(AppError):
    """The app cannot be loaded."""


def load_app(settings: WorkerSettings) -> tuple[Application, WorkerSettings]:
    """Load the app that the settings name.

    Returns:
        The app as an ASGI 3 app, and the settings with the interface of the app.

    Raises:
        ApplicationError: The app cannot be loaded.
    """
    return adapt_app(load_application(settings.app, app_dir=settings.app_dir, factory=settings.factory), settings)


def adapt_app(app: Callable[..., Any], settings: WorkerSettings) -> tuple[Application, WorkerSettings]:
    """Adapt a loaded app to ASGI 3.

    Args:
        app: The app, with any interface.
        settings: The settings. `settings.app` is the name of the app for error messages.

    Returns:
        The app as an ASGI 3 app, and the settings with the interface of the app.

    Raises:
        ApplicationError: The interface is unknown, or the settings are not possible with it.
    """
    if settings.interface == "auto":
        app, interface = _detect_interface(settings, app)
    else:
        interface = settings.interface
    settings = replace(settings, interface=interface)
    if interface == "asgi3":
        return without_late_errors(app, ClientDisconnected) if is_of_channels(app) else app, settings
    if interface == "asgi2":
        return double_to_single_callable(app), settings
    if settings.channels:
        raise ApplicationError(f"{settings.app!r} is a WSGI app: messages of channels are for ASGI apps")
    if settings.protocols:
        other = ", ".join(settings.protocols)
        raise ApplicationError(f"{settings.app!r} is a WSGI app: it has HTTP alone, and cannot serve {other}")
    from asgibus.worker.wsgi import WSGIApplication  # noqa: PLC0415  # for such apps alone

    return WSGIApplication(app, settings), settings


def _detect_interface(settings: WorkerSettings, app: Callable[..., Any]) -> tuple[Callable[..., Any], Interface]:
    """Detect the interface of an app. A factory that was not declared as one is called, as in uvicorn."""
    try:
        return app, interface_of(app)
    except UnknownInterface as error:
        if settings.factory or not takes(app, 0) or takes(app, 1):
            raise _interface_error(settings, error) from None
    logger.warning("%r takes no arguments, so it is taken for a factory: say so with --factory", settings.app)
    app = _call_factory(settings.app, app)
    try:
        return app, interface_of(app)
    except UnknownInterface as error:
        raise _interface_error(settings, error) from None


def _interface_error(settings: WorkerSettings, error: UnknownInterface) -> ApplicationError:
    return ApplicationError(f"the app {settings.app!r}: {error}: say --interface asgi3, asgi2 or wsgi")


def load_application(target: str, *, app_dir: str = "", factory: bool = False) -> Callable[..., Any]:
    """Import an app.

    Args:
        target: `module:attribute`. The attribute may have dots, and is "app" by default.
        app_dir: A folder that is put in front of the import path.
        factory: Whether the attribute is a function without arguments that returns the app.

    Returns:
        The app, with any interface.

    Raises:
        ApplicationError: The app cannot be imported.
    """
    module_name, _, attribute = target.partition(":")
    attribute = attribute or "app"
    if not module_name:
        raise ApplicationError(f"the app {target!r} names no module: write module:attribute, such as main:app")
    if module_name.startswith("."):
        raise ApplicationError(f"the app {target!r} names no module: {_suggest_target(target)}")
    folder = str(Path(app_dir).resolve())
    sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            is_path = "/" in module_name or module_name.endswith(".py")
            is_dotted = ":" not in target and "." in target
            hint = _suggest_target(target) if is_path or is_dotted else "start in its folder, or use --app-dir"
            near = _suggest_names(error.name.rpartition(".")[2], _modules(error.name, folder))
            raise ApplicationError(
                f"there is no module {module_name!r} for the app {target!r}: {hint}{near}"
            ) from error
        raise _load_error(target, error) from error
    except Exception as error:  # the user's module may raise anything while it is imported
        raise _load_error(target, error) from error
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            # The file name shows if another module was found, such as `test` of Python itself.
            where = getattr(sys.modules[module_name], "__file__", None)
            raise ApplicationError(
                f"module {module_name!r}{f' ({where})' if where else ''} has no attribute {attribute!r} "
                f"for the app {target!r}{_suggest_names(name, _attributes(found)) or _suggest_modules(found)}"
            ) from None
        except Exception as error:  # a property, or `__getattr__` of the module, may raise anything
            raise _load_error(target, error) from error
    return _call_factory(target, found) if factory else _require_callable(target, found)


def _suggest_target(target: str) -> str:
    """Suggest a target in place of a path or of a name with a dot: "./shop/main.py" is "shop.main:app"."""
    path, _, attribute = target.partition(":")
    module = ".".join(re.findall(r"\w+", path.removesuffix(".py"))) or "main"
    if not attribute and path == module and "." in module:
        module, attribute = module.rsplit(".", 1)
    return f"write module:attribute, such as {module}:{attribute or 'app'}"


def _call_factory(target: str, factory: Any) -> Callable[..., Any]:
    try:
        app = _require_callable(target, factory)()
    except ApplicationError:
        raise
    except Exception as error:  # the user's factory may raise anything
        raise _load_error(target, error) from error
    if inspect.iscoroutine(app):
        app.close()
        raise ApplicationError(f"{target!r} is an async function: a factory is called before there is an event loop")
    return _require_callable(target, app)


def _require_callable(target: str, found: Any) -> Callable[..., Any]:
    if not callable(found):
        raise ApplicationError(f"{target!r} is of type {type(found).__name__}, not an app: an app can be called")
    app: Callable[..., Any] = found
    return app


def _load_error(target: str, error: Exception) -> ApplicationError:
    return ApplicationError(f"the app {target!r} cannot be loaded: {line_of(error)}", trace_of(error))


def _suggest_names(name: str, names: Iterable[str]) -> str:
    """Suggest similar names, if there are any."""
    names = list(names)
    whole = [each for each in names if each.lower().startswith(name.lower()) or each.lower().endswith(name.lower())]
    found = list(dict.fromkeys([*whole, *get_close_matches(name, names)]))[:3]
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


def _suggest_modules(package: Any) -> str:
    """Suggest modules of a package, if there are any."""
    if not inspect.ismodule(package):
        return ""
    names = [repr(f"{package.__name__}.{name}") for name in _modules(f"{package.__name__}.", "")]
    return f"; it is a package, with the module {' or '.join(names[:3])}" if names else ""


def _attributes(owner: Any) -> list[str]:
    """Return the names of public attributes that are not modules."""
    names = (name for name in vars(owner) if not name.startswith("_")) if hasattr(owner, "__dict__") else ()
    return [name for name in names if not inspect.ismodule(vars(owner)[name])]


def _modules(name: str, folder: str) -> list[str]:
    """Return the names of the modules in the package of a module, or in the folder."""
    from pkgutil import iter_modules  # noqa: PLC0415  # for error messages alone

    package = sys.modules.get(name.rpartition(".")[0])
    path = getattr(package, "__path__", [folder] if folder else [])
    return [module.name for module in iter_modules(path) if not module.name.startswith("_")]
