"""The page of all options, made from the commands: `python -m asgibus.cli.options_docs > docs/options.md`."""

from __future__ import annotations

from inspect import cleandoc

import click

from asgibus.cli.interface import command as interface_command
from asgibus.cli.options import ENVIRONMENT_PREFIX, GroupedOption
from asgibus.cli.worker import command as worker_command


def reference() -> str:
    """The page, in Markdown."""
    lines = ["# Options", "", "Made from the commands by `python -m asgibus.cli.options_docs`."]
    for name, command in (("asgi-interface", interface_command), ("asgi-worker", worker_command)):
        lines += ["", f"## {name}", "", cleandoc(command.help or "")]
        context = click.Context(command, info_name=name, auto_envvar_prefix=ENVIRONMENT_PREFIX)
        headings: dict[str, list[str]] = {}
        for parameter in command.params:
            if isinstance(parameter, GroupedOption):
                headings.setdefault(parameter.heading, []).append(_row(parameter, context))
        for heading, rows in headings.items():
            lines += ["", f"### {heading}", "", "| option | environment | default | what |", "|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _row(parameter: GroupedOption, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    default = parameter.get_default(context)
    shown = f"`{default}`" if default and type(default) in (str, int, float) else ""
    if isinstance(default, bool) and parameter.secondary_opts:
        shown = f"`{(parameter.opts if default else parameter.secondary_opts)[0]}`"
    help_text, _, said = (parameter.help or "").partition("  [default: ")
    shown = shown or said.removesuffix("]").removesuffix("none")
    variable = parameter.envvar or f"{ENVIRONMENT_PREFIX}_{(parameter.name or '').upper()}"
    return f"| {names} | `{variable}` | {shown} | {help_text} |"


if __name__ == "__main__":
    print(reference(), end="")
