"""The reference backend against a second, straight-line model written here, and against other programs' answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_llama_gguf
from tiny_bert import tiny_bert_gguf
from tiny_families import tiny_family_gguf

from edgellm.backends import NAMES, create
from edgellm.backends.compare import compare, nmse
from edgellm.backends.reference import ReferenceBackend, gelu_tanh, silu
from edgellm.cache import PagePool, Sequence
from edgellm.errors import BackendError, Cancelled, InvalidArgumentError, NonFiniteError
from edgellm.gguf import GGUFWriter, open_gguf
from edgellm.models import build_plan, read_config
from edgellm.ops import Op
from edgellm.plan import Plan
from edgellm.quants import quantize
from edgellm.rope import llama3_divisors
from edgellm.weights import Weights


def load(path: Path) -> tuple[Plan, Weights]:
    file = open_gguf(path)
    plan = build_plan(read_config(file), file)
    return plan, Weights(file, plan)


def run(
    plan: Plan, weights: Any, tokens: np.ndarray, *, kv_type: str = "f32", splits: tuple[int, ...] = ()
) -> np.ndarray:
    """Logits (n, n_vocab) of all tokens, worked on in passes that end at `splits`."""
    pool = PagePool.for_tokens(plan.kv, kv_type, len(tokens))
    backend = ReferenceBackend(plan, weights)
    rows = []
    with Sequence(pool, len(tokens)) as seq:
        for start, end in zip((0, *splits), (*splits, len(tokens)), strict=True):
            seq.ensure(end)
            rows.append(backend.forward(tokens[start:end], start, np.arange(end - start), seq).copy())
            seq.commit(end)
    return np.concatenate(rows)


# ---- the second model: one token after the other, float64, no pages, nothing shared with edgellm ---------------------


class StraightLlama:
    """A Llama as its paper describes it, from a dict of float64 tensors."""

    def __init__(self, weights: Weights, n_heads: int, n_kv_heads: int, head_dim: int, window: int = 0) -> None:
        self.w = {n: weights.float32(n).astype(np.float64) for n in weights.names}
        self.n_heads, self.n_kv_heads, self.head_dim, self.window = n_heads, n_kv_heads, head_dim, window
        self.n_layers = 1 + max(int(n.split(".")[1]) for n in self.w if n.startswith("blk."))
        self.cache: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(self.n_layers)]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.dot(x, x) / len(x) + 1e-5) * self.w[f"{name}.weight"]

    def mul(self, name: str, x: np.ndarray) -> np.ndarray:
        return self.w[f"{name}.weight"] @ x + self.w.get(f"{name}.bias", 0.0)

    def turn(self, x: np.ndarray, position: int) -> np.ndarray:
        """Neighbouring numbers of a head as complex numbers, each multiplied by exp(i * angle)."""
        d = self.head_dim
        z = x.reshape(-1, d // 2, 2) @ np.array([1, 1j])
        z = z * np.exp(1j * position * 10000.0 ** (-np.arange(0, d, 2) / d))
        return np.stack([z.real, z.imag], -1).ravel()

    def token(self, token: int, position: int) -> np.ndarray:
        x = self.w["token_embd.weight"][token]
        for layer in range(self.n_layers):
            b = f"blk.{layer}"
            h = self.norm(x, f"{b}.attn_norm")
            q, k = (self.turn(self.mul(f"{b}.attn_{r}", h), position) for r in "qk")
            self.cache[layer].append((k, self.mul(f"{b}.attn_v", h)))
            x = x + self.mul(f"{b}.attn_output", self.attend(layer, q))
            h = self.norm(x, f"{b}.ffn_norm")
            gate = self.mul(f"{b}.ffn_gate", h)
            x = x + self.mul(f"{b}.ffn_down", gate / (1 + np.exp(-gate)) * self.mul(f"{b}.ffn_up", h))
        head = "output" if "output.weight" in self.w else "token_embd"
        return self.mul(head, self.norm(x, "output_norm"))

    def attend(self, layer: int, q: np.ndarray) -> np.ndarray:
        d, out = self.head_dim, []
        past = self.cache[layer][-self.window :]
        for head in range(self.n_heads):
            kv = head * self.n_kv_heads // self.n_heads * d
            scores = np.array([np.dot(q[head * d : (head + 1) * d], k[kv : kv + d]) for k, _ in past]) / np.sqrt(d)
            p = np.exp(scores - scores.max())
            out.append(sum(a * v[kv : kv + d] for a, (_, v) in zip(p / p.sum(), past, strict=True)))
        return np.concatenate(out)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return np.array([self.token(int(t), i) for i, t in enumerate(tokens)])


SHAPES = [
    {},
    {"tied": True, "biases": True},
    {"n_heads": 3, "n_kv_heads": 1, "head_dim": 10, "dim": 36, "ffn": 50, "n_layers": 1},
    {"n_heads": 7, "n_kv_heads": 7, "head_dim": 6, "dim": 48},
    {"type": "Q8_0"},
    {"type": "Q4_0"},
    {"type": "F16", "tied": True},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_equal_the_straight_line_model(tmp_path: Path, shape: dict) -> None:
    plan, weights = load(tiny_llama_gguf(tmp_path / "m.gguf", **shape))
    tokens = np.random.default_rng(1).integers(0, plan.n_vocab, 70).astype(np.int32)
    heads = shape.get("n_heads", 4)
    twin = StraightLlama(weights, heads, plan.kv.n_kv_heads, plan.kv.head_dim)
    wanted = twin.logits(tokens)
    got = run(plan, weights, tokens)
    assert got.dtype == np.float32
    assert nmse(wanted, got) < 1e-11
    assert (wanted.argmax(1) == got.argmax(1)).all()
    assert 1e-12 < nmse(wanted, run(plan, weights, tokens, kv_type="f16")) < 1e-4  # rounded, but only a little


def test_window_of_attention(tmp_path: Path) -> None:
    plan, weights = load(tiny_llama_gguf(tmp_path / "m.gguf"))
    steps = [
        dataclasses.replace(s, params={**s.params, "window": 5}) if s.op is Op.ATTENTION else s for s in plan.steps
    ]
    tokens = np.arange(3, 33, dtype=np.int32)
    got = run(dataclasses.replace(plan, steps=tuple(steps)), weights, tokens, splits=(7, 20))
    assert nmse(StraightLlama(weights, 4, 2, 16, window=5).logits(tokens), got) < 1e-11


def test_splits_of_a_prompt_do_not_matter(tmp_path: Path) -> None:
    plan, weights = load(tiny_llama_gguf(tmp_path / "m.gguf"))
    tokens = np.random.default_rng(2).integers(0, plan.n_vocab, 140).astype(np.int32)
    whole = run(plan, weights, tokens)
    for splits in [(1,), (64,), (63, 65, 128), tuple(range(1, 140))]:
        assert nmse(whole, run(plan, weights, tokens, splits=splits)) < 1e-11


def test_rope_styles_are_the_same_rotation_of_other_columns() -> None:
    """A head whose columns are reordered from pairs of neighbours to two halves turns the same way."""
    from edgellm.backends.reference import _Pass, rope
    from edgellm.plan import RopeTable, Step

    x = np.random.default_rng(3).standard_normal((4, 2 * 10)).astype(np.float32)  # 2 heads of 10, 6 of them rotated
    order = np.array([0, 2, 4, 1, 3, 5, 6, 7, 8, 9])
    order = np.concatenate([order, order + 10])
    plan = type("P", (), {"ropes": (RopeTable(np.array([1.0, 0.3, 0.1]), 1.5),)})
    now = _Pass(np.zeros(4, np.int32), 5, np.zeros(0, np.int32), None, {})  # type: ignore[arg-type]

    def turned(values: np.ndarray, style: str) -> np.ndarray:
        params = {"head_dim": 10, "rotary_dims": 6, "style": style, "table": 0}
        return rope(Step(Op.ROPE, (0,), (0,), (), params, ""), now, plan, values)

    neighbours = turned(x, "interleaved")
    np.testing.assert_array_equal(neighbours[:, order], turned(x[:, order], "halves"))
    np.testing.assert_array_equal(neighbours[:, 6:10], x[:, 6:10])
    first = x[2, 0] + 1j * x[2, 1]
    wanted = first * np.exp(7j) * 1.5  # row 2 is at position 7, pair 0 turns 1 rad per position
    np.testing.assert_allclose(neighbours[2, :2], [wanted.real, wanted.imag], rtol=1e-5)


def test_activations() -> None:
    x = np.array([-200.0, -1.0, 0.0, 1.0, 200.0], np.float32)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(silu(x), [0, -0.26894142, 0, 0.73105858, 200], atol=1e-6)
    np.testing.assert_allclose(gelu_tanh(x), [0, -0.15880801, 0, 0.84119199, 200], atol=1e-6)


# ---- the interface ---------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Plan, Weights]:
    return load(tiny_llama_gguf(tmp_path / "m.gguf", n_layers=1))


def begin(plan: Plan, n: int = 8) -> Sequence:
    seq = Sequence(PagePool.for_tokens(plan.kv, "f32", n), n)
    seq.ensure(n)
    return seq


def test_only_wanted_rows_come_back(tiny: tuple[Plan, Weights]) -> None:
    plan, weights = tiny
    backend, seq, tokens = create("reference", *tiny), begin(plan), np.arange(3, 11)
    everything = backend.forward(tokens, 0, np.arange(8), seq).copy()
    some = backend.forward(tokens, 0, np.array([0, 5, 7]), seq)
    np.testing.assert_allclose(some, everything[[0, 5, 7]], rtol=1e-4, atol=1e-5)
    assert backend.forward(tokens, 0, np.array([], np.int32), seq).shape == (0, plan.n_vocab)


@pytest.mark.parametrize(
    ("tokens", "position", "outputs"),
    [
        ([], 0, []),
        ([-1], 0, [0]),
        ([10**6], 0, [0]),
        ([[1, 2]], 0, [0]),
        ([1] * 6, 0, [0]),  # more than max_tokens
        ([1, 2], 0, [1, 0]),
        ([1, 2], 0, [1, 1]),
        ([1, 2], 0, [2]),
        ([1, 2], 0, [-1]),
        ([1, 2], -1, [0]),
        ([1, 2], 63, [0]),  # beyond its pages
    ],
)
def test_bad_passes_are_refused(tiny: tuple[Plan, Weights], tokens: list, position: int, outputs: list) -> None:
    backend = create("reference", *tiny, max_tokens=5)
    with pytest.raises(InvalidArgumentError):
        backend.forward(np.array(tokens, np.int32), position, np.array(outputs, np.int32), begin(tiny[0]))


def test_positions_without_pages_are_refused(tiny: tuple[Plan, Weights]) -> None:
    seq = Sequence(PagePool.for_tokens(tiny[0].kv, "f32", 8), 8)
    with pytest.raises(InvalidArgumentError, match="ensure"):
        create("reference", *tiny).forward(np.array([1]), 0, np.array([0]), seq)


def test_cancel(tiny: tuple[Plan, Weights]) -> None:
    backend, seq = create("reference", *tiny), begin(tiny[0])
    flag = np.ones(1, np.int32)
    with pytest.raises(Cancelled):
        backend.forward(np.array([1]), 0, np.array([0]), seq, flag)
    flag[0] = 0
    backend.forward(np.array([1]), 0, np.array([0]), seq, flag)


class Broken:
    """Weights of which one is not a number."""

    def __init__(self, weights: Weights, name: str) -> None:
        self._weights, self._name = weights, name

    def float32(self, name: str) -> np.ndarray:
        x = self._weights.float32(name)
        return np.full_like(x, np.nan) if name == self._name else x


@pytest.mark.parametrize("name", ["blk.0.attn_k", "blk.0.ffn_norm", "output", "token_embd"])
def test_the_first_step_that_is_not_finite_is_named(tiny: tuple[Plan, Weights], name: str) -> None:
    plan, weights = tiny
    backend = ReferenceBackend(plan, Broken(weights, f"{name}.weight"))  # type: ignore[arg-type]
    with pytest.raises(NonFiniteError) as error:
        backend.forward(np.arange(4), 0, np.array([3]), begin(plan))
    assert error.value.step == name


def test_a_closed_backend_says_so(tiny: tuple[Plan, Weights]) -> None:
    backend = create("reference", *tiny)
    backend.close()
    backend.close()
    with pytest.raises(BackendError):
        backend.forward(np.array([1]), 0, np.array([0]), begin(tiny[0]))
    with pytest.raises(BackendError, match="begun"):
        create("reference", *tiny).run_step(0)


def test_unknown_backend(tiny: tuple[Plan, Weights]) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        create("cuda", *tiny)
    assert all(name in str(error.value) for name in NAMES)


# ---- step by step ----------------------------------------------------------------------------------------------------


def test_compare_finds_nothing_between_equals(tiny: tuple[Plan, Weights]) -> None:
    assert compare(*tiny, np.arange(5), a="reference", b="reference") is None


@pytest.mark.parametrize("op", list(Op))
def test_compare_names_the_first_step_that_differs(tmp_path: Path, op: Op) -> None:
    family = {Op.SCALE: "gemma2", Op.SOFTCAP: "gemma2", Op.ROUTE: "mixtral", Op.EXPERTS: "mixtral"}.get(op, "llama")
    encoder = op in (Op.ADD_ROWS, Op.LAYERNORM, Op.GELU)
    path = tmp_path / "m.gguf"
    plan, weights = load(tiny_bert_gguf(path) if encoder else tiny_family_gguf(path, family))
    faulty = [i for i, s in enumerate(plan.steps) if s.op is op][-1]

    class Faulty(ReferenceBackend):
        def run_step(self, index: int) -> None:
            super().run_step(index)
            if index == faulty:
                out = self.plan.steps[index].outputs[0]
                values = self.read(out)
                values[1, 2] += 1.0
                self.write(out, values)

    found = compare(plan, weights, np.arange(4), a="reference", b=Faulty(plan, weights))
    assert found is not None
    assert (found.step, found.label, found.op) == (faulty, plan.steps[faulty].label, op.value)
    assert (found.row, found.col) == (1, 2)
    assert found.b - found.a == pytest.approx(1.0, rel=1e-4)
    assert plan.steps[faulty].label in str(found)


def test_compare_judges_every_step_on_its_own(tiny: tuple[Plan, Weights]) -> None:
    """Errors of 1e-6 (NMSE) in every step must not add up to a difference of 2e-6."""
    plan, weights = tiny

    class Inexact(ReferenceBackend):
        def run_step(self, index: int) -> None:
            super().run_step(index)
            out = self.plan.steps[index].outputs[0]
            self.write(out, self.read(out) * 1.001)

    assert compare(plan, weights, np.arange(4), b=Inexact(plan, weights), tolerance=2e-6) is None
    found = compare(plan, weights, np.arange(4), b=Inexact(plan, weights), tolerance=0.5e-6)
    assert found is not None
    assert found.step == 0
    assert found.nmse == pytest.approx(1e-6, rel=1e-3)


def test_compare_a_decoding_step(tmp_path: Path) -> None:
    plan, weights = load(tiny_llama_gguf(tmp_path / "m.gguf", n_layers=2))
    tokens, attention = np.arange(3, 73), [i for i, s in enumerate(plan.steps) if s.op is Op.ATTENTION]

    class Forgetful(ReferenceBackend):
        """Loses one cached key of the second layer."""

        def run_step(self, index: int) -> None:
            if index == attention[1]:
                seq = self._now().seq
                seq.pool.k_view(int(seq.table[1, 0]), 0)[:, 5] = 0
            super().run_step(index)

    assert compare(plan, weights, tokens, b="reference", n_past=69) is None
    found = compare(plan, weights, tokens, b=Forgetful(plan, weights), n_past=69)
    assert found is not None
    assert (found.label, found.row) == ("blk.1.attn", 0)
    for bad in (-1, 70):
        with pytest.raises(InvalidArgumentError, match="n_past"):
            compare(plan, weights, tokens, b="reference", n_past=bad)


def test_compare_takes_a_nan_for_a_difference(tiny: tuple[Plan, Weights]) -> None:
    plan, weights = tiny
    found = compare(plan, weights, np.arange(4), b=ReferenceBackend(plan, Broken(weights, "output_norm.weight")))
    assert found is not None
    assert found.label == "output_norm"


# ---- answers of other programs ---------------------------------------------------------------------------------------


def interleave(w: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of q or k from two halves per head (Hugging Face) to neighbours (GGUF)."""
    return w.reshape(n_heads, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


NAMES_OF_LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_from_folder(folder: Path, target: Path) -> Path:
    """A second, minimal converter for hf-tiny's Llama folders, F32."""
    import json

    safetensors = pytest.importorskip("safetensors.numpy")
    c = json.loads((folder / "config.json").read_text())
    source = safetensors.load_file(folder / "model.safetensors")
    heads = {"q": c["num_attention_heads"], "k": c["num_key_value_heads"]}
    tensors = {"token_embd.weight": source["model.embed_tokens.weight"]}
    tensors["output_norm.weight"] = source["model.norm.weight"]
    if not c["tie_word_embeddings"]:
        tensors["output.weight"] = source["lm_head.weight"]
    for i in range(c["num_hidden_layers"]):
        for theirs, ours in NAMES_OF_LAYER.items():
            w = source[f"model.layers.{i}.{theirs}.weight"]
            kind = ours.removeprefix("attn_")
            tensors[f"blk.{i}.{ours}.weight"] = interleave(w, heads[kind]) if kind in heads else w
    rope = c["rope_parameters"]
    if rope["rope_type"] == "llama3":
        divisors = llama3_divisors(
            c["head_dim"],
            rope["rope_theta"],
            factor=rope["factor"],
            low_freq_factor=rope["low_freq_factor"],
            high_freq_factor=rope["high_freq_factor"],
            original_ctx=rope["original_max_position_embeddings"],
        )
        tensors["rope_freqs.weight"] = divisors.astype(np.float32)
    keys = {
        "context_length": c["max_position_embeddings"], "embedding_length": c["hidden_size"],
        "block_count": c["num_hidden_layers"], "feed_forward_length": c["intermediate_size"],
        "attention.head_count": heads["q"], "attention.head_count_kv": heads["k"],
        "attention.key_length": c["head_dim"], "attention.value_length": c["head_dim"],
        "attention.layer_norm_rms_epsilon": c["rms_norm_eps"], "rope.freq_base": rope["rope_theta"],
    }  # fmt: skip
    with GGUFWriter(target, "llama") as w:
        for key, value in keys.items():
            w.add(f"llama.{key}", value)
        for name, x in tensors.items():
            w.add_tensor_info(name, x.shape, "F32")
        for name, x in tensors.items():
            w.write_tensor(name, quantize(x.astype(np.float32), "F32"))
    return target


@pytest.mark.parametrize("name", ["llama", "llama3-rope"])
def test_transformers_logits(shared_data: Path, tmp_path: Path, name: str) -> None:
    answer = np.load(shared_data / "hf-tiny" / name / "reference.npz")
    plan, weights = load(gguf_from_folder(shared_data / "hf-tiny" / name, tmp_path / "m.gguf"))
    got = run(plan, weights, answer["input_ids"])
    assert nmse(answer["logits"], got) <= 1e-9
    assert (answer["logits"].argmax(1) == got.argmax(1)).all()
    prompt, wanted = answer["greedy_prompt"], answer["greedy"]
    both = np.concatenate([prompt, wanted])
    assert (run(plan, weights, both[:-1])[len(prompt) - 1 :].argmax(1) == wanted).all()


@pytest.mark.parametrize(("kind", "limit"), [("f16", 2e-6), ("Q8_0", 1e-3), ("Q4_0", 1e-3), ("Q6_K", 1e-3)])
def test_llama_cpp_logits(shared_data: Path, kind: str, limit: float) -> None:
    """llama.cpp rounds activations to f16 or 8 bits where the reference does not: answers are close, not equal."""
    tokens = np.load(shared_data / "hf-tiny" / "llama" / "reference.npz")["input_ids"]
    wanted = np.load(shared_data / "gguf-foreign" / f"llama-{kind}.llamacpp.npz")["logits"]
    plan, weights = load(shared_data / "gguf-foreign" / f"llama-{kind}.gguf")
    assert nmse(wanted, run(plan, weights, tokens)) < limit
