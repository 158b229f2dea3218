"""Blocks of sixteen neighbouring rows, turned so that a vector lane is a row.

A *line* is <64 x i8>: four bytes of each of 16 rows, [16 rows][4]. A block's bytes are loaded as lines, and shifts and
masks on lines give lines of codes, [16 rows][4 weights], in ascending k. Sums over k then need no sum across lanes.

`Format.emit(builder, load)` returns codes, group scales and group minimums of a block. Codes are unsigned bytes,
`offset` above the weight's signed code; scales and minimums are <16 x i32>. formats/blocks.toml has the layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from ...quants.unpack import IQ4_VALUES, MXFP4_VALUES
from .intrinsics import F32, HALF, I8, I16, I32, I64, emit_f16, splat

ROWS = 16
BYTES, WORDS, FLOATS = ir.VectorType(I8, 64), ir.VectorType(I32, ROWS), ir.VectorType(F32, ROWS)
Block = tuple[list["Later"], list["Later"], list["Later"]]  # codes, group scales, group minimums


@dataclass(frozen=True)
class Format:
    """How the blocks of one type become lines. `group` is the number of weights that share an integer scale."""

    emit: Callable[[Any, Any], Block]
    offset: int = 0
    group: int = 32


def shuffled(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    """Lanes `order` of (a, b); an index counts through a and then b."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(order)), order))


def _row_loads(builder: Any, address: Any, stride: Any, type: Any) -> list[Any]:
    """A value of `type` from each of 16 rows that are `stride` bytes apart, at any alignment."""
    out = []
    for row in range(ROWS):
        at = builder.gep(address, [builder.mul(stride, ir.Constant(I64, row))])
        value = builder.load(builder.bitcast(at, type.as_pointer()))
        value.align = 1
        out.append(value)
    return out


def gathered(builder: Any, address: Any, stride: Any, element: Any) -> Any:
    """<16 x element>: one element of each row."""
    vector = ir.Constant(ir.VectorType(element, ROWS), ir.Undefined)
    for row, value in enumerate(_row_loads(builder, address, stride, element)):
        vector = builder.insert_element(vector, value, ir.Constant(I32, row))
    return vector


def _turned(builder: Any, rows: list[Any]) -> list[Any]:
    """16 rows of <4 x i32> -> 4 vectors of <16 x i32>: a transposition in steps that stay within quarters."""
    both = [shuffled(builder, rows[i], rows[i + 4], list(range(8))) for i in (0, 1, 2, 3, 8, 9, 10, 11)]
    quarters = [shuffled(builder, both[i], both[i + 4], list(range(16))) for i in range(4)]  # [4 quarters][row 4q + i]
    low = [4 * q + lane for q in range(4) for lane in (0, 16, 1, 17)]
    pairs = [[shuffled(builder, quarters[i], quarters[i + 1], [n + up for n in low]) for i in (0, 2)] for up in (0, 2)]
    low = [4 * q + lane for q in range(4) for lane in (0, 1, 16, 17)]
    return [shuffled(builder, *pair, [n + up for n in low]) for pair in pairs for up in (0, 2)]


class Later:
    """A vector whose instructions are written when it is asked for, once: so that few are alive at a time.

    `source` names the loads that it comes from; the order of sources is the best one to ask in.
    """

    def __init__(self, make: Callable[[], Any], source: tuple[int, ...]) -> None:
        self._make, self.source = make, source
        self._value: Any = None

    def get(self) -> Any:
        if self._value is None:
            self._value = self._make()
        return self._value


def _map(f: Callable[[Any], Any], lines: list[Later]) -> list[Later]:
    return [Later(lambda line=line: f(line.get()), line.source) for line in lines]


def loader(builder: Any, address: Any, stride: Any, ask: Callable[[int], None]) -> Callable[[int, int], list[Later]]:
    """load(at, n): n bytes (a multiple of 4) from byte `at` of the block in each row, as n / 4 lines.

    ask(bytes) is called for as many bytes as were loaded, in between.
    """

    def words(at: int, size: int) -> list[Any]:
        here = builder.gep(address, [ir.Constant(I64, at)])
        ask(size * ROWS)
        if size == 4:
            return [gathered(builder, here, stride, I32)]
        return _turned(builder, _row_loads(builder, here, stride, ir.VectorType(I32, 4)))

    def load(at: int, n: int) -> list[Later]:
        out = []
        while n:
            size = 16 if n >= 16 else 4
            part = Later(lambda at=at, size=size: words(at, size), (at,))
            out += [
                Later(lambda part=part, i=i: builder.bitcast(part.get()[i], BYTES), (at,)) for i in range(size // 4)
            ]
            at, n = at + size, n - size
        return out

    return load


# ---- shifts and masks ------------------------------------------------------------------------------------------------


def _bits(builder: Any, lines: list[Later], shift: int, mask: int) -> list[Later]:
    """line >> shift & mask of each."""

    def one(line: Any) -> Any:
        if shift:
            line = builder.lshr(line, splat(I8, 64, shift))
        return builder.and_(line, splat(I8, 64, mask)) if mask < 0xFF >> shift else line

    return _map(one, lines)


def _above(builder: Any, low: list[Later], high: list[Later], shift: int) -> list[Later]:
    """low | high << shift, line by line."""
    by = splat(I8, 64, shift)
    return [
        Later(lambda a=a, b=b: builder.or_(a.get(), builder.shl(b.get(), by)), b.source + a.source)
        for a, b in zip(low, high, strict=True)
    ]


def _planes(builder: Any, lines: list[Later], run: int, bits: int) -> list[Later]:
    """Of each `run` lines first the lowest `bits` of all, then the next ones, up to bit 8."""
    parts = [lines[i : i + run] for i in range(0, len(lines), run)]
    return [x for part in parts for shift in range(0, 8, bits) for x in _bits(builder, part, shift, (1 << bits) - 1)]


def _nibbles(builder: Any, lines: list[Later]) -> list[Later]:
    """The low four bits of all, then the high ones."""
    return _planes(builder, lines, len(lines), 4)


def _words(builder: Any, lines: list[Later], size: int, signed: bool = False) -> list[Later]:
    """Numbers of `size` bits of each row's four bytes, from the lowest on, as vectors of <16 x i32>."""
    out = []
    for i in range(0, 32, size):

        def one(line: Any, i: int = i) -> Any:
            up = builder.shl(builder.bitcast(line, WORDS), splat(I32, ROWS, 32 - size - i))
            return (builder.ashr if signed else builder.lshr)(up, splat(I32, ROWS, 32 - size))

        out.append(_map(one, lines))
    return [words[n] for n in range(len(lines)) for words in out]


def _less(builder: Any, words: list[Later], n: int) -> list[Later]:
    return _map(lambda word: builder.sub(word, splat(I32, ROWS, n)), words)


# ---- blocks of 32 ----------------------------------------------------------------------------------------------------


def _four_bits(at: int) -> Callable[[Any, Any], Block]:
    return lambda builder, load: (_nibbles(builder, load(at, 16)), [], [])


def _fifth_bits(builder: Any, line: Later) -> list[Later]:
    """A row's 32 bits -> 8 lines with bit i of the word as the lowest bit of weight i."""

    def spread(four: Any) -> Any:
        copies = builder.mul(four, splat(I32, ROWS, 0x00204081))  # 7 bits apart: bit n is at bit 8 n in one of them
        return builder.bitcast(builder.and_(copies, splat(I32, ROWS, 0x01010101)), BYTES)

    return _map(spread, _words(builder, [line], 4))


def _five_bits(at: int) -> Callable[[Any, Any], Block]:
    def emit(builder: Any, load: Any) -> Block:
        return _above(builder, _nibbles(builder, load(at + 4, 16)), _fifth_bits(builder, load(at, 4)[0]), 4), [], []

    return emit


def _eight_bits(builder: Any, load: Any) -> Block:
    return _map(lambda line: builder.xor(line, splat(I8, 64, -128)), load(2, 32)), [], []


def _codebook(builder: Any, lines: list[Later], values: Any) -> list[Later]:
    """values[code] + 128 for lines of nibbles: a tree of selects, one level for each bit."""

    def one(codes: Any) -> Any:
        level = [splat(I8, 64, (int(value) + 128 + 128) % 256 - 128) for value in values]
        for bit in range(4):
            masked = builder.and_(codes, splat(I8, 64, 1 << bit))
            is_set = builder.icmp_unsigned("!=", masked, splat(I8, 64, 0))
            level = [builder.select(is_set, level[i + 1], level[i]) for i in range(0, len(level), 2)]
        return level[0]

    return _map(one, lines)


def _by_codebook(at: int, values: Any) -> Callable[[Any, Any], Block]:
    return lambda builder, load: (_codebook(builder, _nibbles(builder, load(at, 16)), values), [], [])


# ---- blocks of 256 ---------------------------------------------------------------------------------------------------


def _q2_k(builder: Any, load: Any) -> Block:
    low, high = (_words(builder, _bits(builder, load(0, 16), shift, 15), 8) for shift in (0, 4))
    return _planes(builder, load(16, 64), 8, 2), low, high


def _q3_k(builder: Any, load: Any) -> Block:
    codes = _above(builder, _planes(builder, load(32, 64), 8, 2), _planes(builder, load(0, 32), 8, 1), 2)
    packed = load(96, 12)
    steps = _above(builder, _nibbles(builder, packed[:2]), _planes(builder, packed[2:], 1, 2), 4)
    return codes, _less(builder, _words(builder, steps, 8), 32), []


def _sixes(builder: Any, load: Any) -> tuple[list[Later], list[Later]]:
    """Scales and minimums of Q4_K and Q5_K, 8 each; see `edgellm.quants.unpack.k_scales_mins`."""
    *words, last = load(4, 12)
    out = []
    for word, shift in zip(words, (0, 4), strict=True):
        upper = _above(builder, _bits(builder, [last], shift, 15), _bits(builder, [word], 6, 3), 4)
        out.append(_words(builder, _bits(builder, [word], 0, 63) + upper, 8))
    return out[0], out[1]


def _q4_k(builder: Any, load: Any) -> Block:
    return (_planes(builder, load(16, 128), 8, 4), *_sixes(builder, load))


def _q5_k(builder: Any, load: Any) -> Block:
    codes = _above(builder, _planes(builder, load(48, 128), 8, 4), _planes(builder, load(16, 32), 8, 1), 4)
    return (codes, *_sixes(builder, load))


def _q6_k(builder: Any, load: Any) -> Block:
    """Of each half of 128 weights 64 bytes of low nibbles and 32 of high bit pairs; see `edgellm.quants.unpack`."""
    codes = _above(builder, _planes(builder, load(0, 128), 16, 4), _planes(builder, load(128, 64), 8, 2), 4)
    return codes, _words(builder, load(192, 16), 8, signed=True), []


def _iq4_xs(builder: Any, load: Any) -> Block:
    codes = _codebook(builder, _planes(builder, load(8, 128), 4, 4), IQ4_VALUES)
    first, low = load(0, 8)  # d and the scales' high bits; their low bits
    pairs = zip(_words(builder, [low], 4), _words(builder, [first], 2)[8:], strict=True)
    four = splat(I32, ROWS, 4)
    steps = [Later(lambda a=a, b=b: builder.or_(a.get(), builder.shl(b.get(), four)), a.source) for a, b in pairs]
    return codes, _less(builder, steps, 32), []


def _digits(builder: Any, lines: list[Later], n: int) -> list[Later]:
    """The first n base-3 digits of bytes that are fractions of 256: of all lines the first, then the second, ..."""
    wide, out = ir.VectorType(I16, 64), []

    def top(line: Any) -> Any:
        thrice = builder.mul(builder.zext(line, wide), splat(I16, 64, 3))
        return builder.trunc(builder.lshr(thrice, splat(I16, 64, 8)), BYTES)

    for _ in range(n):
        out += _map(top, lines)
        lines = _map(lambda line: builder.mul(line, splat(I8, 64, 3)), lines)
    return out


def _tq1_0(builder: Any, load: Any) -> Block:
    parts = ((0, 32, 5), (32, 16, 5), (48, 4, 4))
    return [code for at, size, n in parts for code in _digits(builder, load(at, size), n)], [], []


def _tq2_0(builder: Any, load: Any) -> Block:
    return _planes(builder, load(0, 64), 8, 2), [], []


FORMATS: dict[str, Format] = {
    "Q4_0": Format(_four_bits(2), 8),
    "Q4_1": Format(_four_bits(4)),
    "Q5_0": Format(_five_bits(2), 16),
    "Q5_1": Format(_five_bits(4)),
    "Q8_0": Format(_eight_bits, 128),
    "IQ4_NL": Format(_by_codebook(2, IQ4_VALUES), 128),
    "MXFP4": Format(_by_codebook(1, MXFP4_VALUES), 128),
    "Q2_K": Format(_q2_k, group=16),
    "Q3_K": Format(_q3_k, 4, 16),
    "Q4_K": Format(_q4_k),
    "Q5_K": Format(_q5_k),
    "Q6_K": Format(_q6_k, 32, 16),
    "IQ4_XS": Format(_iq4_xs, 128),
    "TQ1_0": Format(_tq1_0, 1),
    "TQ2_0": Format(_tq2_0, 1),
}


def half_floats(builder: Any, address: Any, stride: Any, at: int, in_hardware: bool) -> Any:
    """<16 x float> of the half float at byte `at` of each row's block; an instruction converts them, or a few."""
    bits = gathered(builder, builder.gep(address, [ir.Constant(I64, at)]), stride, I16)
    if in_hardware:
        return builder.fpext(builder.bitcast(bits, ir.VectorType(HALF, ROWS)), FLOATS)
    return emit_f16(builder, bits)


def half_powers(builder: Any, address: Any, stride: Any, at: int) -> Any:
    """<16 x float> of half the power of two that an e8m0 byte stands for; 0 and 1 are subnormal."""
    exponent = gathered(builder, builder.gep(address, [ir.Constant(I64, at)]), stride, I8)
    e = builder.zext(exponent, WORDS)
    tiny = builder.shl(splat(I32, ROWS, 0x200000), e)
    normal = builder.shl(builder.sub(e, splat(I32, ROWS, 1)), splat(I32, ROWS, 23))
    small = builder.icmp_unsigned("<", e, splat(I32, ROWS, 2))
    return builder.bitcast(builder.select(small, tiny, normal), FLOATS)
