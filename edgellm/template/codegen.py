"""How templates are compiled: Jinja's own generator, with a price on every block and a door at every operation.

Jinja makes Python code of a template. In the code made here every block first pays for what is in it, every text that
the template spells out is marked as its own, and what would be a bare Python operator (a comparison, a slice, the str
of an output) is a call of the environment, which pays for it and keeps the marks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateAssertionError

# The filter that every `for` and every `*args` of a template gets around its iterable. Templates cannot spell it.
ROUNDS = "edgellm rounds"

MAX_LOOPS = 20  # within each other; Python takes no more

_REFUSED = {
    nodes.Include: "include", nodes.Import: "import", nodes.FromImport: "import", nodes.Extends: "extends",
    nodes.ScopedEvalContextModifier: "autoescape", nodes.EvalContextModifier: "autoescape",
}  # fmt: skip
_BODIES = ("body", "else_")  # fields that are blocks of their own


def check_tree(tree: nodes.Template) -> None:
    """Refuses the statements that no chat template needs. Raises TemplateAssertionError."""
    for kind, name in _REFUSED.items():
        found = tree.find(kind)
        if found is not None:
            raise TemplateAssertionError(f"'{name}' is not allowed in a chat template", found.lineno)
    _check_loops(tree, 0)


def _check_loops(node: nodes.Node, depth: int) -> None:
    if isinstance(node, nodes.For):
        depth += 1
        if depth > MAX_LOOPS:
            raise TemplateAssertionError(f"loops are nested more than {MAX_LOOPS} deep", node.lineno)
    for child in node.iter_child_nodes():
        _check_loops(child, depth)


def count_rounds(tree: nodes.Template) -> None:
    """Puts the counting filter around what the template iterates over."""
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = _counted(loop.iter, 1 + (_price([loop.test]) if loop.test is not None else 0))
    for call in list(tree.find_all((nodes.Call, nodes.Filter, nodes.Test))):
        if call.dyn_args is not None:
            call.dyn_args = _counted(call.dyn_args, 1)


def _counted(items: nodes.Expr, price: int) -> nodes.Filter:
    args = [nodes.Const(price, lineno=items.lineno)]
    return nodes.Filter(items, ROUNDS, args, [], None, None, lineno=items.lineno)


def _price(block: Iterable[nodes.Node]) -> int:
    """Number of nodes that one run of a block visits, without those in blocks inside it."""
    return sum(1 + _price(node.iter_child_nodes(exclude=_BODIES)) for node in block)


class Marking(CodeGenerator):
    """Jinja's generator with prices and marks. `environment` in the code is `sandbox.Environment`."""

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        block = list(nodes)
        self.writeline(f"environment.step({1 + _price(block)})")
        super().blockvisit(block, frame)

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        if isinstance(node.value, str):
            self.write(f"environment.own({str.__repr__(node.value)})")
        else:
            super().visit_Const(node, frame)

    # ---- output

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible()  # to evaluate it now would be free of charge
        return super()._output_child_to_const(node, frame, finalize)

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.written(environment.own({str.__repr__(''.join(group))}))"

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write("environment.written(")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(")")

    # ---- operators

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for arg in node.nodes:
            self.visit(arg, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        """`a < b` and `a < b < c`: of a chain, the later terms are evaluated only when they are needed."""
        self.write("environment.compared(")
        self.visit(node.expr, frame)
        for i, op in enumerate(node.ops):
            self.write(f", {op.op!r}, {'lambda: ' if i else ''}")
            self.visit(op.expr, frame)
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        self.write("environment.getitem(")
        self.visit(node.node, frame)
        self.write(", ")
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            self.write(str.__repr__(node.arg.value))  # a name needs no marks
        else:
            self.visit(node.arg, frame)
        self.write(")")

    def visit_Slice(self, node: nodes.Slice, frame: Frame) -> None:
        self.write("slice(")
        for part in (node.start, node.stop, node.step):
            if part is None:
                self.write("None")
            else:
                self.visit(part, frame)
            self.write(", ")
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self.write("{")
        for item in node.items:
            self.write("environment.key(")
            self.visit(item.key, frame)
            self.write("): ")
            self.visit(item.value, frame)
            self.write(", ")
        self.write("}")
