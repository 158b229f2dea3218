"""Options of the commands that choose tokens; names are llama.cpp's."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from edgellm.cli.common import apply_options

_F = TypeVar("_F", bound=Callable[..., Any])


def sampling_options(function: _F) -> _F:
    """How tokens are chosen; `take_samplers` takes them. Names are llama.cpp's."""
    return apply_options(
        [
            click.option("--temp", "temperature", type=float, help="Temperature; 0 always takes the likeliest token."),
            click.option("--top-k", type=int, help="Only the K likeliest tokens; 0 turns it off."),
            click.option("--top-p", type=float, help="Only the likeliest tokens that make up P together."),
            click.option("--min-p", type=float, help="Only tokens with at least P times the best one's probability."),
            click.option("--typical", "typical_p", type=float, help="Locally typical sampling; 1 turns it off."),
            click.option("--repeat-penalty", type=float, help="Penalty for recent tokens; 1 turns it off."),
            click.option("--repeat-last-n", type=int, help="How many tokens count as recent."),
            click.option("--presence-penalty", type=float, help="Penalty for tokens that were used; 0 turns it off."),
            click.option("--frequency-penalty", type=float, help="Penalty per use of a token; 0 turns it off."),
            click.option("--dry-multiplier", type=float, help="DRY: penalty for longer repeated stretches; 0: off."),
            click.option("--dry-base", type=float, help="DRY: the penalty grows by this factor with each token."),
            click.option("--dry-allowed-length", type=int, metavar="N", help="DRY: stretches of N tokens may repeat."),
            click.option("--dry-penalty-last-n", type=int, metavar="N", help="DRY: how many tokens it looks at."),
            click.option("--dry-sequence-breaker", "dry_sequence_breakers", multiple=True, metavar="TEXT",
                         help="DRY: no stretch goes across TEXT (\\n is a new line); replaces the usual ones, several "
                              "times for several; none: none at all."),
            click.option("--xtc-probability", type=float, help="XTC: how often it drops the likeliest tokens; 0: off."),
            click.option("--xtc-threshold", type=float, help="XTC: what counts as likely; above 0.5: off."),
            click.option("--top-nsigma", "--top-n-sigma", "top_n_sigma", type=float, metavar="N",
                         help="Only tokens within N standard deviations of the best; -1: off."),
            click.option("--dynatemp-range", type=float,
                         help="Temperature from this much below to this much above, by entropy; 0: off."),
            click.option("--dynatemp-exp", "dynatemp_exponent", type=float, help="Exponent of the entropy in that."),
            click.option("--mirostat", type=int, metavar="N",
                         help="2: Mirostat 2.0 instead of other samplers; 0: off."),
            click.option("--mirostat-ent", "mirostat_tau", type=float,
                         help="Mirostat: the surprise that it aims at, in bits."),
            click.option("--mirostat-lr", "mirostat_eta", type=float, help="Mirostat: how fast it learns."),
            click.option("--samplers", metavar="NAMES", help="The samplers that work, in order: 'top_k;temperature'."),
            click.option("-l", "--logit-bias", multiple=True, metavar="ID(+/-)BIAS",
                         help="Make a token likelier or less likely: 15043+1, 15043-inf."),
            click.option("-s", "--seed", type=int, help="Seed of the random numbers [default: a random one]."),
        ],
        function,
    )


SAMPLING_NAMES = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "presence_penalty",
    "frequency_penalty", "seed", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n",
    "dry_sequence_breakers", "xtc_probability", "xtc_threshold", "top_n_sigma", "dynatemp_range", "dynatemp_exponent",
    "mirostat", "mirostat_tau", "mirostat_eta", "samplers", "logit_bias",
)  # fmt: skip


def take_samplers(options: dict[str, Any]) -> dict[str, Any]:
    """Take the sampling options that were given out of `options`, and check them before a model is loaded."""
    from edgellm.sampling import Sampling
    from edgellm.sampling.params import parse_bias

    given = {name: value for name in SAMPLING_NAMES if (value := options.pop(name, None)) is not None}
    if given.get("seed") == -1:  # llama.cpp's way to ask for a random one
        del given["seed"]
    breakers = given.pop("dry_sequence_breakers", ())
    if breakers:
        given["dry_sequence_breakers"] = tuple(unescaped(text) for text in breakers if text != "none")
    biases = given.pop("logit_bias", ())
    if biases:
        given["logit_bias"] = dict(map(parse_bias, biases))
    Sampling(**given)
    return given


def unescaped(text: str) -> str:
    """`\\n`, `\\t`, `\\r`, `\\"` and `\\\\` as what they stand for: shells make them hard to type."""
    meanings = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "'": "'", "\\": "\\"}
    return re.sub(r"\\([ntr\"'\\])", lambda found: meanings[found[1]], text)
