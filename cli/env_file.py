"""`--env-file`: variables from a file, added to the environment of this process."""

from __future__ import annotations

import os
from collections.abc import Mapping

_added: set[str] = set()


def load_env_file(path: str | None) -> str | None:
    """Add the variables of a file to the environment, but for those that are there already.

    Raises ValueError if the file cannot be read, or python-dotenv is not installed.
    """
    if path is None:
        return None
    try:
        from dotenv import dotenv_values  # noqa: PLC0415  # an extra, needed for this alone
    except ModuleNotFoundError:
        raise ValueError("--env-file needs python-dotenv: pip install 'asgibus[env-file]'") from None
    try:
        values = dotenv_values(path, encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"the file {path!r} cannot be read: {reason}") from error
    for name, value in values.items():
        if value is not None and name not in os.environ:
            os.environ[name] = value
            _added.add(name)
    return path


def without_env_file() -> Mapping[str, str]:
    """Return the environment without the variables of the file: another process reads the file as it is by then."""
    return {name: value for name, value in os.environ.items() if name not in _added}
