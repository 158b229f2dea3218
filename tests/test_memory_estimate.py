"""What `edgellm.estimate` says before loading, held against what loading and a full context really take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_llama_gguf
from tiny_families import tiny_family_gguf

import edgellm
from edgellm import clib, machine, memory_estimate
from edgellm.builtin import builtin_model
from edgellm.errors import InvalidArgumentError, NotEnoughMemoryError
from edgellm.memory_estimate import MARGIN

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import json, sys
import edgellm
from edgellm import clib
import edgellm.generate, edgellm.loader, edgellm.models, edgellm.sampling.sampler, edgellm.tokenizers.spm
def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name + ":"))
path, options = sys.argv[1], json.loads(sys.argv[2])
with edgellm.load(backend=options["backend"], threads=2) as model:  # what comes once per process
    model.generate([5] * 100, max_tokens=3)
told = edgellm.estimate(path, **options)
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark begins anew
before = status("VmHWM")
with edgellm.load(path, **options) as model:
    model.generate([5 + i % 200 for i in range(model.n_ctx - 8)], max_tokens=8, ignore_eos=True)
    print(json.dumps([status("VmHWM") - before, told.total - told.runtime]))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The built-in model, 62 MB of Q8_0 as it is and packed, and 29 MB of F32, which is read where it is mapped."""
    from edgellm.pack import pack

    folder = tmp_path_factory.mktemp("estimate")
    sizes = {"dim": 1024, "n_heads": 16, "n_kv_heads": 8, "ffn": 8192, "tied": True}
    big = tiny_llama_gguf(folder / "big.gguf", type="Q8_0", n_ctx=4096, **sizes)
    plain = tiny_llama_gguf(folder / "plain.gguf", dim=512, n_heads=8, n_kv_heads=4, ffn=1536, n_ctx=1024, tied=True)
    packed = Path(pack(big, folder / "packed.gguf").path)
    return {"built-in": Path(builtin_model()), "big": big, "packed": packed, "plain": plain}


CASES = [
    ("built-in", {"n_ctx": 512, "backend": "native"}),
    ("built-in", {"n_ctx": 512, "backend": "numba"}),
    ("big", {"n_ctx": 64, "backend": "native"}),
    ("big", {"n_ctx": 1500, "backend": "native", "kv_type": "f32"}),
    ("big", {"n_ctx": 700, "backend": "native", "pack": False}),
    ("big", {"n_ctx": 700, "backend": "numba"}),
    ("packed", {"n_ctx": 700, "backend": "native"}),
    ("packed", {"n_ctx": 700, "backend": "native", "huge_pages": True}),
    ("plain", {"n_ctx": 1024, "backend": "native"}),
]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_estimate_is_what_a_full_context_takes(
    models: dict[str, Path], name: str, options: dict[str, Any]
) -> None:
    if options["backend"] == "native" and not clib.available():
        pytest.skip("the compiled library is not there")
    command = [sys.executable, "-c", PROGRAM, str(models[name]), json.dumps(options | {"threads": 2})]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    measured, told = json.loads(done.stdout)
    assert abs(told - measured) <= 0.05 * measured + 8e6, (told, measured)


def test_parts(models: dict[str, Path]) -> None:
    """Who holds the weights: the mapped file, or memory of the process."""
    size = models["big"].stat().st_size
    for name, options, mapped in [("big", {}, 0), ("big", {"pack": False}, 1), ("packed", {}, 1)]:
        for backend in ("native", "numba") if clib.available() and name == "big" else ("native",):
            told = edgellm.estimate(models[name], backend=backend, n_ctx=64, **options)
            in_file = told.mapped if mapped or backend == "numba" else told.panels
            assert 0.97 * size < in_file < 1.03 * size and told.mapped + told.panels < 1.05 * size
            assert told.total == sum(told.to_dict()[part] for part in PARTS)
    huge = edgellm.estimate(models["packed"], n_ctx=64, huge_pages=True)
    assert huge.panels > 0.97 * size > huge.mapped


PARTS = ("mapped", "panels", "cache", "scratch", "tokenizer", "runtime")


@pytest.mark.parametrize("n_ctx", [0, -1, 2**31, True, 1.5, "64"])
def test_hostile_contexts(n_ctx: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="n_ctx is"):
        edgellm.estimate(n_ctx=n_ctx)
    with pytest.raises(InvalidArgumentError, match="n_ctx is"):
        edgellm.load(n_ctx=n_ctx)


@pytest.mark.parametrize("options", [{"threads": 0}, {"backend": "gpu"}, {"kv_type": "q1"}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        edgellm.estimate(**options)


def test_the_largest_context_is_told(tmp_path: Path) -> None:
    told = edgellm.estimate(n_ctx=2**31 - 1)
    assert not told.fits and 0 < told.largest_n_ctx < 2**31 - 1
    assert told.suggestions[0] == f"n_ctx={told.largest_n_ctx}"
    with pytest.raises(NotEnoughMemoryError) as caught:
        told.check()
    assert (caught.value.have, caught.value.suggestions) == (told.available, told.suggestions)
    assert edgellm.estimate(n_ctx=64).suggestions == ()


def memory_of(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(1 << 40, available, available))


def test_suggestions_fit(monkeypatch: pytest.MonkeyPatch, models: dict[str, Path]) -> None:
    """Each thing that is suggested fits when it is done, and one page more of context does not."""
    path = models["big"]
    need = edgellm.estimate(path, n_ctx=4096, kv_type="f32").total
    memory_of(monkeypatch, need + MARGIN - 1)
    told = edgellm.estimate(path, n_ctx=4096, kv_type="f32")
    assert not told.fits
    asked = dict(s.split("=") for s in told.suggestions if "=" in s)
    n_ctx, kv_type = int(asked["n_ctx"]), asked["kv_type"].strip("'")
    assert edgellm.estimate(path, n_ctx=n_ctx, kv_type="f32").fits
    assert not edgellm.estimate(path, n_ctx=n_ctx + 64, kv_type="f32").fits
    assert edgellm.estimate(path, n_ctx=4096, kv_type=kv_type).fits
    memory_of(monkeypatch, need + MARGIN)
    assert edgellm.estimate(path, n_ctx=4096, kv_type="f32").fits


def test_a_smaller_quantisation_is_suggested(monkeypatch: pytest.MonkeyPatch, models: dict[str, Path]) -> None:
    now = edgellm.estimate(models["big"], n_ctx=64)
    memory_of(monkeypatch, now.total - now.panels // 5 + MARGIN)  # Q6_K takes 77 % of Q8_0
    told = edgellm.estimate(models["big"])
    assert (told.fits, told.largest_n_ctx, told.n_ctx) == (False, 0, 64)
    assert len(told.suggestions) == 1 and "Q6_K" in told.suggestions[0]
    memory_of(monkeypatch, MARGIN)
    assert edgellm.estimate(models["big"]).suggestions == ("a smaller model",)


def test_nothing_is_loaded_that_does_not_fit(monkeypatch: pytest.MonkeyPatch, models: dict[str, Path]) -> None:
    """`load` raises by the same estimate, before a backend or a cache exists."""
    from edgellm import backends

    told = edgellm.estimate(models["big"], n_ctx=2000)
    memory_of(monkeypatch, told.total + MARGIN - 1)
    monkeypatch.setattr(backends, "create", lambda *a, **k: pytest.fail("the weights were touched"))
    with pytest.raises(NotEnoughMemoryError) as caught:
        edgellm.load(models["big"], n_ctx=2000)
    assert caught.value.need == told.total + MARGIN and caught.value.have == told.total + MARGIN - 1
    assert f"n_ctx={edgellm.estimate(models['big'], n_ctx=2000).largest_n_ctx}" in caught.value.suggestions


def test_largest_agrees_with_trying_all() -> None:
    for limit in (1, 63, 64, 65, 1000):
        for most in range(0, limit + 70, 7):
            tried = [n for n in range(1, limit + 1) if n <= most and (n % 64 == 0 or n == limit)]
            assert memory_estimate._largest(lambda n, most=most: n <= most, limit) == max(tried, default=0)


@pytest.mark.parametrize("family", ["gemma3", "mixtral", "phi3"])
def test_every_family_has_an_estimate(tmp_path: Path, family: str) -> None:
    path = tiny_family_gguf(tmp_path / "model.gguf", family)
    for backend in ("auto", "reference"):
        told = edgellm.estimate(path, backend=backend)
        assert told.fits and told.scratch > 0 and told.mapped + told.panels > 0


def test_layers_with_a_window_take_short_tables(tmp_path: Path) -> None:
    """The cache of Mistral, all of whose layers have a window, stops growing; a Llama of the same shape goes on."""
    windowed, plain = (tiny_family_gguf(tmp_path / f"{name}.gguf", name) for name in ("mistral", "llama"))
    sizes = {path: [edgellm.estimate(path, n_ctx=n).cache for n in (1024, 8192, 65536)] for path in (windowed, plain)}
    assert sizes[windowed][1] == sizes[windowed][2] < sizes[plain][1]
    assert sizes[plain][2] == 8 * sizes[plain][1]


def test_page_types_that_differ() -> None:
    """Half of K's bytes and half of V's; a page of 4 bits is the smallest."""
    sizes = {t: edgellm.estimate(n_ctx=512, kv_type=t).cache for t in ("f16", "q8_0", "q4_0", "f16:q8_0")}
    assert 2 * sizes["f16:q8_0"] == sizes["f16"] + sizes["q8_0"]
    assert sizes["q4_0"] < sizes["q8_0"] < sizes["f16"]


def test_c_refuses_bad_sizes() -> None:
    if not clib.available():
        pytest.skip("the compiled library is not there")
    ffi, lib = clib.library()
    assert lib.el_plan_bytes(ffi.NULL, 1, 1, 1, 4096) == -1
    with edgellm.load(n_ctx=64) as model:
        plan = model._loaded.runner._fused.handle
        good = lib.el_plan_bytes(plan, 512, 1, 1, 4096)
        assert good > lib.el_plan_bytes(plan, 1, 1, 1, 4096) > 0
        assert lib.el_plan_bytes(plan, 2**62, 1, 1, 4096) == good, "a pass has at most max_tokens"
        for bad in [(0, 1, 1, 4096), (1, -1, 1, 4096), (1, 1, 0, 4096), (1, 1, 2**30, 4096), (1, 1, 1, 0)]:
            assert lib.el_plan_bytes(plan, *bad) == -1
