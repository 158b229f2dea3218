"""Model families: each turns the metadata of a file into a plan. A new family is one small file and one row here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import WINDOW, ModelConfig
from ..errors import UnsupportedArchitectureError, UnsupportedFeatureError
from ..plan import Plan
from ..weights import tensor_shapes
from . import bert, gemma2, gemma3, granite, llama, olmo2, phi3, qwen2, qwen3, smollm3
from .parts import Family

if TYPE_CHECKING:
    from ..gguf import GGUFFile

# general.architecture -> its family. Mistral and Mixtral call themselves "llama".
FAMILIES: dict[str, Family] = {
    "llama": llama.FAMILY,
    "qwen2": qwen2.FAMILY,
    "qwen3": qwen3.FAMILY,
    "qwen3moe": qwen3.EXPERTS,
    "gemma2": gemma2.FAMILY,
    "gemma3": gemma3.FAMILY,
    "phi3": phi3.FAMILY,
    "olmo2": olmo2.FAMILY,
    "granite": granite.FAMILY,
    "smollm3": smollm3.FAMILY,
    "bert": bert.FAMILY,
}
_HARMLESS = ("attn_rot_embd", "rope_freqs")  # parts of a layer in old files that repeat the metadata


def check_architecture(file: GGUFFile) -> str:
    """The family of a file. Raises UnsupportedArchitectureError that names the supported ones, MissingKeyError."""
    arch: str = file.get("general.architecture", str)
    if arch not in FAMILIES:
        raise UnsupportedArchitectureError(arch, FAMILIES, path=file.path)
    return arch


def read_config(file: GGUFFile) -> ModelConfig:
    """The checked hyperparameters of a file of a supported family. Raises as `check_architecture` and `from_gguf`."""
    return ModelConfig.from_gguf(file, FAMILIES[check_architecture(file)].uses)


def build_plan(config: ModelConfig, file: GGUFFile, n_ctx: int | None = None) -> Plan:
    """The plan of a model for contexts of `n_ctx` tokens (None: as trained).

    It matters to longrope, which takes its long factors for all positions where n_ctx is above the original context,
    and to files that tell of a sliding window beyond their trained context.

    `file` tells which optional tensors (biases, an output head) there are.
    Raises UnsupportedArchitectureError, UnsupportedFeatureError, ModelFormatError.
    """
    check_architecture(file)
    n_ctx = config.n_ctx_train if n_ctx is None else n_ctx
    if 0 < config.window < n_ctx and WINDOW not in FAMILIES[config.arch].uses:
        raise UnsupportedFeatureError(
            "sliding-window attention is not supported for this family; load it with a context within the window",
            path=file.path, field=f"{config.arch}.{WINDOW}", value=config.window, limit=f"n_ctx <= {config.window}",
        )  # fmt: skip
    plan = FAMILIES[config.arch].build(config, file, n_ctx)
    _refuse_unused_parts(plan, config, file)
    return plan


def _refuse_unused_parts(plan: Plan, config: ModelConfig, file: GGUFFile) -> None:
    """A tensor of a layer that the plan leaves out belongs to a relative of the family: answers would be wrong."""
    used = tensor_shapes(plan.weights)
    for name in file.tensors:
        parts = name.split(".")
        in_layer = len(parts) > 2 and parts[0] == "blk" and parts[1].isdigit() and int(parts[1]) < config.n_layers
        if in_layer and name not in used and parts[2] not in _HARMLESS:
            raise UnsupportedFeatureError(
                "this part of a layer belongs to a relative of the family that is not supported yet",
                path=file.path, field=name, limit=f"the parts of {config.arch}",
            )  # fmt: skip
