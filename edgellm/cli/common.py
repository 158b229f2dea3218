"""What several commands share: options with llama.cpp's names, loading with a progress bar."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgellm.model import Model

_F = Callable[..., Any]


class ThreadCount(click.ParamType):
    """A positive number or `auto`."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "auto" or isinstance(value, int):
            return value
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1:
            self.fail(f"'{value}' is not a number of threads; give 1 or more, or auto", param, ctx)
        return number


def apply_options(options: list[_F], function: _F) -> _F:
    for option in reversed(options):
        function = option(function)
    return function


def kv_type_options(function: _F) -> _F:
    """-ctk and -ctv, with llama.cpp's names: the types of K and of V."""

    def note_v(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        ctx.meta["v_type"] = value  # eager: known when -ctk is looked at

    def pair(ctx: click.Context, param: click.Parameter, value: str) -> str:
        v_type = ctx.meta.get("v_type") or value
        return value if v_type == value else f"{value}:{v_type}"

    choices = click.Choice(["auto", "f32", "f16", "q8_0", "q4_0"])
    return apply_options(
        [
            click.option("-ctk", "--kv-type", "--cache-type-k", "kv_type", type=choices, default="auto", callback=pair,
                         show_default=True, help="Number type of the KV cache."),
            click.option("-ctv", "--cache-type-v", "v_type", type=choices, callback=note_v, is_eager=True,
                         expose_value=False, help="Number type of V, if it is not that of K."),
        ],
        function,
    )  # fmt: skip


def thread_options(function: _F) -> _F:
    """-t, and llama.cpp's -tb and -ngl as far as they mean something here."""

    def note_batch(ctx: click.Context, param: click.Parameter, value: int | str | None) -> None:
        ctx.meta["threads_batch"] = value  # eager: known when -t is looked at

    def one_number(ctx: click.Context, param: click.Parameter, value: int | str) -> int | str:
        batch = ctx.meta.get("threads_batch")
        if batch is None or batch == value:
            return value
        if value != "auto":
            raise click.BadParameter(f"the same threads work on prompts and answers; give -t {value} alone", ctx, param)
        return batch  # type: ignore[no-any-return]

    def no_gpu(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value not in (None, "0", "auto"):
            raise click.BadParameter("there is no GPU backend yet; leave it out, or give 0 or auto", ctx, param)

    return apply_options(
        [
            click.option("-t", "--threads", type=ThreadCount(), default="auto", show_default=True, callback=one_number,
                         help="Threads."),
            click.option("-tb", "--threads-batch", type=ThreadCount(), callback=note_batch, is_eager=True,
                         expose_value=False, help="Another name of -t: the same threads work on prompts."),
            click.option("-ngl", "--gpu-layers", "gpu_layers", metavar="0|auto", callback=no_gpu, expose_value=False,
                         help="Layers on a GPU: none, because there is no GPU backend yet."),
        ],
        function,
    )  # fmt: skip


def load_options(function: _F) -> _F:
    """Options of commands that load a model; `load_model` takes them."""
    return apply_options(
        [
            click.option("-c", "--ctx-size", "n_ctx", type=click.IntRange(1), metavar="N",
                         help="Context window in tokens [default: what the model was trained for, if it fits]."),
            thread_options,
            click.option("--backend", type=click.Choice(["auto", "native", "numba", "reference"]), default="auto",
                         show_default=True, help="What runs the model."),
            kv_type_options,
            click.option("--no-pack", is_flag=True,
                         help="Read the weights straight from the file: slower, in less memory."),
            click.option("--huge-pages", is_flag=True,
                         help="Copy a packed file into 2 MB pages: starts later, runs faster."),
            click.option("--offline", is_flag=True, help="Never download a model; the same as HF_HUB_OFFLINE=1."),
            click.option("--exact", is_flag=True,
                         help="Logits that do not depend, to the bit, on how a prompt is cut into passes."),
            click.option("--chat-template-file", type=click.Path(), metavar="FILE",
                         help="Jinja chat template to use instead of the model's own."),
        ],
        function,
    )  # fmt: skip


def generate_options(function: _F) -> _F:
    """Length and stop strings."""
    return apply_options(
        [
            click.option("-n", "--predict", "max_tokens", type=click.IntRange(-1), metavar="N",
                         help="Most tokens to write; -1: as many as fit [default: -1]."),
            click.option("-r", "--reverse-prompt", "--stop", "stop", multiple=True, metavar="TEXT",
                         help="Stop before this text; may be given several times."),
            click.option("-sys", "--system-prompt", "system", metavar="TEXT", help="System message of a chat."),
        ],
        function,
    )  # fmt: skip


def overflow_option(function: _F) -> _F:
    """--overflow, checked before a model is loaded."""

    def checked(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
        from edgellm.cache import Overflow

        return None if value is None else str(Overflow.parse(value))

    text = (
        "When the context window is full: error, sink[:SINKS[:WINDOW]] (the first tokens and a window of the last "
        "stay), shift[:KEEP] (the older half behind KEEP tokens goes), drop-turns (whole oldest turns go)."
    )
    return click.option("--overflow", metavar="POLICY", callback=checked, help=text)(function)


class Speculation(click.ParamType):
    """A way to speculate, or a draft model; a word that is neither is refused when the model is loaded."""

    name = "auto|off|suffix|self|MODEL"


def speculate_option(function: _F) -> _F:
    """--speculate; `load_model` takes it."""
    text = (
        "Guess tokens and check several in one pass: the same answers, sooner. suffix: where the text repeats itself; "
        "self: by the model without some layers (`edgellm draft` finds them); auto: all there is; MODEL: also by a "
        "small model with the same tokens."
    )
    return click.option("--speculate", type=Speculation(), default="auto", show_default=True, help=text)(function)


def quantize_options(function: _F) -> _F:
    """Which tensor gets which type; names of arguments of `edgellm.quantize.quantize` and `edgellm.convert.convert`."""
    return apply_options(
        [
            click.option("--imatrix", metavar="FILE",
                         help="Importance matrix: errors in columns with large inputs count more."),
            click.option("--tensor-type", "tensor_types", multiple=True, metavar="REGEX=TYPE",
                         help="Type of tensors in whose name REGEX is found; the first that fits wins."),
            click.option("--output-tensor-type", metavar="TYPE", help="Type of output.weight."),
            click.option("--token-embedding-type", metavar="TYPE", help="Type of token_embd.weight."),
            click.option("--pure", is_flag=True, help="The base type for every matrix, no mix."),
        ],
        function,
    )  # fmt: skip


def limit_of(max_tokens: int | None) -> int | None:
    return None if max_tokens is None or max_tokens < 0 else max_tokens


def load_model(path: str | None, options: dict[str, Any]) -> Model:
    """Load with the load options, which are taken out of `options`; a bar appears when it takes over a second."""
    import edgellm

    names = ("n_ctx", "threads", "backend", "kv_type", "exact", "offline", "speculate")
    chosen = {name: options.pop(name) for name in names if name in options}
    chosen["huge_pages"] = options.pop("huge_pages", False)
    chosen["pack"] = not options.pop("no_pack", False)
    template_file = options.pop("chat_template_file", None)
    if template_file is not None:
        chosen["chat_template"] = read_text(template_file)
    with progress_bar() as report:
        return edgellm.load(path, progress=report, **chosen)


def model_path(ref: str | None) -> str:
    """The file that a MODEL argument names, downloaded where it must be (`edgellm.hub.resolve`); a bar shows that."""
    from edgellm.hub import resolve

    with progress_bar() as report:
        return str(resolve(ref, progress=report))


def read_text(path: str) -> str:
    """A UTF-8 text file. Raises ModelFileNotFoundError, InvalidArgumentError."""
    from edgellm.errors import InvalidArgumentError, ModelFileNotFoundError

    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        raise ModelFileNotFoundError(path) from None
    except (UnicodeDecodeError, IsADirectoryError):
        raise InvalidArgumentError(f"{path}: this is not a UTF-8 text file") from None


class progress_bar:  # noqa: N801 (used like a function)
    """A context manager that gives a `progress=` callback drawing a bar on stderr.

    Nothing is drawn within the first second of a stage, nor when stderr is no terminal. The bar goes when its stage is
    complete. Callbacks may come from any thread.
    """

    def __init__(self, delay: float = 1.0) -> None:
        self._delay = delay
        self._lock = threading.Lock()
        self._bar: Any = None
        self._task: Any = None
        self._timer: threading.Timer | None = None  # draws the bar where a stage says nothing for long
        self._latest: Any = None
        self._closed = False

    def __enter__(self) -> Callable[[Any], None] | None:
        return self._report if sys.stderr.isatty() else None

    def _report(self, progress: Any) -> None:
        with self._lock:
            self._latest = progress
            if self._closed or progress.done >= progress.total > 0:
                self._stop()
            elif self._bar is not None:
                self._bar.update(
                    self._task,
                    description=_stage(progress),
                    completed=progress.done,
                    total=progress.total or None,
                )
            elif self._timer is None:
                self._timer = threading.Timer(self._delay, self._draw)
                self._timer.daemon = True
                self._timer.start()

    def _draw(self) -> None:
        with self._lock:
            if self._closed or self._timer is None or self._bar is not None:
                return
            latest = self._latest
            self._bar = _make_bar(latest.stage)
            self._task = self._bar.add_task(_stage(latest), total=latest.total or None, completed=latest.done)
            self._bar.start()

    def _stop(self) -> None:
        timer, bar = self._timer, self._bar
        self._timer = self._bar = None
        if timer is not None:
            timer.cancel()
        if bar is not None:
            bar.stop()

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._closed = True
            self._stop()


def _stage(progress: Any) -> str:
    words = {"prefill": "reading the prompt", "compiling": "compiling kernels (kept for the next start)"}
    return words.get(progress.stage, progress.stage)


def _make_bar(stage: str) -> Any:
    try:
        from rich import progress
        from rich.console import Console
    except ImportError:  # comes with edgellm[cli]
        return _PlainBar()
    columns = [progress.TextColumn("{task.description}"), progress.BarColumn(), progress.TaskProgressColumn()]
    if stage == "downloading":
        columns += [progress.DownloadColumn(), progress.TransferSpeedColumn()]
    columns.append(progress.TimeRemainingColumn())
    return progress.Progress(*columns, console=Console(stderr=True), transient=True)


class _PlainBar:
    """What `progress_bar` needs of rich's Progress, on one line: a share in percent that is written over."""

    def add_task(self, description: str, total: float | None, completed: float) -> int:
        self._text = ""
        self.update(0, description=description, total=total, completed=completed)
        return 0

    def update(self, task: int, *, description: str, total: float | None, completed: float) -> None:
        share = f" {100 * completed / total:.0f} %" if total else ""
        text = f"{description}{share}"
        if text != self._text:
            click.echo(f"\r{text:<{len(self._text)}}", nl=False, err=True)
            self._text = text

    def start(self) -> None:
        """Nothing draws but `update`."""

    def stop(self) -> None:
        click.echo(f"\r{'':<{len(self._text)}}\r", nl=False, err=True)


def print_json(value: Any, compact: bool = False) -> None:
    """One JSON value on stdout; NaN and infinity, which JSON has not, are refused."""
    import json

    text = json.dumps(value, ensure_ascii=False, indent=None if compact else 2, allow_nan=False, default=_plain)
    click.echo(text.encode("utf-8", "replace").decode())


def _plain(value: Any) -> Any:
    """NumPy values as plain ones."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


def print_report(report: Any) -> None:
    """What a converter or quantiser wrote, for people; all of it goes to stderr, the data is the file."""
    import os

    from edgellm.chat.terminal import size_text

    types = ", ".join(f"{n} {name}" for name, n in report.types.items())
    click.echo(
        f"{report.path}: {size_text(os.path.getsize(report.path))}, {report.bits_per_weight:.2f} bits per weight, "
        f"{report.n_tensors} tensors ({types}), {report.seconds:.1f} s",
        err=True,
    )
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
