"""Each sampler against llama.cpp's of the same name, on random logits: `make sampler-parity LLAMA_PYTHON=...`.

Run by a Python that has llama-cpp-python (and NumPy). What is compared is what a sampler leaves: the same candidates,
and their logits (or the temperature that divided them) to float32's accuracy, since llama.cpp counts in that. Random
draws cannot agree, so XTC is asked to work always and Mirostat is compared by what it keeps. A case in which a
candidate lies within rounding of a limit is counted apart; anything else that differs ends with 1.

Known difference, left out: in SentencePiece vocabularies llama.cpp takes the space in front of a token away when it
looks for a breaker in it, and puts one in front of the breaker's rest, so it finds no breakers of several tokens there.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edgellm import Tokenizer  # noqa: E402
from edgellm.sampling import Sampling, reference  # noqa: E402
from edgellm.sampling.tables import TokenTables, token_tables  # noqa: E402

VOCABULARIES = ("gpt-2", "llama-bpe", "qwen2", "llama-spm", "phi-3")


def after_llama(make: Any, logits: np.ndarray, recent: list[int]) -> dict[int, float]:
    """id -> logit of what a fresh llama.cpp sampler leaves of `logits` (n,) float32."""
    import llama_cpp as lc

    data = (lc.llama_token_data * len(logits))()
    for i, x in enumerate(logits.tolist()):
        data[i].id, data[i].logit, data[i].p = i, x, 0.0
    array = lc.llama_token_data_array(ctypes.cast(data, ctypes.POINTER(lc.llama_token_data)), len(logits), -1, False)
    sampler = make()
    for token in recent:
        lc.llama_sampler_accept(sampler, token)
    lc.llama_sampler_apply(sampler, ctypes.byref(array))
    left = {array.data[i].id: array.data[i].logit for i in range(array.size)}
    lc.llama_sampler_free(sampler)
    return {token: x for token, x in left.items() if x > -np.inf}


def after_ours(name: str, s: Sampling, logits: np.ndarray, recent: list[int], tables: TokenTables) -> dict[int, float]:
    """The same by the reference."""
    x, ids = logits.astype(np.float64), np.arange(len(logits))
    if name == "temperature":
        x = x / reference.temperature_of(x, s)
    elif name == "mirostat":
        kept = reference.mirostat(x, s, 2.0 * s.mirostat_tau, 0.5)[0]
        x, ids = x[kept], ids[kept]
    else:
        x, ids = reference.ReferenceSampler(s, tables)._apply(name, x, ids, np.array(recent, np.int32), 0.0)
    return dict(zip(ids.tolist(), x.tolist(), strict=True))


def makers(s: Sampling, n: int, vocab: Any) -> dict[str, Callable[[], Any]]:
    """Our names -> what makes llama.cpp's sampler with the parameters of `s`."""
    import llama_cpp as lc

    texts = [text.encode() for text in s.dry_sequence_breakers]
    breakers = (ctypes.c_char_p * len(texts))(*texts)
    dry = (s.dry_multiplier, s.dry_base, s.dry_allowed_length, s.dry_penalty_last_n, breakers, len(texts))
    return {
        "penalties": lambda: lc.llama_sampler_init_penalties(
            n, s.repeat_last_n, s.repeat_penalty, s.frequency_penalty, s.presence_penalty
        ),
        "dry": lambda: lc.llama_sampler_init_dry(vocab, *dry),
        "top_n_sigma": lambda: lc.llama_sampler_init_top_n_sigma(s.top_n_sigma),
        "top_k": lambda: lc.llama_sampler_init_top_k(s.top_k),
        "typical_p": lambda: lc.llama_sampler_init_typical(s.typical_p, 0),
        "top_p": lambda: lc.llama_sampler_init_top_p(s.top_p, 0),
        "min_p": lambda: lc.llama_sampler_init_min_p(s.min_p, 0),
        "xtc": lambda: lc.llama_sampler_init_xtc(1.0, s.xtc_threshold, 0, 1),
        "temperature": lambda: lc.llama_sampler_init_temp_ext(s.temperature, s.dynatemp_range, s.dynatemp_exponent),
        "mirostat": lambda: lc.llama_sampler_init_mirostat_v2(1, s.mirostat_tau, s.mirostat_eta),
    }


def random_sampling(rng: np.random.Generator, long_breakers: bool) -> Sampling:
    """Parameters with which every sampler has something to do."""
    breakers = ("\n", ":", " of the", "xyz") if long_breakers and rng.random() < 0.5 else ("\n", ":", '"', "*")
    return Sampling(
        temperature=rng.choice([0.5, 1.5]), dynatemp_range=rng.choice([0.0, 0.4, 2.0]),
        dynatemp_exponent=rng.choice([0.5, 1.0, 2.0]), top_k=int(rng.integers(1, 60)), top_p=rng.uniform(0.1, 0.99),
        min_p=rng.uniform(0.01, 0.5), typical_p=rng.uniform(0.1, 0.99), top_n_sigma=rng.uniform(0.2, 3.0),
        xtc_probability=1.0, xtc_threshold=rng.uniform(0.01, 0.5), repeat_penalty=rng.choice([0.8, 1.3]),
        presence_penalty=0.5, frequency_penalty=0.25, repeat_last_n=int(rng.choice([5, 64])),
        dry_multiplier=0.8, dry_base=rng.choice([1.2, 1.75]), dry_allowed_length=int(rng.integers(1, 4)),
        dry_penalty_last_n=int(rng.choice([20, 64, 500])), mirostat_tau=rng.uniform(0.5, 4.0),
        dry_sequence_breakers=breakers,
    )  # fmt: skip


def differs(name: str, ours: dict[int, float], theirs: dict[int, float], logits: np.ndarray) -> str | None:
    """What differs; "edge": candidates that lie within rounding of the limit."""
    apart = ours.keys() ^ theirs.keys()
    if apart:
        kept = ours.keys() & theirs.keys()
        worst = min((logits[i] for i in kept), default=np.inf)
        near = all(abs(logits[i] - worst) < 1e-3 * max(1.0, abs(worst)) for i in apart) or name == "typical_p"
        return "edge" if near and len(apart) <= 2 else f"candidates {sorted(apart)[:8]}"
    top_ours, top_theirs = max(ours.values()), max(theirs.values())
    for i, x in ours.items():  # a sampler may shift all logits alike
        if abs((x - top_ours) - (theirs[i] - top_theirs)) > 2e-4 * max(1.0, abs(x - top_ours)):
            return f"logit of {i}: {x - top_ours:.6g}, llama.cpp {theirs[i] - top_theirs:.6g}"
    return None


def compare(path: Path, rounds: int, rng: np.random.Generator) -> int:
    """One vocabulary; the number of differences."""
    import llama_cpp as lc

    tokenizer = Tokenizer.from_file(path)
    params = lc.llama_model_default_params()
    params.vocab_only = True
    model = lc.llama_model_load_from_file(str(path).encode(), params)
    vocab, bad, edges, n = lc.llama_model_get_vocab(model), 0, 0, tokenizer.n_vocab
    text = "the end of the line: one two three xyz of the end of the line: one two three\nof the end of the line: one"
    story = tokenizer.encode(text * 3, add_special=False)
    for round_ in range(rounds):
        s = random_sampling(rng, long_breakers=tokenizer.kind != "llama")
        # few tokens matter, as in a model's row: over many like ones float32 sums go astray
        logits = (rng.standard_normal(n) * 3 - 30 * (rng.random(n) > 500 / n)).astype(np.float32)
        recent = story[: int(rng.integers(1, len(story)))]
        tables = token_tables(s, n, tokenizer)
        for name, make in makers(s, n, vocab).items():
            why = differs(name, after_ours(name, s, logits, recent, tables), after_llama(make, logits, recent), logits)
            edges += why == "edge"
            if why not in (None, "edge"):
                bad += 1
                print(f"{path.name} round {round_}: {name}: {why}\n  {s}")
    lc.llama_model_free(model)
    print(f"{path.stem}: {rounds} rounds of 10 samplers, {edges} within rounding of a limit, {bad} differences")
    return bad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/vocab")
    args = parser.parse_args()
    import llama_cpp as lc

    quiet = lc.llama_log_callback(lambda level, text, data: None)
    lc.llama_log_set(quiet, ctypes.c_void_p(0))
    rng = np.random.default_rng(0)
    names = [args.data / f"ggml-vocab-{name}.gguf" for name in VOCABULARIES]
    sys.exit(sum(compare(path, args.rounds, rng) for path in names) > 0)


if __name__ == "__main__":
    main()
