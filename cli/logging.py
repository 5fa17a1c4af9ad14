"""Set up logging. The servers only log; here is decided where their records go."""

from __future__ import annotations

import logging
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
        app_dir: A folder with modules of classes that the file names.
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
        # For the records of the app. No handler of the root: logging.basicConfig in the app would then do nothing.
        logging.lastResort = _StandardError(pid=pid)
        logging.lastResort.addFilter(_not_printed_yet)
    else:
        sys.path.insert(0, str(Path(app_dir).resolve()))
        _configure(config)
    if config is None or given("log_level"):
        logging.getLogger("asgibus").setLevel(process.log_level.upper())
    if not access:
        logging.getLogger("asgibus.access").setLevel(logging.CRITICAL + 1)


def complete_app_logging() -> None:
    """Add to the logging that the app has set up, once it is loaded.

    Records that no handler of the app prints go to standard error. Our loggers that the app's configuration does not
    name are enabled again: `logging.config` disables them by default.
    """
    root = logging.getLogger()
    if not root.handlers and isinstance(logging.lastResort, _StandardError):
        root.addHandler(logging.lastResort)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] == "asgibus" and isinstance(logger, logging.Logger):
            logger.disabled = False


class _StandardError(logging.StreamHandler[TextIO]):
    """A handler that writes to standard error, in the format of our log."""

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
    # Few commands have such a file, and its modules take a tenth of the start-up.
    import json  # noqa: PLC0415
    import logging.config  # noqa: PLC0415

    try:
        suffix = Path(path).suffix
        if suffix in (".json", ".yaml", ".yml"):
            text = Path(path).read_text(encoding="utf-8")
            config: Any = json.loads(text) if suffix == ".json" else _yaml(text)
            if not isinstance(config, dict):
                raise TypeError("it holds no mapping")
            # Our loggers exist by now; a file that does not name them does not mean to disable them.
            logging.config.dictConfig({"disable_existing_loggers": False, **config})
        else:
            logging.config.fileConfig(path, disable_existing_loggers=False)
    except click.UsageError:
        raise
    except Exception as error:  # the classes that the file names may raise anything
        cause = error.__cause__ or error
        text = " ".join(f"{error}{f': {cause}' if cause is not error else ''}".split())
        raise click.UsageError(f"--log-config {path}: {type(cause).__name__}: {text}") from error


def _yaml(text: str) -> Any:
    try:
        import yaml  # noqa: PLC0415  # an extra, needed for this alone
    except ModuleNotFoundError:
        raise click.UsageError("--log-config needs PyYAML for YAML: pip install 'asgibus[yaml]'") from None
    return yaml.safe_load(text)
