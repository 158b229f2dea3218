"""Loading takes little more memory than the weights: measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_llama_gguf, tiny_vocab

from edgellm.blocks import BY_NAME
from edgellm.gguf import GGUFWriter, open_gguf

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import json, sys
import edgellm
from edgellm import clib, machine
from edgellm.tokenizers import Tokenizer
from edgellm.gguf import open_gguf
import edgellm.backends.native, edgellm.generate, edgellm.loader, edgellm.models
def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name + ":"))
clib.available()
with open_gguf(sys.argv[1]) as file:
    tokenizer = Tokenizer.from_gguf(file)
    n_bytes = sum(t.n_bytes for t in file.tensors.values())
del tokenizer
before = status("VmHWM")
options = json.loads(sys.argv[2])
model = edgellm.load(sys.argv[1], n_ctx=64, threads=2, **options)
now = machine.peak_rss()
assert now == status("VmHWM")
print(json.dumps([now - before, n_bytes, status("RssFile"), status("RssAnon")]))
"""


def big_gguf(path: Path) -> Path:
    """96 MB of Q8_0: bytes of an ordinary model's file, and enough to be seen beside the process's own memory."""
    small = tiny_llama_gguf(path.with_name("small.gguf"), type="Q8_0")
    dim, ffn, kind = 1024, 8192, BY_NAME["Q8_0"]
    row = np.random.default_rng(0).integers(0, 100, kind.row_bytes(ffn), dtype=np.uint8)
    shapes = {"token_embd.weight": (len(tiny_vocab()[0]), dim), "output_norm.weight": (dim,)}
    for i in range(3):
        shapes |= {f"blk.{i}.attn_{n}.weight": (dim, dim) for n in "qkv"} | {f"blk.{i}.attn_output.weight": (dim, dim)}
        shapes |= {f"blk.{i}.ffn_{n}.weight": (ffn, dim) for n in ("gate", "up")}
        shapes |= {f"blk.{i}.ffn_down.weight": (dim, ffn)}
        shapes |= {f"blk.{i}.{n}_norm.weight": (dim,) for n in ("attn", "ffn")}
    sizes = {"embedding_length": dim, "feed_forward_length": ffn, "block_count": 3}
    sizes |= {"attention.head_count": 16, "attention.head_count_kv": 16, "rope.dimension_count": 64}
    with open_gguf(small) as file, GGUFWriter(path, None) as writer:
        for key in file.metadata:
            if key.removeprefix("llama.") in sizes:
                writer.add(key, sizes[key.removeprefix("llama.")])
            else:
                writer.add_raw(key, file.metadata.raw(key))
        for name, shape in shapes.items():
            writer.add_tensor_info(name, shape, "F32" if len(shape) == 1 else kind)
        for name, shape in shapes.items():
            if len(shape) == 1:
                writer.write_tensor(name, np.ones(shape, np.float32))
            else:
                writer.write_tensor(name, np.resize(row, (shape[0], kind.row_bytes(shape[1]))))
    return path


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return big_gguf(tmp_path_factory.mktemp("memory") / "big.gguf")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize(("packed", "options"), [(False, {}), (True, {}), (True, {"huge_pages": True})])
def test_peak_memory_of_loading(big: Path, packed: bool, options: dict[str, bool]) -> None:
    """At most 1.05 x the tensors + the cache + 16 MB; what is packed into the arena does not stay mapped as well."""
    path = big
    if packed:
        from edgellm.pack import pack

        path = Path(pack(big, big.with_name(f"packed{len(options)}.gguf")).path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), json.dumps(options)], cwd=ROOT, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    grown, n_bytes, file_bytes, own_bytes = json.loads(done.stdout)
    cache = 3 * 2 * 64 * 1024 * 2
    assert n_bytes > 90e6 and grown <= 1.05 * n_bytes + cache + (16 << 20)
    if packed and not options:
        assert file_bytes > 0.9 * n_bytes > own_bytes  # in place: pages of the file, not of the process
