"""Options of one kind stand together in `--help`, under a heading of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from edgellm.cli.common import apply_options

_F = Callable[..., Any]


class SectionedCommand(click.Command):
    """A command whose help has the sections that `in_section` names; all other options come first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                sections.setdefault(getattr(param, "section", "Options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def in_section(title: str, options: list[_F], function: _F) -> _F:
    """Apply `options`, click's decorators, and put what they add under `title`."""
    known = len(getattr(function, "__click_params__", ()))
    function = apply_options(options, function)
    for param in function.__click_params__[known:]:  # type: ignore[attr-defined]
        param.section = title
    return function
