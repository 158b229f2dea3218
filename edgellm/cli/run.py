"""`edgellm run`: one prompt in, the text out."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.common import (
    generate_options,
    limit_of,
    load_model,
    load_options,
    overflow_option,
    print_json,
    progress_bar,
    read_text,
    speculate_option,
)
from edgellm.cli.forms import form_options, take_form
from edgellm.cli.sampling import sampling_options, take_samplers
from edgellm.cli.sections import SectionedCommand, in_section

if TYPE_CHECKING:
    from edgellm.model import Model
    from edgellm.results import Result
    from edgellm.stream import Stream


@click.command("run", cls=SectionedCommand)
@click.argument("model", required=False)
@click.argument("text", required=False, metavar="[PROMPT|-]")
@click.option("-p", "--prompt", metavar="TEXT", help="The prompt.")
@click.option("-f", "--file", "prompt_file", type=click.Path(), metavar="FILE", help="Read the prompt from a file.")
@generate_options
@partial(in_section, "Choosing tokens", [sampling_options])
@partial(in_section, "Form of the answer", [form_options])
@partial(in_section, "Loading and running", [load_options])
@overflow_option
@speculate_option
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the model's chat template.")
@click.option("--special", is_flag=True, help="Control tokens spelled out in a raw prompt count as such.")
@click.option("--ignore-eos", is_flag=True, help="Go on after an end token.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: text, token ids, timings, seed.")
@click.option("--no-stream", is_flag=True, help="Print the text when it is complete.")
@click.option("-v", "--verbose", is_flag=True, help="Print speed and seed to stderr afterwards.")
def command(model: str | None, text: str | None, **options: Any) -> int:
    """Answer PROMPT, or continue it where the model is no chat model, and print the text.

    \b
    edgellm run "Why is the sky blue?"              the built-in model
    edgellm run model.gguf "Why is the sky blue?"
    edgellm run model.gguf -p "Once upon a time" --raw -n 100 --temp 0
    git diff | edgellm run model.gguf -sys "Write a commit message." -
    edgellm run model.gguf -jf person.schema.json "Who wrote Faust?"

    Only the text, and a newline at its end, goes to stdout.
    """
    if text is None and model is not None and _is_prompt(model):
        model, text = None, model
    prompt = _prompt(text, options.pop("prompt"), options.pop("prompt_file"), model)
    samplers = take_samplers(options)
    options["form"] = take_form(options)
    with load_model(model, options) as loaded:
        return _run(loaded, prompt, samplers, options)


def _is_prompt(word: str) -> bool:
    """Whether a lone argument is a prompt for the built-in model: `-`, or words that cannot be meant as a path."""
    if word == "-":
        return True
    looks_like_path = word.lower().endswith(".gguf") or os.path.exists(word)
    return not looks_like_path and any(c.isspace() for c in word)


def _prompt(text: str | None, option: str | None, file: str | None, model: str | None) -> str:
    """The prompt from wherever it was given; exactly one place. `model` was taken for the name of the model."""
    given = [value for value in (text, option, file) if value is not None]
    if len(given) > 1:
        raise click.UsageError("give the prompt once: as an argument, with -p, or with -f")
    if file is not None:
        return _without_newline(sys.stdin.read() if file == "-" else read_text(file))
    if text == "-":
        return _without_newline(sys.stdin.read())
    if not given and not sys.stdin.isatty() and (piped := _without_newline(sys.stdin.read())):
        return piped
    if not given and model is not None:
        raise click.UsageError(f"there is no prompt for the model {model!r}; if that is the prompt: -p {model!r}")
    if not given:
        raise click.UsageError("there is no prompt; give one as an argument or with -p (`edgellm chat` is for talking)")
    return given[0]


def _without_newline(text: str) -> str:
    """Files and pipes end in a newline that nobody meant to be part of the prompt."""
    return text[:-1] if text.endswith("\n") else text


def _run(model: Model, prompt: str, samplers: dict[str, Any], options: dict[str, Any]) -> int:
    show = not options["as_json"] and not options["no_stream"]
    with progress_bar() as report:
        stream = _start(model, prompt, samplers, options, report)
        result = _print_stream(stream) if show else stream.result
    if options["as_json"]:
        print_json(_as_json(model, result))
    elif not show:
        click.echo(result.text)
    if options["form"] and result.finish_reason == "length":
        click.echo("note: the answer was cut off before it was complete; raise -n or the context window", err=True)
    if options["verbose"]:
        click.echo(speed_line(result), err=True)
    return 0


def _start(
    model: Model, prompt: str, samplers: dict[str, Any], options: dict[str, Any], report: Any
) -> Stream:
    common = {
        "max_tokens": limit_of(options["max_tokens"]),
        "stop": options["stop"],
        "ignore_eos": options["ignore_eos"],
        "on_prefill": report,
        "overflow": options["overflow"],
        **samplers,
        **options["form"],
    }
    system = options["system"]
    if model.chat_template is None or options["raw"]:
        if system is not None:
            why = "with --raw" if options["raw"] else "with this model: it has no chat template"
            raise click.UsageError(f"a system message cannot be used {why}")
        return model.generate(prompt, stream=True, special=options["special"], **common)
    messages = [{"role": "system", "content": system}] if system is not None else []
    return model.chat([*messages, {"role": "user", "content": prompt}], stream=True, **common)


def _print_stream(stream: Stream) -> Result:
    """Print the text as it comes. Ctrl-C ends the answer; what was printed stays."""
    from edgellm.chat.terminal import terminal_safe

    show, begun = terminal_safe if sys.stdout.isatty() else str, False
    try:
        for event in stream:
            begun = True
            sys.stdout.write(show(event.text))
            sys.stdout.flush()
        result = stream.result
    except BaseException:
        stream.cancel()
        sys.stdout.write("\n" if begun else "")
        raise
    sys.stdout.write("\n")
    return result


def _as_json(model: Model, result: Result) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "text": result.text,
        "token_ids": list(result.token_ids),
        "finish_reason": result.finish_reason,
        "seed": result.seed,
        "usage": asdict(result.usage) | {"total_tokens": result.usage.total_tokens},
        "timings": asdict(result.stats) | {"load_seconds": model.load_seconds},
        "context": asdict(result.context),
        "model": str(model.path),
    }


def speed_line(result: Result) -> str:
    """One line on speed, in llama.cpp's words."""
    from edgellm.chat.lines import guesses

    s = result.stats
    return (
        f"[ Prompt: {s.prompt_tps:.1f} t/s | Generation: {s.generation_tps:.1f} t/s{guesses(s)} | "
        f"{result.usage.completion_tokens} tokens | {s.backend} {s.isa}, {s.threads} threads | seed {result.seed} ]"
    )
