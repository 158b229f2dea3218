"""`edgellm perplexity`: how well a model foretells a text, by llama.cpp's method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.common import ThreadCount, kv_type_options, print_json, progress_bar, read_text

if TYPE_CHECKING:
    from edgellm.perplexity import PerplexityResult


@click.command("perplexity")
@click.argument("model", required=False)
@click.option("-f", "--file", "text_file", metavar="FILE", help="The text (UTF-8).")
@click.option("-c", "--ctx-size", "n_ctx", type=click.IntRange(4), default=512, show_default=True, metavar="N",
              help="Tokens in a window.")
@click.option("--chunks", "n_chunks", type=click.IntRange(-1), default=-1, metavar="N",
              help="At most N windows [default: the whole text].")
@click.option("--save-logits", type=click.Path(dir_okay=False), metavar="FILE",
              help="Write the logits of this model, to compare others with it.")
@click.option("--kld-base", type=click.Path(dir_okay=False), metavar="FILE",
              help="Logits of the base model, from --save-logits (or llama-perplexity).")
@click.option("--kld", is_flag=True, help="Compare with --kld-base: KL divergence, agreement of the likeliest token.")
@click.option("-t", "--threads", type=ThreadCount(), default="auto", help="Threads.", show_default=True)
@click.option("--backend", type=click.Choice(["auto", "native", "numba", "reference"]), default="auto",
              show_default=True, help="What runs the model.")
@kv_type_options
@click.option("--exact", is_flag=True,
              help="Logits that do not depend, to the bit, on how a window is cut into passes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    model: str | None,
    text_file: str | None,
    n_ctx: int,
    n_chunks: int,
    save_logits: str | None,
    kld_base: str | None,
    kld: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the perplexity of MODEL on a text: exp of the mean of -ln p(token).

    The text is cut into windows of N tokens; the second half of each counts. Figures can be compared with those of
    llama-perplexity on the same text and window, not with those of another tokenizer.

    With --kld the text is the one in the file of --kld-base.
    """
    import edgellm
    from edgellm.perplexity import LogitsFile, perplexity

    if kld and kld_base is None:
        raise click.UsageError("--kld needs --kld-base FILE, which --save-logits wrote for the base model")
    if kld_base is None and text_file is None:
        raise click.UsageError("there is no text; give one with -f FILE")
    text = None if text_file is None or kld_base is not None else read_text(text_file)
    with progress_bar() as report:
        if kld_base is not None:
            n_ctx = LogitsFile.window_of(kld_base)
        with edgellm.load(model, n_ctx=n_ctx, progress=report, **options) as loaded:
            result = perplexity(
                loaded, text, n_ctx, n_chunks if n_chunks > 0 else None,
                save_logits=save_logits, kld_base=kld_base, progress=report,
            )  # fmt: skip
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result)


def _print(result: PerplexityResult) -> None:
    click.echo(f"PPL = {result.ppl:.4f} +/- {result.ppl_error:.5f}")
    click.echo(
        f"{result.n_tokens} tokens in {result.n_chunks} windows of {result.n_ctx}, {result.seconds:.1f} s", err=True
    )
    d = result.divergence
    if d is None:
        return
    click.echo(f"PPL of the base = {d.ppl_base:.4f}")
    click.echo(f"PPL / PPL of the base = {d.ppl_ratio:.6f} +/- {d.ppl_ratio_error:.6f}")
    click.echo(f"KL divergence = {d.kld:.6f} +/- {d.kld_error:.6f} (median {d.kld_median:.6f}, max {d.kld_max:.6f}, "
               f"99 % {d.kld_percentiles['99']:.6f})")  # fmt: skip
    click.echo(f"same likeliest token = {100 * d.same_top:.3f} +/- {100 * d.same_top_error:.3f} %")
    click.echo(f"change of p = {100 * d.delta_p_mean:.3f} % mean, {100 * d.delta_p_rms:.3f} % RMS")
