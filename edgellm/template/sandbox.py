"""The Jinja environment of chat templates: transformers' dialect, in the immutable sandbox, with marks and a budget.

Imported when the first template is used, because it imports jinja2. The dialect (filters, globals, extensions) is what
`transformers.utils.chat_template_utils` gives to templates. Templates may call only what is listed here and in
`methods`; everything they do is paid for from a `budget.Budget`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from types import FunctionType, MethodType
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.exceptions import TemplateError as JinjaError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter, safe_range
from jinja2.utils import Cycler, Joiner, Namespace

from edgellm.errors import TemplateError, one_line
from edgellm.template.budget import (
    Budget,
    check_bits,
    current,
    pay_deep,
    pay_list,
    pay_search,
    size_of,
    spending,
)
from edgellm.template.codegen import Marking, check_tree, count_rounds
from edgellm.template.filters import make_filters, make_tests
from edgellm.template.marked import MarkedText, concat, format_marked
from edgellm.template.methods import PayingFormatter, call_method, pay_format

MAX_SOURCE = 2**18  # characters of a template
MAX_TOKENS = 15_000  # words and signs of a template

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "lteq": operator.le, "gt": operator.gt,
    "gteq": operator.ge, "in": lambda a, b: a in b, "notin": lambda a, b: a not in b,
}  # fmt: skip
_PLAIN_KEYS = (str, MarkedText, int, bool, float, type(None), slice)


class Environment(ImmutableSandboxedEnvironment):
    """What the compiled code of a template calls."""

    code_generator_class = Marking
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))
    concat = staticmethod(concat)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._owned: dict[str, str] = {}

    # ---- compiling

    def _tokenize(self, source: str, name: str | None, filename: str | None = None, state: str | None = None) -> Any:
        stream = super()._tokenize(source, name, filename, state)
        stream._iter = _limited(stream._iter)
        return stream

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        check_tree(tree)
        count_rounds(tree)
        tree.set_environment(self)
        return tree

    # ---- what compiled code calls

    def step(self, n: int) -> None:
        current().step(n)

    def own(self, text: str) -> str:
        """A text that the template spells out."""
        made = self._owned.get(text)
        if made is None:
            made = self._owned[text] = MarkedText.template(text)
        return made

    def written(self, value: Any) -> str:
        """`{{ value }}`"""
        if not isinstance(value, str):
            pay_deep(value)
        text = str(value)
        current().text(size_of(text))
        return text

    def joined(self, items: Iterable[Any]) -> str:
        """`a ~ b`"""
        return concat([self.written(item) for item in items])

    def compared(self, left: Any, *rest: Any) -> Any:
        """`a < b`, and `a < b < c` with the later terms as functions."""
        result: Any = True
        for i in range(0, len(rest), 2):
            sign, right = rest[i], rest[i + 1]
            if i:
                right = right()
            _pay_compare(sign, left, right)
            result = _COMPARE[sign](left, right)
            if not result:
                return result
            left = right
        return result

    def key(self, value: Any) -> Any:
        """`{key: ...}`"""
        if type(value) not in _PLAIN_KEYS:
            pay_deep(value)
        return value

    def getitem(self, obj: Any, argument: Any) -> Any:
        if not isinstance(argument, slice):
            return super().getitem(obj, self.key(argument))
        found = obj[argument]
        if isinstance(found, str):
            current().text(size_of(found))
        elif hasattr(found, "__len__"):
            pay_list(len(found))
        return found

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Every call in a template comes here."""
        budget = current()
        budget.step(4 + len(args) + len(kwargs))
        owner = getattr(function, "__self__", None) if not isinstance(function, (Undefined, Namespace)) else None
        if owner is not None and not isinstance(owner, _OWNERS):
            for name in ("_loop_vars", "_block_vars"):  # compiled code passes them along for functions that want them
                kwargs.pop(name, None)
            return call_method(owner, function.__name__, function, args, kwargs)
        if not _may_call(function):
            raise SecurityError(f"templates cannot call a {type(function).__name__}")
        if isinstance(owner, LoopContext):
            pay_deep(*args)
        budget.enter()
        try:
            return context.call(function, *args, **kwargs)
        finally:
            budget.leave()

    def call_binop(self, context: Any, sign: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            _check_number(sign, left, right)
        elif sign == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(times, int):
                    _pay_sequence(value, max(times, 0))
        elif sign == "+":
            _pay_sequence(left, 1)
            _pay_sequence(right, 1)
        elif sign == "%" and isinstance(left, str):
            pay_format(left, right)
        result = super().call_binop(context, sign, left, right)
        if isinstance(result, str) and (sign == "%" or hasattr(result, "__html__")):
            current().text(size_of(result))
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`'...'.format(...)` with marks, and with a price on each field."""
        owner = getattr(value, "__self__", None)
        if not isinstance(owner, str) or getattr(value, "__name__", "") not in ("format", "format_map"):
            return None
        formatter = _Formatter(self)
        mapped = value.__name__ == "format_map"

        def form(*args: Any, **kwargs: Any) -> str:
            if mapped:
                if len(args) != 1 or kwargs:
                    raise TypeError("format_map() takes one mapping")
                args, kwargs = (), args[0]
            pay_search(owner, 0)
            marked = owner if isinstance(owner, MarkedText) else MarkedText("".join((owner,)))
            text = format_marked(marked, formatter, args, kwargs)
            current().text(size_of(text))
            return text

        form._of_template = True  # type: ignore[attr-defined]
        return form


class _Formatter(PayingFormatter, SandboxedFormatter):
    """Formats with the sandbox's look-ups."""


def _limited(tokens: Iterator[Any]) -> Iterator[Any]:
    for i, token in enumerate(tokens):
        if i > MAX_TOKENS:
            raise TemplateSyntaxError(f"it has more than {MAX_TOKENS} words and signs", token.lineno)
        yield token


def _pay_sequence(value: Any, times: int) -> None:
    """For `times` copies of a text or list."""
    if isinstance(value, MarkedText) and value.is_template():
        current().text(len(value) * times)  # stays one span
    elif isinstance(value, str):
        current().text(size_of(value) * times)
    elif isinstance(value, (list, tuple)):
        pay_list(len(value) * times)


def _check_number(sign: str, left: int, right: int) -> None:
    if sign == "**":
        check_bits(left.bit_length() * abs(right))
    elif sign in "+-*":
        check_bits(left.bit_length() + right.bit_length())


def _pay_compare(sign: str, left: Any, right: Any) -> None:
    if sign in ("in", "notin"):
        if isinstance(right, str):
            pay_search(right, len(left) if isinstance(left, str) else 0)
        elif isinstance(right, dict):
            pay_deep(left)
        elif isinstance(left, (str, int, float, type(None))):
            n = len(right) if hasattr(right, "__len__") else 0
            current().step(1 + n // 8)
            current().text(n * (len(left) if isinstance(left, str) else 1))
        else:
            pay_deep(right)
            current().step((len(right) if hasattr(right, "__len__") else 0) * pay_deep(left))
    elif isinstance(left, str) and isinstance(right, str):
        current().text(min(len(left), len(right)))
    elif isinstance(left, (str, int, float, type(None))) or isinstance(right, (str, int, float, type(None))):
        pass  # of two kinds: decided at once
    else:
        pay_deep(left, right)


# ---- what templates may call -----------------------------------------------------------------------------------------


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
        self, values = args[0], _dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no name that begins with an underscore: {name!r}")


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    pay_deep(*args, *kwargs.values())
    return dict(*args, **kwargs)


class _Dict:
    """The global `dict`: a function with `fromkeys`."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return _dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        pay_deep(keys)
        return dict.fromkeys(keys, value)


def _range(*args: int) -> Any:
    return safe_range(*args)


def _raise(message: Any) -> None:
    pay_deep(message)
    raise JinjaError(message)


def _now(form: str) -> str:
    if len(form) > 200:
        raise SecurityError("a date format is at most 200 characters long")
    return datetime.now().strftime(form)


_GLOBALS: dict[str, Any] = {
    "raise_exception": _raise, "strftime_now": _now, "dict": _Dict(), "namespace": _Namespace, "range": _range,
    "cycler": Cycler, "joiner": Joiner,
}  # fmt: skip
_OWNERS = (LoopContext, BlockReference, Cycler, Joiner, _Dict, Extension)  # whose methods may be called
_CALLABLE = (LoopContext, BlockReference, Macro, Joiner, Undefined, _Dict)


def _may_call(function: Any) -> bool:
    if isinstance(function, _CALLABLE):
        return True
    if isinstance(function, MethodType):
        return isinstance(function.__self__, _OWNERS)
    if isinstance(function, FunctionType):
        return function in (_raise, _now, _range) or hasattr(function, "_of_template")
    return function is _Namespace or function is Cycler or function is Joiner


# ---- compile and run -------------------------------------------------------------------------------------------------


def _environment() -> Environment:
    made = Environment(
        trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, loopcontrols]
    )  # fmt: skip
    made.filters = make_filters()
    made.tests = make_tests()
    made.globals = dict(_GLOBALS)
    return made


def compile_template(text: str) -> Any:
    """A template ready to run. Raises TemplateError that names the line where it does not parse."""
    if len(text) > MAX_SOURCE:
        raise TemplateError(f"the chat template does not parse: {len(text)} characters are over {MAX_SOURCE}")
    try:
        return _environment().from_string(text)
    except TemplateSyntaxError as e:
        raise TemplateError(f"the chat template does not parse: line {e.lineno}: {one_line(e.message)}") from None
    except JinjaError as e:
        raise TemplateError(f"the chat template does not parse: {one_line(str(e))}") from None
    except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError, TypeError) as e:
        raise TemplateError(f"the chat template does not parse: {type(e).__name__} {one_line(str(e))}") from None


def run_template(template: Any, values: dict[str, Any], budget: Budget) -> str:
    """The text that the template writes, with marks. Raises TemplateError."""
    try:
        with spending(budget):
            return concat(template.root_render_func(template.new_context(values)))
    except JinjaError as e:
        raise TemplateError(f"the chat template refuses these messages: {one_line(str(e), 400)}") from None
    except RecursionError:
        raise TemplateError("the chat template nests too deeply") from None
    except Exception as e:
        raise TemplateError(f"the chat template fails: {type(e).__name__}: {one_line(str(e), 400)}") from None
