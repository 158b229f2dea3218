"""What mkdocs does for the site besides reading docs/: pages that live elsewhere, and pages that are made from code.

formats/*.md and CHANGELOG.md are part of the site where they are; cli.md is written from the commands themselves, so
that it cannot drift.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# Links from docs/ to what the site has under another address, and to files that it does not show.
_MOVED = re.compile(r"\]\((?:\.\./)(formats/[^)#]*\.md)")
_SOURCE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?!formats/)[^)]*\)")


def on_files(files: Any, config: Any) -> Any:
    """The pages that are not in docs/."""
    from mkdocs.structure.files import File

    pages = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in ROOT.glob("formats/*.md")}
    pages["changelog.md"] = (ROOT / "CHANGELOG.md").read_text("utf-8")
    pages["cli.md"] = commands_page()
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links that leave docs/ lead to the same page of the site; those to source files become plain words."""
    return _SOURCE.sub(r"\1", _MOVED.sub(r"](\1", markdown))


def commands_page() -> str:
    """Every command with its options, as click knows them."""
    import click

    from edgellm.cli import COMMANDS, cli

    root = click.Context(cli, info_name="edgellm", max_content_width=100, terminal_width=100)
    rows = "\n".join(f"| [`{name}`](#edgellm-{name}) | {text} |" for name, (_, text) in COMMANDS.items())
    parts = [
        "# Commands",
        "Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 an error, 2 usage or a missing path, "
        "3 a refused file, 4 memory, 130 interrupted. This page is made from the commands themselves.",
        f"| command | what it does |\n|---|---|\n{rows}",
    ]
    for name in COMMANDS:
        command = cli.get_command(root, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=root, max_content_width=100, terminal_width=100)
        parts.append(f"## edgellm {name}\n```text\n{command.get_help(context)}\n```")
    return "\n\n".join(parts) + "\n"
