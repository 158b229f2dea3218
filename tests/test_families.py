"""Every family: the backends agree, bits depend on no thread or pass, answers are those of a straight model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_runs import ALL, FAST, logits, opened
from straight_model import StraightModel
from tiny_families import FAMILIES, tiny_family_gguf

import edgellm
from edgellm import clib
from edgellm.backends import create
from edgellm.backends.compare import compare, nmse
from edgellm.cache import PagePool, Sequence
from edgellm.errors import ModelFormatError, NonFiniteError, PlanError, UnsupportedFeatureError
from edgellm.gguf import open_gguf
from edgellm.ops import Op
from edgellm.plan import Plan
from edgellm.weights import Weights, tensor_shapes


def some_ids(n: int, n_vocab: int) -> np.ndarray:
    return np.random.default_rng(5).integers(3, n_vocab, n).astype(np.int32)


# ---- tiny models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_the_straight_model(tmp_path: Path, family: str) -> None:
    with opened(tiny_family_gguf(tmp_path / "m.gguf", family)) as (plan, weights):
        assert weights.extra == ()
        ids = some_ids(50, plan.n_vocab)
        tensors = {n: weights.file.data(n).view(np.float32).reshape(t.shape) for n, t in weights.file.tensors.items()}
        twin = StraightModel(family, FAMILIES[family][2], {n: x.astype(float) for n, x in tensors.items()}, 2)
        wanted = twin.logits(ids)
        for backend in ALL:
            got = logits(backend, plan, weights, ids, n_threads=2)
            assert nmse(wanted, got) <= 1e-11
            assert (wanted.argmax(1) == got.argmax(1)).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", FAST)
def test_every_step_is_close_to_the_reference(tmp_path: Path, family: str, backend: str) -> None:
    with opened(tiny_family_gguf(tmp_path / "m.gguf", family)) as (plan, weights):
        ids = some_ids(70, plan.n_vocab)
        assert compare(plan, weights, ids, "reference", backend) is None
        assert compare(plan, weights, ids, "reference", backend, n_past=69) is None


@pytest.mark.skipif(not clib.available(), reason="the compiled library was not built")
@pytest.mark.parametrize("type", ["F32", "Q4_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_same_bits_for_threads_passes_panels_and_backends(tmp_path: Path, family: str, type: str) -> None:
    with opened(tiny_family_gguf(tmp_path / "m.gguf", family, type=type)) as (plan, weights):
        ids = some_ids(70, plan.n_vocab)
        wanted = logits("native", plan, weights, ids, n_threads=1)
        for name, options in (
            ("native", {"n_threads": 1, "chunk": 1}),
            ("native", {"n_threads": 3, "chunk": 33}),
            ("native", {"n_threads": 2, "pack": False, "chunk": 7}),
            ("numba", {"n_threads": 2, "chunk": 40}),
        ):
            assert np.array_equal(wanted, logits(name, plan, weights, ids, **options)), (name, options)


def test_every_plan_runs_through_generate(tmp_path: Path) -> None:
    for family in FAMILIES:
        with edgellm.load(tiny_family_gguf(tmp_path / f"{family}.gguf", family), backend=FAST[0]) as model:
            made = model.generate([5, 6, 7], max_tokens=3, sampling=edgellm.Sampling(temperature=0))
            assert len(made.token_ids) == made.usage.completion_tokens == 3


# ---- windows, positions, scales --------------------------------------------------------------------------------------


def windows_of(path: Path) -> list[int]:
    with opened(path) as (plan, _):
        return [s.params["window"] for s in plan.steps if s.op is Op.ATTENTION]


@pytest.mark.parametrize(
    ("family", "keys", "wanted"),
    [
        ("mistral", {}, [20] * 8),
        ("llama", {}, [0] * 8),
        ("gemma2", {}, [20, 0] * 4),
        ("gemma3", {"attention.sliding_window_pattern": None}, [20] * 5 + [0] + [20] * 2),
        ("gemma3", {"attention.sliding_window_pattern": 4}, [20, 20, 20, 0] * 2),
        ("gemma3", {"attention.sliding_window_pattern": 0}, [20] * 8),
        ("gemma2", {"attention.sliding_window_pattern": [True] * 3 + [False] * 5}, [20] * 3 + [0] * 5),
        ("phi3", {}, [40] * 8),
        ("qwen2", {"attention.sliding_window": 9, "attention.sliding_window_pattern": [False] * 6 + [True] * 2},
         [0] * 6 + [9] * 2),
    ],
)  # fmt: skip
def test_which_layers_have_a_window(tmp_path: Path, family: str, keys: dict, wanted: list) -> None:
    assert windows_of(tiny_family_gguf(tmp_path / "m.gguf", family, n_layers=8, **keys)) == wanted


@pytest.mark.parametrize("family", ["mistral", "gemma3", "phi3"])
@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_a_window_as_wide_as_the_context_changes_nothing(tmp_path: Path, family: str, backend: str) -> None:
    """Published Phi 3.5 files have a window of 262,144 in a context of 131,072. transformers and llama.cpp mask
    position p for token t where t - p >= window, so it has no effect from the context's length on."""
    ids, answers = some_ids(90, 40), []
    for window in (2**31 - 1, 257, 256, 90, 89):  # the context is 256
        path = tiny_family_gguf(tmp_path / "m.gguf", family, **{"attention.sliding_window": window})
        with opened(path) as (plan, weights):
            answers.append(logits(backend, plan, weights, ids))
    assert all(np.array_equal(answers[0], same) for same in answers[1:4])
    assert np.array_equal(answers[0][:89], answers[4][:89]) and not np.array_equal(answers[0][89], answers[4][89])


def test_every_fourth_layer_of_smollm3_has_no_positions(tmp_path: Path) -> None:
    with opened(tiny_family_gguf(tmp_path / "m.gguf", "smollm3", n_layers=8, **{"rope.layers": None})) as (plan, _):
        turned = {s.label.split(".")[1] for s in plan.steps if s.op is Op.ROPE}
    assert turned == {"0", "1", "2", "4", "5", "6"}


@pytest.mark.parametrize(("n_layers", "scale"), [(45, 32**-0.5), (46, 16**-0.5)])
def test_gemma2_27b_without_a_scale_of_its_own(tmp_path: Path, n_layers: int, scale: float) -> None:
    """llama.cpp's files have no key for it: 46 layers mean dim / n_heads (16 here), others head_dim."""
    path = tiny_family_gguf(tmp_path / "m.gguf", "gemma2", n_layers=n_layers, **{"attention.scale": None})
    with opened(path) as (plan, _):
        assert all(s.params["scale"] == pytest.approx(scale) for s in plan.steps if s.op is Op.ATTENTION)


def test_softcaps_of_gemma2(tmp_path: Path) -> None:
    def caps(**keys: Any) -> tuple[float, float]:
        with opened(tiny_family_gguf(tmp_path / "m.gguf", "gemma2", **keys)) as (plan, _):
            last = plan.steps[-1]
            own = next(s.params["softcap"] for s in plan.steps if s.op is Op.ATTENTION)
            return own, last.params["cap"] if last.op is Op.SOFTCAP else 0.0

    names = ("attn_logit_softcapping", "final_logit_softcapping")
    assert caps() == (5.0, 8.0)
    assert caps(**dict.fromkeys(names)) == (50.0, 30.0), "the published models' caps where the file does not say"
    assert caps(**dict.fromkeys(names, 0.0)) == (0.0, 0.0)


LONGROPE = {"rope_factors_long.weight": (8,), "rope_factors_short.weight": (8,)}


def test_longrope_takes_its_set_from_the_window_at_load(tmp_path: Path) -> None:
    keys = {"rope.scaling.original_context_length": 64, "rope.scaling.attn_factor": 1.25}
    path = tiny_family_gguf(tmp_path / "m.gguf", "phi3", whole=LONGROPE, **keys)
    plain = 1e4 ** (-np.arange(8) / 8)
    with open_gguf(path) as file:
        long, short = (file.data(name).view(np.float32).astype(float) for name in LONGROPE)
    for n_ctx, divisors in ((64, short), (65, long), (None, long)):
        with opened(path, n_ctx) as (plan, weights):
            np.testing.assert_allclose(plan.ropes[0].inv_freq, plain / divisors, rtol=1e-12)
            assert (plan.ropes[0].magnitude, weights.extra) == (1.25, ())
        with edgellm.load(path, n_ctx=n_ctx, backend=FAST[0]) as model:
            np.testing.assert_allclose(model._loaded.plan.ropes[0].inv_freq, plain / divisors, rtol=1e-12)
    with opened(path) as (plan, weights):
        ids = some_ids(30, plan.n_vocab)
        wanted = logits("reference", plan, weights, ids)
        assert all(nmse(wanted, logits(b, plan, weights, ids)) <= 1e-11 for b in FAST)


def test_heads_that_are_rotated_in_part(tmp_path: Path) -> None:
    with opened(tiny_family_gguf(tmp_path / "m.gguf", "phi3", **{"rope.dimension_count": 12})) as (plan, weights):
        assert len(plan.ropes[0].inv_freq) == 6
        assert all(compare(plan, weights, some_ids(9, plan.n_vocab), "reference", b) is None for b in FAST)


# ---- experts ---------------------------------------------------------------------------------------------------------


def spoiled(plan: Plan, weights: Weights, ids: np.ndarray) -> tuple[list[tuple[str, int]], np.ndarray]:
    """(gate tensor, expert) pairs that no token chose, and the logits."""
    backend = create("reference", plan, weights)
    unused = []
    with Sequence(PagePool.for_tokens(plan.kv, "f32", len(ids)), len(ids)) as seq:
        seq.ensure(len(ids))
        backend.begin(ids, 0, np.arange(len(ids), dtype=np.int32), seq)
        for i, step in enumerate(plan.steps):
            backend.run_step(i)
            if step.op is Op.EXPERTS:
                share = backend.read(step.inputs[1])
                assert ((share != 0).sum(1) == step.params["n_used"]).all()
                unused += [(step.weights[0], e) for e in np.flatnonzero(~(share != 0).any(0))]
        return unused, backend.read(plan.logits)


@pytest.mark.parametrize("backend", ALL)
def test_only_chosen_experts_are_touched(tmp_path: Path, backend: str) -> None:
    """Weights of experts that nobody chose are made NaN: the answer stays."""
    path = tiny_family_gguf(tmp_path / "m.gguf", "qwen3moe", n_layers=3)
    ids = np.array([7, 9], np.int32)
    with opened(path) as (plan, weights):
        unused, wanted = spoiled(plan, weights, ids)
        spans = [weights.span(name) for name, _ in unused]
    assert unused
    with open(path, "r+b") as f:
        for (_, expert), (offset, n_bytes) in zip(unused, spans, strict=True):
            f.seek(offset + expert * (n_bytes // 8))
            f.write(np.full(n_bytes // 32, np.nan, np.float32).tobytes())
    with opened(path) as (plan, weights):
        assert nmse(wanted, logits(backend, plan, weights, ids)) <= 1e-11


@pytest.mark.parametrize("backend", ALL)
def test_experts_that_are_not_normalised_and_ties(tmp_path: Path, backend: str) -> None:
    """A router of zeros gives every expert the same share: the first ones are taken."""
    path = tiny_family_gguf(tmp_path / "m.gguf", "qwen3moe", n_layers=1, **{"expert_weights_norm": False})
    with opened(path) as (plan, weights):
        offset, n_bytes = weights.span("blk.0.ffn_gate_inp.weight")
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(bytes(n_bytes))
    with opened(path) as (plan, weights):
        runner, ids = create(backend, plan, weights), np.array([5, 6], np.int32)
        with Sequence(PagePool.for_tokens(plan.kv, "f32", 2), 2) as seq:
            seq.ensure(2)
            runner.begin(ids, 0, np.array([1], np.int32), seq)
            for i, step in enumerate(plan.steps):
                runner.run_step(i)
                if step.op is Op.ROUTE:
                    np.testing.assert_allclose(runner.read(step.outputs[0]), [[1 / 8] * 3 + [0] * 5] * 2, rtol=1e-6)
                    break
        runner.close()


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("name", ["blk.1.ffn_gate_inp.weight", "blk.1.ffn_gate_exps.weight"])
def test_a_number_that_is_none_is_traced_to_its_step(tmp_path: Path, backend: str, name: str) -> None:
    path = tiny_family_gguf(tmp_path / "m.gguf", "mixtral")
    with opened(path) as (_, weights):
        offset, n_bytes = weights.span(name)
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(np.full(n_bytes // 4, np.nan, np.float32).tobytes())
    with opened(path) as (plan, weights), pytest.raises(NonFiniteError) as error:
        logits(backend, plan, weights, some_ids(5, plan.n_vocab))
    assert error.value.step == ("blk.1.ffn_gate_inp" if "inp" in name else "blk.1.ffn_experts")


def test_bench_counts_the_experts_that_a_token_can_choose(tmp_path: Path) -> None:
    from edgellm.bench import pass_bytes

    with opened(tiny_family_gguf(tmp_path / "m.gguf", "mixtral", n_layers=1)) as (plan, weights):
        one = sum(weights.span(w)[1] for s in plan.steps if s.op is Op.EXPERTS for w in s.weights) // 4
        table = weights.span("token_embd.weight")[1]
        others = weights.n_bytes - table - 4 * one
        assert [pass_bytes(plan, weights, n) for n in (1, 2, 3)] == [others + table + k * one for k in (2, 4, 4)]


def test_softcap_near_zero_and_far_away() -> None:
    from edgellm.backends.numba_kernels import vector  # the bits of the native kernel, see above

    x = np.concatenate([np.logspace(-6, 3, 4001), [0.0, 0.625 * 30, np.inf, np.nan]]).astype(np.float32)
    x = np.concatenate([x, -x])
    y = np.empty_like(x)
    vector.softcap(x, y, 0, x.size, 30.0)
    wanted = 30 * np.tanh(x.astype(np.float64) / 30)
    assert np.isnan(y[np.isnan(x)]).all()
    known = ~np.isnan(x)
    np.testing.assert_allclose(y[known], wanted[known], rtol=4e-7)


# ---- files that do not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "layer", "field"),
    [
        ("phi3", {"attn_qkv.weight": (120, 64)}, "attn_qkv"),
        ("phi3", {"ffn_up.weight": (96, 64)}, "ffn_up"),
        ("mixtral", {"ffn_gate_exps.weight": (3, 96, 64)}, "ffn_gate_exps"),
        ("mixtral", {"ffn_down_exps.weight": (4, 64, 90)}, "ffn_down_exps"),
        ("mixtral", {"ffn_gate_inp.weight": (5, 64)}, "ffn_gate_inp"),
        ("qwen3", {"attn_q_norm.weight": (64,)}, "attn_q_norm"),
        ("olmo2", {"attn_k_norm.weight": (16,)}, "attn_k_norm"),
        ("gemma2", {"post_ffw_norm.weight": (96,)}, "post_ffw_norm"),
    ],
)
def test_tensors_of_another_shape(tmp_path: Path, family: str, layer: dict, field: str) -> None:
    with (
        pytest.raises(ModelFormatError, match=field) as error,
        opened(tiny_family_gguf(tmp_path / "m.gguf", family, layer=layer)),
    ):
        pass
    assert error.value.rule == "T13"


@pytest.mark.parametrize(
    ("family", "layer", "whole"),
    [
        ("llama", {"attn_q_norm.weight": (16,)}, {}),
        ("llama", {"ffn_gate_inp.weight": (4, 64)}, {}),
        ("qwen2", {"attn_sinks.weight": (4,)}, {}),
        ("gemma3", {"attn_v_norm.weight": (32,)}, {}),
        ("phi3", {"attn_qkv.bias": (128,)}, {}),
    ],
)
def test_parts_that_a_plan_would_leave_out_are_refused(tmp_path: Path, family: str, layer: dict, whole: dict) -> None:
    with (
        pytest.raises(UnsupportedFeatureError, match=next(iter(layer))),
        opened(tiny_family_gguf(tmp_path / "m.gguf", family, layer=layer, whole=whole)),
    ):
        pass


def test_parts_of_a_tensor_fit_together(tmp_path: Path) -> None:
    with opened(tiny_family_gguf(tmp_path / "m.gguf", "phi3", type="Q8_0")) as (plan, weights):
        name = "blk.1.attn_qkv.weight"
        parts = [f"{name}[0:64]", f"{name}[64:96]", f"{name}[96:128]"]
        assert [n for n in plan.weights if n.startswith(name)] == parts
        whole = weights.file.data(name)
        assert np.array_equal(np.concatenate([weights.data(p) for p in parts]), whole)
        assert [weights.shape(p) for p in parts] == [(64, 64), (32, 64), (32, 64)]
        assert weights.n_bytes == sum(t.n_bytes for t in weights.file.tensors.values())
    assert tensor_shapes({"a[2:5]": (3, 4), "a[0:2]": (2, 4), "b": (7,)}) == {"a": (5, 4), "b": (7,)}
    for broken in ({"a[1:5]": (4, 4)}, {"a[0:2]": (2, 4), "a[3:5]": (2, 4)}, {"a[0:2]": (2, 4), "a[1:5]": (4, 4)},
                   {"a[0:2]": (2, 4), "a[2:5]": (3, 5)}):  # fmt: skip
        with pytest.raises(PlanError, match="parts of tensor 'a'"):
            tensor_shapes(broken)


def test_native_code_checks_experts_too(tmp_path: Path) -> None:
    """More experts in a row than the plan has room for: an error, not a write beyond the scratch."""
    if not clib.available():
        pytest.skip("the compiled library was not built")
    with opened(tiny_family_gguf(tmp_path / "m.gguf", "mixtral", n_layers=1)) as (plan, weights):
        backend = create("native", plan, weights)
        step = next(i for i, s in enumerate(plan.steps) if s.op is Op.EXPERTS)
        with Sequence(PagePool.for_tokens(plan.kv, "f32", 2), 2) as seq:
            seq.ensure(2)
            backend.begin(np.array([5, 6], np.int32), 0, np.array([0, 1], np.int32), seq)
            for i in range(step):
                backend.run_step(i)
            backend.write(plan.steps[step].inputs[1], np.ones((2, 4), np.float32))
            with pytest.raises(edgellm.EdgeLLMError):
                backend.run_step(step)
        backend.close()


def test_widths_that_are_no_multiple_of_a_panel(tmp_path: Path) -> None:
    """Experts of 40 rows cannot share panels of 16: they stay rows, and the answer is the same."""
    wide, narrow, keys = (8, 40, 64), (8, 64, 40), {"expert_feed_forward_length": 40}
    layer = {"ffn_gate_exps.weight": wide, "ffn_up_exps.weight": wide, "ffn_down_exps.weight": narrow}
    with opened(tiny_family_gguf(tmp_path / "m.gguf", "qwen3moe", type="Q8_0", layer=layer, **keys)) as (plan, weights):
        ids = some_ids(40, plan.n_vocab)
        wanted = logits("numba", plan, weights, ids)
        assert nmse(logits("reference", plan, weights, ids), wanted) <= 1e-2
        if clib.available():
            assert np.array_equal(wanted, logits("native", plan, weights, ids, n_threads=3))


def test_kv_windows_do_not_change_with_the_pass(tmp_path: Path) -> None:
    """A window that ends inside a page, over more than one split of the cache."""
    with opened(tiny_family_gguf(tmp_path / "m.gguf", "mistral", n_layers=1, **{"context_length": 2048})) as (plan, w):
        wider = [{**s.params, "window": 530} if s.op is Op.ATTENTION else s.params for s in plan.steps]
        steps = tuple(dataclasses.replace(s, params=p) for s, p in zip(plan.steps, wider, strict=True))
        plan, ids = dataclasses.replace(plan, steps=steps), some_ids(1100, plan.n_vocab)
        wanted = logits("reference", plan, w, ids, chunk=1100, max_tokens=1100)
        for backend in FAST:
            assert nmse(wanted, logits(backend, plan, w, ids, chunk=97, n_threads=2)) <= 1e-11
