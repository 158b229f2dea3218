"""Sessions to disk and back: what a `Session` is, as a session file. Both run on the model's worker thread."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.cache import Overflow, PagePool
from edgellm.cache.saved import SavedSequence, SavedSequenceError, restore
from edgellm.cache.saved import save as save_sequence
from edgellm.errors import InvalidArgumentError, one_line
from edgellm.identity import model_identity
from edgellm.session_state import CacheMark, ModelMark, SequenceMark, SessionState, read_state, rotation_digest
from edgellm.sessionfile import SessionFile, write_session

if TYPE_CHECKING:
    from edgellm.model import Model
    from edgellm.session import Session

_EMPTY = SequenceMark(Overflow(), 0, 0, 0, 0, [])


def save(session: Session, path: str | os.PathLike[str]) -> None:
    """Write `session`. Raises OutputError, InvalidArgumentError (messages that are too large)."""
    said, seq = session._said, session._place.seq
    mark, places = _EMPTY, np.empty((0, 2))
    ids: list[int] = []
    pages: list[np.ndarray] = []
    if seq is not None:
        saved, pages = save_sequence(seq)
        mark = SequenceMark(saved.overflow, saved.length, saved.exact, saved.first, saved.first_id, saved.turns)
        ids, places = saved.ids, saved.places
    state = SessionState(
        model=_model_mark(session.model), cache=_cache_mark(session.model), sequence=mark, overflow=session.overflow,
        options=session.options, system=said.system, messages=said.messages, turns=said.turns, first=said.first,
        gone=said.gone, text=said.text, waiting=said.waiting, seed=session.seed, n_sent=session.n_sent,
    )  # fmt: skip
    write_session(path, state.describe(), ids, places, pages)


def load(session: Session, path: str | os.PathLike[str]) -> None:
    """Make an empty `session` what the file says. Raises SessionFileError, ModelFileNotFoundError,
    NotEnoughMemoryError; then it is still empty."""
    model = session.model
    with SessionFile(path) as file:
        state = read_state(file, model.n_vocab)
        _check_model(file, state, model)
        seq = _load_sequence(file, state, model)
    said = session._said
    said.system, said.messages, said.turns = state.system, state.messages, state.turns
    said.first, said.gone, said.text, said.waiting = state.first, state.gone, state.text, state.waiting
    session.overflow, session.options = state.overflow, state.options
    session.seed, session.n_sent = state.seed, state.n_sent
    session._place.seq = seq
    session._measure()


def _load_sequence(file: SessionFile, state: SessionState, model: Model) -> Any:
    """The sequence with its pages; None where the session had none."""
    mark = state.sequence
    pool: PagePool = model._loaded.pool
    if len(file.ids) and int(file.ids.max()) >= model.n_vocab:
        file.fail("D8", "a token id is outside the vocabulary", "ids", int(file.ids.max()), model.n_vocab - 1)
    if len(file.places) and file.page_bytes != pool.page_bytes:
        file.fail("D7", "the pages have another size than this model's", "page_bytes", file.page_bytes, pool.page_bytes)
    saved = SavedSequence(
        mark.overflow, model.n_ctx, mark.length, mark.exact, mark.first, mark.first_id, file.ids.tolist(), mark.turns,
        file.places.astype(np.int64),
    )  # fmt: skip
    try:
        seq, pages = restore(pool, saved)
    except (SavedSequenceError, InvalidArgumentError) as error:
        if model.n_ctx < state.cache.n_ctx:
            message = f"the session does not fit this context window; load the model with n_ctx={state.cache.n_ctx}"
            file.fail("D7", message, "cache.n_ctx", state.cache.n_ctx, model.n_ctx)
        field = getattr(error, "field", "sequence.overflow")
        value, limit = getattr(error, "value", str(mark.overflow)), getattr(error, "limit", str(error))
        file.fail("D8", "the parts of the session contradict each other", field, value, limit)
    arena = pool.arena
    assert arena is not None  # the model is open
    try:
        for i, page in enumerate(pages):
            file.read_page(i, arena[page])
    except BaseException:
        seq.close()
        raise
    if not seq.length:
        seq.close()
        return None
    return seq


def _check_model(file: SessionFile, state: SessionState, model: Model) -> None:
    """Rules D6 and D7."""
    own, other = _model_mark(model), state.model
    if own.identity != other.identity:
        message = f"this session belongs to another model, '{one_line(other.name)}' ({one_line(other.arch)})"
        file.fail("D6", f"{message}; load that one", "model.identity", other.identity, own.identity)
    mine, theirs = _cache_mark(model), state.cache
    if mine.kv_type != theirs.kv_type:
        message = f"its pages are of another type; load the model with kv_type='{one_line(theirs.kv_type)}'"
        file.fail("D7", message, "cache.kv_type", theirs.kv_type, mine.kv_type)
    for name in ("n_layers", "n_kv_heads", "head_dim"):
        if getattr(mine, name) != getattr(theirs, name):
            file.fail("D7", "its pages have another shape", f"cache.{name}", getattr(theirs, name), getattr(mine, name))
    if mine.rotation != theirs.rotation:
        message = f"its keys were rotated for another context window; load the model with n_ctx={theirs.n_ctx}"
        file.fail("D7", message, "cache.rotation", theirs.rotation, mine.rotation)
    if state.system and model.chat_template is None:
        file.fail("D7", "this model has no chat template, so it takes no system message", "system")


def _model_mark(model: Model) -> ModelMark:
    loaded = model._loaded
    if loaded.identity is None:
        loaded.identity = model_identity(loaded.file)
    return ModelMark(loaded.identity, model.name, model.arch)


def _cache_mark(model: Model) -> CacheMark:
    shape = model.plan.kv
    return CacheMark(
        str(model.kv_type), shape.n_layers, shape.n_kv_heads, shape.head_dim, model.n_ctx, rotation_digest(model.plan)
    )
