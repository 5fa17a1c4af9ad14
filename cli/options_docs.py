"""Write the page of all options: `python -m asgibus.cli.options_docs > docs/options.md`."""

from __future__ import annotations

from inspect import cleandoc

import click

from asgibus.cli.interface import command as interface_command
from asgibus.cli.options import GroupedOption
from asgibus.cli.worker import command as worker_command


def options_page() -> str:
    """Return the page, in Markdown."""
    lines = ["# Options", "", "Made from the commands by `python -m asgibus.cli.options_docs`."]
    for name, command in (("asgi-interface", interface_command), ("asgi-worker", worker_command)):
        lines += ["", f"## {name}", "", cleandoc(command.help or "")]
        context = click.Context(command, info_name=name)
        headings: dict[str, list[str]] = {}
        for parameter in command.params:
            if isinstance(parameter, GroupedOption):
                headings.setdefault(parameter.heading, []).append(_row(parameter, context))
        for heading, rows in headings.items():
            lines += ["", f"### {heading}", "", "| option | environment | default | what |", "|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _row(option: GroupedOption, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    return f"| {names} | `{option.envvar}` | {_default(option, context)} | {option.help} |"


def _default(option: GroupedOption, context: click.Context) -> str:
    if option.shown_default:
        return option.shown_default.removeprefix("none")
    default = option.get_default(context)
    if isinstance(default, bool) and option.secondary_opts:
        return f"`{(option.opts if default else option.secondary_opts)[0]}`"
    return f"`{default}`" if default and type(default) in (str, int, float) else ""


if __name__ == "__main__":
    print(options_page(), end="")
