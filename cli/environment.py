"""Variables of the environment that look like options and are none."""

from __future__ import annotations

import logging
import os
from difflib import get_close_matches

from asgibus.cli import lifeline
from asgibus.cli.options import ELSEWHERE, ENVIRONMENT_PREFIX, GroupedOption

logger = logging.getLogger("asgibus")

FOR_TESTS = f"{ENVIRONMENT_PREFIX}_TEST_"


def warn_of_unknown_variables() -> None:
    """Log a warning for each ASGIBUS_ variable that is no option of either command, with the nearest name."""
    found = sorted(name for name in os.environ if name.startswith(f"{ENVIRONMENT_PREFIX}_"))
    unknown = [name for name in found if not name.startswith(FOR_TESTS) and name != lifeline.VARIABLE]
    if not unknown:
        return
    known = _known()  # of both commands: they are often started with one set of variables
    for name in unknown:
        if name not in known:
            near = _near(name, known)
            logger.warning("%s in the environment is no option%s", name, f": is {near} meant?" if near else "")


def _near(name: str, known: set[str]) -> str:
    """Return the name that may be meant, or nothing."""
    start = f"{ENVIRONMENT_PREFIX}_"
    elsewhere = {_variable(option): _variable(ours) for option, ours in ELSEWHERE.items() if "--" in ours[:2]}
    if name in elsewhere:
        return elsewhere[name]
    found = get_close_matches(name.removeprefix(start), [each.removeprefix(start) for each in known], n=1)
    return start + found[0] if found else ""


def _variable(option: str) -> str:
    return f"{ENVIRONMENT_PREFIX}_{option.lstrip('-').replace('-', '_').upper()}"


def _known() -> set[str]:
    from asgibus.cli.interface import command as interface  # noqa: PLC0415  # each command imports this module
    from asgibus.cli.worker import command as worker  # noqa: PLC0415

    options = [option for command in (interface, worker) for option in command.params]
    return {str(option.envvar) for option in options if isinstance(option, GroupedOption)}
