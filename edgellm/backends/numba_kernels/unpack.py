"""One block of each quantised format -> integer codes, by vector instructions (formats/blocks.toml has the layouts).

Each takes (bytes, offset of the block, array of codes, index of its first code). Codes are int8; for Q6_K int16
and already multiplied by their group's 8-bit scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

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


unpack_q4_0 = _unpacker(_four_bits(2, 8), "Q4_0: codes - 8, in -8 .. 7.")
unpack_q4_1 = _unpacker(_four_bits(4, 0), "Q4_1: codes 0 .. 15.")
unpack_q5_0 = _unpacker(_five_bits(2, 16), "Q5_0: codes - 16, in -16 .. 15.")
unpack_q5_1 = _unpacker(_five_bits(4, 0), "Q5_1: codes 0 .. 31.")
unpack_q8_0 = _unpacker(_eight_bits, "Q8_0: codes -128 .. 127 as they are.")
unpack_q6_k = _unpacker(_six_bits, "Q6_K: 256 products code * scale, each in -4096 .. 4096.")
