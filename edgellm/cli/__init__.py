"""The command line: `edgellm COMMAND ...`. One file per command, imported only when that command runs.

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 an error, 2 usage or a missing path, 3 a refused
file, 4 memory, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

# name -> (module, one line for `edgellm --help`)
COMMANDS = {
    "chat": ("chat", "Talk to a model in the terminal."),
    "run": ("run", "Answer or continue one prompt and print the text."),
    "pull": ("pull", "Download a model of Hugging Face's hub: hf:owner/repo:Q4_K_M."),
    "list": ("models", "List the models of this machine."),
    "rm": ("remove", "Remove a model from this machine."),
    "alias": ("alias", "Give a model a short name."),
    "show": ("show", "Show what a model file holds."),
    "embed": ("embed", "Print the embeddings of texts."),
    "tokenize": ("tokenize", "Show how a text is cut into tokens."),
    "bench": ("bench", "Measure speed: tests and flags as in llama-bench."),
    "convert": ("convert", "Turn a Hugging Face folder or llama2.c checkpoint into a GGUF file."),
    "quantize": ("quantize", "Write a GGUF file with another weight type."),
    "prune": ("prune", "Write a GGUF file with a share of its weights set to zero."),
    "draft": ("draft", "Find layers that guesses can do without, for `--speculate self`."),
    "pack": ("pack", "Write a GGUF file whose model starts at once; --unpack is the way back."),
    "imatrix": ("imatrix", "Measure which columns of the weights matter, for `quantize --imatrix`."),
    "perplexity": ("perplexity", "Measure how well a model foretells a text, and compare it with another."),
    "doctor": ("doctor", "Check this machine, the installation and perhaps a file."),
}


# names that other programs have for them
OTHER_NAMES = {"ls": "list", "download": "pull", "generate": "run", "inspect": "show", "ppl": "perplexity"}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used, so that `--help` stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = OTHER_NAMES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        return import_module(f"edgellm.cli.{COMMANDS[name][0]}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            meant = f"did you mean {near[0]}?" if near else f"commands are {', '.join(COMMANDS)}"
            ctx.fail(f"there is no command {args[0]!r}; {meant}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from edgellm import __version__

        click.echo(f"edgellm {__version__}")
        ctx.exit()


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="MODEL is a GGUF file, an alias, or a model of Hugging Face's hub: hf:owner/repo:Q4_K_M (or -hf "
    "owner/repo:Q4_K_M). Where it is left out, the small built-in model is used.",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Version.")
def cli() -> None:
    """Run language models on the CPU you have."""


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the `edgellm` command; ends the process with an exit code."""
    sys.exit(execute(args))


def execute(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. Every error is one line on stderr."""
    _use_utf8()
    _show_warnings()
    try:
        # Not standalone: errors come to us, and `ctx.exit(n)` returns n.
        words = _help_words(_hub_option(sys.argv[1:] if args is None else args))
        code = cli.main(args=words, prog_name="edgellm", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        _drop_stdout()
        return 1
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        return _report(error)


def _help_words(words: list[str]) -> list[str]:
    """`edgellm` alone and `edgellm help [COMMAND]` ask for help, too."""
    if not words:
        return ["--help"]
    return [*words[1:2], "--help"] if words[0] == "help" else words


def _hub_option(args: Sequence[str]) -> list[str]:
    """llama.cpp's `-hf owner/repo:QUANT` as the MODEL argument `hf:owner/repo:QUANT` of any command."""
    words = list(args)
    end = words.index("--") if "--" in words else len(words)
    for i in range(1, end):
        name, equals, value = words[i].partition("=")
        if name not in ("-hf", "-hfr", "--hf-repo"):
            continue
        if not equals and i + 1 == end:
            raise click.UsageError(f"{name} needs a repository, as owner/repo:Q4_K_M")
        value = value if equals else words[i + 1]
        value = value if value.lower().startswith("hf:") else f"hf:{value}"
        return [words[0], value, *words[1:i], *words[i + (1 if equals else 2) :]]
    return words


def _report(error: BaseException) -> int:
    """Print the one line for `error`; returns the exit code."""
    from edgellm.errors import EdgeLLMError

    code = 1
    if isinstance(error, click.UsageError):
        where = f" (see `{error.ctx.command_path} --help`)" if error.ctx is not None else ""
        text, code = error.format_message() + where, 2
    elif isinstance(error, click.ClickException):
        text, code = error.format_message(), error.exit_code
    elif isinstance(error, EdgeLLMError):
        text, code = str(error), error.exit_code
    elif isinstance(error, MemoryError):
        text, code = "out of memory", 4
    elif isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        text, code = f"{name}{error.strerror or error}", 2 if isinstance(error, FileNotFoundError) else 1
    else:
        text = f"internal error, please report it: {type(error).__name__}: {error} (EDGELLM_DEBUG=1 shows more)"
    if os.environ.get("EDGELLM_DEBUG"):
        import traceback

        traceback.print_exception(error)
    print(_fitted("edgellm: error: " + " ".join(text.split())), file=sys.stderr)
    return code


def _fitted(line: str) -> str:
    """Broken between words on a terminal, which would break inside them; as it is for scripts."""
    if not sys.stderr.isatty():
        return line
    import shutil
    import textwrap

    width = max(40, shutil.get_terminal_size().columns)
    return textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)


def _show_warnings() -> None:
    """The library is silent; a command shows its warnings (no compiled library, ...) as lines on stderr."""
    logger = logging.getLogger("edgellm")
    if not any(isinstance(handler, _Lines) for handler in logger.handlers):
        logger.addHandler(_Lines(logging.WARNING))


class _Lines(logging.Handler):
    """Log records as lines on stderr, in the form of the error lines."""

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        print(_fitted(f"edgellm: {record.levelname.lower()}: {text}"), file=sys.stderr)


def _use_utf8() -> None:
    """Text of a model may be any character: files and pipes get UTF-8 with plain line ends, terminals what they can."""
    for stream in (sys.stdout, sys.stderr):
        if not hasattr(stream, "reconfigure"):
            continue
        if stream.isatty():
            stream.reconfigure(errors="replace")
        else:
            stream.reconfigure(encoding="utf-8", errors="replace", newline="\n")


def _drop_stdout() -> None:
    """The reader of our output is gone (`| head`): be quiet about it, at exit too."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
    except (OSError, ValueError):
        pass
