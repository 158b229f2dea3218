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


class CharsMap:
    """`apply` puts the replacement of the longest matching string at each place, from left to right."""

    def __init__(self, vocab: Vocab, native: bool | None = None) -> None:
        self._vocab = vocab
        self.table: dict[str, str] = {}
        self._pattern: re.Pattern[str] | None = None
        data = vocab.charsmap
        if data:
            self.table = self._read(data)
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
        units = np.frombuffer(data, dtype="<u4", count=size // 4, offset=4).tolist()
        texts = data[4 + size :]
        if texts and texts[-1]:
            raise self._bad("its last replacement has no end")
        table: dict[str, str] = {}
        waiting = [(_children(units[0]), b"")]
        n_seen = 0
        while waiting:
            base, key = waiting.pop()
            for byte in range(1, 256):
                at = base ^ byte
                if at >= len(units) or units[at] & 0x800000FF != byte:
                    continue
                n_seen += 1
                if n_seen > MAX_ENTRIES or len(key) >= MAX_KEY_BYTES:
                    raise self._bad("its trie does not end", n_seen, MAX_ENTRIES)
                longer, below = key + bytes([byte]), at ^ _children(units[at])
                if units[at] >> 8 & 1:
                    self._add(table, longer, units, below, texts)
                waiting.append((below, longer))
        return table

    def _add(self, table: dict[str, str], key: bytes, units: list[int], at: int, texts: bytes) -> None:
        if at >= len(units) or not units[at] >> 31 or units[at] & 0x7FFFFFFF >= len(texts):
            raise self._bad("a value of its trie names no replacement", at, len(texts))
        start = units[at] & 0x7FFFFFFF
        try:
            table[key.decode()] = texts[start : texts.index(b"\0", start)].decode()
        except UnicodeDecodeError:
            raise self._bad("a string is not UTF-8", key) from None


def _children(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)
