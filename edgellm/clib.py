"""The one door to the compiled library: finds it, checks status codes, and offers what C does beside the forward pass.

Nothing else imports `edgellm._native`. Where the library was not built, `available()` is False and callers take their
NumPy or Numba twin.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from .blocks import BlockType
from .errors import BackendError, Cancelled, InvalidArgumentError, NonFiniteError, NotEnoughMemoryError, one_line

EL_OK, EL_E_ARGUMENT, EL_E_NOMEM, EL_E_CANCELLED, EL_E_NONFINITE, EL_E_UNSUPPORTED, EL_E_SYSTEM = range(7)
MAX_POLL = 100_000  # microseconds
_MEANING = {
    EL_E_ARGUMENT: "an argument breaks the rules of the call",
    EL_E_UNSUPPORTED: "there is no kernel for this",
    EL_E_SYSTEM: "the operating system refused threads or memory",
}


@functools.cache
def compiled() -> Any:
    """The compiled module as it is, not started, or None."""
    try:
        from . import _native
    except ImportError:
        return None
    return _native


@functools.cache
def _module() -> Any:
    """The compiled module after its one-time start (CPU check, kernel tables, self-tests), or None."""
    _native = compiled()
    if _native is None:
        return None
    cap = os.environ.get("EDGELLM_ISA")
    rc = _native.lib.el_init(cap.encode() if cap else _native.ffi.NULL)
    if rc == EL_E_ARGUMENT:
        known = ", ".join(level_names(_native))
        raise InvalidArgumentError(f"EDGELLM_ISA is '{cap}'; choose one of: {known}")
    check(rc, "starting the kernels")
    poll = os.environ.get("EDGELLM_POLL")
    if poll:
        _native.lib.el_pool_spin(1000 * _microseconds(poll))
    return _native


def _microseconds(poll: str) -> int:
    """The value of EDGELLM_POLL."""
    if not (poll.isascii() and poll.isdigit()) or int(poll) > MAX_POLL:
        raise InvalidArgumentError(
            f"EDGELLM_POLL is '{one_line(poll)}'; choose 0 to {MAX_POLL} microseconds that idle threads wait awake"
        )
    return int(poll)


def available() -> bool:
    """True when the compiled library is there."""
    return _module() is not None


def library() -> tuple[Any, Any]:
    """(ffi, lib) of the compiled library. Raises BackendError when it was not built."""
    module = _module()
    if module is None:
        raise BackendError("the compiled library was not built; install with a C compiler, or use backend='numba'")
    return module.ffi, module.lib


def check(rc: int, what: str) -> None:
    """Raises the typed error of a status code; `what` says what was being done. EL_OK passes."""
    if rc == EL_OK:
        return
    if rc == EL_E_NOMEM:
        raise NotEnoughMemoryError(0, 0, ["a shorter context (n_ctx)"], what=what)
    if rc == EL_E_CANCELLED:
        raise Cancelled(what)
    raise BackendError(f"{what}: {_MEANING.get(rc, f'status {rc}')}")


# ---- the machine -----------------------------------------------------------------------------------------------------


def level_names(module: Any = None) -> list[str]:
    """Names of the kernel levels compiled in, lowest first."""
    lib = (module or _module()).lib
    ffi = (module or _module()).ffi
    return [ffi.string(lib.el_level_name(i)).decode() for i in range(lib.el_n_levels())]


def isa() -> str:
    """The highest kernel level in use, e.g. "avx2"."""
    ffi, lib = library()
    return ffi.string(lib.el_isa()).decode()


def levels() -> dict[str, str]:
    """Each compiled level and its state: "usable", "not on this machine" or "failed its self-test"."""
    _, lib = library()
    states = {1: "usable", 0: "not on this machine", -1: "failed its self-test"}
    return {name: states[lib.el_level_usable(i)] for i, name in enumerate(level_names())}


def library_path() -> str:
    """The file of the compiled library. Raises BackendError when it was not built."""
    library()
    return str(_module().__file__)


def kernel_level(block: BlockType, layout: int) -> str | None:
    """The level whose linear kernel runs a block format in rows (0), panels (1), or another layout (enum el_layout);
    None when there is no such kernel."""
    ffi, lib = library()
    name = lib.el_kernel_level(block.id, int(layout))
    return None if name == ffi.NULL else ffi.string(name).decode()


def prefill_level(block: BlockType, panels: bool) -> str | None:
    """The same for passes of many columns, whose kernels may round otherwise; None: the exact kernel runs them too."""
    ffi, lib = library()
    name = lib.el_prefill_kernel_level(block.id, int(panels))
    return None if name == ffi.NULL else ffi.string(name).decode()


def pool_poll() -> int:
    """Microseconds for which idle threads of the pool look for work before they sleep (EDGELLM_POLL)."""
    _, lib = library()
    return lib.el_pool_spin(-1) // 1000


def pool_chunks() -> list[int]:
    """Chunks of work that each worker of the pool has done so far; the first is the calling thread."""
    ffi, lib = library()
    counts = ffi.new("int64_t[128]")
    return list(counts[0 : lib.el_pool_chunks(counts, 128)])


def measure_read(
    address: int, n_bytes: int, n_threads: int, streams: int, ahead: int, level: int, seconds: float
) -> float:
    """Bytes per second that `n_threads` threads read of `n_bytes` at `address` (64-byte aligned); native/edgellm.h."""
    ffi, lib = library()
    rate, ns = ffi.new("double *"), max(1, int(seconds * 1e9))
    rc = lib.el_measure_read(ffi.cast("void *", address), n_bytes, n_threads, streams, ahead, level, ns, rate)
    check(rc, "measuring how fast memory is read")
    return rate[0]


def read_unit() -> int:
    """Bytes that a thread of `measure_read` needs at least."""
    return library()[1].el_measure_unit() + 4096


def peaks() -> list[tuple[int, str, str]]:
    """(number, kind, name) of every loop of multiply-adds that this machine can run."""
    ffi, lib = library()
    names = [(i, lib.el_peak_kind(i), lib.el_peak_name(i)) for i in range(lib.el_n_peaks()) if lib.el_peak_usable(i)]
    return [(i, ffi.string(kind).decode(), ffi.string(name).decode()) for i, kind, name in names]


def measure_peak(peak: int, n_threads: int, seconds: float) -> float:
    """Multiply-adds per second of loop `peak` with `n_threads` threads."""
    ffi, lib = library()
    rate = ffi.new("double *")
    check(lib.el_measure_peak(peak, n_threads, max(1, int(seconds * 1e9)), rate), "measuring multiply-adds")
    return rate[0]


def arena(n_bytes: int) -> tuple[int, Any]:
    """(address, function that frees it) of zeroed memory on 2 MB pages where there are any."""
    ffi, lib = library()
    memory = lib.el_arena_alloc(n_bytes)
    if memory == ffi.NULL:
        raise NotEnoughMemoryError(n_bytes, 0, [], what="a buffer")
    return int(ffi.cast("uintptr_t", memory)), lambda: lib.el_arena_free(memory, n_bytes)


# ---- weights ---------------------------------------------------------------------------------------------------------


def quantize(x: np.ndarray, block: BlockType, importance: np.ndarray | None = None) -> np.ndarray:
    """float32 (rows, k) -> uint8 (rows, row bytes) in `block`'s format. Raises InvalidArgumentError, BackendError.

    `importance`: (k,), finite and not negative, used as it is (`quants.check_importance` prepares it).
    """
    ffi, lib = library()
    x = np.ascontiguousarray(x, dtype=np.float32)
    if x.ndim != 2 or x.shape[1] % block.block_size:
        raise InvalidArgumentError(f"rows of {x.shape} floats do not fit {block.name} blocks of {block.block_size}")
    out = np.empty((x.shape[0], block.row_bytes(x.shape[1])), dtype=np.uint8)
    source, target, weights = ffi.from_buffer("float[]", x), ffi.from_buffer(out), ffi.NULL
    if importance is not None:
        if importance.shape != x.shape[1:]:
            raise InvalidArgumentError(f"importance of shape {importance.shape} for rows of {x.shape[1]} weights")
        weights = ffi.from_buffer("float[]", np.ascontiguousarray(importance, dtype=np.float32))
    check(lib.el_quantize_weighted(block.id, source, weights, target, *x.shape), f"quantising to {block.name}")
    return out


def pack_panels(data: np.ndarray, block: BlockType, rows: int, k: int) -> np.ndarray:
    """uint8 rows of a (rows, k) matrix in `block`'s format -> its panels, flat uint8 (formats/panels.md)."""
    ffi, lib = library()
    data = np.ascontiguousarray(data).reshape(-1)
    size = lib.el_panel_bytes(block.id, rows, k)
    if size < 0 or data.size != rows * block.row_bytes(k):
        raise InvalidArgumentError(f"{data.size} bytes are not a {rows} x {k} matrix of {block.name} to pack")
    out = np.empty(size, dtype=np.uint8)
    rc = lib.el_pack_panels(block.id, ffi.from_buffer(data), ffi.from_buffer(out), rows, k, 0, rows)
    check(rc, f"packing {block.name}")
    return out


def dequantize(data: np.ndarray, block: BlockType, shape: Sequence[int]) -> np.ndarray:
    """uint8 data of a (rows, k) matrix in `block`'s format -> float32 (rows, k)."""
    ffi, lib = library()
    rows, k = shape
    data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    if data.size != rows * block.row_bytes(k):
        raise InvalidArgumentError(f"{data.size} bytes are not a {rows} x {k} matrix of {block.name}")
    out = np.empty((rows, k), dtype=np.float32)
    rc = lib.el_dequantize(block.id, ffi.from_buffer(data), ffi.from_buffer("float[]", out), rows, k)
    check(rc, f"dequantising {block.name}")
    return out


# ---- text ------------------------------------------------------------------------------------------------------------


class SpmHandle:
    """A SentencePiece vocabulary in C. Piece i is `text[offsets[i]:offsets[i + 1]]`: bytes, int64 (n + 1,).

    `kinds` (n,) uint8 are enum el_piece_kind, `byte_ids` (256) are ids or -1.
    """

    def __init__(
        self, text: Any, offsets: np.ndarray, scores: np.ndarray, kinds: np.ndarray, byte_ids: Sequence[int],
        unk_id: int,
    ) -> None:  # fmt: skip
        self._ffi, self._lib = library()
        arrays = [
            self._ffi.from_buffer("uint8_t[]", text),
            self._ffi.from_buffer("int64_t[]", np.ascontiguousarray(offsets, dtype=np.int64)),
            self._ffi.from_buffer("float[]", np.ascontiguousarray(scores, dtype=np.float32)),
            self._ffi.from_buffer("uint8_t[]", np.ascontiguousarray(kinds, dtype=np.uint8)),
        ]
        out = self._ffi.new("el_spm **")
        ids = self._ffi.new("int32_t[256]", list(byte_ids))
        check(self._lib.el_spm_new(out, *arrays, len(kinds), ids, unk_id), "reading the vocabulary")
        self._spm = self._ffi.gc(out[0], self._lib.el_spm_free)

    def encode(self, data: bytes) -> list[int] | None:
        """Ids of UTF-8 text with U+2581 for spaces; None: a character has no piece, no bytes and no unknown token."""
        ids = np.empty(len(data), dtype=np.int32)
        n = self._ffi.new("int64_t *")
        source, target = self._ffi.from_buffer("uint8_t[]", data), self._ffi.from_buffer("int32_t[]", ids)
        rc = self._lib.el_spm_encode(self._spm, source, len(data), target, len(ids), n)
        if rc == EL_E_UNSUPPORTED:
            return None
        check(rc, f"tokenising {len(data)} bytes")
        return ids[: n[0]].tolist()


class BpeHandle:
    """A BPE vocabulary in C. Piece i is `text[offsets[i]:offsets[i + 1]]`: bytes (or uint8), int64 (n + 1,).

    `kinds` (n,) uint8 enum el_piece_kind, `merges` (n_merges, 3) int32: ids of left, right and result by rank, or -1.
    Raises InvalidArgumentError where the same pair is merged twice (or the arrays do not fit together).
    """

    def __init__(
        self, text: Any, offsets: np.ndarray, kinds: np.ndarray, merges: np.ndarray, byte_ids: Sequence[int],
        unk_id: int, whole_words: int, characters: bool,
    ) -> None:  # fmt: skip
        self._ffi, self._lib = library()
        source = self._ffi.from_buffer("uint8_t[]", text)
        ends = self._ffi.from_buffer("int64_t[]", np.ascontiguousarray(offsets, dtype=np.int64))
        kinds_in = self._ffi.from_buffer("uint8_t[]", np.ascontiguousarray(kinds, dtype=np.uint8))
        table = np.ascontiguousarray(merges, dtype=np.int32)
        rows = self._ffi.from_buffer("int32_t[]", table)
        out, ids = self._ffi.new("el_bpe **"), self._ffi.new("int32_t[256]", list(byte_ids))
        rc = self._lib.el_bpe_new(
            out, source, ends, kinds_in, len(kinds), rows, len(table), ids, unk_id, whole_words, characters
        )
        if rc == EL_E_ARGUMENT:
            raise InvalidArgumentError("the merges or the pieces do not fit together")
        check(rc, "reading the vocabulary")
        self._bpe = self._ffi.gc(out[0], self._lib.el_bpe_free)

    def encode(self, data: bytes, word_ends: np.ndarray) -> list[int]:
        """Ids of UTF-8 text whose words end at `word_ends` (n_words,) int64, in bytes."""
        ids = np.empty(len(data), dtype=np.int32)
        n = self._ffi.new("int64_t *")
        source, target = self._ffi.from_buffer("uint8_t[]", data), self._ffi.from_buffer("int32_t[]", ids)
        ends = self._ffi.from_buffer("int64_t[]", word_ends)
        rc = self._lib.el_bpe_encode(self._bpe, source, len(data), ends, len(word_ends), target, len(ids), n)
        check(rc, f"tokenising {len(data)} bytes")
        return ids[: n[0]].tolist()


class SampleCall:
    """el_sample with parameters and scratch memory, for one thread at a time.

    `params`: the fields of el_sampling, `samplers` as names; `tables`: an `edgellm.sampling.tables.TokenTables`.
    """

    def __init__(self, params: dict[str, Any], n_vocab: int, tables: Any) -> None:
        self._ffi, self._lib = library()
        self._n_vocab, self._held = n_vocab, [tables]  # what C points at must live as long
        self._params = self._ffi.new("el_sampling *", self._fields(params))
        self._tokens = self._ffi.new("el_sampling_tokens *", self._token_fields(tables))
        self._mu = self._ffi.new("double *", 2.0 * params["mirostat_tau"])
        self._token = self._ffi.new("int32_t *")
        self._reserve(0)

    @property
    def mu(self) -> float:
        """The surprise in bits that Mirostat allows the next token: all that a call changes here."""
        return float(self._mu[0])

    @mu.setter
    def mu(self, value: float) -> None:
        self._mu[0] = value

    def _fields(self, params: dict[str, Any]) -> dict[str, Any]:
        order = [getattr(self._lib, f"EL_SAMPLER_{name.upper()}") for name in params["samplers"]]
        return params | {"samplers": order, "n_samplers": len(order)}

    def _token_fields(self, tables: Any) -> dict[str, Any]:
        int32, int64 = "int32_t", "int64_t"
        kinds = {"bias_ids": int32, "biases": "double", "heads": int32, "tail_ends": int64, "tails": int32}
        fields = {name: self._ffi.from_buffer(f"{kind}[]", getattr(tables, name)) for name, kind in kinds.items()}
        self._held += fields.values()
        return fields | {"n_biases": len(tables.biases), "n_breakers": len(tables.heads)}

    def _reserve(self, n_recent: int) -> None:
        """Scratch memory for up to `n_recent` recent ids."""
        self._room, self._bytes = n_recent, self._lib.el_sample_scratch_bytes(self._n_vocab, n_recent)
        if self._bytes < 0:
            raise InvalidArgumentError(f"a vocabulary of {self._n_vocab} tokens cannot be sampled from")
        self._scratch = self._ffi.from_buffer(np.empty(self._bytes // 8 + 1, dtype=np.float64))

    def __call__(self, logits: np.ndarray, recent: np.ndarray, seed: int, counter: int) -> int:
        """The token for float32 logits (n_vocab,) after the ids `recent`, int32 (n_recent,).

        Raises NonFiniteError, InvalidArgumentError.
        """
        if len(recent) > self._room:
            self._reserve(2 * len(recent))
        row, ids = self._ffi.from_buffer("float[]", logits), self._ffi.from_buffer("int32_t[]", recent)
        rc = self._lib.el_sample(
            self._params, self._tokens, row, self._n_vocab, ids, len(recent), seed, counter, self._mu, self._scratch,
            self._bytes, self._token,
        )  # fmt: skip
        if rc == EL_E_NONFINITE:
            raise NonFiniteError("logits", "a logit is NaN or +infinity, or all are -infinity")
        check(rc, "sampling")
        return self._token[0]


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x32-10 of four counter words and two key words; for tests."""
    ffi, lib = library()
    out = ffi.new("uint32_t[4]")
    lib.el_philox(ffi.new("uint32_t[4]", counter), ffi.new("uint32_t[2]", key), out)
    return list(out)


def exp_log(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sampler's own exp(x) and, where x > 0, log(x) of float64 values; for tests."""
    ffi, lib = library()
    x = np.ascontiguousarray(x, dtype=np.float64)
    e, log = np.empty_like(x), np.empty_like(x)
    buffers = [ffi.from_buffer("double[]", a) for a in (x, e, log)]
    lib.el_exp_log_test(*buffers, x.size)
    return e, log
