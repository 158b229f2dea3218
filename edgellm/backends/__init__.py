"""Backends run plans. `create` makes one by name; all of them keep to the `Backend` interface below.

`reference` (NumPy) defines every op, `native` (compiled C) is fast, `numba` is for machines without a compiled library.
Each is imported only when it is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..cache import PAGE_TOKENS, Span
from ..errors import BackendError, InvalidArgumentError

if TYPE_CHECKING:
    from ..cache import Sequence
    from ..plan import Plan
    from ..weights import Weights

NAMES = ("auto", "native", "numba", "reference")
# called with (bytes done, bytes in all) while weights are made ready; what it raises ends the loading
LoadProgress = Callable[[int, int], object]
_log = logging.getLogger("edgellm")
_told: set[str] = set()
_INSTEAD = {
    "numba": "no compiled library found: running the slower Numba backend (see `edgellm doctor`)",
    "reference": "no compiled library found, and no Numba: running the reference backend, which is very slow; "
    "pip install 'edgellm[numba]', or install again with a C compiler (see `edgellm doctor`)",
}


class Backend(Protocol):
    """What runs the passes of one model. Not thread-safe; `close` gives its memory back and may be called twice.

    A pass takes `tokens`, int32 (n,) with 1 <= n <= max_tokens, at positions position .. position + n - 1 of `seq`;
    the caller has done `seq.ensure(position + n)` before and does `seq.commit(position + n)` after it. `outputs`, int32
    (m,), are the ascending indices into `tokens` whose results are wanted (m may be 0).

    The result is the logits, or with `hidden` the hidden states that the head would read: the pass ends before it.
    """

    name: str
    has_prefill: bool  # passes of many tokens may go through kernels that round otherwise (formats/arithmetic.md)
    exact: bool  # may be set: True keeps to kernels whose bits do not depend on how tokens are cut into passes
    any_width: bool  # a token's bits are the same, however many others (up to 8 in all) its pass has
    reads_file: bool  # passes read weights where the file is mapped; False: it is not needed any more

    arena: tuple[int, int]  # address and bytes of the weights that the backend packed or copied; bytes 0: none

    def forward(
        self,
        tokens: np.ndarray,
        position: int,
        outputs: np.ndarray,
        seq: Sequence,
        cancel: np.ndarray | None = None,
        hidden: bool = False,
    ) -> np.ndarray:
        """One pass -> float32 (m, n_vocab), with `hidden` (m, dim); valid until the next call.

        `cancel` is an int32 (1,) array; when another thread sets it to non-zero the pass stops soon.
        Raises Cancelled, NonFiniteError (a value of the result is not finite; names the first bad step), BackendError,
        InvalidArgumentError (n, a token id or `outputs` out of range; the plan has no such result).
        """
        ...

    def begin(self, tokens: np.ndarray, position: int, outputs: np.ndarray, seq: Sequence) -> None:
        """Starts a pass that is run step by step (debugging; `edgellm.backends.compare`)."""
        ...

    def run_step(self, index: int) -> None:
        """Runs step `index` of the plan on the pass that `begin` started."""
        ...

    def read(self, buffer: int) -> np.ndarray:
        """A float32 (rows, cols) copy of a plan buffer in the pass that `begin` started."""
        ...

    def write(self, buffer: int, values: np.ndarray) -> None:
        """Sets a plan buffer to `values`, float32 (rows, cols)."""
        ...

    def sibling(self, plan: Plan, max_tokens: int) -> Backend:
        """Another backend over the same weights, for a plan that uses no others; to be closed before this one."""
        ...

    def close(self) -> None: ...


def check_pass(
    plan: Plan, tokens: np.ndarray, position: int, outputs: np.ndarray, seq: Sequence, max_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """The arguments of a pass, checked, as contiguous int32 arrays (tokens, outputs). Raises InvalidArgumentError."""
    tokens = np.ascontiguousarray(tokens, dtype=np.int32)
    outputs = np.ascontiguousarray(outputs, dtype=np.int32)
    n = tokens.size
    if tokens.ndim != 1 or not 1 <= n <= max_tokens:
        raise InvalidArgumentError(f"a pass of {tokens.shape} tokens; choose 1 to {max_tokens} in one dimension")
    if tokens.min() < 0 or tokens.max() >= plan.n_vocab:
        bad = int(tokens[(tokens < 0) | (tokens >= plan.n_vocab)][0])
        raise InvalidArgumentError(f"token id {bad} is outside the vocabulary of {plan.n_vocab}")
    ascending = outputs.ndim == 1 and np.all(np.diff(outputs) > 0)
    if not ascending or (outputs.size and (outputs[0] < 0 or outputs[-1] >= n)):
        raise InvalidArgumentError(f"outputs must be ascending indices below {n}")
    _check_positions(plan, position, n, seq)
    if position < 0 or not _has_pages(plan, seq, position, position + n - 1):
        raise InvalidArgumentError(f"positions {position} .. {position + n - 1} have no pages; call ensure first")
    return tokens, outputs


def _check_positions(plan: Plan, position: int, n: int, seq: Sequence) -> None:
    """A plan with learned positions has so many; one that looks ahead cannot have lost anything."""
    most = plan.max_positions
    if most is not None and position + n > most:
        raise InvalidArgumentError(f"position {position + n - 1}; this model has learned positions 0 to {most - 1}")
    if not plan.causal and seq.span != Span():
        raise InvalidArgumentError("a model that sees the whole text needs a sequence that drops nothing")


def _has_pages(plan: Plan, seq: Sequence, first: int, last: int) -> bool:
    """True when every page is there that a layer reads or writes in a pass over positions first .. last."""
    newest, head_blocks = last // PAGE_TOKENS, seq.head_blocks
    for window, layers in plan.layers_by_window.items():
        for seen in seq.span.seen(first, last, window):
            if not seen:
                continue
            start, stop = seen.start // PAGE_TOKENS, (seen.stop - 1) // PAGE_TOKENS + 1
            behind = max(start, head_blocks)
            if stop > behind and newest - behind >= seq.ring:  # a newer block has taken the column
                return False
            columns = [slice(start, min(stop, head_blocks))]
            if stop > behind:
                a, b = seq.column(behind), seq.column(stop - 1) + 1
                columns += [slice(a, b)] if a < b else [slice(a, None), slice(head_blocks, b)]
            if any(np.any(seq.table[:, c][layers] < 0) for c in columns):
                return False
    return True


def create(
    name: str,
    plan: Plan,
    weights: Weights,
    *,
    n_threads: int = 1,
    max_tokens: int = 512,
    pack: bool = True,
    huge_pages: bool = False,
    progress: LoadProgress | None = None,
) -> Backend:
    """The backend `name` ("auto", "native", "numba", "reference") for one model.

    "auto" is native where the compiled library loads, else numba where that is installed, else reference; what is not
    native says so once in a log line. `max_tokens` is the most tokens of one pass; `pack` turns weights into panels
    where the backend has them, and tells `progress`; `huge_pages` copies those of a packed file, which are otherwise
    used where they are mapped.
    Raises InvalidArgumentError (unknown name), BackendError (the backend cannot run here), NotEnoughMemoryError.
    """
    if name not in NAMES:
        raise InvalidArgumentError(f"backend is '{name}'; choose {', '.join(NAMES)}")
    if name == "auto":
        name = _best()
    if name == "native":
        try:
            from .native import NativeBackend

            return NativeBackend(
                plan, weights, n_threads=n_threads, max_tokens=max_tokens, pack=pack, huge_pages=huge_pages,
                progress=progress,
            )  # fmt: skip
        except ImportError as e:
            raise BackendError(f"the compiled library is not available ({e}); use backend='numba'") from None
    if name == "reference":
        from .reference import ReferenceBackend

        return ReferenceBackend(plan, weights, n_threads=n_threads, max_tokens=max_tokens, pack=pack)
    try:
        from .numba_ import NumbaBackend
    except ImportError as e:
        raise BackendError(f"Numba cannot be loaded ({e}); pip install 'edgellm[numba]'") from None
    return NumbaBackend(plan, weights, n_threads=n_threads, max_tokens=max_tokens, pack=pack)


def _best() -> str:
    """What "auto" stands for here; says once why it is not the compiled library."""
    from .sizes import resolve

    name = resolve("auto")
    if name != "native":
        _tell_once(_INSTEAD[name])
    return name


def _tell_once(line: str) -> None:
    if line not in _told:
        _told.add(line)
        _log.warning(line)
