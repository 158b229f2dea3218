"""`Tokenizer`: text to token ids and back, whatever the kind of vocabulary.

A kind is one file with a class that encodes text without special pieces (`encode`) and says what bytes a piece stands
for (`piece_bytes`); `KINDS` names them. Special pieces, beginning-of-text tokens and decoding are the same for all and
live here.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from edgellm.errors import InvalidArgumentError, one_line
from edgellm.tokenizers.special import Span, SpecialPieces
from edgellm.tokenizers.vocab import (
    BYTE,
    CONTROL,
    MAYBE_TURN_ENDS,
    TURN_ENDS,
    UNKNOWN,
    USER_DEFINED,
    Vocab,
    read_vocab,
)

# tokenizer.ggml.model -> (module, class, what people call it)
KINDS = {
    "llama": ("edgellm.tokenizers.spm", "SpmModel", "SentencePiece BPE"),
    "gpt2": ("edgellm.tokenizers.bpe", "BpeModel", "byte-level BPE"),
    "gemma4": ("edgellm.tokenizers.bpe", "BpeModel", "BPE with byte pieces"),
    "bert": ("edgellm.tokenizers.wordpiece", "WordPieceModel", "WordPiece"),
    "t5": ("edgellm.tokenizers.unigram", "UnigramModel", "Unigram"),
}
# Kinds that exist but are not built yet, so that the message can say what the file has.
OTHER_KINDS = {"rwkv": "RWKV", "plamo2": "PLaMo 2"}

# Some models strip the white space after their special pieces, and GGUF has no key for it: what llama.cpp does by name.
STRIPPING_MODELS = ("phi-3", "phi3")
KEEP_SPACE_AFTER = frozenset(("<unk>", "<s>", "<|endoftext|>"))
SHORT_STRETCH, MAX_STRETCHES = 64, 20_000  # characters; stretches of text that one call remembers
_SPACES = re.compile("[ \t\n\v\f\r]*")


def clean_text(text: str) -> str:
    """Text that can be written as UTF-8: surrogate pairs are joined, lone surrogates become U+FFFD."""
    if not isinstance(text, str):
        raise InvalidArgumentError(f"text must be a string, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class Tokenizer:
    """One vocabulary. Reads only; any number of threads may use one object.

    `n_vocab`, `kind` ("llama", ...), `bos_id`, `eos_id`, `unk_id` (None where there is none) and `eog_ids` (the tokens
    that end a generation) are attributes.
    """

    def __init__(self, vocab: Vocab, *, native: bool | None = None) -> None:
        self.vocab, self.kind = vocab, vocab.kind
        model_class = _model_class(vocab)
        vocab = self.vocab = _with_defaults(vocab, model_class)
        self.n_vocab = vocab.n_vocab
        self.bos_id, self.eos_id = vocab.special.get("bos"), vocab.special.get("eos")
        self.unk_id = vocab.special.get("unknown")
        self.add_bos = vocab.flags.get("add_bos_token", False) and self.bos_id is not None
        self.add_eos = vocab.flags.get("add_eos_token", False) and self.eos_id is not None
        sep_id = vocab.special.get("seperator")  # GGUF spells it so; BERT ends a text with it
        self._last = [sep_id] if vocab.flags.get("add_sep_token", False) and sep_id is not None else []
        if self.add_eos:
            self._last = [self.eos_id] if self.eos_id is not None else []
        self.add_space_prefix = vocab.flags.get("add_space_prefix", False)
        self._prefix_first_only = vocab.flags.get("prefix_first_only", False)
        self.eog_ids = _end_ids(vocab)
        self.control_ids = frozenset(np.flatnonzero(vocab.types == CONTROL).tolist())
        self._hidden = frozenset(np.flatnonzero(np.isin(vocab.types, (CONTROL, UNKNOWN))).tolist())
        self._model = model_class(vocab, native)

    @classmethod
    def from_file(cls, path: Any) -> Tokenizer:
        """The tokenizer of a GGUF file (one with only a vocabulary too). Raises ModelFormatError or TokenizerError."""
        from edgellm.gguf import open_gguf

        with open_gguf(path) as file:
            return cls.from_gguf(file)

    @classmethod
    def from_gguf(cls, file: Any) -> Tokenizer:
        """The tokenizer of an open GGUF file (an object with `metadata` and perhaps `path`)."""
        return cls(read_vocab(file.metadata, getattr(file, "path", None)))

    @property
    def closing_ids(self) -> list[int]:
        """The special tokens that `encode` puts behind a text: none, or one."""
        return list(self._last)

    # ---- text to ids -------------------------------------------------------------------------------------------

    def encode(
        self, text: str, add_special: bool = True, parse_special: bool = False, at_start: bool = True
    ) -> list[int]:
        """Token ids of `text`.

        `add_special` adds the beginning-of-text (and end-of-text) token where the file asks for it. Control pieces that
        are spelled out in `text` stay text unless `parse_special`; pass that only for text you wrote yourself.
        `at_start` False: the text continues another, so no space is put in front of it.
        """
        text = clean_text(text)
        return self._encode(text, [(0, len(text))] if parse_special else [], add_special, at_start)

    def encode_parts(
        self, parts: Iterable[tuple[str, bool]], add_special: bool = False, at_start: bool = True
    ) -> list[int]:
        """Token ids of a rendered chat: `parts` are (text, is_template) spans, in order.

        The spans are one text, so merges go across their borders, but a control piece counts only where template spans
        hold the whole of it: what came from data stays text. `at_start` as in encode.
        """
        texts: list[str] = []
        trusted: list[Span] = []
        at = 0
        for text, is_template in parts:
            text = clean_text(text)
            start, at = at, at + len(text)
            texts.append(text)
            if is_template and text:
                if trusted and trusted[-1][1] == start:
                    start = trusted.pop()[0]
                trusted.append((start, at))
        return self._encode("".join(texts), trusted, add_special, at_start)

    def _encode(self, text: str, trusted: Sequence[Span], add_special: bool, at_start: bool) -> list[int]:
        ids = [self.bos_id] if add_special and self.add_bos and self.bos_id is not None else []
        known: dict[tuple[str, bool], list[int]] = {}  # short stretches between special pieces: they come again
        at, strip_after = 0, self._strip_after
        for start, end, token in self._special.cuts(text, trusted):
            if start < at:  # inside white space that was stripped
                continue
            if start > at:
                ids += self._stretch(text[at:start], at == 0, at_start or at > 0, known)
            ids.append(token)
            at = end
            if token in strip_after:
                at = skipped.end() if (skipped := _SPACES.match(text, end)) else end
        if at < len(text):
            ids += self._stretch(text[at:], at == 0, at_start or at > 0, known)
        return ids + self._last if add_special else ids

    def _stretch(
        self, text: str, first: bool, begins: bool, known: dict[tuple[str, bool], list[int]]
    ) -> list[int]:
        """Ids of the text between two special pieces. `begins`: nothing but such a piece, or nothing, is before it."""
        prefix = self.add_space_prefix and begins and (first or not self._prefix_first_only)
        if len(text) > SHORT_STRETCH:
            long_ids: list[int] = self._model.encode(text, prefix)
            return long_ids
        ids = known.get((text, prefix))
        if ids is None:
            if len(known) >= MAX_STRETCHES:
                known.clear()
            ids = known[text, prefix] = self._model.encode(text, prefix)
        return ids

    @cached_property
    def _special(self) -> SpecialPieces:
        """User-defined pieces (found anywhere) and control pieces (found in trusted spans)."""
        types, pieces = self.vocab.types, self.vocab.pieces
        anywhere = {pieces[i]: i for i in np.flatnonzero(types == USER_DEFINED).tolist()}
        vouched = {pieces[i]: i for i in sorted(self._hidden)}
        return SpecialPieces(anywhere, vouched, self.vocab.attributes)

    @cached_property
    def _strip_after(self) -> frozenset[int]:
        name = self.vocab.model_name.lower()
        if not any(part in name for part in STRIPPING_MODELS):
            return frozenset()
        types, pieces = self.vocab.types, self.vocab.pieces
        special = np.flatnonzero(np.isin(types, (CONTROL, UNKNOWN, USER_DEFINED))).tolist()
        return frozenset(i for i in special if pieces[i] not in KEEP_SPACE_AFTER)

    # ---- ids to text -------------------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int], skip_special: bool = False, at_start: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD.

        `skip_special` leaves control and unknown tokens out. `at_start`: the ids begin a text, so the space that encode
        put in front is taken off again; pass False for ids that continue one.
        """
        return self.decode_bytes(ids, skip_special, at_start).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int], skip_special: bool = False, at_start: bool = True) -> bytes:
        """As decode, but the bytes themselves."""
        tokens = [self._checked(token) for token in ids]
        table = self._shown_bytes if skip_special else self._bytes
        start = 0
        if at_start:
            start = next((i for i, token in enumerate(tokens) if table[token]), len(tokens))
        first = self.without_prefix(tokens[start], table[tokens[start]]) if at_start and start < len(tokens) else b""
        return first + b"".join([table[token] for token in tokens[start + bool(at_start) :]])

    @cached_property
    def _bytes(self) -> _ByToken:
        """Token -> its bytes."""
        hidden, pieces, model = self._hidden, self.vocab.pieces, self._model
        return _ByToken(lambda i: pieces[i].encode() if i in hidden else model.piece_bytes(i))

    @cached_property
    def _shown_bytes(self) -> _ByToken:
        """The same, nothing for control and unknown tokens."""
        hidden, every = self._hidden, self._bytes
        return _ByToken(lambda i: b"" if i in hidden else every[i])

    def token_bytes(self, token: int, skip_special: bool = False) -> bytes:
        """The bytes that one token adds to a text (nothing for a special token with `skip_special`)."""
        return (self._shown_bytes if skip_special else self._bytes)[self._checked(token)]

    def without_prefix(self, token: int, data: bytes) -> bytes:
        """`data` of a text's first token without the space that encode put in front of the text."""
        strips = self.add_space_prefix and self.vocab.types[token] not in (BYTE, CONTROL, UNKNOWN, USER_DEFINED)
        return data[1:] if strips and data[:1] == b" " else data

    # ---- the vocabulary ----------------------------------------------------------------------------------------

    def piece(self, token: int) -> str:
        """The piece of an id as the file spells it (`▁the`, `<0x0A>`, `</s>`)."""
        return self.vocab.pieces[self._checked(token)]

    def id_of(self, piece: str) -> int | None:
        """The id of a piece as the file spells it, or None."""
        return self.vocab.ids.get(piece)

    def is_control(self, token: int) -> bool:
        """True for control tokens: those that only template text can make."""
        return self._checked(token) in self.control_ids

    def _checked(self, token: int) -> int:
        try:
            index = token.__index__()
        except AttributeError:
            raise InvalidArgumentError(f"a token id must be an integer, not {type(token).__name__}") from None
        if not 0 <= index < self.n_vocab:
            raise InvalidArgumentError(f"token id {index} is outside the vocabulary (0 to {self.n_vocab - 1})")
        return index

    def __repr__(self) -> str:
        return f"Tokenizer(kind={self.kind!r}, n_vocab={self.n_vocab})"


class _ByToken(dict[int, bytes]):
    """What `make` makes of a token, remembered."""

    def __init__(self, make: Callable[[int], bytes]) -> None:
        self._make = make

    def __missing__(self, token: int) -> bytes:
        value = self[token] = self._make(token)
        return value


def _model_class(vocab: Vocab) -> Any:
    if vocab.kind not in KINDS:
        known = ", ".join(f"{name} ({what})" for name, (_, _, what) in KINDS.items())
        what = f" ({OTHER_KINDS[vocab.kind]})" if vocab.kind in OTHER_KINDS else ""
        raise vocab.refuse(
            f"tokenizer kind '{one_line(vocab.kind)}'{what} is not supported; supported: {known}",
            key="model",
            value=vocab.kind,
            rule="V7",
        )
    module, name, _ = KINDS[vocab.kind]
    return getattr(importlib.import_module(module), name)


def _with_defaults(vocab: Vocab, model_class: Any) -> Vocab:
    """The vocabulary with the kind's default flags and ids, and with turn-ending pieces made control pieces."""
    from dataclasses import replace

    module = importlib.import_module(model_class.__module__)
    types = vocab.types.copy()
    default_special, default_flags = module.defaults(vocab)
    special = {**default_special, **vocab.special}
    ends = _turn_ends(vocab)
    ends += [special[name] for name in ("eos", "eot", "eom") if name in special]
    for i in ends:
        if types[i] not in (BYTE, UNKNOWN):
            types[i] = CONTROL
    types.setflags(write=False)
    return replace(vocab, types=types, special=special, flags={**default_flags, **vocab.flags})


def _turn_ends(vocab: Vocab) -> list[int]:
    tag = {"</s>"} if "<eos>" in vocab.ids else set()
    return [vocab.ids[piece] for piece in TURN_ENDS - tag if piece in vocab.ids]


def _end_ids(vocab: Vocab) -> frozenset[int]:
    ids = {vocab.special[name] for name in ("eos", "eot", "eom") if name in vocab.special}
    ids |= set(_turn_ends(vocab))
    ids |= {vocab.ids[p] for p in MAYBE_TURN_ENDS if p in vocab.ids and vocab.types[vocab.ids[p]] == CONTROL}
    return frozenset(ids)
