"""The normalisation map of SentencePiece (`tokenizer.ggml.precompiled_charsmap`): strings to put for others.

The bytes are: the size of a trie in bytes (uint32), the trie, the replacements, each ended by a zero byte. The trie is
a double array of uint32 units (Darts-clone): a unit has its label in bits 0 to 7 (bit 31: it is a value), bit 8 says
that a value hangs on it, bits 10 to 30 are the offset to its children, times 256 where bit 9 is set.

Replacing is done in C (native/charsmap.c), or here where that is not there.

The whole map is read with the vocabulary, so that a broken one is refused then (rule V8) and nothing is trusted later.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from edgellm.errors import TokenizerError
from edgellm.tokenizers.native import CharsMapHandle, checked_bytes, native_model
from edgellm.tokenizers.vocab import Vocab

KEY = "precompiled_charsmap"
MAX_BYTES = 1 << 24
MAX_KEY_BYTES = 256
MAX_ENTRIES = 1 << 20
_BYTES = np.arange(1, 256)
_ONE_BYTE = [bytes([b]) for b in range(256)]


class CharsMap:
    """`apply` puts the replacement of the longest matching string at each place, from left to right."""

    def __init__(self, vocab: Vocab, native: bool | None = None) -> None:
        self._vocab = vocab
        self.set_table(self._read(vocab.charsmap) if vocab.charsmap else {}, native)

    def set_table(self, table: dict[str, str], native: bool | None = None) -> None:
        """Makes `table` (strings -> what is put for them) the map."""
        self.table = table
        self._pattern: re.Pattern[str] | None = None
        self._native = native_model(native, lambda: CharsMapHandle(self.table)) if self.table else None
        if self.table:
            firsts = "".join(re.escape(c) for c in sorted({key[0] for key in self.table}))
            self._pattern = re.compile(f"[{firsts}]")
            self._longest = max(map(len, self.table))

    def apply(self, text: str) -> str:
        """The normalised text."""
        if self._pattern is None:
            return text
        if self._native is not None:
            return self._native.apply(checked_bytes(text)).decode()
        out: list[str] = []
        at = 0
        while match := self._pattern.search(text, at):
            start = match.start()
            out.append(text[at:start])
            lengths = range(min(self._longest, len(text) - start), 0, -1)
            n = next((n for n in lengths if text[start : start + n] in self.table), 0)
            out.append(self.table[text[start : start + n]] if n else text[start])
            at = start + (n or 1)
        out.append(text[at:])
        return "".join(out)

    def _bad(self, what: str, value: Any = None, limit: Any = None) -> TokenizerError:
        message = f"the normalisation map is damaged: {what}"
        return self._vocab.refuse(message, key=KEY, value=value, limit=limit, rule="V8")

    def _read(self, data: bytes) -> dict[str, str]:
        if not 4 <= len(data) <= MAX_BYTES:
            raise self._bad("its size is not possible", len(data), f"4 to {MAX_BYTES} bytes")
        size = int.from_bytes(data[:4], "little")
        if size % 4 or size == 0 or 4 + size > len(data):
            raise self._bad("the size of its trie does not fit", size, len(data) - 4)
        units = np.frombuffer(data, dtype="<u4", count=size // 4, offset=4)
        texts = data[4 + size :]
        if texts and texts[-1]:
            raise self._bad("its last replacement has no end")
        table: dict[str, str] = {}
        bases, keys = _children(units[:1]), [b""]  # (n_nodes) where the children of a level's nodes are; their strings
        n_seen = 0
        while len(bases):
            bases, values, keys = _next_level(units, bases, keys)
            n_seen += len(keys)
            if n_seen > MAX_ENTRIES or (keys and len(keys[0]) > MAX_KEY_BYTES):
                raise self._bad("its trie does not end", n_seen, MAX_ENTRIES)
            for i in np.flatnonzero(values).tolist():
                self._add(table, keys[i], units, int(bases[i]), texts)
        return table

    def _add(self, table: dict[str, str], key: bytes, units: np.ndarray, at: int, texts: bytes) -> None:
        unit = int(units[at]) if at < len(units) else 0
        start = unit & 0x7FFFFFFF
        if not unit >> 31 or start >= len(texts):
            raise self._bad("a value of its trie names no replacement", at, len(texts))
        try:
            table[key.decode()] = texts[start : texts.index(b"\0", start)].decode()
        except UnicodeDecodeError:
            raise self._bad("a string is not UTF-8", key) from None


def _children(units: np.ndarray) -> np.ndarray:
    """(n) where the children of these units are, before their bytes are mixed in."""
    wide = units.astype(np.int64)
    return (wide >> 10) << ((wide & 0x200) >> 6)


def _next_level(units: np.ndarray, bases: np.ndarray, keys: list[bytes]) -> tuple[np.ndarray, np.ndarray, list[bytes]]:
    """The children of some nodes: where their own children are, whether a value hangs on them, their strings."""
    found_at, found_keys = [], []
    for first in range(0, len(bases), 4096):
        at = bases[first : first + 4096, None] ^ _BYTES  # (n_nodes, 255)
        inside = at < len(units)
        unit = units[np.where(inside, at, 0)]
        node, byte = np.nonzero(inside & ((unit & 0x800000FF) == _BYTES))
        found_at.append(at[node, byte])
        found_keys += [keys[first + i] + _ONE_BYTE[b + 1] for i, b in zip(node.tolist(), byte.tolist(), strict=True)]
        if len(found_keys) > MAX_ENTRIES:
            break
    at = np.concatenate(found_at)
    return at ^ _children(units[at]), (units[at] >> 8 & 1).astype(bool), found_keys
