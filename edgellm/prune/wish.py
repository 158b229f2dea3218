"""What a person asked `edgellm prune` for, checked before a file is opened."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..blocks import BlockType
from ..convert.choice import Wish, parse_wish
from ..errors import ConvertError, InvalidArgumentError, one_line

PATTERNS = ("unstructured", "2:4", "block16", "heads", "layers")
WHOLE = ("heads", "layers")  # patterns of whole parts of the model, which have a measure of their own
INFLUENCE = "influence"
METHODS = ("magnitude", "wanda", "sparsegpt")
GROUPS = ("matrix", "row")
# Types that write a single 0 as exactly 0, whatever stands beside it. In the others only whole groups of 32 can be 0.
EXACT_ZERO = frozenset({"F32", "F16", "BF16", "Q4_0", "Q5_0", "Q8_0", "Q3_K", "Q6_K", "TQ1_0", "TQ2_0", "MXFP4"})
TILE_K = 64  # k of a block of block16: a tile of Q4_0 and Q8_0 (formats/panels.md)
TILE_ROWS = 16


@dataclass(frozen=True)
class PruneWish:
    """`sparsity`: the share of weights, heads or layers that go, 0 < sparsity < 1. `type`: those of the output;
    None: as they were. `group`: wanda takes that share of each row, or of the whole matrix."""

    sparsity: float
    pattern: str
    method: str
    type: Wish | None = None
    group: str = "matrix"

    @property
    def reads_text(self) -> bool:
        """Whether weights are chosen by what a text does to the model."""
        return self.method != "magnitude"


def parse(
    sparsity: float | None, pattern: str, method: str | None, type: str | None, group: str | None = None
) -> PruneWish:
    """The options of the command; `sparsity` None is 0.5, `method` None is wanda, or the
    influence of heads and layers, `group` None is matrix. Raises InvalidArgumentError."""
    _one_of("pattern", pattern, PATTERNS)
    if pattern in WHOLE:
        if method not in (None, INFLUENCE):
            raise InvalidArgumentError(f"{pattern} go by their measured influence; leave the method out")
        method = INFLUENCE
    else:
        method = "wanda" if method is None else method
        _one_of("method", method, METHODS)
    sparsity = 0.5 if sparsity is None else sparsity
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)) or not math.isfinite(sparsity):
        raise InvalidArgumentError(f"sparsity is {one_line(str(sparsity))}; give a number between 0 and 1, such as 0.5")
    if not 0 < sparsity < 1:
        raise InvalidArgumentError(f"sparsity is {sparsity}; it is a share between 0 and 1, such as 0.5")
    if pattern == "2:4" and sparsity != 0.5:
        raise InvalidArgumentError(f"sparsity is {sparsity}, but two of four weights are one half; give 0.5")
    if group is not None:
        _one_of("group", group, GROUPS)
        if method != "wanda" or pattern != "unstructured":
            raise InvalidArgumentError("a group is for method wanda in pattern unstructured; leave it out")
    return PruneWish(float(sparsity), pattern, method, None if type is None else parse_wish(type), group or "matrix")


def check_zeros(kind: BlockType, pattern: str, name: str, path: str) -> None:
    """Raises ConvertError where the type cannot hold the pattern's zeros as exact zeros."""
    if pattern in ("unstructured", "2:4") and kind.name not in EXACT_ZERO:
        raise ConvertError(
            f"{kind.name} cannot write a single weight as exactly 0, only whole groups of 32; choose another type for "
            "the output (--type F16, Q8_0 or Q4_0), or --pattern block16",
            path=path, field=f"type of {one_line(name)}", value=kind.name, limit=", ".join(sorted(EXACT_ZERO)),
        )  # fmt: skip


def tile_k(kind: BlockType) -> int:
    """k of a block that a kernel could leave out in this type: a tile of its panels, 256 for blocks of 256."""
    return max(TILE_K, kind.block_size)


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InvalidArgumentError(f"{what} is '{one_line(str(value))}'; choose {', '.join(known)}")
