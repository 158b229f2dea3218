"""BERT encoders: backends agree with the paper and with each other, threads change no bit, bad files are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_runs import ALL, FAST, opened
from tiny_bert import PIECES, StraightBert, tiny_bert_gguf

from edgellm import clib
from edgellm.backends import create
from edgellm.backends.compare import compare, nmse
from edgellm.cache import Overflow, PagePool, Sequence
from edgellm.convert import convert
from edgellm.errors import (
    InvalidArgumentError,
    MissingKeyError,
    MissingTensorError,
    ModelFormatError,
    NonFiniteError,
    UnsupportedFeatureError,
)
from edgellm.plan import Plan
from edgellm.weights import Weights

needs_native = pytest.mark.skipif(not clib.available(), reason="the compiled library was not built")


def some_ids(n: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(4, len(PIECES), n).astype(np.int32)


def hidden(
    name: str, plan: Plan, weights: Weights, ids: np.ndarray, *, kv_type: str = "f32", rows: Any = None, **options: Any
) -> np.ndarray:
    """Hidden states (m, dim) of the wanted rows (None: all), in one pass."""
    wanted = np.arange(len(ids), dtype=np.int32) if rows is None else np.asarray(rows, np.int32)
    backend = create(name, plan, weights, **options)
    try:
        with Sequence(PagePool.for_tokens(plan.kv, kv_type, len(ids)), len(ids)) as seq:
            seq.ensure(len(ids))
            return backend.forward(np.asarray(ids, np.int32), 0, wanted, seq, hidden=True).copy()
    finally:
        backend.close()


# ---- tiny models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"dim": 40, "n_heads": 2, "ffn": 33}, {"n_layers": 1, "n_heads": 1}])
@pytest.mark.parametrize("backend", ALL)
def test_equal_to_the_paper(tmp_path: Path, backend: str, options: dict[str, Any]) -> None:
    path = tiny_bert_gguf(tmp_path / "b.gguf", **options)
    with opened(path) as (plan, weights):
        assert (plan.logits, plan.causal, weights.extra) == (None, False, ())
        twin = StraightBert(weights.file, options.get("n_heads", 4))
        for n in (1, 2, 17, 64):
            wanted = twin.hidden(some_ids(n))
            assert nmse(wanted, hidden(backend, plan, weights, some_ids(n), n_threads=2)) <= 1e-12


@pytest.mark.parametrize("backend", ALL)
def test_a_text_of_many_pages_sees_all_of_itself(tmp_path: Path, backend: str) -> None:
    """512 tokens are 8 pages: the first token must see the last."""
    with opened(tiny_bert_gguf(tmp_path / "b.gguf", n_ctx=512, n_layers=1)) as (plan, weights):
        ids = some_ids(512)
        got = hidden(backend, plan, weights, ids, n_threads=2)
        assert nmse(StraightBert(weights.file, 4).hidden(ids), got) <= 1e-12
        ids[-1] = ids[-1] % 7 + 5
        assert not np.array_equal(hidden(backend, plan, weights, ids, n_threads=2)[0], got[0])


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("type", ["F32", "F16", "Q8_0", "Q4_0"])
def test_every_step_is_close_to_the_reference(tmp_path: Path, backend: str, type: str) -> None:
    with opened(tiny_bert_gguf(tmp_path / "b.gguf", type=type)) as (plan, weights):
        assert compare(plan, weights, some_ids(40), "reference", backend) is None


@pytest.mark.parametrize("type, most", [("Q8_0", 5e-4), ("Q4_0", 5e-4), ("Q4_K", 5e-4), ("Q6_K", 5e-4)])
def test_quantised(tmp_path: Path, type: str, most: float) -> None:
    """Against the decoded weights: what is left is the rounding of activations, and of pages to float16."""
    with opened(tiny_bert_gguf(tmp_path / "b.gguf", type=type, dim=256, ffn=512)) as (plan, weights):
        assert type in weights.matrix_types
        ids = some_ids(30)
        wanted = StraightBert(weights.file, 4).hidden(ids)
        found = [hidden(name, plan, weights, ids, kv_type="f16", n_threads=2) for name in ALL]
        for got in found:
            assert nmse(wanted, got) <= most
        assert all(np.array_equal(found[1], other) for other in found[2:])


@needs_native
@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0", "q4_0"])
def test_same_bits_for_threads_panels_and_backends(tmp_path: Path, kv_type: str) -> None:
    with opened(tiny_bert_gguf(tmp_path / "b.gguf", type="Q8_0", n_ctx=200)) as (plan, weights):
        ids = some_ids(150)
        first = hidden("native", plan, weights, ids, kv_type=kv_type)
        for n_threads in (2, 4):
            assert np.array_equal(first, hidden("native", plan, weights, ids, kv_type=kv_type, n_threads=n_threads))
        assert np.array_equal(first, hidden("native", plan, weights, ids, kv_type=kv_type, pack=False))
        assert np.array_equal(first, hidden("numba", plan, weights, ids, kv_type=kv_type, n_threads=2))
        assert np.array_equal(first[[0, 9]], hidden("native", plan, weights, ids, kv_type=kv_type, rows=[0, 9]))


@needs_native
def test_same_bits_for_every_instruction_set(tmp_path: Path) -> None:
    lib = clib.library()[1]
    with opened(tiny_bert_gguf(tmp_path / "b.gguf", dim=36, n_heads=2, ffn=51)) as (plan, weights):
        best, found = clib.isa(), {}
        try:
            for level in (name for name, state in clib.levels().items() if state == "usable"):
                clib.check(lib.el_set_isa(level.encode()), level)
                found[level] = hidden("native", plan, weights, some_ids(40))
        finally:
            lib.el_set_isa(best.encode())
        assert all(np.array_equal(found["portable"], other) for other in found.values())


# ---- what a pass must not be -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ALL)
def test_a_pass_has_no_logits_and_no_further_positions(tmp_path: Path, backend: str) -> None:
    with opened(tiny_bert_gguf(tmp_path / "b.gguf", n_ctx=8)) as (plan, weights):
        runner = create(backend, plan, weights)
        pool = PagePool.for_tokens(plan.kv, "f32", 200)
        with Sequence(pool, 100) as seq, Sequence(pool, 40, Overflow("sink", n_sinks=2, window=8)) as gap:
            seq.ensure(9)
            gap.ensure(3)
            with pytest.raises(InvalidArgumentError, match="embed"):
                runner.forward(some_ids(3), 0, np.array([0]), seq)
            with pytest.raises(InvalidArgumentError, match="positions 0 to 7"):
                runner.forward(some_ids(9), 0, np.array([0]), seq, hidden=True)
            with pytest.raises(InvalidArgumentError, match="drops nothing"):
                runner.forward(some_ids(3), 0, np.array([0]), gap, hidden=True)
        runner.close()


@pytest.mark.parametrize("backend", ALL)
def test_a_value_that_is_not_finite_is_named(tmp_path: Path, backend: str) -> None:
    path = tiny_bert_gguf(tmp_path / "b.gguf")
    with opened(path) as (plan, weights):
        offset = weights.file.tensors["blk.1.ffn_up.bias"].offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    with opened(path) as (plan, weights), pytest.raises(NonFiniteError, match=r"blk\.1\.ffn_up"):
        hidden(backend, plan, weights, some_ids(5))


# ---- files that are refused ------------------------------------------------------------------------------------------

BROKEN: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"shapes": {"token_types.weight": None}}, MissingTensorError, "token_types"),
    ({"shapes": {"position_embd.weight": None}}, MissingTensorError, "position_embd"),
    ({"shapes": {"blk.1.layer_output_norm.bias": None}}, MissingTensorError, "layer_output_norm"),
    ({"shapes": {"blk.0.ffn_up.weight": (48, 31)}}, ModelFormatError, "ffn_up"),
    ({"shapes": {"position_embd.weight": (63, 32)}}, ModelFormatError, "position_embd"),
    ({"shapes": {"token_types.weight": (3, 32)}}, ModelFormatError, "token_types"),
    ({"shapes": {"token_embd.weight": (9, 32)}}, ModelFormatError, "V6"),
    ({"shapes": {"blk.0.attn_q_norm.weight": (32,)}}, UnsupportedFeatureError, "attn_q_norm"),
    ({"attention.head_count": 5}, ModelFormatError, "head_count"),
    ({"attention.head_count": 0}, ModelFormatError, "head_count"),
    ({"attention.layer_norm_epsilon": None}, MissingKeyError, "layer_norm_epsilon"),
    ({"attention.layer_norm_epsilon": float("nan")}, ModelFormatError, "layer_norm_epsilon"),
    ({"attention.causal": True}, UnsupportedFeatureError, "causal"),
    ({"attention.max_alibi_bias": 8.0}, UnsupportedFeatureError, "alibi"),
    ({"pooling_type": 7}, ModelFormatError, "pooling_type"),
]


@pytest.mark.parametrize("changes, error, words", BROKEN)
def test_a_bad_file_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    path = tiny_bert_gguf(tmp_path / "b.gguf", **changes)
    with pytest.raises(error, match=words), opened(path):
        pass


# ---- a model of transformers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ALL)
def test_hidden_states_of_transformers(shared_data: Path, tmp_path: Path, backend: str) -> None:
    reference = np.load(shared_data / "hf-tiny" / "bert" / "reference.npz")
    convert(shared_data / "hf-tiny" / "bert", tmp_path / "b.gguf", outtype="f32")
    with opened(tmp_path / "b.gguf") as (plan, weights):
        for i in range(len(reference["texts"])):
            got = hidden(backend, plan, weights, reference[f"ids_{i}"], n_threads=2)
            assert nmse(reference[f"hidden_{i}"], got) <= 1e-12
