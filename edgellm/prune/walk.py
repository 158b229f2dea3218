"""A model layer by layer: the hidden states of a text go through one layer, are kept, and go through the next.

Steps with matrices are computed here, in float32 on the matrices as they are at the time; all others by the backend,
step by step. So one layer's weights are in memory at a time, whatever the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..errors import UnsupportedFeatureError
from ..ops import Op
from ..plan import Plan, Step
from ..weights import part_of
from .matrices import Matrices

# gets (tensor name, matrix of a stack, matrices in the stack, their inputs float32 (rows, k)) before the product
See = Callable[[str, int, int, np.ndarray], Any]
_OUTPUTS = 64  # rows of results that a pass is asked for at once
_TAIL = {Op.SOFTCAP, Op.SCALE}  # what may follow the head: it looks at one number at a time


class LayerWalk:
    """The steps of a plan in three parts: `enter` to the first layer, `layer` through one, `leave` to what the head
    reads. `loaded` is an `edgellm.loader.Loaded`.

    Raises UnsupportedFeatureError where a plan is not a stack of layers with one stream between them.
    """

    def __init__(self, loaded: Any) -> None:
        self._runner, self.plan, self._pool = loaded.runner, loaded.plan, loaded.pool
        self._spans = _layers(loaded.plan, loaded.path)
        self.n_layers = len(self._spans)
        self.stream = _stream(loaded.plan, self._spans, loaded.path)  # the buffer between layers: (tokens, dim)
        self.head = max(i for i, s in enumerate(self.plan.steps) if s.op is Op.LINEAR)
        after = self.plan.steps[self.head + 1 :]
        if self.head < self._spans[-1].stop or any(step.op not in _TAIL for step in after):
            raise UnsupportedFeatureError("what follows the output head is not known to pruning", path=loaded.path)
        self.after = after

    def steps(self, layer: int) -> list[Step]:
        """The steps of a layer."""
        return [self.plan.steps[i] for i in self._spans[layer]]

    def leaders(self, layer: int) -> dict[str, str]:
        """{tensor: the first tensor of the layer with the same input}; experts' `up` has that of their `gate`."""
        found: dict[str, str] = {}
        first: dict[int, str] = {}  # by buffer, until something else is written there
        for step in self.steps(layer):
            if step.op is Op.LINEAR:
                part = part_of(step.weights[0])
                name = part[0] if part else step.weights[0]
                found.setdefault(name, first.setdefault(step.inputs[0], name))
            elif step.op is Op.EXPERTS:
                gate, up, down = step.weights
                found |= {gate: gate, up: gate, down: down}
            for buffer in step.outputs:
                first.pop(buffer, None)
        return found

    def enter(self, tokens: np.ndarray, embed: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The first layer's input float32 (n, dim); `embed` gives the table's rows float32 (n, dim) of tokens (n,)."""
        out = [np.empty((0, self.plan.buffers[self.stream].cols), np.float32)]
        for part, _ in self._passes(tokens):
            for i in range(self._spans[0].start):
                step = self.plan.steps[i]
                if step.op is Op.EMBED:
                    self._runner.write(step.outputs[0], embed(part))
                else:
                    self._runner.run_step(i)
            out.append(self._runner.read(self.stream))
        return np.concatenate(out)

    def layer(
        self, layer: int, tokens: np.ndarray, x: np.ndarray, matrices: Matrices, see: See | None = None
    ) -> np.ndarray:
        """x float32 (n, dim) through a layer -> (n, dim), a new array."""
        out = np.empty_like(x)
        for part, start in self._passes(tokens):
            here = slice(start, start + len(part))
            self._runner.write(self.stream, x[here])
            for i in self._spans[layer]:
                step = self.plan.steps[i]
                if step.op is Op.LINEAR:
                    self._linear(step, matrices, see)
                elif step.op is Op.EXPERTS:
                    self._experts(step, matrices, see)
                else:
                    self._runner.run_step(i)
            out[here] = self._runner.read(self.stream)
        return out

    def leave(self, tokens: np.ndarray, x: np.ndarray, first: int) -> np.ndarray:
        """What the head reads for tokens `first` and after it: float32 (n - first, dim)."""
        out = []
        source = self.plan.steps[self.head].inputs[0]
        for start in range(first, len(tokens), _OUTPUTS):
            rows = np.arange(min(_OUTPUTS, len(tokens) - start), dtype=np.int32)
            here = slice(start, start + len(rows))
            for _ in self._passes(tokens[here], rows):
                self._runner.write(self.stream, x[here])
                for i in range(self._spans[-1].stop, self.head):
                    self._runner.run_step(i)
                out.append(self._runner.read(source))
        return np.concatenate(out)

    def _passes(self, tokens: np.ndarray, outputs: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, int]]:
        """Begins a pass for each stretch of tokens that the backend takes at once: (tokens, position of the first)."""
        from ..cache import PASS_TOKENS, Sequence

        with Sequence(self._pool, len(tokens)) as seq:
            for start in range(0, len(tokens), PASS_TOKENS):
                part = tokens[start : start + PASS_TOKENS]
                seq.ensure(start + len(part))
                self._runner.begin(part, start, np.zeros(1, np.int32) if outputs is None else outputs, seq)
                yield part, start
                seq.commit(start + len(part))

    def _linear(self, step: Step, matrices: Matrices, see: See | None) -> None:
        x = self._runner.read(step.inputs[0])
        if see is not None:
            part = part_of(step.weights[0])
            if part is None:
                see(step.weights[0], 0, 1, x)
            elif part[1] == 0:  # all parts of a tensor have the same input
                see(part[0], 0, 1, x)
        weight, *bias = (matrices.matrix(name) for name in step.weights)
        with np.errstate(all="ignore"):
            y = x @ weight.T
        self._runner.write(step.outputs[0], y + bias[0] if bias else y)

    def _experts(self, step: Step, matrices: Matrices, see: See | None) -> None:
        """As the body of the reference backend, which defines it; the input of `down` is seen here only."""
        from ..backends.reference import ACTIVATIONS

        x, share = (self._runner.read(buffer) for buffer in step.inputs)
        gate, up, down = (matrices.matrix(name) for name in step.weights)
        activation, out, n = ACTIVATIONS[step.params["activation"]], np.zeros_like(x), share.shape[1]
        for e in range(n):
            rows = np.flatnonzero(share[:, e])
            with np.errstate(all="ignore"):
                hidden = activation(x[rows] @ gate[e].T) * (x[rows] @ up[e].T)
                out[rows] += share[rows, e, None] * (hidden @ down[e].T)
            if see is not None:
                for name, seen in zip(step.weights, (x[rows], x[rows], hidden), strict=True):
                    see(name, e, n, seen)
        self._runner.write(step.outputs[0], out)


def _layers(plan: Plan, path: str) -> list[range]:
    """The steps of each layer, ascending: those whose label begins with blk.N."""
    found: list[range] = []
    for i, step in enumerate(plan.steps):
        words = step.label.split(".")
        if words[0] != "blk":
            continue
        layer = int(words[1])
        if layer == len(found) and (not found or found[-1].stop == i):
            found.append(range(i, i + 1))
        elif layer == len(found) - 1 and found[-1].stop == i:
            found[-1] = range(found[-1].start, i + 1)
        else:
            raise UnsupportedFeatureError("the layers of this model do not follow each other", path=path)
    if not found or plan.logits is None:
        raise UnsupportedFeatureError("only models that write text can be pruned", path=path)
    return found


def _stream(plan: Plan, spans: list[range], path: str) -> int:
    """The one buffer whose values go from layer to layer."""
    live = {tuple(sorted(_read_later(plan, span.start))) for span in spans}
    if len(live) != 1 or len(next(iter(live))) != 1:
        raise UnsupportedFeatureError("more than one stream goes through the layers of this model", path=path)
    return next(iter(live))[0]


def _read_later(plan: Plan, first: int) -> set[int]:
    """Buffers that steps `first` and later read before any of them writes there."""
    needed: set[int] = set()
    written: set[int] = set()
    for step in plan.steps[first:]:
        needed |= set(step.inputs) - written
        written |= set(step.outputs)
    return needed
