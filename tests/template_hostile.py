"""Templates that try to get out of the sandbox, to run for ever, to fill the memory or to break the stack."""

from __future__ import annotations

# ruff: noqa: E501 (a template reads best on one line)

_LOOP = "{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}"
_NS = "{%% set ns = namespace(x=%s, y=%s) %%}"


def _grow(start: str, step: str, use: str = "") -> str:
    """Sixty times x = step(x), then use it."""
    return _NS % (start, start) + _LOOP % step + use


_TWINS = "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(40) %}" \
         "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}"  # fmt: skip
_TUPLES = "{% set ns = namespace(x=(1,)) %}{% for i in range(40) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}"
_MB = "{% set a = 'a' * 1000000 %}"

ESCAPES = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by item": "{{ ''['__class__']['__mro__'] }}",
    "class by attr": "{{ ''|attr('__class__') }}{{ (''|attr('__class__')).__mro__ }}",
    "class by map": "{{ (['']|map(attribute='__class__')|first).x }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "joiner": "{{ joiner.__init__.__globals__ }}{{ joiner.__init__.__globals__.os }}",
    "lipsum": "{{ lipsum.__globals__.os }}",
    "self": "{{ self.__init__.__globals__.x }}",
    "request": "{{ request.application.__globals__.x }}",
    "config": "{{ config.items() }}",
    "format string": "{{ '{0.__class__.__mro__}'.format('') }}",
    "format of data": "{{ messages[0].content.format('') }}",
    "format_map": "{{ '{a.__class__.__mro__}'.format_map({'a': ''}) }}",
    "format through a filter": "{{ ['{0.__class__.__mro__}'.format]|map('attr', '__self__')|list|first + 1 }}",
    "bound format": "{% set f = '{0.__class__.__mro__}'.format %}{{ f('') }}",
    "namespace": "{% set ns = namespace() %}{{ ns.__init__.__globals__.x }}",
    "own namespace": "{{ namespace(_x=1) }}",
    "namespace by item": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "macro": "{% macro m() %}{% endmacro %}{{ m.__globals__.x }}{{ m._func.x }}",
    "loop": "{% for i in [1] %}{{ loop.__init__.x }}{{ loop._iterable.x }}{% endfor %}",
    "generator": "{{ (messages|map('upper')).gi_frame.f_globals }}",
    "marks": "{{ 'a'._spans.x }}",
    "raise": "{{ raise_exception.__globals__.x }}",
    "mutation": "{{ messages.append(1) }}",
    "mutation of a mapping": "{{ messages[0].update({'a': 1}) }}",
    "method that is not listed": "{{ (5).to_bytes(1000000000, 'big') }}",
    "bytes": "{{ ''.encode().hex() }}",
    "translate": "{{ 'a'.translate({97: 'b'}) }}",
    "call of data": "{{ messages[0].content() }}",
    "the filter of loops": "{{ range(9)|edgellm_rounds(-1000000) }}",
    "the filter of loops by name": "{{ range(99999)|map('edgellm rounds', -1000000)|list }}{{ 1 + '' }}",
    "include": "{% include 'x' %}",
    "include of a variable": "{% include messages[0].content ignore missing %}",
    "import": "{% import 'x' as x %}",
    "from import": "{% from 'x' import y %}",
    "extends": "{% extends 'x' %}",
    "autoescape": "{% autoescape 'a'|center(10**9) %}{% endautoescape %}",
    "do": "{% do messages.append(1) %}",
    "debug": "{% debug %}",
}

ENDLESS = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "nested loops with nothing to do": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "loop.last": "{% for i in range(999) %}{% for j in range(999) %}{{ loop.last }}{% endfor %}{% endfor %}",
    "loop.length": "{% for i in range(999) %}{{ range(99999)|map('abs')|list|length }}{% endfor %}",
    "sorts": "{% for i in range(999) %}{% set x = range(99999)|sort %}{% endfor %}",
    "sums": "{% for i in range(99999) %}{{ range(99999)|sum }}{% endfor %}",
    "sum of lists": "{{ ([[1]] * 50000)|sum(start=[])|length }}",
    "long blocks in a loop": "{% for i in range(99999) %}" + "{% if i %}{% endif %}" * 500 + "{% endfor %}",
    "searches": _MB + "{% set b = 'b' ~ a[:500000] %}{{ a.rfind(b) }}{{ a.rsplit(b)|length }}",
    "strips": _MB + "{% for i in range(99999) %}{% set x = a.strip('b' ~ a) %}{% endfor %}",
    "comparisons": _MB + "{% set b = a ~ '' %}{% for i in range(99999) %}{% if a == b %}{% endif %}{% endfor %}",
    "membership": _MB + "{% for i in range(99999) %}{% if 'b' in a %}{% endif %}{% endfor %}",
    "slices": _MB + "{% for i in range(99999) %}{% set b = a[1:] %}{% endfor %}",
    "case": _MB + "{% for i in range(99999) %}{% set b = a|upper|title %}{% endfor %}",
    "spread arguments": "{% for i in range(99999) %}{{ dict.fromkeys(range(99999))|length }}{{ [].index(*range(99999)) }}{% endfor %}",
    "twins compared": _TWINS + "{{ ns.x == ns.y }}",
    "twins printed": _TWINS + "{{ ns.x }}",
    "twins as JSON": _TWINS + "{{ ns.x|tojson }}",
    "twins joined": _TWINS + "{{ ns.x ~ ns.y }}{{ '%s' % [ns.x] }}{{ '{}'.format(ns.x) }}",
    "twins sorted": _TWINS + "{{ [ns.x, ns.y]|sort|length }}",
    "twins found": _TWINS + "{{ [ns.x].index(ns.y) }}{{ ns.x in [ns.y] }}",
    "twins formatted": _TWINS + "{{ '{!r}'.format(ns.x) }}",
    "twins by name": _TWINS + "{{ namespace(unsafe_callable=ns.x)() }}",
    "tuples as keys": _TUPLES + "{{ {ns.x: 1}|length }}",
    "tuples looked up": _TUPLES + "{{ {}[ns.x] }}{{ {}.get(ns.x) }}{{ dict([[ns.x, 1]]) }}",
    "tuples made unique": _TUPLES + "{{ [ns.x]|unique|list|length }}",
    "number by squaring": _grow("3", "ns.x * ns.x"),
    "tower of powers": "{{ 9 ** 9 ** 9 ** 9 ** 9 ** 9 }}",
    "digits": "{{ ('9' * 1000000)|int }}",
    "rounding": "{{ 1.5|round(1000000000, 'ceil') }}",
}

BOMBS = {
    "text": "{{ 'a' * 10**9 }}",
    "text from the left": "{{ 10**9 * 'a' }}",
    "text by doubling": _grow("'aaaaaaaaaa'", "ns.x + ns.x"),
    "text by ~": _grow("'aaaaaaaaaa'", "ns.x ~ ns.x"),
    "text by set blocks": "{% set ns = namespace(x='aaaaaaaaaa') %}{% for i in range(60) %}{% set y %}{{ ns.x }}{{ ns.x }}"
                          "{% endset %}{% set ns.x = y %}{% endfor %}",
    "text by join": _grow("'aaaaaaaaaa'", "[ns.x, ns.x]|join"),
    "text by the join method": _grow("'aaaaaaaaaa'", "ns.x.join([ns.x, ns.x])"),
    "text by replace": _grow("'aaaaaaaaaa'", "ns.x.replace('a', 'aa')"),
    "text by replace of nothing": _grow("'aaaaaaaaaa'", "ns.x|replace('', 'aa')"),
    "text by format": _grow("'aaaaaaaaaa'", "'%s%s' % (ns.x, ns.x)"),
    "text by named format": _grow("'aaaaaaaaaa'", "'%(a)s%(a)s%(a)s' % {'a': ns.x}"),
    "text by format()": _grow("'aaaaaaaaaa'", "'{0}{0}'.format(ns.x)"),
    "text by macros": "{% macro m(x, n) %}{% if n %}{{ m(x ~ x, n - 1) }}{% endif %}{% endmacro %}{{ m('aaaaaaaa', 60) }}",
    "text in many places": "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = ns.x + ['a' * 9999 ~ i] %}{% endfor %}",
    "center": "{{ ''|center(10**9) }}",
    "center()": "{{ ''.center(10**9) }}{{ ''.ljust(10**9) }}",
    "zfill": "{{ '1'.zfill(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "indent": "{{ 'a\nb'|indent(10**9) }}",
    "indent with text": "{% set a = 'a' * 100000 %}{{ ('b\n' * 10000)|indent(a) }}",
    "percent": "{{ '%999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (10**9, 1) }}",
    "percent precision": "{{ '%.999999999f' % 1 }}",
    "format filter": "{{ '%999999999s'|format('') }}",
    "format width": "{{ '{:>999999999}'.format('') }}{{ '{:{w}}'.format('', w=10**9) }}",
    "format precision": "{{ '{:.999999999f}'.format(1.0) }}",
    "tojson": "{{ [1]|tojson(indent=10**9) }}",
    "tojson separators": "{{ range(9999)|list|tojson(separators=['a' * 99999, 'b']) }}",
    "list": "{{ ([0] * 10**9)|length }}",
    "list by doubling": _grow("[1]", "ns.x + ns.x"),
    "range": "{{ range(10**9)|list }}",
    "range sorted": "{{ range(10**9)|sort }}",
    "letters": _MB + "{{ a|list|length }}",
    "words": "{% set a = 'a ' * 1000000 %}{{ a.split()|length }}{{ a.split(' ')|length }}{{ 1 + '' }}",
    "batch": "{{ [1]|batch(10**9, 'x')|list }}",
    "slice": "{{ [1]|slice(10**9, 'x')|list }}",
    "output": "{% for i in range(99999) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' }}{% endfor %}",
    "output of long text": "{% for i in range(999) %}" + "a" * 50_000 + "{% endfor %}",
    "urlencode": _grow("'%%%%%%%%%%'", "ns.x|urlencode ~ ns.x|urlencode"),
    "escape": _grow("'&&&&&&&&&&'", "(ns.x|e) ~ (ns.x|e)"),
    "date": "{{ strftime_now('%999999999d' * 10000) }}",
    "constant": "{% set x = 'a' * 100000 * 100000 %}",
    "folded": "{% if 'a'|center(10**9) %}{% endif %}",
}  # fmt: skip

DEEP = {
    "macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "two macros": "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
    "tree of calls": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "recursive loop": "{% for i in [[1], [2]] recursive %}{{ loop([i, i]) }}{% endfor %}",
    "block": "{% block a %}{{ self.a() }}{% endblock %}",
    "caller": "{% macro m() %}{{ caller() }}{% endmacro %}{% macro n() %}{% call m() %}{{ n() }}{% endcall %}{% endmacro %}{{ n() }}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "attributes": "{{ a" + ".a" * 5000 + " }}",
    "signs": "{{ " + "-" * 5000 + "1 + '' }}",
    "nots": "{{ " + "not " * 5000 + "1 + '' }}",
    "filters": "{{ 1" + "|abs" * 5000 + " + '' }}",
    "ifs": "{% if true %}" * 500 + "{% endif %}" * 500,
    "loops": "{% for i in [1] %}" * 100 + "{% endfor %}" * 100,
    "comparisons": "{{ 1" + " < 1" * 20000 + " }}",
    "very long": "{{ a }}" * 100_000,
    "many words": "{{ a b }}" + "{{ 1 }}" * 20_000,
    "own value": "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}{{ 1 + '' }}",
}  # fmt: skip

HOSTILE = {
    f"{kind}: {name}": text
    for kind, corpus in (("escape", ESCAPES), ("endless", ENDLESS), ("bomb", BOMBS), ("deep", DEEP))
    for name, text in corpus.items()
}
