"""`edgellm show`: what a model file holds. Reads the header only, so it is quick for a file of any size."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

import click

from edgellm.chat.terminal import count_text, size_text
from edgellm.cli.common import ThreadCount, kv_type_options, model_path, print_json
from edgellm.cli.show_fit import fit, print_fit

_MAX_SHOWN = 60  # characters of a long value


@click.command("show")
@click.argument("model", required=False)
@click.option("--tensors", is_flag=True, help="List the tensors: shape, type, size.")
@click.option("--template", is_flag=True, help="Print the chat template.")
@click.option("--tokenizer", is_flag=True, help="Show the tokenizer and its special tokens.")
@click.option("--plan", is_flag=True, help="Print the steps that the model is.")
@click.option("--full", is_flag=True, help="With --plan: every layer, also those that repeat the one before.")
@click.option("--fit", "fits", is_flag=True, help="Tell how much memory it will take, and whether that is there.")
@click.option("-c", "--ctx-size", "n_ctx", type=click.IntRange(1, 2**31 - 1), metavar="N",
              help="With --fit: context window in tokens.")
@click.option("-t", "--threads", type=ThreadCount(), default="auto", help="With --fit: threads.", show_default=True)
@click.option("--backend", type=click.Choice(["auto", "native", "numba", "reference"]), default="auto",
              show_default=True, help="With --fit: what runs the model.")
@kv_type_options
@click.option("--speculate", metavar="MODEL", default="auto", help="With --fit: a draft model that is loaded, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    model: str | None, tensors: bool, template: bool, tokenizer: bool, plan: bool, full: bool, fits: bool,
    as_json: bool, **load_options: Any,
) -> None:  # fmt: skip
    """Show what MODEL holds: a summary and its metadata, or the part that is asked for.

    MODEL is a GGUF file (or one of its parts), an alias or hf:owner/repo:QUANT, or what `edgellm convert` reads: a
    Hugging Face folder, a LoRA adapter, a .safetensors file or a PyTorch .bin file. Nothing in it is run. --fit takes
    GGUF files only.
    """
    from edgellm.cli.show_checkpoint import checkpoint_parts, is_checkpoint
    from edgellm.gguf import open_gguf

    path = model_path(model)
    parts = {
        "tensors": _tensors if tensors else None,
        "chat_template": _template if template else None,
        "tokenizer": _tokenizer if tokenizer else None,
        "plan": (lambda file: _plan(file, full)) if plan else None,
        "fit": (lambda file: fit(file.path, load_options)) if fits else None,
    }
    wanted = {name: part for name, part in parts.items() if part is not None}
    if is_checkpoint(path):
        values, warnings = checkpoint_parts(path, list(wanted) or ["summary", "metadata"]), []
    else:
        with open_gguf(path) as file:
            if not wanted:
                wanted = {"summary": _summary, "metadata": _metadata}
            values = {name: part(file) for name, part in wanted.items()}
            warnings = list(file.warnings)
    if as_json:
        print_json(values | {"warnings": warnings})
        return
    for name, value in values.items():
        _PRINTERS[name](value)
    for line in warnings:
        click.echo(f"edgellm: warning: {line}", err=True)


# ---- the parts ---------------------------------------------------------------------------------------


def _summary(file: Any) -> dict[str, Any]:
    from edgellm.models import FAMILIES

    arch = file.get("general.architecture", str, "unknown")
    types = Counter(t.type.name for t in file.tensors.values())
    weights = sum(prod(t.shape) for t in file.tensors.values())
    n_bytes = sum(t.n_bytes for t in file.tensors.values())
    metadata = file.metadata
    return {
        "file": str(file.path),
        "name": file.get("general.name", str, ""),
        "architecture": arch,
        "supported": arch in FAMILIES,
        "gguf_version": file.version,
        "parameters": weights,
        "file_bytes": file.n_bytes,
        "parts": len(file.paths),
        "tensor_bytes": n_bytes,
        "bits_per_weight": round(8 * n_bytes / weights, 2) if weights else 0.0,
        "types": dict(types.most_common()),
        "context_length": metadata.get(f"{arch}.context_length"),
        "layers": metadata.get(f"{arch}.block_count"),
        "width": metadata.get(f"{arch}.embedding_length"),
        "vocabulary": metadata.length("tokenizer.ggml.tokens") if "tokenizer.ggml.tokens" in metadata else None,
        "chat_template": "tokenizer.chat_template" in metadata,
        "sliding_window": metadata.get(f"{arch}.attention.sliding_window") or None,
        "longrope_original_context": _longrope_limit(file, arch),
        "packed": _packed(file),
        "draft": _draft(file, arch),
    }


def _draft(file: Any, arch: str) -> dict[str, Any] | None:
    """The parts of layers that self-drafts leave out; None where the file names none."""
    from dataclasses import asdict

    from edgellm.speculate import read_skip_set

    skip = read_skip_set(file, file.get(f"{arch}.block_count", int, 0))
    return None if skip is None else asdict(skip)


def _longrope_limit(file: Any, arch: str) -> Any:
    """Largest n_ctx that takes LongRoPE's short factors; None without LongRoPE (config.RopeScaling.original_ctx)."""
    if "rope_factors_long.weight" not in file.tensors:
        return None
    trained = file.metadata.get(f"{arch}.context_length")
    return file.metadata.get(f"{arch}.rope.scaling.original_context_length", trained)


def _packed(file: Any) -> dict[str, Any] | None:
    """Where a packed file comes from; None for any other one."""
    info = file.packed
    if info is None:
        return None
    panels = sum(t.panels for t in file.tensors.values())
    source = {"name": info.source_name, "bytes": info.source_bytes, "sha256": info.source_sha256}
    return {"panel_version": info.panel_version, "tensors_in_panels": panels, "source": source}


def _metadata(file: Any) -> dict[str, Any]:
    """Key -> value; of arrays only their length and first values."""
    out = {}
    for key in file.metadata:
        kind, item = file.metadata.types[key]
        if item is None:
            out[key] = file.metadata[key]
        else:
            out[key] = {"array_of": item.name.lower(), "length": file.metadata.length(key)}
    return out


def _tensors(file: Any) -> list[dict[str, Any]]:
    import os

    rows = []
    for t in file.tensors.values():
        path, offset = file.place_of(t.name)
        row = {"name": t.name, "shape": list(t.shape), "type": t.type.name, "bytes": t.n_bytes, "offset": offset}
        row |= {"panels": True, "stored_bytes": t.stored_bytes} if t.panels else {}
        row |= {"sparse": True} if t.sparse else {}
        rows.append(row if len(file.paths) == 1 else row | {"file": os.path.basename(path)})
    return rows


def _template(file: Any) -> str | None:
    return file.get("tokenizer.chat_template", str, None)


def _tokenizer(file: Any) -> dict[str, Any]:
    from edgellm.tokenizers import Tokenizer

    tokenizer = Tokenizer.from_gguf(file)
    specials = {name: i for name in ("bos", "eos", "unk") if (i := getattr(tokenizer, f"{name}_id")) is not None}
    return {
        "kind": tokenizer.kind,
        "n_vocab": tokenizer.n_vocab,
        "add_bos": tokenizer.add_bos,
        "add_eos": tokenizer.add_eos,
        "special": {name: {"id": i, "piece": tokenizer.piece(i)} for name, i in specials.items()},
        "end_of_generation": [{"id": i, "piece": tokenizer.piece(i)} for i in sorted(tokenizer.eog_ids)],
    }


def _plan(file: Any, full: bool) -> str:
    from edgellm.models import build_plan, read_config

    return build_plan(read_config(file), file).print(full)


# ---- printing ----------------------------------------------------------------------------------------


def _rows(pairs: list[tuple[str, Any]]) -> None:
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        click.echo(f"{name:<{width}}  {value}")


def _print_summary(s: dict[str, Any]) -> None:
    from edgellm.errors import one_line

    family = (s["architecture"] or "-") + ("" if s["supported"] else "  (this family is not supported)")
    pairs = [
        ("file", one_line(s["file"], 400) + (f"  (in {s['parts']} files)" if s["parts"] > 1 else "")),
        ("kind" if "kind" in s else "name", one_line(s.get("kind") or s["name"]) or "-"),
        ("family", one_line(family)),
        ("parameters", count_text(s["parameters"])),
        ("size", f"{size_text(s['file_bytes'])}, {s['bits_per_weight']} bits per weight"),
        ("types", ", ".join(f"{name} ({n})" for name, n in s["types"].items()) or "no tensors"),
        ("context", f"{s['context_length']} tokens" if s["context_length"] is not None else "-"),
        *_limits(s),
        ("layers", s["layers"] if s["layers"] is not None else "-"),
        ("vocabulary", s["vocabulary"] if s["vocabulary"] is not None else "-"),
        ("chat template", "yes" if s["chat_template"] else "no"),
        *_drafts(s),
    ]
    if s.get("packed"):
        source = s["packed"]["source"]
        pairs.insert(1, ("packed", f"from {one_line(source['name'], 100)}, {size_text(source['bytes'])}"))
    _rows(pairs)


def _drafts(s: dict[str, Any]) -> list[tuple[str, str]]:
    """What self-drafts leave out, where the file says it."""
    if not s.get("draft"):
        return []
    d = s["draft"]
    parts = f"{len(d['attention'])} attention and {len(d['feed_forward'])} feed-forward parts"
    return [("self-drafts", f"without {parts}, {d['acceptance']:.0%} right")]


def _limits(s: dict[str, Any]) -> list[tuple[str, str]]:
    """What else the length of the context decides."""
    rows = []
    window, limit = s.get("sliding_window"), s.get("longrope_original_context")
    if window is not None:
        wide = isinstance(s["context_length"], int) and isinstance(window, int) and window >= s["context_length"]
        rows.append(("window", f"{window} tokens" + (", the whole context: no effect" if wide else "")))
    if limit is not None:
        text = f"LongRoPE: short factors for n_ctx up to {limit}, long ones above; chosen at load for all positions"
        rows.append(("positions", text))
    return rows


def _print_metadata(metadata: dict[str, Any]) -> None:
    from edgellm.errors import one_line

    click.echo(f"\nmetadata ({len(metadata)} keys)")
    pairs = []
    for key, value in metadata.items():
        if isinstance(value, dict):
            text = f"[{value['length']} x {value['array_of']}]"
        else:
            text = one_line(value, _MAX_SHOWN) if isinstance(value, str) else str(value)
        pairs.append((f"  {one_line(key)}", text))
    if pairs:
        _rows(pairs)


def _print_tensors(tensors: list[dict[str, Any]]) -> None:
    from edgellm.errors import one_line

    width = max((len(t["name"]) for t in tensors), default=0)
    for t in tensors:
        shape = " x ".join(map(str, t["shape"]))
        where = "  in panels" if "panels" in t else ""
        where = f"  in sparse panels, {size_text(t['stored_bytes'])}" if "sparse" in t else where
        click.echo(f"{one_line(t['name']):<{width}}  {t['type']:<5} {shape:>16}  {size_text(t['bytes']):>9}{where}")


def _print_template(template: str | None) -> None:
    if template is None:
        click.echo("edgellm: the file has no chat template", err=True)
    else:
        click.echo(template)


def _print_tokenizer(t: dict[str, Any]) -> None:
    from edgellm.errors import one_line

    pairs = [("kind", t["kind"]), ("vocabulary", t["n_vocab"])]
    pairs += [("begins with", "its beginning-of-text token" if t["add_bos"] else "nothing added")]
    pairs += [(name, f"{s['id']}  {one_line(s['piece'])}") for name, s in t["special"].items()]
    ends = ", ".join(f"{s['id']} {one_line(s['piece'])}" for s in t["end_of_generation"])
    _rows([*pairs, ("ends answers", ends or "-")])


_PRINTERS = {
    "summary": _print_summary,
    "metadata": _print_metadata,
    "tensors": _print_tensors,
    "chat_template": _print_template,
    "tokenizer": _print_tokenizer,
    "plan": click.echo,
    "fit": print_fit,
}
