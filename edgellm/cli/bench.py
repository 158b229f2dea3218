"""`edgellm bench`: speed, with llama-bench's flags and test names."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.common import Speculation, kv_type_options, print_json, progress_bar

if TYPE_CHECKING:
    from edgellm.bench import BenchResult


class NumberList(click.ParamType):
    """Numbers with commas between: `512` or `1,2,4`."""

    name = "N,..."

    def __init__(self, lowest: int) -> None:
        self.lowest = lowest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        try:
            numbers = [int(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"'{value}' is no list of numbers such as 1,2,4", param, ctx)
        if min(numbers) < self.lowest or max(numbers) >= 2**31:
            bad = min(numbers) if min(numbers) < self.lowest else max(numbers)
            self.fail(f"{bad} is out of range; choose {self.lowest} to {2**31 - 1}", param, ctx)
        return numbers


@click.command("bench")
@click.argument("model", required=False)
@click.option("-m", "--model", "model_option", metavar="MODEL", help="The model, as llama-bench takes it.")
@click.option("-p", "--n-prompt", type=NumberList(0), default="512", show_default=True, help="Prompt lengths; 0: none.")
@click.option("-n", "--n-gen", type=NumberList(0), default="128", show_default=True, help="Tokens to decode; 0: none.")
@click.option("-d", "--n-depth", type=NumberList(0), default="0", show_default=True, help="Tokens in the cache before.")
@click.option("-t", "--threads", type=NumberList(1), default=None, help="Thread counts [default: auto].")
@click.option("-r", "--repetitions", type=click.IntRange(1), default=5, show_default=True, help="How often.")
@kv_type_options
@click.option("--backend", type=click.Choice(["auto", "native", "numba", "reference"]), default="auto",
              show_default=True, help="What runs the model.")
@click.option("--contention", "busy", type=click.IntRange(0, 1024), default=0, metavar="N",
              help="Run beside N busy processes.")
@click.option("--shares/--no-shares", default=True, show_default=True,
              help="Measure the machine too, and show how much of it was used.")
@click.option("--machine", "only_machine", is_flag=True, help="Measure the machine only: reading, multiplying.")
@click.option("--json", "as_json", is_flag=True, help="The same as -o json.")
@click.option("--exact", is_flag=True, help="Only kernels whose bits do not depend on how a prompt is cut into passes.")
@click.option("--speculate", type=Speculation(), default="off", show_default=True,
              help="Guess tokens, also with a small MODEL, and check several in one pass (tg).")
@click.option("-o", "--output", "form", type=click.Choice(["md", "json", "jsonl", "csv"]), default="md",
              show_default=True, help="Form of the output.")
def command(
    model: str | None,
    model_option: str | None,
    n_prompt: list[int],
    n_gen: list[int],
    n_depth: list[int],
    threads: list[int] | None,
    repetitions: int,
    kv_type: str,
    backend: str,
    busy: int,
    shares: bool,
    only_machine: bool,
    as_json: bool,
    exact: bool,
    form: str,
    speculate: str,
) -> None:
    """Measure how fast MODEL reads a prompt (pp) and writes (tg), in tokens per second and GB/s of weights.

    "of limit" is the share of what this machine can do, measured in the same run: for tg of its read bandwidth, for pp
    of its fastest integer multiply-adds. --machine measures only the machine. With --speculate, tg is what the model
    itself says at temperature 0, with guesses; without, the same tokens for every model, one pass each.
    """
    form = "json" if as_json else form
    if only_machine:
        if model is not None or model_option is not None:
            raise click.UsageError("--machine measures the machine; give it no model")
        from edgellm.cli.bench_machine import measure

        return measure(threads, form)
    if model is not None and model_option is not None:
        raise click.UsageError("give the model once: as an argument or with -m")
    if not any(n_prompt) and not any(n_gen):
        raise click.UsageError("there is nothing to measure: both -p and -n are 0")
    path = model if model is not None else model_option
    options = {"kv_type": kv_type, "backend": backend, "exact": exact, "n_ctx": max(n_depth) + max(*n_prompt, *n_gen)}
    tests = (n_prompt, n_gen, n_depth, repetitions, shares, busy, speculate)
    _WRITERS[form](result for n in threads or ["auto"] for result in _run(path, n, options, tests))


def _run(path: str | None, threads: Any, options: dict[str, Any], tests: Any) -> Iterator[BenchResult]:
    import edgellm
    from edgellm.bench import run_tests
    from edgellm.probe import limits_apart

    n_prompt, n_gen, n_depth, repetitions, shares, busy, speculate = tests
    with progress_bar() as report:
        model = edgellm.load(path, threads=threads, progress=report, speculate=speculate, **options)
    with model:
        limits = limits_apart(model.threads) if shares else None
        yield from run_tests(model, n_prompt, n_gen, n_depth, repetitions, limits, busy, model.speculate)


# ---- output ------------------------------------------------------------------------------------------



def _test(r: BenchResult) -> str:
    return r.test + (f" ({r.busy} busy)" if r.busy else "") + (f" {r.speculate}" if r.speculate != "off" else "")


def _share(r: BenchResult) -> str:
    share = r.int8_share if r.n_prompt else r.read_share
    return "" if share is None else f"{100 * share:.1f} %"


_COLUMNS = (
    ("model", lambda r: r.model_type), ("size", lambda r: f"{r.model_size / 2**20:.2f} MiB"),
    ("params", lambda r: f"{r.model_n_params / 1e6:.2f} M"), ("backend", lambda r: f"{r.backend} {r.isa}"),
    ("threads", lambda r: str(r.n_threads)), ("type_k", lambda r: r.type_k), ("type_v", lambda r: r.type_v),
    ("test", _test),
    ("t/s", lambda r: f"{r.avg_ts:.2f} ± {r.stddev_ts:.2f}"), ("GB/s", lambda r: f"{r.gb_per_s:.2f}"),
    ("of limit", _share),
)  # fmt: skip
_WIDTHS = (18, 11, 10, 16, 7, 6, 6, 16, 20, 7, 8)


def _markdown(results: Iterator[BenchResult]) -> None:
    """A table that grows line by line; columns are as wide as is usual, so that it reads well in a terminal too."""
    for i, result in enumerate(results):
        if i == 0:
            _row([name for name, _ in _COLUMNS])
            _row(["-" * (w - 1) + ":" if j > 3 else "-" * w for j, w in enumerate(_WIDTHS)])
        _row([value(result) for _, value in _COLUMNS])


def _row(cells: list[str]) -> None:
    pairs = zip(cells, _WIDTHS, strict=True)
    click.echo("| " + " | ".join(c.rjust(w) if j > 3 else c.ljust(w) for j, (c, w) in enumerate(pairs)) + " |")


def _json(results: Iterator[BenchResult]) -> None:
    print_json([result.to_dict() for result in results])


def _jsonl(results: Iterator[BenchResult]) -> None:
    for result in results:
        print_json(result.to_dict(), compact=True)


def _csv(results: Iterator[BenchResult]) -> None:
    writer = None
    for result in results:
        row = result.to_dict()
        row["samples_ts"] = json.dumps(row["samples_ts"])
        if writer is None:
            writer = csv.DictWriter(sys.stdout, row.keys(), lineterminator="\n")
            writer.writeheader()
        writer.writerow(row)
        sys.stdout.flush()


_WRITERS = {"md": _markdown, "json": _json, "jsonl": _jsonl, "csv": _csv}
