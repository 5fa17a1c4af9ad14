"""`--env-file`: variables from a file, added to the environment of this process."""

from __future__ import annotations

import os
from collections.abc import Mapping

import click
from dotenv import dotenv_values

_added: set[str] = set()


def load_env_file(ctx: click.Context, parameter: click.Parameter, path: str | None) -> str | None:
    """Click callback: add the variables of the file that are not in the environment already."""
    if path is None:
        return None
    try:
        values = dotenv_values(path, encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise click.BadParameter(f"the file {path!r} cannot be read: {reason}") from error
    for name, value in values.items():
        if value is not None and name not in os.environ:
            os.environ[name] = value
            _added.add(name)
    return path


def without_env_file() -> Mapping[str, str]:
    """The environment as it was: a process that is started with it reads the file as it is by then."""
    return {name: value for name, value in os.environ.items() if name not in _added}
