"""LoRA adapters of the PEFT library, merged into a base checkpoint while that is read.

LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685) changes a matrix W to W + s B A: A (r, columns), B (rows, r),
s = alpha / r, or alpha / sqrt(r) for rsLoRA (https://arxiv.org/abs/2312.03732). The folder is what PEFT's
`save_pretrained` writes (https://huggingface.co/docs/peft/developer_guides/checkpoint): `adapter_config.json`, and
`adapter_model.safetensors` or `.bin`. What cannot be merged exactly is refused by name.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConvertError, MissingTensorError, ModelFormatError, UnsupportedFeatureError, one_line
from .checkpoint import Checkpoint
from .elements import Entry
from .strict_json import read_object

CONFIG = "adapter_config.json"
MAX_RANK = 1 << 16
_PREFIX = "base_model.model."
_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(\.default)?\.weight")

# Fields of adapter_config.json that change nothing in a merge, whatever they say.
_HARMLESS = frozenset({
    "base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "task_type", "auto_mapping",
    "peft_version", "runtime_config", "eva_config", "megatron_core", "qalora_group_size",
    "peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "fan_in_fan_out", "bias",
    "init_lora_weights", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern",
})  # fmt: skip
# Ways to begin the training that leave the base weights as they are (PiSSA, OLoRA, LoftQ and others change them).
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class _Pair:
    """The two matrices of one module, by their names in the adapter, and the factor s."""

    a: str
    b: str
    scale: float


class _Config:
    """adapter_config.json, checked. Raises UnsupportedFeatureError for what cannot be merged, ConvertError."""

    def __init__(self, path: str) -> None:
        self.path, self.raw = path, read_object(path)
        self._refuse_other_kinds()
        self.rank = self._number("r", self.raw.get("r", 8), whole=True)
        self.alpha = self._number("lora_alpha", self.raw.get("lora_alpha", 8))
        self.rslora = bool(self.raw.get("use_rslora"))
        self.ranks, self.alphas = self._pattern("rank_pattern", True), self._pattern("alpha_pattern", False)
        self.notes: list[str] = []
        if self.raw.get("fan_in_fan_out"):  # PEFT warns and does the same
            self.notes.append("fan_in_fan_out was ignored: the layers of these families are not stored that way")

    def fail(self, message: str, field: str, value: Any = None, limit: Any = None, unknown: bool = False) -> Any:
        kind = UnsupportedFeatureError if unknown else ConvertError
        raise kind(message, path=self.path, field=field, value=value, limit=limit)

    def _refuse_other_kinds(self) -> None:
        raw = self.raw
        if raw.get("peft_type") != "LORA":
            self.fail("only LoRA adapters can be merged", "peft_type", raw.get("peft_type"), "LORA", True)
        if raw.get("bias", "none") != "none":
            self.fail("an adapter with biases cannot be merged", "bias", raw["bias"], "none", True)
        start = raw.get("init_lora_weights", True)
        if not any(start is s or (isinstance(s, str) and start == s) for s in _PLAIN_STARTS):
            self.fail("an adapter that began by changing the base weights cannot be merged into them",
                      "init_lora_weights", start, "true, false, gaussian, eva, orthogonal", True)  # fmt: skip
        for name, value in raw.items():
            if name not in _HARMLESS and value not in (None, False, "", [], {}):
                self.fail("this kind of LoRA cannot be merged", name, value, "not set", True)

    def _number(self, field: str, value: Any, whole: bool = False) -> float:
        good = type(value) is int or (type(value) is float and not whole)
        if not good or not 0 < value <= MAX_RANK:
            self.fail("must be a positive number", field, value, MAX_RANK)
        return value

    def _pattern(self, field: str, whole: bool) -> dict[str, float]:
        """Module name or its end -> number. PEFT takes the keys as regular expressions; only plain names are read."""
        table = self.raw.get(field) or {}
        if not isinstance(table, dict):
            self.fail("must be an object", field, table)
        for key, value in table.items():
            if not re.fullmatch(r"\^?[A-Za-z0-9_.]+", key):
                self.fail("only plain module names are read here", f"{field}.{one_line(key)}", key, None, True)
            self._number(f"{field}.{one_line(key)}", value, whole)
        return table

    def _of(self, table: dict[str, float], usual: float, module: str) -> float:
        for key, value in table.items():
            if module == key.removeprefix("^") or (key[0] != "^" and module.endswith("." + key)):
                return value
        return usual

    def rank_of(self, module: str) -> int:
        return int(self._of(self.ranks, self.rank, module))

    def scale_of(self, module: str) -> float:
        rank, alpha = self.rank_of(module), self._of(self.alphas, self.alpha, module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def targets(self, module: str) -> bool:
        """Whether the config itself says that a module of the base must have a pair: only for a plain list of names."""
        names = self.raw.get("target_modules")
        if not isinstance(names, list) or self.raw.get("layers_to_transform") is not None:
            return False
        skipped = self.raw.get("exclude_modules") or []
        if not isinstance(skipped, list):
            return False
        return _listed(module, names) and not _listed(module, skipped)

    def unmatched(self, modules: set[str]) -> list[str]:
        """Names of `target_modules` that no module of the adapter answers to."""
        names = self.raw.get("target_modules")
        return [n for n in names if not any(_listed(m, [n]) for m in modules)] if isinstance(names, list) else []


def _listed(module: str, names: list[Any]) -> bool:
    return any(isinstance(n, str) and (module == n or module.endswith("." + n)) for n in names)


class MergedCheckpoint:
    """A base checkpoint whose matrices read as W + s B A, in float32, stretch by stretch. Closes both.

    Raises ModelFormatError and its kin (broken files), UnsupportedFeatureError (another kind of adapter), ConvertError
    (an adapter that does not fit), MissingTensorError (half of a pair, or a pair, is missing).
    """

    def __init__(self, base: Checkpoint, folder: str | os.PathLike[str]) -> None:
        self._base, self.folder = base, os.fspath(folder)
        path = os.path.join(self.folder, CONFIG)
        if not os.path.lexists(path):
            raise ConvertError("no adapter_config.json in this folder; give the folder of a LoRA adapter", path=folder)
        self._config = _Config(path)
        self._adapter = Checkpoint(self.folder, adapter=True)
        try:
            self._pairs = self._match()
        except BaseException:
            self._adapter.close()
            raise
        self._kept: tuple[str, np.ndarray] | None = None
        self.sources = [path, *self._adapter.paths]

    def changes(self, name: str) -> bool:
        """Whether the adapter has a pair for this tensor of the base."""
        return name in self._pairs

    @property
    def notes(self) -> list[str]:
        return [f"a LoRA adapter was merged into {len(self._pairs)} matrices", *self._config.notes]

    # ---- which pair goes where -----------------------------------------------------------------------------------

    def _match(self) -> dict[str, _Pair]:
        """Name of a base tensor -> its pair."""
        halves: dict[str, dict[str, str]] = {}
        for name in self._adapter:
            module, part = self._module_of(name)
            if part in halves.setdefault(module, {}):
                self._refuse(name, "the adapter has this matrix twice")
            halves[module][part] = name
        pairs = {}
        for module, parts in halves.items():
            for part in "AB":
                if part not in parts:
                    self._missing(module, part)
            pairs[f"{module}.weight"] = self._pair(module, parts["A"], parts["B"])
        for name in self._base:
            module = name.removesuffix(".weight")
            matrix = module != name and len(self._base[name].shape) == 2
            if matrix and module not in halves and self._config.targets(module):
                self._missing(module, "A")
        unmatched = self._config.unmatched(set(halves))
        if unmatched or not pairs:
            self._config.fail("the adapter has no tensors for this module", "target_modules", unmatched or None)
        return pairs

    def _module_of(self, name: str) -> tuple[str, str]:
        found = _TENSOR.fullmatch(name)
        if found is None:
            self._refuse(name, "an adapter tensor of an unknown kind; it cannot be merged")
        module = found["module"].removeprefix(_PREFIX)
        if f"{module}.weight" not in self._base:
            self._refuse(name, "an adapter tensor is for a matrix that the base model has not", f"{module}.weight")
        return module, found["part"]

    def _refuse(self, name: str, message: str, value: Any = None) -> Any:
        entry = self._adapter[name]
        raise ConvertError(
            message, path=self._adapter.path_of(name), offset=entry.offset, field=f"tensor {one_line(name)}",
            value=value,
        )  # fmt: skip

    def _missing(self, module: str, part: str) -> Any:
        raise MissingTensorError(
            "the adapter lacks a tensor that its config asks for", path=self.folder,
            field=f"{_PREFIX}{module}.lora_{part}.weight",
        )  # fmt: skip

    def _pair(self, module: str, a: str, b: str) -> _Pair:
        base, rank = self._base[f"{module}.weight"], self._config.rank_of(module)
        if len(base.shape) != 2:
            self._refuse(a, "only matrices can be changed by an adapter", list(base.shape))
        for name, shape in ((a, (rank, base.shape[1])), (b, (base.shape[0], rank))):
            entry = self._adapter[name]
            if entry.shape != shape:
                raise ModelFormatError(
                    "the shape of an adapter tensor does not follow from the base model and r",
                    path=self._adapter.path_of(name), offset=entry.offset, field=f"tensor {one_line(name)}, shape",
                    value=list(entry.shape), limit=list(shape), rule="T13",
                )  # fmt: skip
        return _Pair(a, b, self._config.scale_of(module))

    # ---- the interface of a checkpoint ---------------------------------------------------------------------------

    def __contains__(self, name: object) -> bool:
        return name in self._base

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __getitem__(self, name: str) -> Entry:
        return self._base[name]

    def path_of(self, name: str) -> str:
        return self._base.path_of(name)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of the merged tensor as float32 (stop - start, k)."""
        x = self._base.rows(name, start, stop)
        pair = self._pairs.get(name)
        if pair is None:
            return x
        if self._kept is None or self._kept[0] != pair.a:  # (r, k): small, and every stretch needs it
            a = self._adapter.rows(pair.a, 0, self._adapter[pair.a].shape[0])
            self._kept = (pair.a, a * np.float32(pair.scale))
        x += self._adapter.rows(pair.b, start, stop) @ self._kept[1]
        return x

    def close(self) -> None:
        self._adapter.close()
        self._base.close()

    def __enter__(self) -> MergedCheckpoint:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


def open_checkpoint(folder: str, lora: str | os.PathLike[str] | None) -> Checkpoint | MergedCheckpoint:
    """The tensors of a folder, with an adapter merged in where one is given. Close it, or use `with`."""
    base = Checkpoint(folder)
    if lora is None:
        return base
    try:
        return MergedCheckpoint(base, lora)
    except BaseException:
        base.close()
        raise
