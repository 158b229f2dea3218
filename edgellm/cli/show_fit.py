"""`edgellm show MODEL --fit`: what a model will take of memory here, before it is loaded."""

from __future__ import annotations

from typing import Any

import click

from edgellm.chat.terminal import size_text

_PARTS = (
    ("mapped", "weights, mapped", "pages of the file, used in place; the system may drop and read them again"),
    ("panels", "weights, copied", "memory of the process"),
    ("cache", "cache", ""),
    ("scratch", "buffers", "of passes and of the sampler"),
    ("tokenizer", "tokenizer", ""),
    ("runtime", "Numba", "once per process"),
    ("draft", "draft model", "its weights, cache, buffers and tokenizer"),
)


def fit(path: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The estimate for a file with `load`'s options, as plain values."""
    from edgellm.memory_estimate import estimate

    return estimate(path, **options).to_dict()


def print_fit(e: dict[str, Any]) -> None:
    """The parts as a table, then whether they fit and what would."""
    words = {"cache": f"{e['n_ctx']} tokens, {e['kv_type']}"}
    rows = [(name, e[key], words.get(key, note)) for key, name, note in _PARTS if e[key]]
    rows += [("together", e["total"], f"{e['backend']} backend, threads: {e['threads']}")]
    rows += [("available", e["available"], "to this process")]
    width = max(len(name) for name, _, _ in rows)
    for name, n_bytes, note in rows:
        click.echo(f"{name:<{width}}  {size_text(n_bytes):>9}  {note}".rstrip())
    if e["fits"]:
        longest = f"the longest context that fits: {e['largest_n_ctx']} tokens"
        click.echo(f"\nIt fits; {longest} (trained for {e['n_ctx_train']}).")
    else:
        click.echo(f"\nIt does not fit; try: {', '.join(e['suggestions'])}.")
