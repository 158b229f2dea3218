"""Files that another program cuts short or overwrites while they are mapped: ModelFileChanged, and life goes on.

Each test runs a script in a process of its own, because a process that is not guarded dies of SIGBUS.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from edgellm import clib

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(
    not clib.available() or sys.platform == "win32", reason="only the compiled library guards maps, and not on Windows"
)

PRELUDE = """
import os, sys
import numpy as np
sys.path[:0] = ["tests", "."]
import edgellm
from helpers import tiny_llama_gguf

folder = sys.argv[1]
HELLO = dict(max_tokens=8, temperature=0, ignore_eos=True)

def tiny(name, **options):
    return str(tiny_llama_gguf(os.path.join(folder, name), **({"type": "F16", "dim": 128, "ffn": 256} | options)))

def changed(call):
    try:
        found = call()
    except edgellm.ModelFileChanged:
        return
    raise AssertionError(f"no ModelFileChanged, but {found!r}")

def cut(path, size=64):
    os.truncate(path, size)

def cut_in_decode(model, path):
    def answer():
        for n, event in enumerate(model.generate("hello", stream=True, **(HELLO | {"max_tokens": 100}))):
            if n == 3:
                cut(path)
    changed(answer)

other = edgellm.load(tiny("other.gguf", type="Q8_0", tied=True))
right = other.generate("hello", **HELLO).token_ids

def others_live():
    assert other.generate("hello", **HELLO).token_ids == right
"""


def run(folder: Path, script: str, *options: str, early: str = "") -> subprocess.CompletedProcess[str]:
    """A script behind the prelude, in a process of its own; `options` are Python's, `early` comes before all."""
    code = early + PRELUDE + textwrap.dedent(script)
    command = [sys.executable, *options, "-c", code, str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def check(folder: Path, script: str, *options: str) -> None:
    done = run(folder, script, *options)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


PASSES = """
def ways():
    yield "mapped rows", tiny("rows.gguf"), dict(pack=False)
    yield "types without panels", tiny("f16.gguf"), {}
    packed = os.path.join(folder, "packed.gguf")
    edgellm.pack.pack(tiny("source.gguf", type="Q8_0"), packed)
    yield "panels", packed, {}
    yield "looked up rows", tiny("untied.gguf", type="Q8_0"), {}
    yield "reference", tiny("reference.gguf"), dict(backend="reference")

def prefill(model, path):
    ids = [3 + i % 200 for i in range(1200)]
    def second_chunk(progress):
        if progress.done > 0:
            cut(path)
    changed(lambda: model.generate(ids, on_prefill=second_chunk, **HELLO))

def before(model, path):
    cut(path)

import edgellm.pack
for when in (cut_in_decode, prefill, before):
    for name, path, options in ways():
        with edgellm.load(path, n_ctx=2048, **options) as model:
            assert model.generate("hello", **HELLO).token_ids
            session = model.session()
            session.send("hello", max_tokens=2)
            try:
                when(model, path)
            except AssertionError as error:
                raise AssertionError(f"{when.__name__}, {name}: {error}")
            free = model._loaded.pool.n_free
            for _ in range(2):
                changed(lambda: model.generate("hello", **HELLO))
                changed(lambda: model.logits([1, 2, 3]))
                changed(lambda: session.send("again"))
            assert model._loaded.pool.n_free >= free
            others_live()
        os.remove(path)
"""


def test_a_file_cut_in_prefill_and_decode(tmp_path):
    check(tmp_path, PASSES)


def test_faulthandler_does_not_get_in_the_way(tmp_path):
    passes = PASSES.replace("for when in (cut_in_decode, prefill, before)", "for when in (cut_in_decode,)")
    check(tmp_path, passes, "-X", "faulthandler")


def test_numba_too(tmp_path):
    check(
        tmp_path,
        """
        path = tiny("numba.gguf")
        with edgellm.load(path, backend="numba") as model:
            cut_in_decode(model, path)
            others_live()
        """,
    )


def test_a_file_cut_while_it_is_loaded(tmp_path):
    """At the first call of the progress callback, or at a later one; there may be two only."""
    check(
        tmp_path,
        """
        for kind, options in (("Q8_0", {}), ("F16", {}), ("F16", dict(backend="reference"))):
            for at in range(2):
                path, seen = tiny("loading.gguf", type=kind), []
                def progress(p):
                    if len(seen) == at:
                        cut(path, 5000)
                    seen.append(p)
                changed(lambda: edgellm.load(path, progress=progress, **options))
                others_live()
        """,
    )


def test_a_file_cut_in_its_header(tmp_path):
    """Whatever is read behind the cut gives zeros, and these no error of their own."""
    check(
        tmp_path,
        """
        from edgellm.gguf import open_gguf
        from edgellm.gguf import reader
        from edgellm.identity import model_identity
        from edgellm.tokenizers import Tokenizer

        path = tiny("header.gguf")
        size = os.path.getsize(path)
        whole = open(path, "rb").read()
        mapped = reader.MappedFile
        def cut_at_once(path):
            file = mapped(path)
            cut(path)
            return file
        reader.MappedFile = cut_at_once
        changed(lambda: open_gguf(path))
        reader.MappedFile = mapped

        def fresh():
            open(path, "wb").write(whole)
            return open_gguf(path)

        reads = [
            lambda f: f.metadata["tokenizer.ggml.tokens"], lambda f: f.metadata.strings("tokenizer.ggml.tokens"),
            lambda f: f.metadata.raw("tokenizer.ggml.scores"), lambda f: Tokenizer.from_gguf(f), model_identity,
        ]
        for read in reads:
            file = fresh()
            cut(path)
            changed(lambda: read(file))
            file.close()

        def inside():
            with fresh() as file:
                cut(path)
                file.data("output_norm.weight").sum()
        changed(inside)
        others_live()
        """,
    )


def test_a_part_of_a_split_model(tmp_path):
    check(
        tmp_path,
        """
        from pathlib import Path
        from test_gguf_split import cut as split
        paths = split(Path(tiny("whole.gguf")), Path(folder))
        with edgellm.load(paths[0]) as model:
            assert model.generate("hello", **HELLO).token_ids
            cut(paths[1])
            changed(lambda: model.generate("hello", **HELLO))
            others_live()
        """,
    )


def test_overwritten_in_place(tmp_path):
    """The size stays: nothing faults, but weights are not what they were."""
    check(
        tmp_path,
        """
        path = tiny("overwritten.gguf")
        with edgellm.load(path) as model:
            before = model.generate("hello", **HELLO).token_ids
            with open(path, "r+b") as file:
                file.seek(-1000, os.SEEK_END)
                file.write(bytes(100))
            changed(lambda: model.generate("hello", **HELLO))
        """,
    )


def test_what_harms_nobody(tmp_path):
    """A file that is replaced by renaming, or deleted, stays what it was; one that was packed is done with."""
    check(
        tmp_path,
        """
        path, new = tiny("renamed.gguf"), tiny("new.gguf", seed=1)
        with edgellm.load(path) as model:
            before = model.generate("hello", **HELLO).token_ids
            os.replace(new, path)
            assert model.generate("hello", **HELLO).token_ids == before
            os.remove(path)
            assert model.generate("hello", **HELLO).token_ids == before
        path = os.path.join(folder, "other.gguf")
        cut(path)
        others_live()
        assert not other._loaded.runner.reads_file
        """,
    )


def test_files_are_watched_as_long_as_they_are_mapped(tmp_path):
    """Many files, one after the other and at once; a view outlives its file."""
    check(
        tmp_path,
        """
        from edgellm.gguf.source import MappedFile
        path = os.path.join(folder, "plain")
        open(path, "wb").write(b"x" * 50_000)
        for _ in range(10_000):
            MappedFile(path).close()
        files = [MappedFile(path) for _ in range(500)]
        assert all(f._map.guard is not None for f in files)
        file = files.pop()
        view = np.frombuffer(file.buffer, np.uint8)
        file.close()
        for f in files[::2]:
            f.close()
        os.truncate(path, 0)
        assert not view.any()
        for f in files[1::2]:
            f.check_faults()  # nobody has read it yet
            assert f.buffer[40_000] == 0
            changed(f.check_faults)
        """,
    )


def test_sources_of_tools(tmp_path):
    """quantize, pack and a checkpoint stop, and leave nothing."""
    check(
        tmp_path,
        """
        from edgellm.convert.safetensors import SafetensorsFile
        from edgellm.pack import pack
        from edgellm.quantize import quantize

        out = os.path.join(folder, "out.gguf")
        for work in (lambda **o: quantize(path, out, "Q8_0", **o), lambda **o: pack(path, out, **o)):
            path = tiny("tool.gguf", type="Q8_0" if work.__code__.co_names[0] == "pack" else "F16", dim=256, ffn=1024)
            changed(lambda: work(progress=lambda p: cut(path) if p.done == 0 else None))
            assert not os.path.exists(out)
        import json, struct
        header = json.dumps({"a": {"dtype": "F32", "shape": [100, 100], "data_offsets": [0, 40000]}}).encode()
        path = os.path.join(folder, "a.safetensors")
        open(path, "wb").write(struct.pack("<Q", len(header)) + header + bytes(40000))
        with SafetensorsFile(path) as file:
            file.rows("a", 0, 50)
            cut(path, 100)
            changed(lambda: file.rows("a", 50, 100))
        others_live()
        """,
    )


# ---- the handler -----------------------------------------------------------------------------------------------------

FOREIGN = """
import ctypes, faulthandler, mmap, signal
def foreign():
    name = os.path.join(folder, "foreign")
    open(name, "wb").write(b"x" * 10_000)
    with open(name, "r+b") as f:
        m = mmap.mmap(f.fileno(), 10_000)
    os.truncate(name, 0)
    return m[5000]

def ours():
    path = tiny("ours.gguf")
    with edgellm.load(path) as model:
        cut_in_decode(model, path)
"""
# How the process ends of a fault that is not ours, and what it has said before.
ENDS = {
    "nobody else": ("ours(); foreign()", ""),
    "sent by somebody": ("ours(); os.kill(os.getpid(), signal.SIGBUS)", ""),
    "sent while the worker runs": (
        "s = other.generate('hello', stream=True, ignore_eos=True); next(s); os.kill(os.getpid(), signal.SIGBUS)", "",
    ),
    "faulthandler after the model": ("faulthandler.enable(); ours(); foreign()", "Bus error"),
    "faulthandler, no call after it": ("ours(); faulthandler.enable(); foreign()", "Bus error"),
    "faulthandler, and gone again": ("faulthandler.enable(); ours(); faulthandler.disable(); ours(); foreign()", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_a_foreign_fault_ends_the_process_as_it_would_have(tmp_path, name):
    script, said = ENDS[name]
    done = run(tmp_path, FOREIGN + script)
    assert done.returncode == -signal.SIGBUS
    assert (said in done.stderr) if said else done.stderr == ""


def test_faulthandler_before_the_model(tmp_path):
    done = run(tmp_path, FOREIGN + "ours(); foreign()", "-X", "faulthandler")
    assert done.returncode == -signal.SIGBUS and "in foreign" in done.stderr


OWN_END = """
import ctypes, signal
libc = ctypes.CDLL(None)
libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
libc.signal(signal.SIGBUS, ctypes.cast(libc._exit, ctypes.c_void_p))  # called with the signal's number
"""


def test_a_handler_that_was_there_gets_its_own_faults(tmp_path):
    done = run(tmp_path, FOREIGN + "ours()\nothers_live()\nprint('here', flush=True)\nforeign()", early=OWN_END)
    assert (done.returncode, done.stdout, done.stderr) == (int(signal.SIGBUS), "here\n", "")


def test_a_handler_that_came_later_gets_its_own_faults(tmp_path):
    done = run(tmp_path, FOREIGN + "ours()\n" + OWN_END + "ours()\nprint('here', flush=True)\nforeign()")
    assert (done.returncode, done.stdout, done.stderr) == (int(signal.SIGBUS), "here\n", "")


def test_ignored_signals_stay_ignored(tmp_path):
    """SIG_IGN holds for signals that are sent; a fault ends the process whatever is ignored."""
    early = "import signal\nsignal.signal(signal.SIGBUS, signal.SIG_IGN)\n"
    script = "os.kill(os.getpid(), signal.SIGBUS)\nours()\nprint('here', flush=True)\nforeign()"
    done = run(tmp_path, FOREIGN + script, early=early)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "here\n")


def test_a_thread_that_blocks_all_signals(tmp_path):
    check(
        tmp_path,
        FOREIGN + "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\nours()\nothers_live()",
    )


def test_nothing_is_installed_before_a_file_is_opened(tmp_path):
    code = (
        "import ctypes, edgellm, edgellm.clib, edgellm.model, edgellm.gguf, signal\n"
        "buffer = (ctypes.c_char * 512)()\n"
        "ctypes.CDLL(None).sigaction(int(signal.SIGBUS), None, buffer)\n"
        "print(int.from_bytes(bytes(buffer[:8]), 'little'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "0\n", done.stderr
