"""The Jinja environment of chat templates: transformers' dialect, in the immutable sandbox, with marks.

Imported when the first template is used, because it imports jinja2. The dialect (filters, globals, extensions) is what
`transformers.utils.chat_template_utils` gives to templates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.exceptions import TemplateError as JinjaError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_join, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace, pass_context, pass_eval_context

from edgellm.errors import TemplateError, one_line
from edgellm.template.marked import MarkedText, concat, format_marked

STEPS = "_edgellm_steps"  # name of the step budget among the variables of a render, and of the filter that counts
MAX_VALUE = 2**26  # characters of a text, items of a list: the most that one operator may build
MAX_BITS = 2**16  # the size of a whole number


class _Marking(CodeGenerator):
    """Generates code in which every text that the template spells out is marked as its own."""

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        if isinstance(node.value, str):
            self.write(f"environment.own({str.__repr__(node.value)})")
        else:
            super().visit_Const(node, frame)

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.own({str.__repr__(''.join(group))})"

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for arg in node.nodes:
            self.visit(arg, frame)
            self.write(", ")
        self.write("))")


class Steps:
    """What one render may still do: loop rounds and calls."""

    def __init__(self, limit: int) -> None:
        self._left = self._limit = limit

    def _take(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise SecurityError(f"the template takes more than {self._limit} steps")


class _Rounds:
    """An iterable whose rounds are counted."""

    def __init__(self, items: Any, steps: Steps) -> None:
        self._items, self._steps = items, steps

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self._steps._take()
            yield item


class _SizedRounds(_Rounds):
    def __len__(self) -> int:
        return len(self._items)


@pass_context
def _rounds(context: Context, items: Any) -> Any:
    """The filter that every `for` of a template gets around its iterable."""
    return (_SizedRounds if hasattr(items, "__len__") else _Rounds)(items, context[STEPS])


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Marking
    intercepted_binops = frozenset(("+", "*", "**"))
    concat = staticmethod(concat)
    own = staticmethod(MarkedText.template)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, STEPS, [], [], None, None, lineno=loop.lineno)
        tree.set_environment(self)
        return tree

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Every call in a template comes here."""
        context[STEPS]._take()
        return super().call(context, function, *args, **kwargs)

    def joined(self, items: Iterable[Any]) -> str:
        """The `~` operator."""
        texts = [str(item) for item in items]
        _check_size(sum(map(len, texts)))
        return concat(texts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator != "+" and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MAX_BITS:
                raise SecurityError(f"a number of {bits} bits is over the limit of {MAX_BITS}")
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if hasattr(value, "__len__") and isinstance(times, int):
                    _check_size(len(value) * times)
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _check_size(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`'...'.format(...)` with marks; format_map and formats from data as Jinja does them."""
        wrapped = super().wrap_str_format(value)
        own = getattr(value, "__self__", None)
        if wrapped is None or not isinstance(own, MarkedText) or value.__name__ != "format":
            return wrapped
        return lambda *args, **kwargs: format_marked(own, SandboxedFormatter(self), args, kwargs)


def _check_size(n: int) -> None:
    if n > MAX_VALUE:
        raise SecurityError(f"a value of {n} characters or items is over the limit of {MAX_VALUE}")


class _Generation(Extension):
    """`{% generation %}`: marks what the assistant says, for training; here it only writes its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(Namespace):
    """Jinja's namespace, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: N805 (so that namespace(self=...) works)
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no name that begins with an underscore: {name!r}")


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise JinjaError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


@pass_eval_context
def _join(eval_ctx: Any, value: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    """Jinja's join filter with marks."""
    if eval_ctx.autoescape:
        return do_join(eval_ctx, value, d, attribute)
    if attribute is not None:
        value = map(make_attrgetter(eval_ctx.environment, attribute), value)
    return MarkedText(str(d), getattr(d, "_spans", ())).join(map(str, value))


def _environment() -> _Environment:
    made = _Environment(
        trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, loopcontrols]
    )  # fmt: skip
    made.filters |= {"tojson": _to_json, "join": _join, STEPS: _rounds}
    made.globals |= {
        "raise_exception": _raise,
        "strftime_now": _now,
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        "namespace": _Namespace,
    }
    return made


def compile_template(text: str) -> Any:
    """A template ready to run. Raises TemplateError that names the line where it does not parse."""
    try:
        return _environment().from_string(text)
    except TemplateSyntaxError as e:
        raise TemplateError(f"the chat template does not parse: line {e.lineno}: {one_line(e.message)}") from None
    except JinjaError as e:
        raise TemplateError(f"the chat template does not parse: {one_line(str(e))}") from None
    except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError, TypeError) as e:
        raise TemplateError(f"the chat template does not parse: {type(e).__name__} {one_line(str(e))}") from None


def run_template(template: Any, values: dict[str, Any], limit: int, steps: int) -> Iterator[str]:
    """The pieces that the template writes: at most `limit` characters in `steps` loop rounds and calls.

    Raises TemplateError.
    """
    written = 0
    values = {**values, STEPS: Steps(steps)}
    try:
        for piece in template.root_render_func(template.new_context(values)):
            written += len(piece)
            if written > limit:
                raise TemplateError(f"the chat template writes more than {limit} characters")
            yield piece
    except TemplateError:
        raise
    except JinjaError as e:
        raise TemplateError(f"the chat template refuses these messages: {one_line(str(e), 400)}") from None
    except RecursionError:
        raise TemplateError("the chat template nests too deeply") from None
    except Exception as e:
        raise TemplateError(f"the chat template fails: {type(e).__name__}: {one_line(str(e), 400)}") from None
