"""The prefix tree: pages of finished sequences, found again by their tokens.

A radix tree over token ids whose stride is one page: a node is a block of up to 64 tokens and the pages that hold them.
Full blocks have children, the last one of a sequence may be shorter. Among the children of a node none begins with all
of another. The tree holds one reference to each of its pages.

Keys and values of a token depend on all tokens before it and on nothing behind it, so any prefix may be used again,
down to the token: a page of which only a part is wanted is shared, and copied when somebody writes to it. Sequences
that have dropped tokens never enter: what they compute depends on that.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf

import numpy as np

from .overflow import Overflow
from .pages import PAGE_TOKENS
from .pool import NO_PAGE, PagePool
from .sequence import UNKNOWN, Sequence
from .sizes import n_blocks


class _Node:
    """A block: `ids` (1 to 64 tokens), `pages` int32 (n_layers,) (-1: that layer had forgotten the block), how many of
    the tokens, from the first on, come from exact passes, and when it was last used."""

    __slots__ = ("children", "exact", "ids", "pages", "parent", "used")

    def __init__(self, parent: _Node | None, ids: tuple[int, ...], pages: np.ndarray, exact: int) -> None:
        self.parent, self.ids, self.pages, self.exact = parent, ids, pages, exact
        self.children: dict[int, list[_Node]] = {}  # by their first token
        self.used = 0

    def best(self, ids: tuple[int, ...], exact: bool) -> tuple[int, _Node | None]:
        """(tokens, child) of the child that shares the longest usable beginning with `ids`."""
        found: tuple[int, _Node | None] = (0, None)
        for child in self.children.get(ids[0], ()) if ids else ():
            n = _common(child.ids, ids)
            n = min(n, child.exact) if exact else n
            if n > found[0]:
                found = n, child
        return found


class PrefixTree:
    """Finished sequences of one pool. It gives pages back, those that were not used for longest first, whenever the
    pool has too few."""

    def __init__(self, pool: PagePool) -> None:
        self.pool, self._clock = pool, 0
        self._root = _Node(None, (), np.empty(0, np.int32), 0)
        pool.reclaim = self.evict

    def match(
        self, ids: SequenceOf[int], n_ctx: int, overflow: Overflow | str | None = None, exact: bool = False
    ) -> Sequence:
        """A new sequence that begins with the longest known prefix of `ids`, whose pages it shares.

        It is shorter than known where a layer with a window of its own has forgotten what the next token would see, and
        never longer than what the policy shows to one token. `exact`: only tokens that exact passes made. Raises as
        Sequence.
        """
        seq = Sequence(self.pool, n_ctx, overflow)
        ids = ids[: seq.overflow.head + seq.overflow.tail_tokens(n_ctx)]
        nodes, n = self._walk(ids, exact)
        if not n:
            return seq
        pages = np.stack([node.pages for node in nodes], axis=1)  # (n_layers, blocks)
        n = _shortened(n, pages, self.pool.shape.layer_windows)
        nodes = nodes[: n_blocks(n)]
        self._clock += 1
        for node in nodes:
            node.used = self._clock
        n_exact = next((i * PAGE_TOKENS + node.exact for i, node in enumerate(nodes) if node.exact < len(node.ids)), n)
        seq.adopt(list(ids[:n]), pages[:, : len(nodes)], min(n, n_exact))
        return seq

    def _walk(self, ids: SequenceOf[int], exact: bool) -> tuple[list[_Node], int]:
        """The nodes of the longest known prefix, and its tokens."""
        node, nodes, total = self._root, [], 0
        for start in range(0, len(ids), PAGE_TOKENS):
            n, child = node.best(tuple(ids[start : start + PAGE_TOKENS]), exact)
            if child is None:
                break
            nodes.append(child)
            node, total = child, total + n
            if n < PAGE_TOKENS:
                break
        return nodes, total

    def insert(self, seq: Sequence) -> None:
        """Keeps the tokens of `seq` and shares its pages. One that has dropped tokens, or does not know its ids, is not
        kept."""
        ids = seq.ids
        if seq.dropped or UNKNOWN in ids:
            return
        self._clock += 1
        node = self._root
        columns = seq.columns(0, n_blocks(seq.length))
        for start, column in zip(range(0, seq.length, PAGE_TOKENS), columns.tolist(), strict=True):
            block = tuple(ids[start : start + PAGE_TOKENS])
            exact = max(0, min(len(block), seq.exact - start))
            node = self._put(node, block, seq.table[:, column].copy(), exact)
            node.used = self._clock

    def _put(self, parent: _Node, ids: tuple[int, ...], pages: np.ndarray, exact: int) -> _Node:
        """The child of `parent` that holds `ids` then: one that was there, grew, or is new."""
        for child in parent.children.get(ids[0], ()):
            n = _common(child.ids, ids)
            if n == len(ids) < len(child.ids):
                return child
            if n == len(child.ids) < len(ids) or (n == len(ids) and exact > child.exact):
                self._take(pages)
                self._give(child.pages)
                child.ids, child.pages, child.exact = ids, pages, exact
                return child
            if n == len(ids):
                missing = (child.pages == NO_PAGE) & (pages != NO_PAGE)
                if exact == child.exact and missing.any():
                    self._take(pages[missing])
                    child.pages[missing] = pages[missing]
                return child
        child = _Node(parent, ids, pages, exact)
        self._take(pages)
        parent.children.setdefault(ids[0], []).append(child)
        return child

    def evict(self, n_free: int) -> None:
        """Drops blocks at the ends of sequences, least recently used first, until the pool has `n_free` free pages."""
        order = itertools.count()  # breaks ties: nodes cannot be compared
        leaves = [(node.used, next(order), node) for node in self._nodes() if not node.children]
        heapq.heapify(leaves)
        while leaves and self.pool.n_free < n_free:
            node = heapq.heappop(leaves)[2]
            self._give(node.pages)
            parent = node.parent
            assert parent is not None
            siblings = parent.children[node.ids[0]]
            siblings.remove(node)
            if not siblings:
                del parent.children[node.ids[0]]
            if parent.parent is not None and not parent.children:
                heapq.heappush(leaves, (parent.used, next(order), parent))

    def clear(self) -> None:
        """Gives all pages back."""
        for node in self._nodes():
            self._give(node.pages)
        self._root.children = {}

    @property
    def n_nodes(self) -> int:
        return sum(1 for _ in self._nodes())

    @property
    def pages(self) -> np.ndarray:
        """int32 (n,): the pages that the tree holds, one that it holds twice two times."""
        pages = [node.pages for node in self._nodes()]
        held = np.concatenate(pages) if pages else np.empty(0, np.int32)
        there: np.ndarray = held[held != NO_PAGE]
        return there

    def _nodes(self) -> Iterator[_Node]:
        stack = [self._root]
        while stack:
            node = stack.pop()
            if node.parent is not None:
                yield node
            stack.extend(child for group in node.children.values() for child in group)

    def _take(self, pages: np.ndarray) -> None:
        self.pool.retain_all(pages[pages != NO_PAGE])

    def _give(self, pages: np.ndarray) -> None:
        for page in pages[pages != NO_PAGE].tolist():
            self.pool.release(page)


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Length of the common beginning."""
    if a == b:
        return len(a)
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def _shortened(n: int, pages: np.ndarray, windows: tuple[int, ...]) -> int:
    """The longest prefix of `n` tokens or less of which every layer holds what the next token sees.

    `pages` is int32 (n_layers, blocks), `windows` the layers' own (0: all is seen).
    """
    before = -1
    while n != before:
        before = n
        for layer, window in enumerate(windows):
            first = max(0, n - window + 1) // PAGE_TOKENS if window else 0
            missing = np.flatnonzero(pages[layer, first : n_blocks(n)] == NO_PAGE)
            if len(missing):
                n = (first + int(missing[0])) * PAGE_TOKENS
    return n
