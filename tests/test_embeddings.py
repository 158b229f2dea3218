"""`Model.embed` and `edgellm embed`: poolings against plain NumPy, neighbours, limits, cancelling, the command."""

from __future__ import annotations

import csv
import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_runs import ALL, FAST
from helpers import tiny_llama_gguf
from tiny_bert import CLS, SEP, StraightBert, tiny_bert_gguf
from tiny_families import FAMILIES, tiny_family_gguf

import edgellm
from edgellm import cli
from edgellm.backends.compare import nmse
from edgellm.convert import convert
from edgellm.embeddings import choose_pooling
from edgellm.errors import (
    Cancelled,
    ContextOverflowError,
    EdgeLLMError,
    InvalidArgumentError,
    ModelClosedError,
    UnsupportedFeatureError,
)
from edgellm.gguf import open_gguf
from edgellm.results import Progress
from edgellm.weights import EMBEDDING

TEXTS = ["the cat", "a dog, the dog!", "b", "zebra fox. the end"]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.fixture(scope="module")
def bert_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert_gguf(tmp_path_factory.mktemp("embed") / "bert.gguf")


@pytest.fixture(scope="module")
def llama_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_gguf(tmp_path_factory.mktemp("embed") / "llama.gguf", n_ctx=1200)


# ---- what the numbers are --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ALL)
def test_poolings_of_an_encoder(bert_path: Path, backend: str) -> None:
    with open_gguf(bert_path) as file:
        twin = StraightBert(file, 4)
        states = []
        with edgellm.load(bert_path, backend=backend) as model:
            for text in TEXTS:
                ids = model.tokenize(text, add_special=True)
                assert (ids[0], ids[-1]) == (CLS, SEP)
                states.append(twin.hidden(np.array(ids)))
            rules = {"mean": lambda s: s.mean(0), "cls": lambda s: s[0], "last": lambda s: s[-1]}
            for pooling, rule in rules.items():
                vectors = [rule(s) for s in states]
                got = model.embed(TEXTS, pooling=pooling, normalize=False)
                assert (got.dtype, got.shape) == (np.float32, (4, 32))
                assert nmse(np.array(vectors), got) <= 1e-12
                unit = model.embed(TEXTS, pooling=pooling)
                assert np.allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
                assert all(cosine(a, b) >= 1 - 1e-6 for a, b in zip(vectors, unit, strict=True))
            rows = model.embed(TEXTS, pooling="none", normalize=False)
            assert all(nmse(a, b) <= 1e-12 for a, b in zip(states, rows, strict=True))
            assert np.allclose(np.linalg.norm(model.embed("the cat", pooling="none"), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_of_decoders_are_what_the_head_reads(tmp_path: Path, family: str) -> None:
    """head(hidden) must be the logits: the matrix itself, and behind it what a family does to logits."""
    path = tiny_family_gguf(tmp_path / "m.gguf", family)
    ids = [1, *range(260, 300)]
    with edgellm.load(path) as model:
        hidden = model.embed([ids], pooling="none", normalize=False)[0]
        logits = model.logits(ids)
    with open_gguf(path) as file:
        head = file.data(EMBEDDING).view(np.float32).reshape(file.tensors[EMBEDDING].shape)
    found = hidden @ head.T
    if family == "gemma2":
        found = 8.0 * np.tanh(found / 8.0)
    assert nmse(logits, found / (4.0 if family == "granite" else 1.0)) <= 1e-11


@pytest.mark.parametrize("backend", FAST)
def test_a_long_text_is_pooled_over_its_passes(llama_path: Path, backend: str) -> None:
    ids = np.random.default_rng(1).integers(3, 300, 1100).tolist()
    with edgellm.load(llama_path, backend=backend) as model:
        rows = model.embed([ids], pooling="none", normalize=False)[0]
        assert rows.shape == (1100, 64)
        mean, cls, last = (model.embed([ids], pooling=p, normalize=False)[0] for p in ("mean", "cls", "last"))
    assert nmse(rows.mean(0, dtype=np.float64), mean) <= 1e-14
    assert np.array_equal(cls, rows[0]) and np.array_equal(last, rows[-1])


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("pooling", ["mean", "last", "none"])
def test_neighbours_and_threads_change_no_bit(bert_path: Path, llama_path: Path, backend: str, pooling: Any) -> None:
    for path in (bert_path, llama_path):
        one, more = (edgellm.load(path, backend=backend, threads=n) for n in (1, 3))
        with one, more:
            alone = [one.embed(text, pooling=pooling) for text in TEXTS]
            together = more.embed([*TEXTS[::-1], *TEXTS], pooling=pooling)
            for i, vector in enumerate(alone):
                assert np.array_equal(vector, together[4 + i]) and np.array_equal(vector, together[3 - i])


def test_a_conversation_is_not_disturbed(llama_path: Path) -> None:
    with edgellm.load(llama_path, seed=3) as model:
        options: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
        first = model.generate("once upon a", **options)
        vector = model.embed("once upon a time")
        assert model.generate("once upon a", **options).text == first.text
        assert np.array_equal(model.embed("once upon a time"), vector)


def test_hidden_states_of_transformers(shared_data: Path, tmp_path: Path) -> None:
    reference = np.load(shared_data / "hf-tiny" / "bert" / "reference.npz")
    convert(shared_data / "hf-tiny" / "bert", tmp_path / "b.gguf", outtype="f32")
    texts = [str(text) for text in reference["texts"]]
    for backend in ALL:
        with edgellm.load(tmp_path / "b.gguf", backend=backend) as model:
            for i, text in enumerate(texts):
                assert model.tokenize(text, add_special=True) == reference[f"ids_{i}"].tolist()
            for pooling in ("mean", "cls"):
                got = model.embed(texts, pooling=pooling, normalize=False)
                for i, vector in enumerate(got):
                    wanted = reference[f"{pooling}_{i}"]
                    assert cosine(wanted, vector) >= 0.999999 and nmse(wanted, vector) <= 1e-12


# ---- which pooling ---------------------------------------------------------------------------------------------------


def test_auto_is_what_the_file_says(tmp_path: Path) -> None:
    for number, name in ((None, "mean"), (0, "mean"), (1, "mean"), (2, "cls"), (3, "last")):
        path = tiny_bert_gguf(tmp_path / "b.gguf", pooling_type=number)
        with edgellm.load(path) as model:
            assert model.pooling == name
            assert np.array_equal(model.embed(TEXTS), model.embed(TEXTS, pooling=name))
    with edgellm.load(tiny_bert_gguf(tmp_path / "rank.gguf", pooling_type=4)) as model:
        with pytest.raises(UnsupportedFeatureError, match="ranks"):
            model.embed("a")
        assert model.embed("a", pooling="cls").shape == (32,)
    with pytest.raises(InvalidArgumentError, match="mean, cls"):
        choose_pooling("max", None)


# ---- what may be asked -----------------------------------------------------------------------------------------------


def test_shapes(bert_path: Path) -> None:
    with edgellm.load(bert_path) as model:
        assert model.embed("").shape == (32,)  # the special tokens alone
        assert model.embed([]).shape == (0, 32) and model.embed([], pooling="none") == []
        assert model.embed(("a", "b")).shape == (2, 32)  # type: ignore[call-overload]
        ids = model.tokenize("the cat", add_special=True)
        assert np.array_equal(model.embed([ids])[0], model.embed("the cat"))


@pytest.mark.parametrize(
    ("texts", "words"),
    [(3, "string or a list"), ([3], "text 0 must be"), (["a", None], "text 1 must be"), ([[1, 99999]], "99999"),
     ([[-1]], "-1"), ([[]], "text 0 is empty"), ([["a"]], "text 0 must be"), (b"a", "string or a list")],
)  # fmt: skip
def test_bad_texts_are_named(bert_path: Path, texts: Any, words: str) -> None:
    with edgellm.load(bert_path) as model, pytest.raises(InvalidArgumentError, match=words):
        model.embed(texts)


def test_too_long(bert_path: Path) -> None:
    with edgellm.load(bert_path) as model:
        assert model.n_ctx == 64
        with pytest.raises(ContextOverflowError, match=r"text 1 has 102 tokens.* truncate=True") as error:
            model.embed(["a", "a " * 100])
        assert (error.value.n_prompt, error.value.n_ctx) == (102, 64)
        cut = model.embed("a " * 100, truncate=True)
        assert np.array_equal(cut, model.embed("a " * 62)) and not np.array_equal(cut, model.embed("a " * 61))
        ids = model.tokenize("a " * 100)
        assert np.array_equal(model.embed([ids], truncate=True), model.embed([ids[:64]]))


def test_an_encoder_writes_no_text(bert_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}]
    with edgellm.load(bert_path) as model:
        for call in (
            lambda: model.generate("a"), lambda: model.chat(messages), lambda: model.logits([1]),
            lambda: model.generate("a", stream=True), lambda: model.session(),
            lambda: edgellm.Session(model).send("a"),
        ):  # fmt: skip
            with pytest.raises(EdgeLLMError, match="embed") as error:
                call()
            assert isinstance(error.value, InvalidArgumentError) or "template" in str(error.value)
        assert model.embed("a").shape == (32,)


def test_an_encoder_takes_no_longer_context(tmp_path: Path) -> None:
    path = tiny_bert_gguf(tmp_path / "b.gguf", n_ctx=700, n_layers=1)
    for ask in (lambda n: edgellm.load(path, n_ctx=n), lambda n: edgellm.estimate(path, n_ctx=n)):
        with pytest.raises(InvalidArgumentError, match="512"):
            ask(513)
    assert edgellm.estimate(path).n_ctx == 512
    with edgellm.load(path) as model:
        assert model.n_ctx == 512
        assert model.embed([[5] * 512]).shape == (1, 32)


def test_a_closed_model(bert_path: Path) -> None:
    model = edgellm.load(bert_path)
    model.close()
    with pytest.raises(ModelClosedError):
        model.embed("a")


# ---- progress and cancelling -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("every_step")
def test_progress_is_told_and_may_end_it(bert_path: Path) -> None:
    with edgellm.load(bert_path) as model:
        seen: list[Progress] = []
        model.embed(TEXTS, progress=seen.append)
        assert seen == [Progress("embedding", i, 4, "texts") for i in range(5)]
        with pytest.raises(Cancelled):
            model.embed(TEXTS, progress=lambda p: p.done < 2)
        with pytest.raises(KeyError):
            model.embed(TEXTS, progress=lambda p: {}["gone"])
        assert model.embed("a").shape == (32,)


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize("backend", FAST)
def test_cancel_in_the_middle(bert_path: Path, llama_path: Path, backend: str) -> None:
    """From another thread, between texts and within one; the next call has the bits of a fresh one."""
    for path, texts in ((bert_path, ["the cat"] * 4000), (llama_path, [[7] * 1200] * 400)):
        with edgellm.load(path, backend=backend) as model:
            fresh = model.embed("the dog")
            stop, seen = threading.Event(), []

            def report(progress: Progress, stop: threading.Event = stop, seen: list[int] = seen) -> None:
                seen.append(progress.done)
                if progress.done == 1:
                    stop.set()

            with pytest.raises(Cancelled):
                model.embed(texts, cancel=stop, progress=report)
            assert seen[-1] < len(texts)
            assert np.array_equal(model.embed("the dog"), fresh)
            with pytest.raises(Cancelled):
                model.embed(texts, cancel=stop)


@pytest.mark.usefixtures("every_step")
def test_pages_are_given_back(bert_path: Path) -> None:
    with edgellm.load(bert_path) as model:
        free = model._loaded.pool.n_free
        model.embed(TEXTS * 20)
        with pytest.raises(Cancelled):
            model.embed(TEXTS, progress=lambda p: p.done < 2)
        assert model._loaded.pool.n_free == free


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Any:
    def run(*args: Any) -> tuple[int, bytes, str]:
        code = cli.execute(["embed", *map(str, args)])
        out, err = capfdbinary.readouterr()
        assert b"Traceback" not in err
        return code, out, err.decode()

    return run


def test_command(bert_path: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with edgellm.load(bert_path) as model:
        wanted, rows = model.embed(TEXTS), model.embed(TEXTS, pooling="none", normalize=False)
    code, out, _ = run(bert_path, *TEXTS)
    found = json.loads(out)
    assert (code, found["pooling"], found["normalized"]) == (0, "mean", True)
    assert [row["text"] for row in found["data"]] == TEXTS
    assert [row["tokens"] for row in found["data"]] == [len(r) for r in rows]
    assert np.array_equal(np.array([row["embedding"] for row in found["data"]], np.float32), wanted)

    assert np.array_equal(np.load(io.BytesIO(run(bert_path, *TEXTS, "--format", "npy")[1])), wanted)
    table = list(csv.reader(io.StringIO(run(bert_path, *TEXTS, "--format", "csv")[1].decode())))
    assert np.array_equal(np.array([row[1:] for row in table], np.float32), wanted)

    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(TEXTS) + "\n"))
    file = tmp_path / "rows.csv"
    code, out, _ = run(bert_path, "-", "--format", "csv", "--pooling", "none", "--no-normalize", "-o", file)
    table = list(csv.reader(file.open()))
    assert (code, out) == (0, b"")
    assert [row[:2] for row in table] == [[str(i), str(j)] for i, r in enumerate(rows) for j in range(len(r))]
    assert np.array_equal(np.array([row[2:] for row in table], np.float32), np.concatenate(rows))


def test_mistakes_at_the_command_line(bert_path: Path, llama_path: Path, run: Any) -> None:
    code, out, err = run(bert_path, "a " * 100)
    assert (code, out) == (1, b"") and "truncate" in err
    assert run(bert_path, "a " * 100, "--truncate")[0] == 0
    assert run(bert_path, "a", "b", "--format", "npy", "--pooling", "none")[0] == 2
    assert run("nowhere.gguf", "a")[0] == 2
    code, _, err = run(llama_path, "hello", "-o", "/nowhere/x.json")
    assert code == 2 and "nowhere" in err
    assert cli.execute(["run", str(bert_path), "hello"]) == 2
