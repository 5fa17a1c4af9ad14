"""Logging for the commands. The rooms only log; here is decided where it goes."""

from __future__ import annotations

import json
import logging
import logging.config
import sys
from pathlib import Path
from typing import Any, TextIO

import click

from asgibus.cli.options import given
from asgibus.cli.settings import ProcessSettings


def set_up_logging(process: ProcessSettings, app_dir: str, *, access: bool, pid: bool = False) -> None:
    """Send the log to standard error, or configure logging from the file of --log-config.

    Args:
        process: Level and file. A level that was given as an option wins over the file.
        app_dir: Where the modules of classes that the file names may be, besides the import path.
        access: Whether there is an access log.
        pid: Whether each line names its process.

    Raises:
        click.UsageError: The file does not configure logging.

    """
    config = process.log_config
    if config is None:
        ours = logging.getLogger("asgibus")
        ours.addHandler(_StandardError(pid=pid))
        ours.propagate = False
        # For what the app logs. Not the root's handler: logging.basicConfig in the app would then do nothing.
        logging.lastResort = _StandardError(pid=pid)
        logging.lastResort.addFilter(_not_printed_yet)
    else:
        sys.path.insert(0, str(Path(app_dir).resolve()))
        _configure(config)
    if config is None or given("log_level"):
        logging.getLogger("asgibus").setLevel(process.log_level.upper())
    if not access:
        logging.getLogger("asgibus.access").setLevel(logging.CRITICAL + 1)


def app_is_loaded() -> None:
    """Go on with the logging that the app has set up, or has not.

    Records of the app that no handler takes, or none that prints, go to standard error as ours do. Our loggers
    that it does not name are not silenced, which is the default of `logging.config`.
    """
    root = logging.getLogger()
    if not root.handlers and isinstance(logging.lastResort, _StandardError):
        root.addHandler(logging.lastResort)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] == "asgibus" and isinstance(logger, logging.Logger):
            logger.disabled = False


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to standard error, in the form of our log."""

    def __init__(self, *, pid: bool) -> None:
        super().__init__(sys.stderr)
        process = "[%(process)d] " if pid else ""
        self.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)-8s {process}%(message)s"))


def _not_printed_yet(record: logging.LogRecord) -> bool:
    """Return whether no logger below the root has a handler that prints the record: Django has one in debug mode."""
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger is not None and logger.parent is not None:
        if any(_prints(handler, record) for handler in logger.handlers):
            return False
        logger = logger.parent if logger.propagate else None
    return True


def _prints(handler: logging.Handler, record: logging.LogRecord) -> bool:
    if not isinstance(handler, logging.StreamHandler) or handler.stream not in (sys.stdout, sys.stderr):
        return False
    return record.levelno >= handler.level and bool(handler.filter(record))


def _configure(path: str) -> None:
    try:
        suffix = Path(path).suffix
        if suffix in (".json", ".yaml", ".yml"):
            text = Path(path).read_text(encoding="utf-8")
            found: Any = json.loads(text) if suffix == ".json" else _yaml(text)
            if not isinstance(found, dict):
                raise TypeError("it holds no mapping")
            # Ours exist by now, and whoever does not name them does not mean to silence them.
            logging.config.dictConfig({"disable_existing_loggers": False, **found})
        else:
            logging.config.fileConfig(path, disable_existing_loggers=False)
    except click.UsageError:
        raise
    except Exception as error:  # what the file names is imported and called, and may raise anything
        cause = error.__cause__ or error
        said = " ".join(f"{error}{f': {cause}' if cause is not error else ''}".split())
        raise click.UsageError(f"--log-config {path}: {type(cause).__name__}: {said}") from error


def _yaml(text: str) -> Any:
    try:
        import yaml  # noqa: PLC0415  # an extra, needed for this alone
    except ModuleNotFoundError:
        raise click.UsageError("--log-config needs PyYAML for YAML: pip install 'asgibus[yaml]'") from None
    return yaml.safe_load(text)
