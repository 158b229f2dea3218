"""The vocabulary in a GGUF file: pieces, scores, types, special ids; checked before anything uses it.

Keys are those of the GGUF specification (`tokenizer.ggml.*`, ggml docs/gguf.md). What each kind of tokenizer does with
them is in the kind's own file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgellm import clib
from edgellm.errors import TokenizerError
from edgellm.gguf.constants import ValueType
from edgellm.strings import StringIndex, StringTable

# Piece types (tokenizer.ggml.token_type).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

MAX_PIECE_CHARS = 65_536
MAX_PIECES = 2**28

# End-of-generation pieces by name: models end their turn with these whether or not a key of the file says so. A file
# that calls one of them ordinary text is wrong, and such text from a user would end the turn, so they are always
# control (llama.cpp does the same). `</s>` is left alone where the vocabulary has `<eos>`: there it is an HTML tag.
TURN_ENDS = frozenset(
    [
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "</s>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "<|end_of_turn|>",
        "<|endofturn|>",
        "<turn|>",
    ]
)
# Names too short to be sure about: they end generation only where the file itself makes them control pieces.
MAYBE_TURN_ENDS = frozenset(["<eos>", "[EOS]", "<eot>", "<|end▁of▁sentence|>", "<｜end▁of▁sentence｜>"])

PREFIX = "tokenizer.ggml."
# Keys that only edgellm's converter writes (formats/checkpoints.md): flags, and lists of special pieces.
OWN_PREFIX = "edgellm.tokenizer."
OWN_FLAGS = ("prefix_if_missing", "prefix_first_only")
ATTRIBUTES = ("lstrip", "rstrip", "single_word", "normalized")


@dataclass(frozen=True)
class Vocab:
    """Pieces and what the file says about them. `types` and `scores` are (n_pieces,) arrays."""

    kind: str  # tokenizer.ggml.model
    pre: str  # tokenizer.ggml.pre: name of the rule that splits text before BPE
    pieces: Sequence[str]  # a StringTable where they come from a file
    scores: np.ndarray | None  # float32
    types: np.ndarray  # uint8
    special: dict[str, int]  # "bos", "eos", "unknown", ... -> id, as far as the file has them
    flags: dict[str, bool]  # "add_bos_token", "add_space_prefix", ... as far as the file has them
    model_name: str = ""  # general.name, for rules that the format has no key for
    merges: Sequence[str] | None = None
    charsmap: bytes = b""  # tokenizer.ggml.precompiled_charsmap
    attributes: dict[str, frozenset[int]] = field(default_factory=dict)  # edgellm.tokenizer.NAME: "lstrip", ...
    path: Any = None
    ids: Mapping[str, int] = field(default_factory=dict, repr=False)  # piece -> id

    @property
    def n_vocab(self) -> int:
        return len(self.pieces)

    def is_text(self, token: int) -> bool:
        """True for pieces that merges make from text (not for special, byte and user-defined ones)."""
        return self.types[token] in (NORMAL, UNUSED)

    def refuse(self, message: str, *, key: str, value: Any = None, limit: Any = None, rule: str) -> TokenizerError:
        """The error for a bad key of this vocabulary."""
        return TokenizerError(message, path=self.path, field=PREFIX + key, value=value, limit=limit, rule=rule)


class _Reader:
    """Typed access to the tokenizer keys of one file."""

    def __init__(self, metadata: Mapping[str, Any], path: Any) -> None:
        self.metadata, self.path = metadata, path

    def error(self, message: str, key: str, rule: str, value: Any = None, limit: Any = None) -> TokenizerError:
        return TokenizerError(message, path=self.path, field=PREFIX + key, value=value, limit=limit, rule=rule)

    def text(self, key: str, default: str | None = None) -> str:
        value = self.metadata.get(PREFIX + key, default)
        if value is None:
            raise self.error("the file has no vocabulary: this key is missing", key, "K11")
        if not isinstance(value, str):
            raise self.error("this key must be a string", key, "K12", value=value)
        return value

    def strings(self, key: str) -> Sequence[str] | None:
        """An array of strings: a StringTable where a file has it, else a list; None where there is no such key."""
        types = getattr(self.metadata, "types", {})  # of a file's metadata: what is in it without decoding it
        if types.get(PREFIX + key) == (ValueType.ARRAY, ValueType.STRING):
            return self.metadata.strings(PREFIX + key)
        value = self.metadata.get(PREFIX + key)
        if value is None:
            return None
        if isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
            raise self.error("this key must be an array of strings", key, "V1", value=value)
        out = value if isinstance(value, list) else list(value)
        for i, piece in enumerate(out):
            if type(piece) is not str:
                what = "not valid UTF-8" if isinstance(piece, bytes) else "not a string"
                raise self.error(f"element {i} is {what}", key, "V5", value=piece)
        return out

    def numbers(self, key: str, n: int, kinds: str, dtype: type) -> np.ndarray | None:
        """A number array with n elements whose element type is one of `kinds` (NumPy kind letters)."""
        value = self.metadata.get(PREFIX + key)
        if value is None:
            return None
        try:
            array = np.asarray(value)
        except (ValueError, OverflowError):
            array = np.empty(0, dtype=object)
        if array.dtype.kind not in kinds or array.ndim != 1:
            if array.ndim == 1 and array.size == 0:
                raise self.error("this array is empty", key, "V1", value=0, limit=f"{n} pieces")
            raise self.error("this key is no array of the right element type", key, "V1", value=array.dtype)
        if len(array) != n:
            raise self.error("this array is not as long as the list of pieces", key, "V1", len(array), n)
        return array.astype(dtype) if kinds == "f" else array

    def byte_string(self, key: str) -> bytes:
        """An array of 8-bit integers as bytes; empty where the file has none."""
        value = self.metadata.get(PREFIX + key)
        if value is None:
            return b""
        array = np.asarray(value)
        if array.dtype not in (np.int8, np.uint8) or array.ndim != 1:
            raise self.error("this key must be an array of 8-bit integers", key, "V8", value=array.dtype)
        return array.tobytes()

    def flags(self) -> dict[str, bool]:
        names = (
            "add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix", "remove_extra_whitespaces",
            "normalizer.lowercase", "normalizer.strip_accents", "escape_whitespaces", "treat_whitespace_as_suffix",
        )  # fmt: skip
        found = {name: self.metadata[PREFIX + name] for name in names if PREFIX + name in self.metadata}
        own = {name: self.metadata[OWN_PREFIX + name] for name in OWN_FLAGS if OWN_PREFIX + name in self.metadata}
        found |= own
        for name, value in found.items():
            if not isinstance(value, (bool, np.bool_)):
                raise self.error("this key must be true or false", name, "K12", value=value)
        return {name: bool(value) for name, value in found.items()}

    def attributes(self, n: int) -> dict[str, frozenset[int]]:
        """The lists of special pieces `edgellm.tokenizer.NAME` (rule V2: each must name a piece)."""
        found = {}
        for name in ATTRIBUTES:
            value = self.metadata.get(OWN_PREFIX + name)
            if value is None:
                continue
            ids = np.asarray(value)
            if ids.dtype.kind not in "iu" or ids.ndim != 1 or (ids >= n).any() or (ids < 0).any():
                raise TokenizerError(
                    "must be a list of token ids", path=self.path, field=OWN_PREFIX + name, limit=f"0 to {n - 1}",
                    rule="V2",
                )  # fmt: skip
            found[name] = frozenset(ids.tolist())
        return found

    def special_ids(self, n: int) -> dict[str, int]:
        """Every `tokenizer.ggml.NAME_token_id` (rule V2: each must name a piece)."""
        found: dict[str, int] = {}
        for key in self.metadata:
            if not (key.startswith(PREFIX) and key.endswith("_token_id")):
                continue
            value = self.metadata[key]
            name = key[len(PREFIX) :]
            if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
                raise self.error("a token id must be an integer", name, "K12", value=value)
            if not 0 <= int(value) < n:
                raise self.error("this token id names no piece", name, "V2", int(value), f"0 to {n - 1}")
            found[name[: -len("_token_id")]] = int(value)
        return found


def _check_pieces(reader: _Reader, pieces: Sequence[str]) -> Mapping[str, int]:
    """Rules V1, V5 and V9; returns piece -> id. In C where it is there and nothing is wrong; else the slow twin."""
    if isinstance(pieces, StringTable) and 0 < len(pieces) <= MAX_PIECES and clib.available():
        longest = np.diff(pieces.offsets).max()  # in bytes: there are no more characters than that
        with contextlib.suppress(ValueError):
            return StringIndex(pieces) if longest <= MAX_PIECE_CHARS else check_pieces(reader, list(pieces))
    return check_pieces(reader, list(pieces))


def check_pieces(reader: _Reader, pieces: list[str]) -> dict[str, int]:
    """What `_check_pieces` checks, and the error for what is wrong."""
    if not 0 < len(pieces) <= MAX_PIECES:
        raise reader.error(
            "the vocabulary has no pieces or too many", "tokens", "V1", len(pieces), f"1 to {MAX_PIECES}"
        )
    longest = max(pieces, key=len)
    if len(longest) > MAX_PIECE_CHARS:
        raise reader.error("a piece is too long", "tokens", "V9", f"{len(longest)} characters", MAX_PIECE_CHARS)
    ids = {piece: i for i, piece in enumerate(pieces)}
    if "" in ids:
        raise reader.error(f"piece {ids['']} is empty", "tokens", "V5")
    if len(ids) != len(pieces):
        i = next(i for i, piece in enumerate(pieces) if ids[piece] != i)
        raise reader.error(f"pieces {i} and {ids[pieces[i]]} have the same text", "tokens", "V5", value=pieces[i])
    try:
        "".join(pieces).encode()
    except UnicodeEncodeError:
        i = next(i for i, piece in enumerate(pieces) if any("\ud800" <= c <= "\udfff" for c in piece))
        raise reader.error(f"piece {i} is not valid UTF-8", "tokens", "V5", value=pieces[i]) from None
    return ids


def _piece_types(reader: _Reader, n: int) -> np.ndarray:
    types = reader.numbers("token_type", n, "iu", np.int64)
    if types is None:
        return np.full(n, NORMAL, np.uint8)
    bad = np.flatnonzero((types < NORMAL) | (types > BYTE))
    if bad.size:
        raise reader.error(f"piece {bad[0]} has an unknown type", "token_type", "V1", int(types[bad[0]]), "1 to 6")
    return types.astype(np.uint8)


def read_vocab(metadata: Mapping[str, Any], path: Any = None) -> Vocab:
    """The vocabulary of a GGUF file's metadata, checked (rules V1, V2, V5, V9 and the keys' types).

    Raises TokenizerError that names the key, the value and the limit.
    """
    reader = _Reader(metadata, path)
    kind = reader.text("model")
    pieces = reader.strings("tokens")
    if pieces is None:
        raise reader.error("the file has no vocabulary: this key is missing", "tokens", "K11")
    ids = _check_pieces(reader, pieces)
    n = len(pieces)
    scores = reader.numbers("scores", n, "f", np.float32)
    if scores is not None and not np.isfinite(scores).all():
        i = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise reader.error(f"the score of piece {i} is not finite", "scores", "V1", value=float(scores[i]))
    name = metadata.get("general.name", "")
    return Vocab(
        kind=kind,
        pre=reader.text("pre", "default"),
        pieces=pieces,
        scores=scores,
        types=_piece_types(reader, n),
        special=reader.special_ids(n),
        flags=reader.flags(),
        model_name=name if isinstance(name, str) else "",
        merges=reader.strings("merges"),
        charsmap=reader.byte_string("precompiled_charsmap"),
        attributes=reader.attributes(n),
        path=path,
        ids=ids,
    )
