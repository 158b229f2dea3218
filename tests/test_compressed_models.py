"""Compressed panels in models: taken where they are smaller, and with the logits of dense panels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_llama_gguf
from test_panels_compressed import thin_rows

import edgellm
from edgellm import clib, quants
from edgellm.backends import compressed
from edgellm.backends.compressed import WORTH, compressed_index
from edgellm.prune import prune

if not clib.available():
    pytest.skip("the native library is not built", allow_module_level=True)

COMPRESSED = clib.library()[1].EL_COMPRESSED
IDS = [1, 300, 17, 5, 260, 99, 98, 41, 7, 7, 300, 12]


@pytest.fixture
def compress_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine whose kernels expand codes fast (elsewhere the portable ones do the same), and for any size."""
    monkeypatch.setattr(compressed, "SMALL", 0)
    monkeypatch.setattr(compressed, "has_fast_kernel", lambda kind: True)


def layouts(model: edgellm.Model) -> dict[str, int]:
    """The layout of each weight of a loaded model."""
    table = model._loaded.runner._table
    return {name: table.structs[i].layout for name, i in table.ids.items()}


def logits(path: Path, **options: object) -> tuple[np.ndarray, dict[str, int]]:
    with edgellm.load(path, n_ctx=64, threads=2, backend="native", **options) as model:
        return model.logits(IDS), layouts(model)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_a_pruned_model_is_compressed_and_says_the_same(
    kind: str, pattern: str, tmp_path: Path, compress_everywhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_llama_gguf(tmp_path / "whole.gguf", type=kind, dim=256, ffn=288, n_heads=8)
    thin = tmp_path / "thin.gguf"
    prune(whole, thin, None if pattern == "2:4" else 0.6, pattern, "magnitude", text="ab " * 400, chunk_size=32)
    found, forms = logits(thin)
    pruned = {name for name in forms if name.startswith("blk.") and "norm" not in name}
    assert {name for name, layout in forms.items() if layout == COMPRESSED} == pruned
    assert COMPRESSED not in logits(whole)[1].values()
    sizes = [edgellm.estimate(path, n_ctx=64, backend="native").panels for path in (thin, whole)]
    assert sizes[0] < 0.95 * sizes[1]
    assert COMPRESSED not in logits(thin, pack=False)[1].values()
    monkeypatch.setattr(compressed, "find_compressed", lambda *_: {})
    dense, forms = logits(thin)
    assert COMPRESSED not in forms.values()
    assert found.tobytes() == dense.tobytes()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9])
def test_the_form_is_taken_that_has_fewer_bytes(kind: str, share: float, compress_everywhere: None) -> None:
    rows, k = 1024, 512
    form = compressed_index(thin_rows(kind, rows, k, share), quants.resolve_type(kind), rows, k)
    dense = quants.panel_bytes(rows, k, kind)
    if share < (0.1 if kind == "Q8_0" else 0.31):
        assert form is None
    else:
        assert form is not None and form.n_bytes <= WORTH * dense


def test_without_fast_kernels_panels_stay_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clib, "kernel_level", lambda block, layout: "portable")
    assert compressed_index(thin_rows("Q8_0", 256, 512, 0.9), quants.resolve_type("Q8_0"), 256, 512) is None


def test_types_without_an_exact_zero_are_not_compressed(compress_everywhere: None) -> None:
    kind = quants.resolve_type("Q6_K")
    assert compressed_index(np.ones(64 * kind.row_bytes(256), np.uint8), kind, 64, 256) is None


def test_small_models_stay_dense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What caches hold is bound by instructions: there compressed panels are slower."""
    monkeypatch.setattr(compressed, "has_fast_kernel", lambda kind: True)
    thin = tmp_path / "thin.gguf"
    whole = tiny_llama_gguf(tmp_path / "whole.gguf", type="Q8_0", dim=256, ffn=288, n_heads=8)
    prune(whole, thin, 0.6, "unstructured", "magnitude", text="ab " * 400, chunk_size=32)
    assert COMPRESSED not in logits(thin)[1].values()
