"""Perplexity of a model on a text, and how far a model is from another one on it: llama.cpp's method and file form.

The text is cut into windows of `n_ctx` tokens that know nothing of each other; each begins with the beginning-of-text
token where the model has one. Only the second half of a window counts, so that every counted token has at least half
a window before it. Perplexity is exp of the mean of -ln p(token); its error is that of the mean.

A file of logits (`save_logits`) holds, as `llama-perplexity --save-all-logits` writes it: the magic `_logits_`, int32
n_ctx, n_vocab and n_chunks, int32 token ids (n_chunks * n_ctx), and for each counted position a row of uint16 with an
even length: float32 scale and float32 lowest log-probability in the first four, then the log-probabilities, where code
c stands for lowest + scale * c (16 units below the largest logit and less are code 0).
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import InvalidArgumentError, ModelFileNotFoundError, ModelFormatError
from edgellm.gguf.output import AtomicFile
from edgellm.progress import Meter, ProgressCallback
from edgellm.sampling.logprobs import log_softmax

if TYPE_CHECKING:
    from edgellm.model import Model

_MAGIC = b"_logits_"
_DEEPEST = 16.0  # log-probabilities that are saved reach this far below the largest
_ROWS = 32  # positions whose probabilities are worked on at a time, to bound the memory
_PERCENTILES = (0.1, 1, 5, 10, 90, 95, 99, 99.9)


@dataclass(frozen=True)
class Divergence:
    """How far a model is from the base model whose logits were saved. Means over positions, with their errors.

    `kld` is KL(base || model) in nats; `kld_percentiles` maps percent to value; `same_top` is the share of positions
    where both find the same token likeliest; `delta_p_rms` is the root mean square change of the text's tokens'
    probability; `ppl_ratio` is perplexity over `ppl_base`.
    """

    ppl_base: float
    ppl_ratio: float
    ppl_ratio_error: float
    kld: float
    kld_error: float
    kld_median: float
    kld_max: float
    kld_percentiles: dict[str, float]
    same_top: float
    same_top_error: float
    delta_p_mean: float
    delta_p_rms: float


@dataclass(frozen=True)
class PerplexityResult:
    """`ppl` +- `ppl_error` over `n_tokens` counted tokens of `n_chunks` windows; `nll` is ln(ppl).

    `running` is the perplexity after each window. `divergence` is there when it was asked for.
    """

    ppl: float
    ppl_error: float
    nll: float
    n_tokens: int
    n_chunks: int
    n_ctx: int
    seconds: float
    running: list[float] = field(repr=False)
    divergence: Divergence | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain types, for JSON."""
        return asdict(self)


def perplexity(
    model: Model,
    text: str | None,
    n_ctx: int = 512,
    n_chunks: int | None = None,
    *,
    save_logits: str | os.PathLike[str] | None = None,
    kld_base: str | os.PathLike[str] | None = None,
    progress: ProgressCallback | None = None,
) -> PerplexityResult:
    """Perplexity of `model` on `text` in windows of `n_ctx` tokens, at most `n_chunks` of them.

    `save_logits` writes the file that `kld_base` of a later call compares with; with `kld_base` the text and windows
    are those of the file, and `text` and `n_ctx` count no more. `progress` gets a `Progress` as windows are
    done; returning False ends it with Cancelled.

    Raises InvalidArgumentError (a text of less than two windows, a window longer than the model's), OutputError, and
    ModelFormatError where `kld_base` is no such file or one of another vocabulary.
    """
    if n_chunks is not None and n_chunks < 1:
        raise InvalidArgumentError(f"n_chunks is {n_chunks}; choose 1 or more")
    base = None if kld_base is None else LogitsFile(kld_base, model.n_vocab)
    try:
        if base is not None:
            windows = base.tokens
            n_ctx = base.n_ctx
        else:
            windows = _windows(model, text, n_ctx)
        windows = windows[:n_chunks]
        if n_ctx > model.n_ctx:
            raise InvalidArgumentError(f"windows of {n_ctx} tokens do not fit into the context of {model.n_ctx}")
        writer = None if save_logits is None else _Writer(save_logits, windows, model.n_vocab)
        try:
            result = _measure(model, windows, base, writer, progress)
            if writer is not None:
                writer.commit()
        finally:
            if writer is not None:
                writer.abort()
        return result
    finally:
        if base is not None:
            base.close()


def _windows(model: Model, text: str | None, n_ctx: int) -> np.ndarray:
    """Token ids int32 (n_chunks, n_ctx) of a text; what is left over at its end is dropped."""
    if text is None:
        raise InvalidArgumentError("there is no text to measure on")
    if n_ctx < 4:
        raise InvalidArgumentError(f"n_ctx is {n_ctx}; a window has 4 tokens or more")
    ids = model.tokenize(text, add_special=True)
    if len(ids) < 2 * n_ctx:
        raise InvalidArgumentError(
            f"the text has {len(ids)} tokens; at least {2 * n_ctx} are needed for windows of {n_ctx}; take a longer "
            "text or a smaller window"
        )
    n = len(ids) // n_ctx
    return np.array(ids[: n * n_ctx], np.int32).reshape(n, n_ctx)


def _measure(
    model: Model,
    windows: np.ndarray,
    base: LogitsFile | None,
    writer: _Writer | None,
    progress: ProgressCallback | None,
) -> PerplexityResult:
    start, n_ctx = time.perf_counter(), windows.shape[1]
    first = n_ctx // 2  # the position whose logits foretell the first token that counts
    bos = model.tokenizer.bos_id if model.tokenizer.add_bos else None
    losses: list[np.ndarray] = []
    compared, running = _Compared(), []
    meter = Meter(progress, "perplexity", len(windows), "windows")
    for tokens in windows:
        ids = tokens.tolist()
        if bos is not None:
            ids[0] = bos
        logits = model.logits(ids, first=first)[:-1]  # (n_ctx - 1 - first, n_vocab)
        targets = tokens[first + 1 :]
        for at in range(0, len(targets), _ROWS):
            rows = logits[at : at + _ROWS]
            log_p = log_softmax(rows)
            wanted = targets[at : at + _ROWS]
            losses.append(-log_p[np.arange(len(wanted)), wanted])
            if writer is not None:
                writer.write(rows, log_p)
            if base is not None:
                compared.add(base.read(len(wanted)), log_p, wanted)
        running.append(float(np.exp(np.concatenate(losses).mean())))
        meter.advance(1)
    loss = np.concatenate(losses)
    nll = float(loss.mean())
    ppl = math.exp(nll)
    return PerplexityResult(
        ppl=ppl,
        ppl_error=ppl * _error(loss),
        nll=nll,
        n_tokens=len(loss),
        n_chunks=len(windows),
        n_ctx=n_ctx,
        seconds=time.perf_counter() - start,
        running=running,
        divergence=compared.result(loss) if base is not None else None,
    )


def _error(values: np.ndarray) -> float:
    """Standard error of the mean."""
    n = len(values)
    return math.sqrt(max(float(np.square(values).mean() - values.mean() ** 2), 0.0) / (n - 1)) if n > 1 else 0.0


# ---- divergence ------------------------------------------------------------------------------------------------------


class _Compared:
    """Sums over positions: what the base gave, and what the model gives."""

    def __init__(self) -> None:
        self._kld: list[np.ndarray] = []
        self._base_loss: list[np.ndarray] = []
        self._delta: list[np.ndarray] = []
        self._same: list[np.ndarray] = []

    def add(self, base: np.ndarray, log_p: np.ndarray, wanted: np.ndarray) -> None:
        """`base` and `log_p` are log-probabilities (rows, n_vocab)."""
        rows = np.arange(len(wanted))
        counted = np.where(base > -_DEEPEST, np.exp(base), 0.0)
        self._kld.append((counted * (base - log_p)).sum(axis=1))
        self._base_loss.append(-base[rows, wanted])
        self._delta.append(np.exp(log_p[rows, wanted]) - np.exp(base[rows, wanted]))
        self._same.append(base.argmax(axis=1) == log_p.argmax(axis=1))

    def result(self, loss: np.ndarray) -> Divergence:
        kld, base_loss, delta, same = map(np.concatenate, (self._kld, self._base_loss, self._delta, self._same))
        ratio = math.exp(float((loss - base_loss).mean()))
        share = float(same.mean())
        return Divergence(
            ppl_base=math.exp(float(base_loss.mean())),
            ppl_ratio=ratio,
            ppl_ratio_error=ratio * _error(loss - base_loss),
            kld=float(kld.mean()),
            kld_error=_error(kld),
            kld_median=float(np.median(kld)),
            kld_max=float(kld.max()),
            kld_percentiles={f"{p:g}": float(np.percentile(kld, p)) for p in _PERCENTILES},
            same_top=share,
            same_top_error=math.sqrt(share * (1 - share) / max(len(same) - 1, 1)),
            delta_p_mean=float(delta.mean()),
            delta_p_rms=float(np.sqrt(np.square(delta).mean())),
        )


# ---- the file of logits ----------------------------------------------------------------------------------------------


def _row_length(n_vocab: int) -> int:
    return 2 * ((n_vocab + 1) // 2) + 4


class _Writer:
    """Writes a file of logits; nothing is left of one that is not committed."""

    def __init__(self, path: str | os.PathLike[str], windows: np.ndarray, n_vocab: int) -> None:
        n_chunks, n_ctx = windows.shape
        self._n_vocab = n_vocab
        rows = n_chunks * (n_ctx - 1 - n_ctx // 2)
        self._file = AtomicFile(path)
        self._file.open(20 + 4 * windows.size + 2 * rows * _row_length(n_vocab))
        self._file.write(_MAGIC + np.array([n_ctx, n_vocab, n_chunks], "<i4").tobytes())
        self._file.write(windows.astype("<i4").tobytes())

    def write(self, logits: np.ndarray, log_p: np.ndarray) -> None:
        """Rows of logits float32 (rows, n_vocab), with their log-probabilities."""
        out = np.zeros((len(logits), _row_length(self._n_vocab)), "<u2")
        high = logits.max(axis=1, keepdims=True)
        low = np.maximum(logits.min(axis=1, keepdims=True), high - np.float32(_DEEPEST))
        scale = (high - low) / np.float32(65535)
        at_top = (np.arange(len(logits)), logits.argmax(axis=1))
        lowest = (low - high) + log_p[at_top][:, None].astype(np.float32)
        head = np.concatenate([scale, lowest], axis=1).astype("<f4")
        out[:, :4] = head.view("<u2")
        safe = np.where(scale > 0, scale, 1)
        codes = np.where((logits > low) & (scale > 0), np.rint((logits - low) / safe), 0)
        out[:, 4 : 4 + self._n_vocab] = np.minimum(codes, 65535)
        self._file.write(out.tobytes())

    def commit(self) -> None:
        self._file.commit()

    def abort(self) -> None:
        self._file.abort()


def _sizes(head: bytes, path: object) -> tuple[int, int, int]:
    """n_ctx, n_vocab and n_chunks out of the first 20 bytes of a file."""
    if len(head) < 20 or head[:8] != _MAGIC:
        raise ModelFormatError("this is not a file of logits; make one with --save-logits", path=path)
    n_ctx, n_vocab, n_chunks = np.frombuffer(head, "<i4", 3, 8).tolist()
    if n_ctx < 4 or n_chunks < 1:
        raise ModelFormatError("the sizes make no sense", path=path, offset=8, value=(n_ctx, n_vocab, n_chunks))
    return n_ctx, n_vocab, n_chunks


class LogitsFile:
    """A file of logits that is read row by row. `tokens` is int32 (n_chunks, n_ctx).

    Raises ModelFileNotFoundError, and ModelFormatError where it is not such a file, is cut off, or has another
    vocabulary than `n_vocab`.
    """

    def __init__(self, path: str | os.PathLike[str], n_vocab: int) -> None:
        self.path = path
        try:
            self._file = open(path, "rb")  # noqa: SIM115 (closed by close)
        except FileNotFoundError:
            raise ModelFileNotFoundError(path) from None
        except OSError as error:
            raise ModelFormatError(f"the file of logits cannot be read: {error.strerror}", path=path) from None
        try:
            self.n_ctx, self.tokens = self._read_head(n_vocab)
        except BaseException:
            self.close()
            raise
        self._n_vocab = n_vocab

    @classmethod
    def window_of(cls, path: str | os.PathLike[str]) -> int:
        """Tokens in a window of the file at `path`, before a model is there to compare with. Raises as the class."""
        try:
            with open(path, "rb") as file:
                head = file.read(20)
        except FileNotFoundError:
            raise ModelFileNotFoundError(path) from None
        except OSError as error:
            raise ModelFormatError(f"the file of logits cannot be read: {error.strerror}", path=path) from None
        return _sizes(head, path)[0]

    def _read_head(self, n_vocab: int) -> tuple[int, np.ndarray]:
        n_ctx, found, n_chunks = _sizes(self._file.read(20), self.path)
        if found != n_vocab:
            raise ModelFormatError(
                "the logits are of another vocabulary than the model's",
                path=self.path, offset=12, field="n_vocab", value=found, limit=n_vocab,
            )  # fmt: skip
        rows = n_chunks * (n_ctx - 1 - n_ctx // 2)
        need = 20 + 4 * n_ctx * n_chunks + 2 * rows * _row_length(n_vocab)
        size = os.fstat(self._file.fileno()).st_size
        if size < need:
            raise ModelFormatError("the file of logits is cut off", path=self.path, value=size, limit=need)
        tokens = np.frombuffer(self._file.read(4 * n_ctx * n_chunks), "<i4").reshape(n_chunks, n_ctx)
        if tokens.min() < 0 or tokens.max() >= n_vocab:
            raise ModelFormatError("a token is not in the vocabulary", path=self.path, offset=20, field="tokens")
        return n_ctx, tokens

    def read(self, n: int) -> np.ndarray:
        """The next `n` rows: log-probabilities float64 (n, n_vocab)."""
        length = _row_length(self._n_vocab)
        data = self._file.read(2 * n * length)
        if len(data) < 2 * n * length:
            raise ModelFormatError("the file of logits is cut off", path=self.path)
        rows = np.frombuffer(data, "<u2").reshape(n, length)
        head = np.ascontiguousarray(rows[:, :4]).view("<f4").astype(np.float64)  # scale, lowest
        log_p: np.ndarray = head[:, :1] * rows[:, 4 : 4 + self._n_vocab] + head[:, 1:]
        return log_p

    def close(self) -> None:
        self._file.close()
