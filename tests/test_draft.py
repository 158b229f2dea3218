"""`edgellm draft`: the set of parts that drafts leave out is found, written, read back and used; hostile values are
refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from family_runs import FAST
from helpers import tiny_llama_gguf
from tiny_families import tiny_family_gguf

import edgellm
from edgellm.errors import Cancelled, InvalidArgumentError, ModelFormatError, OutputError, WrongKeyTypeError
from edgellm.gguf import GGUFWriter, open_gguf
from edgellm.pack import pack
from edgellm.prune import prune
from edgellm.skip_search import _Agreement, find_skip_set, write_skip_set
from edgellm.speculate import SkipSet, read_skip_set
from edgellm.speculate.control import best_length
from edgellm.speculate.skipping import plan_without

QUICK = {"positions": 8, "rounds": 3, "threads": 1}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_llama_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", n_ctx=400, type="Q8_0")


@pytest.fixture(scope="module")
def written(path, tmp_path_factory):
    """(report, the copy) of a search."""
    out = tmp_path_factory.mktemp("out") / "with.gguf"
    return find_skip_set(path, out, **QUICK), out


def test_the_copy_has_all_of_the_source_and_the_set(path, written):
    report, out = written
    skip = report.best.skip
    assert report.path == str(out) and skip.parts and report.n_tried > 5
    assert 0 <= skip.acceptance <= 1 and 0 < report.best.cost < 1
    with open_gguf(path) as old, open_gguf(out) as new:
        own = {key for key in new.metadata if key.startswith("edgellm.draft.")}
        assert [k for k in new.metadata if k not in own] == list(old.metadata) and len(own) == 3
        assert all(new.metadata.raw(key) == old.metadata.raw(key) for key in old.metadata)
        assert list(new.tensors) == list(old.tensors)
        for name, info in old.tensors.items():
            assert new.tensors[name].type is info.type and np.array_equal(new.data(name), old.data(name))
        found = read_skip_set(new, 2)
        assert found.parts == skip.parts and found.acceptance == pytest.approx(skip.acceptance)
        assert read_skip_set(old, 2) is None


def test_the_same_seed_finds_the_same(path, written):
    again = find_skip_set(path, dry_run=True, **QUICK)
    assert again.path is None and again.best == written[0].best and again.steps == written[0].steps


def test_a_model_with_a_set_uses_it(written):
    options = {"max_tokens": 40, "ignore_eos": True, "temperature": 0}
    with edgellm.load(written[1], backend=FAST[0]) as model:
        maker = model._loaded.engine.draft_makers["self"]
        assert maker.cost == pytest.approx(written[0].best.cost)
        plain, fast = (model.generate([1, 300, 304], speculate=kind, **options) for kind in ("off", "self"))
        assert plain.token_ids == fast.token_ids


def test_in_place(path, tmp_path):
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(path.read_bytes())
    find_skip_set(mine, **QUICK)
    with open_gguf(mine) as file:
        first = read_skip_set(file, 2)
    assert first is not None
    find_skip_set(mine, seed=1, **QUICK)  # the old set goes
    with open_gguf(mine) as file:
        assert read_skip_set(file, 2) is not None
    assert [p.name for p in tmp_path.iterdir()] == ["mine.gguf"]


def test_nothing_is_changed_when_it_is_stopped(path, tmp_path):
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(path.read_bytes())
    for stage in ("writing text", "trying layers", "writing"):
        with pytest.raises(Cancelled):
            find_skip_set(mine, progress=lambda p, stage=stage: p.stage != stage, **QUICK)
        assert mine.read_bytes() == path.read_bytes() and [p.name for p in tmp_path.iterdir()] == ["mine.gguf"]


def test_what_it_refuses(path, tmp_path, written):
    for options, match in (({"positions": 3}, "positions is 3"), ({"rounds": -1}, "rounds is -1")):
        with pytest.raises(InvalidArgumentError, match=match):
            find_skip_set(path, dry_run=True, **(QUICK | options))
    link = tmp_path / "link.gguf"
    link.symlink_to(path)
    with pytest.raises(OutputError, match="-o OUT"):
        find_skip_set(link, **QUICK)
    with pytest.raises(InvalidArgumentError, match="the source"):
        find_skip_set(path, path, **QUICK)
    with pytest.raises(OutputError, match="exists already"):
        find_skip_set(path, written[1], overwrite=False, **QUICK)
    packed = tmp_path / "packed.gguf"
    pack(path, packed)
    with pytest.raises(OutputError, match="sealed"):
        find_skip_set(packed, tmp_path / "x.gguf", **QUICK)
    with pytest.raises(InvalidArgumentError, match="not even 128 tokens"):
        find_skip_set(path, dry_run=True, text="too short", **QUICK)


def test_the_rate_is_that_of_single_passes(path):
    """Against fresh sequences: the text up to a position through the whole model, the token there through the rest."""
    from edgellm.loader import Loaded

    loaded = Loaded(path, n_ctx=256, threads=1, backend=FAST[0], kv_type="f32", chat_template=None, seed=None,
                    progress=None)  # fmt: skip
    backend = loaded.runner.sibling(plan_without(loaded.plan, SkipSet((0,), (1,))), 1)
    one = np.zeros(1, np.int32)
    with _Agreement(loaded, None, 8, 0, None) as agreement:
        found = agreement.rate(backend.forward, False, lambda: None)
        right = n = 0
        for window in agreement._windows:
            for position, token in list(window.said.items())[::2]:
                with edgellm.cache.Sequence(loaded.pool, 256) as seq:
                    logits = loaded.engine.forward(seq, window.ids[: position + 1], [position], None)
                    assert int(logits[0].argmax()) == token
                    seq.rewind(position)
                    seq.ensure(position + 1)
                    logits = backend.forward(np.array([window.ids[position]], np.int32), position, one, seq)
                    right, n = right + (int(logits[0].argmax()) == token), n + 1
        assert found == right / n
        whole = loaded.runner.sibling(plan_without(loaded.plan, SkipSet((), ())), 1)
        assert agreement.rate(whole.forward, True, lambda: None) == 1.0
        whole.close()
    backend.close()
    loaded.close()


def test_best_length():
    """Against the sum written out."""
    for a, c in ((0.9, 0.1), (0.5, 0.3), (0.99, 0.02)):
        gains = [(1 - a ** (k + 1)) / (1 - a) / (c * k + 1 + 0.04 * k) for k in range(1, 8)]
        assert best_length(a, c) == (1 + int(np.argmax(gains)), pytest.approx(max(gains)))


# ---- hostile files ---------------------------------------------------------------------------------------------------


def with_keys(path, out, **keys):
    with open_gguf(path) as file, GGUFWriter(out, None) as writer:
        for key in file.metadata:
            writer.add_raw(key, file.metadata.raw(key))
        for key, (value, kind) in keys.items():
            writer.add(f"edgellm.draft.{key}", value, kind)
        for t in file.tensors.values():
            writer.add_tensor_info(t.name, t.shape, t.type)
        for t in file.tensors.values():
            writer.write_tensor(t.name, file.data(t.name))
    return out


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ({"skip_attention": ([2], "u32")}, ModelFormatError),
        ({"skip_attention": ([2**32 - 1], "u32")}, ModelFormatError),
        ({"skip_attention": ([-1], "i32")}, ModelFormatError),
        ({"skip_feed_forward": ([1, 0], "u32")}, ModelFormatError),
        ({"skip_feed_forward": ([0, 0], "u32")}, ModelFormatError),
        ({"skip_feed_forward": ([0] * 100_000, "u32")}, ModelFormatError),
        ({"skip_attention": ([0], "u32"), "acceptance": (1.5, "f32")}, ModelFormatError),
        ({"skip_attention": ([0], "u32"), "acceptance": (float("nan"), "f32")}, ModelFormatError),
        ({"skip_attention": ("all", "str")}, WrongKeyTypeError),
        ({"skip_attention": (0, "u32")}, WrongKeyTypeError),
        ({"skip_attention": ([0], "u32"), "acceptance": ("high", "str")}, WrongKeyTypeError),
    ],
)
def test_hostile_values(path, tmp_path, keys, error):
    hostile = with_keys(path, tmp_path / "x.gguf", **keys)
    with pytest.raises(error):
        edgellm.load(hostile, backend=FAST[0])


def test_pruned_layers_take_the_set_along_with_them(tmp_path, written):
    """Their numbers would mean other layers."""
    out = tmp_path / "pruned.gguf"
    prune(written[1], out, pattern="unstructured", method="magnitude", sparsity=0.3, threads=1)
    with open_gguf(out) as file:
        assert read_skip_set(file, 2) is None


# ---- the command -----------------------------------------------------------------------------------------------------


def test_command(path, tmp_path, capsys):
    from edgellm.cli import execute

    def run(*args):
        code = execute(list(args))
        return code, capsys.readouterr()

    out = str(tmp_path / "out.gguf")
    flags = ["--positions", "8", "--rounds", "2", "-t", "1"]
    code, told = run("draft", str(path), "-o", out, *flags)
    assert code == 0 and "best of" in told.err and out in told.err and not told.out
    assert "self-drafts" in run("show", out)[1].out
    report = json.loads(run("draft", str(path), "--dry-run", "--json", *flags)[1].out)
    assert report["path"] is None and set(report["best"]["skip"]) == {"attention", "feed_forward", "acceptance"}
    code, told = run("run", str(path), "--speculate", "self", "-p", "a")
    assert code and "edgellm draft" in told.err


def test_a_family_with_experts(tmp_path):
    path = tiny_family_gguf(tmp_path / "model.gguf", "mixtral")
    with open_gguf(path) as file:
        write_skip_set(file, str(tmp_path / "x.gguf"), SkipSet((1,), (0,), 0.5))
    with edgellm.load(tmp_path / "x.gguf", backend=FAST[0]) as model:
        assert model._loaded.engine.draft_makers["self"].prior == 0.5
