"""Session files: the way back is bit for bit, and nothing that is damaged or made up gets through."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from helpers import tiny_llama_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from test_session import CHATML

import edgellm
from edgellm import clib, pack
from edgellm.cache import Overflow, PagePool
from edgellm.cache.saved import SavedSequence, SavedSequenceError, restore
from edgellm.errors import (
    EdgeLLMError,
    InvalidArgumentError,
    ModelFileNotFoundError,
    NotEnoughMemoryError,
    OutputError,
    SessionFileError,
)
from edgellm.gguf import open_gguf
from edgellm.identity import model_identity
from edgellm.plan import KVShape
from edgellm.session_state import _LATER
from edgellm.sessionfile import SessionFile, header_digest, write_session

POLICIES = ["error", "sink:4:60", "shift", "drop-turns"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    template = {"tokenizer.chat_template": CHATML}
    return {
        "chat": tiny_llama_gguf(folder / "chat.gguf", **template),
        "other": tiny_llama_gguf(folder / "other.gguf", seed=1, **template),
        "plain": tiny_llama_gguf(folder / "plain.gguf"),
    }


@pytest.fixture(scope="module")
def model(paths):
    with edgellm.load(paths["chat"], backend="reference", n_ctx=96) as model:
        yield model


def talked(model, policy="drop-turns", n=5, **options):
    """A session that has lost tokens under every policy but `error`."""
    session = model.session(system="be kind", overflow=policy, max_tokens=8, **options)
    for i in range(1 if policy == "error" else n):
        session.send(f"hello {i}")
    return session


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "a.edgesession"
    with talked(model) as session:
        session.save(path)
    return path


# ---- there and back


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0"])
def test_there_and_back(paths, tmp_path, policy, kv_type):
    """What follows is what would have followed: tokens, seeds, what is dropped, what can be undone."""
    path = tmp_path / "a.edgesession"
    with edgellm.load(paths["chat"], backend="reference", n_ctx=128, kv_type=kv_type) as model:
        session = talked(model, policy)
        session.save(path)
        loaded = edgellm.Session.load(model, path)
        assert loaded.messages == session.messages and loaded.context.used == session.context.used
        assert (loaded.seed, loaded.options, loaded.overflow) == (session.seed, session.options, session.overflow)
        for _ in range(2):
            a, b = session.send("hello"), loaded.send("hello")
            assert (a.token_ids, a.seed, a.context) == (b.token_ids, b.seed, b.context)
        assert session.undo() == loaded.undo() and session.context == loaded.context
        assert session.send("the world").token_ids == loaded.send("the world").token_ids
        again = tmp_path / "b.edgesession"
        for each in (session, loaded):
            each.save(again)
            with SessionFile(again) as file:
                assert file.description["messages"] == session.messages


def test_empty_sessions_and_texts_without_a_template(paths, model, tmp_path):
    path = tmp_path / "a.edgesession"
    with model.session(system="be kind", temperature=0) as session:
        session.save(path)
    loaded = edgellm.Session.load(model, path)
    assert loaded.system == "be kind" and loaded.messages == []
    assert loaded.send("hello", max_tokens=3).token_ids
    with edgellm.load(paths["plain"], backend="reference") as plain:
        with plain.session(temperature=0, max_tokens=6) as session:
            session.send("once upon")
            session.send(" a time")
            session.save(path)
            expected = session.send(" there").token_ids
        assert edgellm.Session.load(plain, path).send(" there").token_ids == expected


CHILD = """
import os, sys, edgellm
model = edgellm.load(sys.argv[1], backend=sys.argv[3], n_ctx=96)
session = model.session(system="be kind", overflow="drop-turns", max_tokens=8, seed=11, temperature=1.0)
for i in range(5):
    session.send(f"hello {i}")
session.save(sys.argv[2])
print("saved", flush=True)
print(*session.send("the world").token_ids, flush=True)
session.save(sys.argv[2])  # killed in the middle of the next one, or of this
for i in range(10**6):
    session.send("hello")
    session.save(sys.argv[2])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_kill_the_process_and_go_on(paths, tmp_path, backend):
    """The answer after loading is the one that the killed process gave; a later kill leaves a whole file."""
    if backend == "native" and not clib.available():
        pytest.skip("no compiled library")
    path = tmp_path / "a.edgesession"
    script = tmp_path / "child.py"
    script.write_text(textwrap.dedent(CHILD))
    env = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    args = [sys.executable, str(script), str(paths["chat"]), str(path), backend]
    with subprocess.Popen(args, env=env, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "saved\n"
        first = path.read_bytes()
        expected = tuple(int(word) for word in child.stdout.readline().split())
        child.send_signal(signal.SIGKILL)
    with edgellm.load(paths["chat"], backend=backend, n_ctx=96) as model:
        edgellm.Session.load(model, path).send("hello")
        path.write_bytes(first)
        assert edgellm.Session.load(model, path).send("the world").token_ids == expected


@pytest.mark.skipif(not clib.available(), reason="no compiled library")
def test_other_backends_go_on(paths, tmp_path):
    """Pages are the same for all: written by one backend, read by the next."""
    path = tmp_path / "a.edgesession"
    with edgellm.load(paths["chat"], backend="native", kv_type="f32") as native:
        session = talked(native, "error", temperature=0)
        session.save(path)
        expected = session.send("the world")
    with edgellm.load(paths["chat"], backend="reference", kv_type="f32") as reference:
        loaded = edgellm.Session.load(reference, path)
        result = loaded.send("the world")
    assert result.context.reused == expected.context.reused and result.token_ids == expected.token_ids


def test_a_packed_file_is_the_same_model(tmp_path):
    source, packed = tmp_path / "a.gguf", tmp_path / "b.gguf"
    tiny_llama_gguf(source, type="Q4_0", dim=64, ffn=128)
    pack.pack(source, packed)
    with open_gguf(source) as a, open_gguf(packed) as b:
        assert model_identity(a) == model_identity(b)


def test_another_model_has_another_identity(tmp_path):
    """One weight, one key, one name."""
    def identity(**changes):
        path = tmp_path / "m.gguf"
        tiny_llama_gguf(path, **changes)
        with open_gguf(path) as file:
            return model_identity(file)

    found = [identity(), identity(seed=1), identity(n_layers=1), identity(**{"llama.rope.freq_base": 1e5}),
             identity(**{"general.name": "x"}), identity(type="F16")]  # fmt: skip
    assert len(set(found)) == len(found) and identity() == found[0]
    assert identity(**{"general.alignment": 64}) == found[0], "how it is stored does not count"


def test_large_tensors_are_sampled(tmp_path):
    """A change in a sampled row counts; the rows are spread over the tensors."""
    from edgellm.identity import _samples

    path = tmp_path / "m.gguf"
    tiny_llama_gguf(path, dim=256, ffn=512)
    with open_gguf(path) as file:
        before = model_identity(file)
        info = sorted(file.tensors.values(), key=lambda t: t.name)
        i, large = next((i, t) for i, t in enumerate(info) if t.n_bytes > 1 << 16)
        first, n = next(_samples(large, i))
        at = large.offset + first * large.n_bytes // large.shape[0]
    assert n == 16 and 0 <= first <= large.shape[0] - 16 and first % 16 == 0
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with open_gguf(path) as file:
        assert model_identity(file) != before


# ---- damaged and made up


def refused(model, path):
    """Loading `path` ends in a typed error that says where."""
    with pytest.raises(SessionFileError) as caught:
        edgellm.Session.load(model, path)
    error = caught.value
    assert error.rule and str(path) in str(error) and error.exit_code == 3
    return error


def free_pages(model):
    model._loaded.engine.tree.clear()
    return model._loaded.pool.n_free


def test_a_thousand_damaged_files(model, saved):
    """Cut anywhere, a bit flipped anywhere, bytes doubled or zeroed: refused, and the model still answers."""
    rng = random.Random(5)
    whole = saved.read_bytes()
    free, before = free_pages(model), model.generate("hello", max_tokens=3, temperature=0).token_ids
    session = talked(model, "error", temperature=0)
    rules = set()
    for i in range(1000):
        data = bytearray(whole)
        at = rng.randrange(len(data)) if i % 2 else rng.randrange(4096)
        kind = i % 5
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            end = min(len(data), at + rng.randrange(1, 64))
            replacement = bytes(rng.randrange(256) for _ in range(end - at))
            data[at:end] = replacement if replacement != data[at:end] else bytes(b ^ 1 for b in replacement)
        elif kind == 3:
            data[at:at] = data[at : at + rng.randrange(1, 100)]
        else:
            data += bytes(rng.randrange(1, 5000))
        saved.write_bytes(data)
        rules.add(refused(model, saved).rule)
    assert {"D1", "D3", "D4", "D9"} <= rules
    assert session.send("hello").token_ids and model.generate("hello", max_tokens=3, temperature=0).token_ids == before
    session.close()
    assert free_pages(model) == free, "no page was lost"
    saved.write_bytes(whole)
    edgellm.Session.load(model, saved).close()


def signed(path, change):
    """Change the description of a session file, and give it the checksum of a whole one."""
    with SessionFile(path) as file:
        description = json.loads(json.dumps(file.description))
        change(description)
        ids, places = file.ids.tolist(), [tuple(place) for place in file.places.tolist()]
        pages = [np.empty(file.page_bytes, np.uint8) for _ in places]
        for i, page in enumerate(pages):
            file.read_page(i, page)
    write_session(path, description, ids, places, pages)


def put(*names_and_value):
    *names, value = names_and_value

    def change(description):
        inner = description
        for name in names[:-1]:
            inner = inner[name]
        inner[names[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "rule", "part"),
    [
        (put("model", "identity", "0" * 64), "D6", "another model"),
        (put("model", "identity", "x"), "D5", "model.identity"),
        (put("cache", "kv_type", "f16"), "D7", "kv_type='f16'"),
        (put("cache", "n_layers", 3), "D7", "n_layers"),
        (put("cache", "rotation", "0" * 64), "D7", "n_ctx="),
        (put("cache", "head_dim", -1), "D5", "cache.head_dim"),
        (put("sequence", "length", 10**9), "D8", "length"),
        (put("sequence", "length", 2**53 + 1), "D5", "sequence.length"),
        (put("sequence", "length", 1), "D8", ""),
        (put("sequence", "exact", 10**6), "D8", "exact"),
        (put("sequence", "first", 10**6), "D8", "first"),
        (put("sequence", "first_id", 10**6), "D8", "first_id"),
        (put("sequence", "turns", [5, 5]), "D8", "turns"),
        (put("sequence", "overflow", "kind", "sink"), "D5", "overflow"),
        (put("sequence", "overflow", {"kind": "sink", "n_sinks": 4, "window": 60, "keep": None}), "D8", ""),
        (put("sequence", "overflow", "keep", 10**6), "D8", "do not fit"),
        (put("overflow", "kind", "never"), "D5", "overflow"),
        (put("options", "sampling", "top_p", 7), "D5", "top_p"),
        (put("options", "sampling", "stop", "x"), "D5", "stop"),
        (put("options", "sampling", "samplers", "top_k"), "D5", "samplers"),
        (put("options", "sampling", "samplers", ["top_k", "top_k"]), "D5", "twice"),
        (put("options", "sampling", "logit_bias", [[1, 2, 3]]), "D5", "logit_bias"),
        (put("options", "sampling", "dry_base", None), "D5", "dry_base"),
        (put("options", "sampling", "magic", 1), "D5", "magic"),
        (put("options", "exact", 1), "D5", "exact"),
        (put("options", "max_tokens", -1), "D5", "max_tokens"),
        (put("messages", [{"role": "user"}]), "D5", "messages[0]"),
        (put("messages", "hello"), "D5", "messages"),
        (put("messages", []), "D8", ""),
        (put("turns", [[0, 0, 0, [], 0]]), "D5", "turns[0]"),
        (put("turns", [[0, 0, 0, [10**6], 0, 0]]), "D5", "turns[0]"),
        (put("first", 1000), "D8", "first"),
        (put("text", None), "D8", ""),
        (put("text", 5), "D5", "text"),
        (put("text", ""), "D8", "turns"),
        (put("waiting", [-1]), "D5", "waiting"),
        (put("waiting", [True]), "D5", "waiting"),
        (put("seed", -1), "D5", "seed"),
        (put("seed", 2**64), "D5", "seed"),
        (put("n_sent", 1.5), "D5", "n_sent"),
        (put("colour", "red"), "D5", "colour"),
        (lambda d: d.pop("seed"), "D5", "seed"),
        (lambda d: d["cache"].pop("kv_type"), "D5", "kv_type"),
    ],
)  # fmt: skip
def test_descriptions_that_lie(model, saved, change, rule, part):
    """With sound checksums: whoever writes such a file can write checksums too."""
    free = free_pages(model)
    signed(saved, change)
    error = refused(model, saved)
    assert error.rule == rule and part in str(error)
    assert free_pages(model) == free


def test_pages_that_lie(model, saved):
    """A page too few, twice, of a layer that is not there; ids that are none."""
    with SessionFile(saved) as file:
        description, ids = file.description, file.ids.tolist()
        places = [tuple(place) for place in file.places.tolist()]
        size = file.page_bytes
    pages = [np.zeros(size, np.uint8) for _ in places]
    last = len(places) - 1
    tries = [
        (ids, places[:-1], pages[:-1]),
        (ids, [places[0], *places[:-1]], pages),
        (ids, [*places[:-1], (7, places[last][1])], pages),
        (ids, [*places[:-1], (places[last][0], 2**31)], pages),
        (ids, [*places[:-1], (2**32 - 1, 2**32 - 1)], pages),
        (ids, [*places, (places[last][0], places[last][1] + 1)], [*pages, pages[0]]),
        (ids[:-1], places, pages),
        ([*ids[:-1], 10**6], places, pages),
        ([*ids[:-1], 2**32 - 1], places, pages),
        ([], [], []),
        (ids, places, [np.zeros(64, np.uint8) for _ in places]),
    ]
    for wrong_ids, wrong_places, wrong_pages in tries:
        write_session(saved, description, wrong_ids, wrong_places, wrong_pages)
        assert refused(model, saved).rule in ("D7", "D8")
    write_session(saved, description, ids, places, [np.full(size, 255, np.uint8) for _ in places])
    session = edgellm.Session.load(model, saved)  # numbers of nobody's: NaN
    with pytest.raises(EdgeLLMError, match="not finite"):
        session.send("hello")
    session.close()
    assert model.generate("hello", max_tokens=3).token_ids


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_value_in_any_place(model, tmp_path_factory, data):
    """Every field of the description, of any depth, replaced by anything: a typed error, or a session that answers."""
    path = tmp_path_factory.getbasetemp() / "any.edgesession"
    if not path.exists():
        with talked(model, temperature=0) as session:
            session.save(path)
    whole = path.read_bytes()

    def change(description):
        inner = description
        while True:
            names = sorted(inner) if isinstance(inner, dict) else range(len(inner))
            if not names:
                return
            name = data.draw(st.sampled_from(list(names)))
            if not isinstance(inner[name], (dict, list)) or data.draw(st.booleans()):
                inner[name] = data.draw(json_values)
                return
            inner = inner[name]

    try:
        signed(path, change)
        with edgellm.Session.load(model, path) as session:
            session.send("hello", max_tokens=2)
    except EdgeLLMError:
        pass
    finally:
        path.write_bytes(whole)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda tail: b"EDGESES\n\1\0\0\0" + tail))
def test_any_bytes(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "bytes.edgesession"
    path.write_bytes(data)
    with pytest.raises(SessionFileError):
        SessionFile(path)


def test_sizes_are_checked_before_they_are_used(saved):
    """Sizes of exabytes in a small file cost nothing."""
    whole = bytearray(saved.read_bytes())
    for offset, size in ((12, 4), (16, 8), (24, 8), (32, 8), (40, 8)):
        for value in (2 ** (8 * size) - 1, 2 ** (8 * size - 1), 0):
            data = bytearray(whole)
            data[offset : offset + size] = value.to_bytes(size, "little")
            data[64:96] = header_digest(data[: 4096 * (len(data) // 4096)])
            saved.write_bytes(data)
            with pytest.raises(SessionFileError) as caught:
                SessionFile(saved)
            assert caught.value.rule in ("D3", "D4", "D5")


def test_from_another_model(paths, model, saved):
    with edgellm.load(paths["other"], backend="reference", n_ctx=96) as other:
        error = refused(other, saved)
        assert error.rule == "D6" and "tiny test model" in str(error)
        assert other.generate("hello", max_tokens=2).token_ids
    with edgellm.load(paths["chat"], backend="reference", n_ctx=96, kv_type="q8_0") as other:
        assert refused(other, saved).rule == "D7"
    with edgellm.load(paths["chat"], backend="reference", n_ctx=64) as other:
        assert "n_ctx" in str(refused(other, saved))
    with edgellm.load(paths["chat"], backend="reference", n_ctx=256) as other:
        assert edgellm.Session.load(other, saved).send("hello").token_ids, "more room is no reason to refuse"


def test_paths(model, saved, tmp_path):
    with pytest.raises(ModelFileNotFoundError):
        edgellm.Session.load(model, tmp_path / "none")
    assert refused(model, tmp_path).rule == "D1"
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert refused(model, tmp_path / "pipe").rule == "D1"
    before = saved.read_bytes()
    with model.session() as session:
        with pytest.raises(OutputError):
            session.save(tmp_path / "no folder" / "a")
        with pytest.raises(OutputError):
            session.save(tmp_path)
        session.send({"role": "user", "content": "hello", "big": "x" * (65 << 20)}, max_tokens=1)
        with pytest.raises(InvalidArgumentError, match="cannot be saved"):
            session.save(saved)
    assert saved.read_bytes() == before and sorted(os.listdir(tmp_path))[-1] in ("pipe", saved.name)


def test_no_room_for_a_session(paths, saved):
    with edgellm.load(paths["chat"], backend="reference", n_ctx=96, cache_bytes=393216) as small:
        held = []
        with pytest.raises(NotEnoughMemoryError):
            for i in range(50):
                held.append(small.session(temperature=0, max_tokens=8))
                held[-1].send(f"{i} hello the world")
        with pytest.raises(NotEnoughMemoryError):
            edgellm.Session.load(small, saved)
        held.pop()
        held.pop()
        assert held[0].send("hello", max_tokens=2).token_ids, "the others are as they were"


@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_length_beyond_all_memory_is_refused_before_anything_is_made_of_it(block: int) -> None:
    """Under `sink` a sequence may be of any length, so a file may say any; its pages are what there is."""
    pool = PagePool(KVShape(1, 1, 4), "f32", 64)
    places = np.array([[0, 0], [0, block]][: 2 if block else 1])
    saved = SavedSequence(Overflow("sink", 4, 60), 64, 2**53, 0, 0, 0, [], [], places)
    with pytest.raises(SavedSequenceError, match="pages of layer 0"):
        restore(pool, saved)
    assert pool.n_free == 64


def test_samplers_are_kept_and_files_from_before_them_load(model, tmp_path):
    path = tmp_path / "s.edgesession"
    chosen = {
        "logit_bias": {7: False, 9: 1.5, "a": -1}, "samplers": "dry;temp", "dry_sequence_breakers": ("\n", "é"),
        "xtc_probability": 0.5, "mirostat_tau": 3.0,
    }  # fmt: skip
    with model.session(**chosen) as session:
        session.save(path)
        want = session.options
    with edgellm.Session.load(model, path) as session:
        assert session.options == want and session.options.sampling.logit_bias[0] == (7, -math.inf)

    def as_before(description):
        sampling = description["options"]["sampling"]
        for name in list(sampling)[:]:
            if name in _LATER:
                del sampling[name]
        assert len(sampling) == 11

    signed(path, as_before)
    with edgellm.Session.load(model, path) as session:
        usual = edgellm.Sampling(seed=want.sampling.seed, stop=want.sampling.stop)
        assert session.options.sampling == usual
