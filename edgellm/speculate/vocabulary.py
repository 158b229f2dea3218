"""Whether a second model may draft for a model: the tokens must be the same, or its guesses would be of other words.

A head may have more rows than there are tokens (padding), and one of the two may know further tokens behind those of
the other: what counts are the ids that both have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellm.errors import DraftModelError, one_line
from edgellm.strings import StringTable, as_table
from edgellm.tokenizers.vocab import Vocab, read_vocab

if TYPE_CHECKING:
    from edgellm.gguf import GGUFFile

SPECIAL = ("bos", "eos", "unknown")  # ids that must be the same, where both files name them


def check_draft_vocabulary(model: GGUFFile, draft: GGUFFile) -> None:
    """Raises DraftModelError, which names the first id that differs; TokenizerError for a file without a vocabulary."""
    mine, other = read_vocab(model.metadata, model.path), read_vocab(draft.metadata, draft.path)
    found = first_difference(mine, other)
    if found is not None:
        token, message = found
        raise DraftModelError(draft.path, model.path, message, token)


def first_difference(model: Vocab, draft: Vocab) -> tuple[int, str] | None:
    """(id, what differs) of the first token that is not the same in both; None: they go together."""
    n = min(model.n_vocab, draft.n_vocab)
    token = _first_other_text(as_table(model.pieces), as_table(draft.pieces), n)
    if token < n:
        return token, _differs(f"token {token}", *(f"'{one_line(v.pieces[token], 60)}'" for v in (model, draft)))
    types = np.flatnonzero(model.types[:n] != draft.types[:n])
    if types.size:
        token = int(types[0])
        return token, _differs(f"the type of token {token}", model.types[token], draft.types[token])
    for name in SPECIAL:
        ids = model.special.get(name), draft.special.get(name)
        if ids[0] is not None and ids[1] is not None and ids[0] != ids[1]:
            return ids[1], _differs(f"the {name} token", *ids)
    return None


def _differs(what: str, model: object, draft: object) -> str:
    return f"{what} is {draft} in the draft model and {model} in the model"


def _first_other_text(a: StringTable, b: StringTable, n: int) -> int:
    """The first of the strings 0 .. n - 1 that differ; n where none does."""
    ends = np.flatnonzero(a.offsets[1 : n + 1] != b.offsets[1 : n + 1])
    n = int(ends[0]) if ends.size else n  # up to there all are of the same length
    size = int(a.offsets[n])
    texts = [np.frombuffer(table.text, np.uint8, size) for table in (a, b)]
    other = np.flatnonzero(texts[0] != texts[1])
    return int(np.searchsorted(a.offsets, other[0], side="right")) - 1 if other.size else n
