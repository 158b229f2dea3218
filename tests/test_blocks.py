"""The table of block formats: the generated files are fresh, and Python, NumPy and C agree on every size and offset."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgellm import blocks

ROOT = Path(__file__).resolve().parent.parent
needs_tomllib = pytest.mark.skipif(sys.version_info < (3, 11), reason="the generator needs tomllib (Python 3.11)")


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_blocks", ROOT / "tools" / "gen_blocks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_tomllib
def test_generated_files_are_fresh() -> None:
    for path, text in generator().outputs().items():
        assert path.read_text(encoding="utf-8") == text, f"run python tools/gen_blocks.py: {path.name} differs"


@needs_tomllib
def test_check_option_finds_a_stale_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gen = generator()
    for folder in ("edgellm", "native"):
        (tmp_path / folder).mkdir()
    table = gen.load_table()
    monkeypatch.setattr(gen, "ROOT", tmp_path)
    monkeypatch.setattr(gen, "load_table", lambda: table)
    assert gen.main(["--check"]) == 1
    assert gen.main([]) == 0 and gen.main(["--check"]) == 0
    header = tmp_path / "native" / "blocks.h"
    header.write_text(header.read_text().replace("= 18,", "= 17,").replace("== 18,", "== 17,"))
    assert gen.main(["--check"]) == 1


@needs_tomllib
def test_numpy_offsets_are_those_of_the_table() -> None:
    gen = generator()
    table = gen.load_table()
    assert [b["name"] for b in table] == [b.name for b in blocks.ALL]
    for entry, block in zip(table, blocks.ALL, strict=True):
        assert (entry["id"], entry["block_size"], entry["bytes"]) == (block.id, block.block_size, block.type_size)
        assert block.dtype.itemsize == block.type_size and block.activation == entry["activation"]
        assert block.has_panel == ("panel" in entry)
        for field in entry["fields"]:
            dtype, offset = block.dtype.fields[field["name"]][:2]
            assert offset == field["offset"], (block.name, field["name"])
            assert dtype.itemsize == field["count"] * gen.SIZES[field["dtype"]]


@needs_tomllib
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bytes": 19}, "fill 18 bytes"),
        ({"activation": "q7"}, "activation"),
        ({"fields": [{"name": "d", "dtype": "f16", "offset": 2, "count": 9}]}, "expected 0"),
    ],
)
def test_the_generator_refuses_an_entry_that_contradicts_itself(change: dict[str, object], message: str) -> None:
    gen = generator()
    entry = next(b for b in gen.load_table() if b["name"] == "Q4_0")
    with pytest.raises(ValueError, match=message):
        gen.check_entry({**entry, **change})


def test_lookup_and_row_bytes() -> None:
    assert blocks.BY_NAME["Q4_0"] is blocks.BY_ID[2] is blocks.Q4_0
    assert {int(t): t.name for t in blocks.TypeId} == {b.id: b.name for b in blocks.ALL}
    assert blocks.Q4_0.row_bytes(64) == 36 and blocks.Q6_K.row_bytes(512) == 420 and blocks.BF16.row_bytes(7) == 14
    for bad in (33, -32):
        with pytest.raises(ValueError, match="multiple"):
            blocks.Q4_0.row_bytes(bad)


def test_panel_tiles_hold_lines_of_scales_and_all_weights() -> None:
    weights = {"Q4_0": 0.5, "Q8_0": 1, "Q4_K": 0.5, "Q5_K": 0.625, "Q6_K": 0.75}  # bytes of one weight without scales
    for block in blocks.ALL:
        if not block.has_panel:
            assert block.panel_tile == block.panel_half == 0
            continue
        tile_k, head, half = (256, 320, 0) if block.block_size == 256 else (64, 64, 64 + 16 * 32 * weights[block.name])
        assert block.panel_tile == head + 16 * tile_k * weights[block.name]
        assert block.panel_half == half
        assert block.panel_tile % 64 == block.panel_half % 64 == 0
        if block.block_size == 256:
            assert block.panel_tile <= 1.03 * 16 * block.type_size


def test_agrees_with_the_gguf_package() -> None:
    import gguf

    for block in blocks.ALL:
        kind = gguf.GGMLQuantizationType(block.id)
        assert kind.name == block.name
        assert gguf.GGML_QUANT_SIZES[kind] == (block.block_size, block.type_size)


COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
def test_c_compiles_and_agrees(tmp_path: Path) -> None:
    """The static asserts hold, and the program prints the same sizes and offsets as NumPy has."""
    structs = {b.name: f"el_block_{b.name.lower()}" for b in blocks.ALL}
    lines = [f'    printf("{n} %zu %d\\n", sizeof({s}), (int)EL_TYPE_{n});' for n, s in structs.items()]
    for b in blocks.ALL:
        lines += [f'    printf("{b.name}.{f} %zu\\n", offsetof({structs[b.name]}, {f}));' for f in b.dtype.names]
    rows = (
        "#define ROW(N, n, block, bytes, act, tile, half) "
        'printf("%s %d %d %d %d %d %d\\n", #N, EL_TYPE_##N, block, bytes, act, tile, half);\n    EL_TYPE_TABLE(ROW)'
    )
    source, program = tmp_path / "sizes.c", tmp_path / "sizes"
    body = "\n".join([*lines, f"    {rows}", "    return 0;"])
    source.write_text(f'#include <stdio.h>\n#include "blocks.h"\nint main(void) {{\n{body}\n}}\n')
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'native'}"]
    subprocess.run([COMPILER, *flags, str(source), "-o", str(program)], check=True)
    acts = {"f32": 0, "q8_32": 1, "q8_256": 2}
    want = [f"{b.name} {b.type_size} {b.id}" for b in blocks.ALL]
    want += [f"{b.name}.{f} {b.dtype.fields[f][1]}" for b in blocks.ALL for f in b.dtype.names]
    for b in blocks.ALL:
        want.append(
            f"{b.name} {b.id} {b.block_size} {b.type_size} {acts[b.activation]} {b.panel_tile} {b.panel_half}"
        )
    assert subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.splitlines() == want


def test_dtypes_read_the_first_and_last_byte() -> None:
    for block in blocks.ALL:
        raw = np.arange(block.type_size, dtype=np.uint8)
        fields = [raw.view(block.dtype)[name].tobytes() for name in block.dtype.names]
        assert b"".join(fields) == raw.tobytes()
