"""`edgellm bench --machine`: what this machine can do at most, without any model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.common import print_json

if TYPE_CHECKING:
    from edgellm.probe import MachineSpeed


def measure(threads: list[int] | None, form: str) -> None:
    """Measure with each number of threads (default: one, and as many as a model would get) and print tables or JSON."""
    from edgellm.machine import choose_threads
    from edgellm.probe import measure_machine

    if form not in ("md", "json"):
        raise click.UsageError(f"--machine writes tables (md) or json, not {form}")
    found = measure_machine(sorted(set(threads or [1, choose_threads().n])), report=_progress())
    if form == "json":
        print_json(found.to_dict())
    else:
        print_tables(found)


def _progress() -> Any:
    """Says on stderr what is measured; nothing where nobody looks."""
    import sys

    return (lambda text: click.echo(f"{text} ...", err=True)) if sys.stderr.isatty() else None


def print_tables(found: MachineSpeed) -> None:
    """Two tables: reads and peaks, a column for each number of threads."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        raise click.ClickException("tables need rich: pip install 'edgellm[cli]', or take -o json") from None

    console = Console(highlight=False)
    console.width = max(console.width, 100)  # nothing is broken into two lines in a file
    threads = sorted({r.n_threads for r in found.reads})
    cache = f", L3 {found.l3_bytes >> 20} MiB" if found.l3_bytes else ""
    console.print(f"{found.cpu}{cache}; reads go over {found.buffer_bytes >> 20} MiB", soft_wrap=True)
    reads, peaks = read_rows(found, threads), peak_rows(found, threads)
    for title, rows in (("Reading, GB/s", reads), ("Multiply-adds, 10^9 per second", peaks)):
        table = Table(title=title, title_justify="left")
        table.add_column("")
        for n in threads:
            table.add_column(f"{n} thread{'s' if n > 1 else ''}", justify="right")
        table.add_column("best settings" if title.startswith("Reading") else "kind")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def read_rows(found: MachineSpeed, threads: list[int]) -> list[list[str]]:
    """One row per kind of page and prefetch: name, GB/s for each number of threads, settings of the last."""
    rows: dict[str, list[str]] = {}
    for n in threads:
        for r in (r for r in found.reads if r.n_threads == n):
            name = f"{r.pages} pages, " + ("software prefetch" if r.prefetch else "plain")
            row = rows.setdefault(name, [name])
            settings = f"{r.streams} stream{'s' if r.streams > 1 else ''}"
            settings += f", {r.ahead} B ahead into L{r.level}" if r.level else ""
            row += [f"{r.bytes_per_s / 1e9:.1f}", *([settings] if n == threads[-1] else [])]
    return list(rows.values())


def peak_rows(found: MachineSpeed, threads: list[int]) -> list[list[str]]:
    """One row per loop: instructions, rate for each number of threads, kind."""
    rows: dict[str, list[str]] = {}
    for n in threads:
        for p in (p for p in found.peaks if p.n_threads == n):
            row = rows.setdefault(p.name, [p.name])
            row += [f"{p.madds_per_s / 1e9:,.0f}", *([p.kind] if n == threads[-1] else [])]
    return list(rows.values())
