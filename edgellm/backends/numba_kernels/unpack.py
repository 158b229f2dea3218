"""One block of each quantised format -> integer codes, by vector instructions (formats/blocks.toml has the layouts).

Each takes (bytes, offset of the block, array of codes, index of its first code). Codes are int8; for blocks of 256
int16 and already multiplied by their group's integer scale. `lows_*` store the 16 minimums of a block instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...quants.unpack import IQ4_VALUES, MXFP4_VALUES
from .intrinsics import I8, I16, I32, load_vector, splat, store_vector


def _unpacker(emit_codes: Callable[..., Any], doc: str) -> Any:
    """An intrinsic that stores what `emit_codes(load)` returns: pairs (index of the first code, vector of codes).

    `load(offset, n)` gives n bytes of the block as a vector.
    """

    def unpack(_context: Any, w: Any, offset: Any, codes: Any, index: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def shifted(value: Any, by: int) -> Any:
                return builder.add(value, ir.Constant(ir.IntType(64), by))

            def load(at: int, n: int) -> Any:
                return load_vector(context, builder, signature.args[0], args[0], shifted(args[1], at), I8, n)

            for first, vector in emit_codes(builder, load):
                store_vector(context, builder, signature.args[2], args[2], shifted(args[3], first), vector)
            return context.get_dummy_value()

        return types.void(w, types.intp, codes, types.intp), emit

    unpack.__doc__ = doc
    return intrinsic(unpack)


def _nibbles(builder: Any, packed: Any) -> tuple[Any, Any]:
    """Low and high four bits of each byte of a vector."""
    n = packed.type.count
    return builder.and_(packed, splat(I8, n, 15)), builder.lshr(packed, splat(I8, n, 4))


def _joined(builder: Any, low: Any, high: Any) -> Any:
    n = low.type.count
    return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(I32, 2 * n), list(range(2 * n))))


def _four_bits(nibbles_at: int, offset: int) -> Callable[..., Any]:
    def emit(builder: Any, load: Any) -> Any:
        codes = _joined(builder, *_nibbles(builder, load(nibbles_at, 16)))
        yield 0, builder.sub(codes, splat(I8, 32, offset)) if offset else codes

    return emit


def _five_bits(high_at: int, offset: int) -> Callable[..., Any]:
    def emit(builder: Any, load: Any) -> Any:
        codes = _joined(builder, *_nibbles(builder, load(high_at + 4, 16)))
        # weight i has bit i of the word: byte i / 8 of the four, repeated for eight lanes, tested at bit i % 8
        word = load(high_at, 4)
        spread = ir.Constant(ir.VectorType(I32, 32), [i // 8 for i in range(32)])
        spread_bytes = builder.shuffle_vector(word, ir.Constant(word.type, ir.Undefined), spread)
        masks = ir.Constant(ir.VectorType(I8, 32), [1 << (i % 8) for i in range(32)])
        is_set = builder.icmp_unsigned("!=", builder.and_(spread_bytes, masks), splat(I8, 32, 0))
        codes = builder.or_(codes, builder.select(is_set, splat(I8, 32, 16), splat(I8, 32, 0)))
        yield 0, builder.sub(codes, splat(I8, 32, offset)) if offset else codes

    return emit


def _eight_bits(builder: Any, load: Any) -> Any:
    yield 0, load(2, 32)


def _six_bits(builder: Any, load: Any) -> Any:
    """Q6_K: bytes 0..127 low nibbles, 128..191 high bit pairs, 192..207 scales; see `edgellm.quants.codecs`."""
    wide = ir.VectorType(I16, 16)
    for half in range(2):
        high = load(128 + 32 * half, 32)
        low = [_nibbles(builder, load(64 * half + 32 * j, 32)) for j in range(2)]
        for g in range(4):
            top = builder.and_(builder.lshr(high, splat(I8, 32, 2 * g)), splat(I8, 32, 3))
            codes = builder.or_(low[g % 2][g // 2], builder.shl(top, splat(I8, 32, 4)))
            codes = builder.sub(codes, splat(I8, 32, 32))
            for part in range(2):
                lanes = ir.Constant(ir.VectorType(I32, 16), list(range(16 * part, 16 * part + 16)))
                sixteen = builder.shuffle_vector(codes, ir.Constant(codes.type, ir.Undefined), lanes)
                scale = builder.sext(load(192 + 8 * half + 2 * g + part, 1), ir.VectorType(I16, 1))
                spread = ir.Constant(ir.VectorType(I32, 16), [0] * 16)
                scales = builder.shuffle_vector(scale, ir.Constant(scale.type, ir.Undefined), spread)
                yield 128 * half + 32 * g + 16 * part, builder.mul(builder.sext(sixteen, wide), scales)


# ---- codebooks, and blocks of 256 ------------------------------------------------------------------------------------


def _codebook(builder: Any, codes: Any, values: Any) -> Any:
    """values[code] of a vector of nibbles: a tree of selects, one level for each bit."""
    n = codes.type.count
    level = [splat(I8, n, int(value)) for value in values]
    for bit in range(4):
        is_set = builder.icmp_unsigned("!=", builder.and_(codes, splat(I8, n, 1 << bit)), splat(I8, n, 0))
        level = [builder.select(is_set, level[i + 1], level[i]) for i in range(0, len(level), 2)]
    return level[0]


def _by_codebook(nibbles_at: int, values: Any) -> Callable[..., Any]:
    def emit(builder: Any, load: Any) -> Any:
        yield 0, _codebook(builder, _joined(builder, *_nibbles(builder, load(nibbles_at, 16))), values)

    return emit


def _lanes(builder: Any, vector: Any, order: list[int]) -> Any:
    lanes = ir.Constant(ir.VectorType(I32, len(order)), order)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), lanes)


def _bits(builder: Any, vector: Any, shift: int, mask: int) -> Any:
    n = vector.type.count
    return builder.and_(builder.lshr(vector, splat(I8, n, shift)), splat(I8, n, mask))


def _products(builder: Any, codes: list[Any], scales: Any) -> Any:
    """Eight vectors of 32 int8 codes times int8 scales (8, or 16: one for 16 codes), as int16."""
    wide = ir.VectorType(I16, 32)
    for j, vector in enumerate(codes):
        order = [j] * 32 if scales.type.count == 8 else [2 * j] * 16 + [2 * j + 1] * 16
        spread = builder.sext(_lanes(builder, scales, order), wide)
        yield 32 * j, builder.mul(builder.sext(vector, wide), spread)


def _two_bits(builder: Any, load: Any, at: int) -> list[Any]:
    """64 bytes -> 8 vectors: of each 32 bytes first the lowest two bits of all."""
    return [_bits(builder, load(at + 32 * half, 32), 2 * j, 3) for half in range(2) for j in range(4)]


def _four_bits_256(builder: Any, load: Any, at: int) -> list[Any]:
    """128 bytes -> 8 vectors: of each 32 bytes first the low nibbles of all."""
    return [nibbles for t in range(4) for nibbles in _nibbles(builder, load(at + 32 * t, 32))]


def _with_bit(builder: Any, codes: list[Any], bits: Any, value: int) -> list[Any]:
    """Adds `value` to vector g where bit g is set."""
    shift = splat(I8, 32, value.bit_length() - 1)
    return [builder.or_(code, builder.shl(_bits(builder, bits, g, 1), shift)) for g, code in enumerate(codes)]


def _sixes(builder: Any, load: Any) -> tuple[Any, Any]:
    """Scales and minimums of Q4_K and Q5_K, 8 lanes each; see `edgellm.quants.unpack.k_scales_mins`."""
    first, second, third = (load(at, 4) for at in (4, 8, 12))
    out = []
    for words, shift in ((first, 0), (second, 4)):
        upper = builder.shl(_bits(builder, words, 6, 3), splat(I8, 4, 4))
        high = builder.or_(_bits(builder, third, shift, 15), upper)
        out.append(_joined(builder, _bits(builder, words, 0, 63), high))
    return out[0], out[1]


def _q2_k(builder: Any, load: Any) -> Any:
    yield from _products(builder, _two_bits(builder, load, 16), _bits(builder, load(0, 16), 0, 15))


def _q3_k(builder: Any, load: Any) -> Any:
    codes = _with_bit(builder, _two_bits(builder, load, 32), load(0, 32), 4)
    codes = [builder.sub(code, splat(I8, 32, 4)) for code in codes]
    low = _joined(builder, *_nibbles(builder, load(96, 8)))
    last = load(104, 4)
    high = [_bits(builder, last, 2 * j, 3) for j in range(4)]
    upper = _joined(builder, _joined(builder, high[0], high[1]), _joined(builder, high[2], high[3]))
    scales = builder.or_(low, builder.shl(upper, splat(I8, 16, 4)))
    yield from _products(builder, codes, builder.sub(scales, splat(I8, 16, 32)))


def _q4_k(builder: Any, load: Any) -> Any:
    yield from _products(builder, _four_bits_256(builder, load, 16), _sixes(builder, load)[0])


def _q5_k(builder: Any, load: Any) -> Any:
    codes = _with_bit(builder, _four_bits_256(builder, load, 48), load(16, 32), 16)
    yield from _products(builder, codes, _sixes(builder, load)[0])


def _iq4_xs(builder: Any, load: Any) -> Any:
    codes = [_joined(builder, *_nibbles(builder, load(8 + 16 * g, 16))) for g in range(8)]
    low = _joined(builder, *_nibbles(builder, load(4, 4)))
    low = _lanes(builder, low, [0, 4, 1, 5, 2, 6, 3, 7])
    shifts = ir.Constant(ir.VectorType(I8, 8), [0, 2, 4, 6] * 2)
    upper = builder.lshr(_lanes(builder, load(2, 2), [0] * 4 + [1] * 4), shifts)
    upper = builder.shl(builder.and_(upper, splat(I8, 8, 3)), splat(I8, 8, 4))
    scales = builder.sub(builder.or_(low, upper), splat(I8, 8, 32))
    yield from _products(builder, [_codebook(builder, code, IQ4_VALUES) for code in codes], scales)


def _digits(builder: Any, vector: Any, n: int) -> Any:
    """The first n base-3 digits of bytes that are fractions of 256, less 1."""
    count = vector.type.count
    wide = ir.VectorType(I16, count)
    for _ in range(n):
        thrice = builder.mul(builder.zext(vector, wide), splat(I16, count, 3))
        digit = builder.trunc(builder.lshr(thrice, splat(I16, count, 8)), vector.type)
        yield builder.sub(digit, splat(I8, count, 1))
        vector = builder.mul(vector, splat(I8, count, 3))


def _tq1_0(builder: Any, load: Any) -> Any:
    wide = ir.VectorType(I16, 32)
    codes = list(_digits(builder, load(0, 32), 5))
    half = [*_digits(builder, load(32, 16), 5)]
    last = list(_digits(builder, load(48, 4), 4))
    half.append(_joined(builder, _joined(builder, last[0], last[1]), _joined(builder, last[2], last[3])))
    codes += [_joined(builder, half[i], half[i + 1]) for i in (0, 2, 4)]
    for j, code in enumerate(codes):
        yield 32 * j, builder.sext(code, wide)


def _tq2_0(builder: Any, load: Any) -> Any:
    for j, code in enumerate(_two_bits(builder, load, 0)):
        yield 32 * j, builder.sext(builder.sub(code, splat(I8, 32, 1)), ir.VectorType(I16, 32))


def _lows_q2_k(builder: Any, load: Any) -> Any:
    yield 0, builder.sext(_bits(builder, load(0, 16), 4, 15), ir.VectorType(I16, 16))


def _lows_of_32(builder: Any, load: Any) -> Any:
    twice = _lanes(builder, _sixes(builder, load)[1], [g // 2 for g in range(16)])
    yield 0, builder.sext(twice, ir.VectorType(I16, 16))


unpack_q4_0 = _unpacker(_four_bits(2, 8), "Q4_0: codes - 8, in -8 .. 7.")
unpack_q4_1 = _unpacker(_four_bits(4, 0), "Q4_1: codes 0 .. 15.")
unpack_q5_0 = _unpacker(_five_bits(2, 16), "Q5_0: codes - 16, in -16 .. 15.")
unpack_q5_1 = _unpacker(_five_bits(4, 0), "Q5_1: codes 0 .. 31.")
unpack_q8_0 = _unpacker(_eight_bits, "Q8_0: codes -128 .. 127 as they are.")
unpack_q6_k = _unpacker(_six_bits, "Q6_K: 256 products code * scale, each in -4096 .. 4096.")
unpack_iq4_nl = _unpacker(_by_codebook(2, IQ4_VALUES), "IQ4_NL: values of the codebook.")
unpack_mxfp4 = _unpacker(_by_codebook(1, MXFP4_VALUES), "MXFP4: values of the codebook, twice e2m1.")
unpack_q2_k = _unpacker(_q2_k, "Q2_K: 256 products code * scale.")
unpack_q3_k = _unpacker(_q3_k, "Q3_K: 256 products code * scale.")
unpack_q4_k = _unpacker(_q4_k, "Q4_K: 256 products code * scale.")
unpack_q5_k = _unpacker(_q5_k, "Q5_K: 256 products code * scale.")
unpack_iq4_xs = _unpacker(_iq4_xs, "IQ4_XS: 256 products value * scale.")
unpack_tq1_0 = _unpacker(_tq1_0, "TQ1_0: codes -1, 0, 1.")
unpack_tq2_0 = _unpacker(_tq2_0, "TQ2_0: codes -1 .. 2.")
lows_q2_k = _unpacker(_lows_q2_k, "Q2_K: the 16 minimums.")
lows_of_32 = _unpacker(_lows_of_32, "Q4_K, Q5_K: the 8 minimums, each twice.")
