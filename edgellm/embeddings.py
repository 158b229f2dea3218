"""`Model.embed`, text embeddings: the hidden states of a model's last layer, pooled to one vector per text.

Encoders (BERT) and decoders alike: a pass ends where the output head would begin, so the head costs nothing. Texts are
run one after the other, each from an empty cache, so a text's vector never depends on what stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import numpy as np

from edgellm.cache import Sequence
from edgellm.callbacks import Watch
from edgellm.engine import PREFILL_CHUNK
from edgellm.errors import (
    Cancelled,
    ContextOverflowError,
    InvalidArgumentError,
    UnsupportedFeatureError,
    one_line,
)
from edgellm.progress import Meter, ProgressCallback

if TYPE_CHECKING:
    import threading

    from typing_extensions import Unpack

    from edgellm.engine import Engine
    from edgellm.loader import Loaded
    from edgellm.tokenizers import Tokenizer
    from edgellm.worker import Job, Worker

Pooling = Literal["auto", "mean", "cls", "last", "none"]
POOLINGS = ("auto", "mean", "cls", "last", "none")


class EmbedOptions(TypedDict, total=False):
    """Options of `Model.embed` beside its pooling."""

    normalize: bool
    truncate: bool
    cancel: threading.Event | None
    progress: ProgressCallback | None


class Embeds:
    """The `embed` of a `Model`."""

    if TYPE_CHECKING:
        _loaded: Loaded
        _worker: Worker

        def _check_open(self) -> None: ...

    @property
    def pooling(self) -> str:
        """What "auto" stands for in `embed`: "mean", "cls" or "last". Raises UnsupportedFeatureError (it ranks)."""
        return choose_pooling("auto", self._loaded.config.pooling, self._loaded.path)

    @overload
    def embed(self, texts: str, *, pooling: Pooling = ..., **options: Unpack[EmbedOptions]) -> np.ndarray: ...
    @overload
    def embed(
        self, texts: list[str] | list[list[int]], *, pooling: Literal["none"], **options: Unpack[EmbedOptions]
    ) -> list[np.ndarray]: ...
    @overload
    def embed(
        self, texts: list[str] | list[list[int]], *, pooling: Literal["auto", "mean", "cls", "last"] = ...,
        **options: Unpack[EmbedOptions],
    ) -> np.ndarray: ...  # fmt: skip

    def embed(self, texts: Any, *, pooling: str = "auto", **options: Unpack[EmbedOptions]) -> Any:
        """Embeddings of texts (or lists of token ids): float32 (n, dim); of one `str` (dim,).

        `pooling` makes one vector of the hidden states after the last norm: "mean" of all tokens, the first token's
        ("cls"), the "last" one's, or "auto": what the file says, mean where it says nothing. With "none" every token
        keeps its own, (n_tokens, dim) for each text, in a list.

        - `normalize` (True): vectors of length 1, so that a dot product is the cosine.
        - `truncate` (False): cut off what does not fit the context window, instead of ContextOverflowError.
        - `cancel`: a `threading.Event` that ends the call with `Cancelled`. `progress` gets a `Progress`, at most
          ten times a second, on the worker thread, and ends the call by returning False.

        A text's vector does not depend on the texts beside it. Works with encoders (BERT), and with decoders too, whose
        tokens only know what is before them.

        Raises InvalidArgumentError, UnsupportedFeatureError (a model that ranks), Cancelled, ModelClosedError, and as
        `generate`.
        """
        self._check_open()
        return embed_texts(self._loaded, self._worker, texts, pooling, **options)


def embed_texts(
    loaded: Loaded, worker: Worker, texts: Any, pooling: str, *, normalize: bool = True, truncate: bool = False,
    cancel: threading.Event | None = None, progress: ProgressCallback | None = None,
) -> Any:  # fmt: skip
    """What `Model.embed` returns: an array, or with pooling "none" and several texts a list of arrays."""
    chosen = choose_pooling(pooling, loaded.config.pooling, loaded.path)
    plan, engine, exact = loaded.plan, loaded.engine, loaded.exact
    dim = plan.buffers[plan.result(hidden=True)].cols
    lists = token_lists(texts, loaded.tokenizer, loaded.n_ctx, plan.n_vocab, truncate)
    watch = Watch(cancel, None)

    def run(job: Job) -> list[np.ndarray]:
        try:
            return embed(engine, lists, chosen, normalize, exact, job, progress)
        finally:
            watch.end()

    job = worker.submit(run)
    watch.start(job)
    found: list[np.ndarray] = job.wait()
    if isinstance(texts, str):
        return found[0]
    return found if chosen == "none" else np.array(found, np.float32).reshape(len(found), dim)


def choose_pooling(pooling: str, of_file: str | None, path: object = None) -> str:
    """"mean", "cls", "last" or "none". "auto" is what the file says (`of_file`), and mean where it says nothing.

    Mean is also what sentence-transformers takes for a model that comes without a pooling of its own. Raises
    InvalidArgumentError, UnsupportedFeatureError ("auto" for a model that ranks pairs of texts).
    """
    if pooling not in POOLINGS:
        raise InvalidArgumentError(f"pooling is {one_line(pooling)}; choose {', '.join(POOLINGS)}")
    if pooling != "auto":
        return pooling
    if of_file == "rank":
        raise UnsupportedFeatureError(
            "this model ranks pairs of texts, it was not trained for embeddings; choose a pooling to try all the same",
            path=path, field="pooling_type", value="rank", limit=", ".join(POOLINGS[1:]),
        )  # fmt: skip
    return of_file or "mean"


def token_lists(texts: Any, tokenizer: Tokenizer, n_ctx: int, n_vocab: int, truncate: bool) -> list[list[int]]:
    """The ids of each text, with the special tokens that the file asks for; lists of ids are taken as they are.

    With `truncate`, what does not fit is cut off at the end, before the special token that closes a text. Raises
    ContextOverflowError, InvalidArgumentError, TokenizerError.
    """
    if not isinstance(texts, (str, list, tuple)):
        raise InvalidArgumentError(f"texts must be a string or a list, not {type(texts).__name__}")
    lists = []
    for i, text in enumerate([texts] if isinstance(texts, str) else texts):
        closing: list[int] = []
        if isinstance(text, str):
            ids, closing = tokenizer.encode(text), tokenizer.closing_ids
        else:
            ids = _checked_ids(text, i, n_vocab)
        if not ids:
            raise InvalidArgumentError(f"text {i} is empty, and this model has no token that begins a text")
        if len(ids) > n_ctx and truncate:
            ids = ids[: max(n_ctx - len(closing), 0)] + closing
        if len(ids) > n_ctx:
            raise ContextOverflowError(len(ids), n_ctx, f"text {i}", "shorten it, or let it be cut off: truncate=True")
        lists.append(ids)
    return lists


def _checked_ids(text: Any, index: int, n_vocab: int) -> list[int]:
    try:
        ids = [token.__index__() for token in text]
    except (AttributeError, TypeError):
        raise InvalidArgumentError(f"text {index} must be a string or a list of token ids") from None
    if ids and not 0 <= min(ids) <= max(ids) < n_vocab:
        bad = min(ids) if min(ids) < 0 else max(ids)
        raise InvalidArgumentError(f"text {index}: token id {bad} is outside the vocabulary (0 to {n_vocab - 1})")
    return ids


# ---- on the worker thread --------------------------------------------------------------------------------------------


def embed(
    engine: Engine, lists: list[list[int]], pooling: str, normalize: bool, exact: bool, job: Job,
    progress: ProgressCallback | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """One float32 (dim,) per list of ids, or with pooling "none" one (n_tokens, dim).

    `normalize` gives every vector length 1 (one of zeros stays so). Raises Cancelled, NonFiniteError,
    NotEnoughMemoryError, ModelFileChanged.
    """
    engine.set_exact(exact)
    engine.check_file()
    found: list[np.ndarray] = []
    meter = Meter(progress, "embedding", len(lists), "texts")
    for ids in lists:
        vector = pooled(_states(engine, ids, pooling, job), pooling)
        found.append(normalized(vector) if normalize else vector)
        with engine.gate:
            meter.advance(1)
    engine.check_file()
    return found


def _states(engine: Engine, ids: list[int], pooling: str, job: Job) -> Iterator[np.ndarray]:
    """The hidden states that the pooling needs, float32 (rows, dim) of each pass; some passes give no rows."""
    with Sequence(engine.pool, engine.n_ctx) as seq, engine.undoing(seq.close):
        for start in range(0, len(ids), PREFILL_CHUNK):
            if job.stopped:
                raise Cancelled()
            part = ids[start : start + PREFILL_CHUNK]
            wanted = range(len(part))
            if pooling == "cls":
                wanted = wanted[: start == 0]
            elif pooling == "last":
                wanted = wanted[-1:] if start + len(part) == len(ids) else range(0)
            yield engine.forward(seq, part, wanted, job.flag, hidden=True)


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def pooled(parts: Iterator[np.ndarray], pooling: str) -> np.ndarray:
    """One vector of the rows of all parts, float32 (dim,): their mean, or the one row that there is; "none": the rows.

    The mean is added up in float64. A part is copied before the next is asked for.
    """
    if pooling == "mean":
        total, n = np.float64(0.0), 0
        for part in parts:
            total, n = total + part.sum(axis=0, dtype=np.float64), n + len(part)
        return np.asarray(total / n, np.float32)
    rows = np.concatenate([np.array(part) for part in parts])
    return rows if pooling == "none" else rows[0]


def normalized(x: np.ndarray) -> np.ndarray:
    """x (..., dim) with vectors of length 1; a vector of zeros stays as it is."""
    wide = x.astype(np.float64)
    length = np.sqrt(np.square(wide).sum(axis=-1, keepdims=True))
    return np.asarray(np.divide(wide, length, out=wide, where=length > 0), np.float32)
