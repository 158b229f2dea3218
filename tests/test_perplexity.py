"""Perplexity: the method against sums written out here, figures of llama.cpp, the file of logits, the command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import edgellm
from edgellm.cli import execute
from edgellm.convert import convert
from edgellm.errors import Cancelled, InvalidArgumentError, ModelFileNotFoundError, ModelFormatError, OutputError
from edgellm.perplexity import LogitsFile, perplexity
from edgellm.sampling.logprobs import log_softmax

# What tools/perplexity_parity.py printed for llama-cpp-python 0.3.36: exp of the mean of -ln softmax(logits)[token]
# over llama.cpp's logits of stories260K as F32 with an F32 cache, the first 20,000 characters of grimm.txt, 8 windows
# of 256 tokens that begin with BOS, the second half of each.
LLAMA_CPP_F32 = 21.931588
# The same over llama.cpp's logits of the Q8_0 file's weights, dequantised to F32 so that nothing is rounded on the way.
LLAMA_CPP_Q8_0 = 21.926965


class Toy:
    """A model whose logits are a table of pseudo-random numbers by token and place."""

    def __init__(self, n_vocab: int = 37, n_ctx: int = 64, add_bos: bool = True, seed: int = 0, noise: float = 0.0):
        self.n_vocab, self.n_ctx = n_vocab, n_ctx
        self.tokenizer = SimpleNamespace(bos_id=1, add_bos=add_bos)
        self._table = np.random.default_rng(seed).normal(0, 3, (n_vocab, n_vocab)).astype(np.float32)
        self._table += np.float32(noise) * np.random.default_rng(9).normal(0, 1, (n_vocab, n_vocab)).astype(np.float32)
        self.asked: list[list[int]] = []

    def tokenize(self, text: str, add_special: bool = False) -> list[int]:
        return [1] * (add_special and self.tokenizer.add_bos) + [2 + ord(c) % (self.n_vocab - 2) for c in text]

    def logits(self, ids: list[int], first: int = 0) -> np.ndarray:
        self.asked.append(list(ids))
        return self._table[ids[first:]] + np.float32(ids[0])


TEXT = "".join(chr(97 + i * i % 23) for i in range(200))


def by_hand(model: Any, ids: list[int], n_ctx: int) -> list[float]:
    """-ln p of the counted tokens, one at a time."""
    out = []
    for start in range(0, len(ids) - n_ctx + 1, n_ctx):
        window = ids[start : start + n_ctx]
        given = [1, *window[1:]] if model.tokenizer.add_bos else window
        logits = model.logits(given).astype(np.float64)
        for j in range(n_ctx // 2, n_ctx - 1):
            row = logits[j]
            out.append(math.log(sum(math.exp(x - row.max()) for x in row)) - (row[window[j + 1]] - row.max()))
    return out


@pytest.mark.parametrize("n_ctx", [4, 15, 16, 32])
@pytest.mark.parametrize("add_bos", [True, False])
def test_sums_are_those_of_the_method(n_ctx: int, add_bos: bool) -> None:
    model = Toy(add_bos=add_bos)
    losses = by_hand(model, model.tokenize(TEXT, add_special=True), n_ctx)
    result = perplexity(model, TEXT, n_ctx)
    mean = sum(losses) / len(losses)
    error = math.sqrt((sum(x * x for x in losses) / len(losses) - mean**2) / (len(losses) - 1))
    assert result.n_tokens == len(losses) == result.n_chunks * (n_ctx - 1 - n_ctx // 2)
    assert math.isclose(result.ppl, math.exp(mean), rel_tol=1e-12)
    assert math.isclose(result.ppl_error, math.exp(mean) * error, rel_tol=1e-9)
    assert result.running[-1] == pytest.approx(result.ppl) and len(result.running) == result.n_chunks


def test_every_window_begins_with_bos_where_the_model_has_one() -> None:
    for add_bos in (True, False):
        model = Toy(add_bos=add_bos)
        perplexity(model, TEXT, 16, 3)
        ids = model.tokenize(TEXT, add_special=True)
        assert [ids_of[1:] for ids_of in model.asked] == [ids[i * 16 + 1 : i * 16 + 16] for i in range(3)]
        assert [ids_of[0] for ids_of in model.asked] == ([1, 1, 1] if add_bos else ids[:48:16])


@pytest.mark.usefixtures("every_step")
def test_chunks_and_progress() -> None:
    seen: list[tuple[int, int]] = []
    result = perplexity(Toy(), TEXT, 16, 5, progress=lambda p: seen.append((p.done, p.total)))
    assert seen == [(i, 5) for i in range(6)] and result.n_chunks == 5
    with pytest.raises(Cancelled):
        perplexity(Toy(), TEXT, 16, progress=lambda p: False)


def test_log_softmax_of_large_numbers() -> None:
    rows = np.array([[1e4, 1e4 - 1, -1e4], [0, 0, 0]], np.float32)
    assert np.allclose(np.exp(log_softmax(rows)).sum(axis=1), 1)
    assert np.isclose(log_softmax(rows)[0, 0], -math.log(1 + math.exp(-1)))


@pytest.mark.parametrize(
    "options", [{"n_ctx": 3}, {"n_ctx": 128}, {"n_ctx": 65, "text": TEXT * 4}, {"n_chunks": 0}, {"text": "short"},
                {"text": None}],
)  # fmt: skip
def test_wrong_arguments(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        perplexity(Toy(), **{"text": TEXT, "n_ctx": 16, **options})


# ---- the file of logits ----------------------------------------------------------------------------------------------


def test_a_model_does_not_diverge_from_itself(tmp_path: Path) -> None:
    path = tmp_path / "l.bin"
    first = perplexity(Toy(), TEXT, 16, save_logits=path)
    d = perplexity(Toy(), None, kld_base=path).divergence
    assert d is not None
    assert abs(d.kld) < 1e-5 and d.same_top == 1.0 and abs(d.ppl_ratio - 1) < 1e-4
    assert d.ppl_base == pytest.approx(first.ppl, rel=1e-4)


def test_divergence_by_hand(tmp_path: Path) -> None:
    path, base, model = tmp_path / "l.bin", Toy(), Toy(noise=0.5)
    perplexity(base, TEXT, 16, 4, save_logits=path)
    result = perplexity(model, None, kld_base=path)
    ids = base.tokenize(TEXT, add_special=True)
    kld, same = [], []
    for i in range(4):
        window = [1, *ids[i * 16 + 1 : i * 16 + 16]]
        p, q = (log_softmax(m.logits(window)[8:15]) for m in (base, model))
        kld += (np.exp(p) * (p - q)).sum(axis=1).tolist()
        same += (p.argmax(axis=1) == q.argmax(axis=1)).tolist()
    d = result.divergence
    assert d is not None and 0 < np.mean(same) < 1
    assert d.kld == pytest.approx(np.mean(kld), rel=1e-3) and d.kld_max == pytest.approx(max(kld), rel=1e-3)
    assert d.same_top == np.mean(same)
    assert d.kld_error == pytest.approx(np.std(kld) / math.sqrt(len(kld) - 1), rel=1e-3)
    assert d.ppl_ratio == pytest.approx(result.ppl / d.ppl_base)


@pytest.mark.parametrize("n_vocab", [36, 37])
def test_form_of_the_file(tmp_path: Path, n_vocab: int) -> None:
    """Byte by byte, with the rules of llama.cpp written out once more."""
    path, model = tmp_path / "l.bin", Toy(n_vocab=n_vocab)
    perplexity(model, TEXT, 16, 2, save_logits=path)
    data = path.read_bytes()
    ids = model.tokenize(TEXT, add_special=True)[:32]
    assert data[:8] == b"_logits_" and np.frombuffer(data, "<i4", 3, 8).tolist() == [16, n_vocab, 2]
    assert np.frombuffer(data, "<i4", 32, 20).tolist() == ids
    length = 2 * ((n_vocab + 1) // 2) + 4
    rows = np.frombuffer(data, "<u2", offset=20 + 128).reshape(14, length)
    for row, logits in zip(rows[:7], model.logits(ids[:16])[8:15], strict=True):
        scale, lowest = row[:4].view("<f4")
        low = max(logits.min(), logits.max() - np.float32(16))
        total = math.log(np.exp(logits.astype(np.float64) - logits.max()).sum())
        assert scale == (logits.max() - low) / np.float32(65535)
        assert lowest == pytest.approx(low - logits.max() - total, rel=1e-6)
        codes = [round((float(x) - float(low)) / float(scale)) if x > low else 0 for x in logits]
        assert np.abs(row[4 : 4 + n_vocab].astype(int) - codes).max() <= 1
        assert row[4:].max() == 65535
    with LogitsFileOf(path, n_vocab) as file:
        want = log_softmax(model.logits(ids[:16])[8:15])
        assert np.allclose(file.read(7), np.maximum(want, want.max(axis=1, keepdims=True) - 16), atol=1e-3)


class LogitsFileOf:
    def __init__(self, path: Path, n_vocab: int) -> None:
        self._file = LogitsFile(path, n_vocab)

    def __enter__(self) -> LogitsFile:
        return self._file

    def __exit__(self, *exc: object) -> None:
        self._file.close()


def test_equal_logits_have_no_scale(tmp_path: Path) -> None:
    model = Toy()
    model._table[:] = 2.5
    perplexity(model, TEXT, 16, 2, save_logits=tmp_path / "l.bin")
    result = perplexity(model, None, kld_base=tmp_path / "l.bin")
    assert result.ppl == pytest.approx(37) and result.divergence is not None
    assert abs(result.divergence.kld) < 1e-6


@pytest.mark.parametrize("damage", ["magic", "cut", "short", "vocab", "sizes", "token"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "l.bin"
    perplexity(Toy(), TEXT, 16, 2, save_logits=path)
    data = bytearray(path.read_bytes())
    if damage == "magic":
        data[0] = 0
    elif damage == "cut":
        data = data[:-2]
    elif damage == "short":
        data = data[:10]
    elif damage == "vocab":
        data[12] += 1
    elif damage == "sizes":
        data[8:12] = b"\xff\xff\xff\xff"
    else:
        data[20:24] = b"\xff\xff\xff\x7f"
    path.write_bytes(data)
    with pytest.raises(ModelFormatError):
        perplexity(Toy(), None, kld_base=path)


def test_missing_and_unwritable_files(tmp_path: Path) -> None:
    with pytest.raises(ModelFileNotFoundError):
        perplexity(Toy(), None, kld_base=tmp_path / "none")
    with pytest.raises(OutputError):
        perplexity(Toy(), TEXT, 16, save_logits=tmp_path / "no" / "l.bin")
    with pytest.raises(Cancelled):
        perplexity(Toy(), TEXT, 16, save_logits=tmp_path / "l.bin", progress=lambda p: False)
    assert not list(tmp_path.iterdir())


# ---- real models -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """stories260K as F32 and Q8_0, and a text."""
    data = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    if not data.is_dir():
        pytest.skip(f"needs {data}")
    folder = tmp_path_factory.mktemp("perplexity")
    source = data / "stories260K"
    for outtype in ("f32", "q8_0"):
        convert(source / "stories260K.bin", folder / f"{outtype}.gguf", outtype, tokenizer=source / "tok512.bin")
    text = folder / "text.txt"
    text.write_text((data / "text" / "grimm.txt").read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    return folder / "f32.gguf", folder / "q8_0.gguf", text


def measure(path: Path, text: Path, **options: Any) -> edgellm.perplexity.PerplexityResult:  # type: ignore[name-defined]
    with edgellm.load(path, n_ctx=256, kv_type="f32", **options) as model:
        return perplexity(model, text.read_text(encoding="utf-8"), 256, 8)


def test_f32_agrees_with_llama_cpp(stories: tuple[Path, Path, Path]) -> None:
    result = measure(stories[0], stories[2])
    assert result.n_tokens == 1016
    assert result.ppl == pytest.approx(LLAMA_CPP_F32, rel=1e-4)


def test_q8_0_agrees_with_llama_cpp(stories: tuple[Path, Path, Path]) -> None:
    exact = measure(stories[1], stories[2], backend="reference")
    assert exact.ppl == pytest.approx(LLAMA_CPP_Q8_0, rel=1e-4)
    # 8-bit activations shift each token's probability a little; over these thousand tokens it does not cancel out.
    assert measure(stories[1], stories[2]).ppl == pytest.approx(exact.ppl, rel=5e-3)


def test_the_command(stories: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    f32, q8_0, text = map(str, stories)
    base = str(tmp_path / "l.bin")
    assert execute(["perplexity", f32, "-f", text, "-c", "128", "--chunks", "2", "--save-logits", base]) == 0
    assert capsys.readouterr().out.startswith("PPL = ")
    assert execute(["perplexity", q8_0, "--kld", "--kld-base", base, "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["n_chunks"] == 2 and 0 < out["divergence"]["kld"] < 0.01 and out["divergence"]["same_top"] > 0.9
    assert execute(["perplexity", q8_0, "--kld-base", base]) == 0
    assert "same likeliest token" in capsys.readouterr().out


@pytest.mark.parametrize("args, code", [
    (["perplexity"], 2), (["perplexity", "--kld", "-f", "x"], 2), (["perplexity", "-f", "no-such-file"], 2),
    (["perplexity", "--kld-base", "no-such-file"], 2), (["perplexity", "--kld-base", __file__], 3),
    (["perplexity", "-f", __file__, "-c", "1"], 2),
])  # fmt: skip
def test_wrong_use_of_the_command(args: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(args) == code
    assert len(capsys.readouterr().err.strip().splitlines()) <= 3
