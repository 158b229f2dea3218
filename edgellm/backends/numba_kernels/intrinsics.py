"""Single instructions that Numba has no word for. Each writes a few lines of LLVM IR and works on every machine.

Arrays are C arrays addressed by a flat index without bounds or sign checks (`at`, `put`), so that LLVM sees plain
pointers and can use vector instructions. Integer dot products are exact; `fma` rounds once. So results do not depend on
what LLVM makes of them.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

I8, I16, I32, I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
HALF, F32 = ir.HalfType(), ir.FloatType()


def pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Address of element `index` (flat) of an array value."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def load_vector(context: Any, builder: Any, array_type: Any, array: Any, index: Any, element: Any, n: int) -> Any:
    """<n x element> from `array`, at any alignment."""
    address = pointer(context, builder, array_type, array, index)
    value = builder.load(builder.bitcast(address, ir.VectorType(element, n).as_pointer()))
    value.align = 1
    return value


def store_vector(context: Any, builder: Any, array_type: Any, array: Any, index: Any, value: Any) -> None:
    """Writes a vector to `array`, at any alignment."""
    address = pointer(context, builder, array_type, array, index)
    builder.store(value, builder.bitcast(address, value.type.as_pointer())).align = 1


def splat(element: Any, n: int, value: Any) -> ir.Constant:
    """A vector constant with `value` in every lane."""
    return ir.Constant(ir.VectorType(element, n), [value] * n)


def call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    """Calls an LLVM intrinsic by its name."""
    function_type = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args)


@intrinsic
def at(_context: Any, array: Any, index: Any) -> Any:
    """array[index], unchecked."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(pointer(context, builder, signature.args[0], args[0], args[1]))

    return array.dtype(array, types.intp), emit


@intrinsic
def put(_context: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index] = value, unchecked."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], pointer(context, builder, signature.args[0], args[0], args[1]))
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), emit


@intrinsic
def is_set(_context: Any, flag: Any) -> Any:
    """True when another thread has set the int32 flag[0]; read anew at every call."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = pointer(context, builder, signature.args[0], args[0], ir.Constant(ir.IntType(64), 0))
        return builder.icmp_signed("!=", builder.load_atomic(address, "monotonic", 4), ir.Constant(I32, 0))

    return types.boolean(flag), emit


@intrinsic
def fma(_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c in float32, rounded once."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), emit


@intrinsic
def rint(_context: Any, x: Any) -> Any:
    """float32 x rounded to the nearest integer, halves to even."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return call(builder, "llvm.rint.f32", F32, args[0])

    return types.float32(types.float32), emit


@intrinsic
def float_bits(_context: Any, x: Any) -> Any:
    """The 32 bits of a float32 as int32."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], I32)

    return types.int32(types.float32), emit


@intrinsic
def bits_float(_context: Any, bits: Any) -> Any:
    """The float32 with these 32 bits."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], F32)

    return types.float32(types.int32), emit


ROUND = float(3 << 22)  # adding it to a small float32 rounds that to an integer, which then sits in the lowest bits


@intrinsic
def times_power(_context: Any, x: Any, t: Any) -> Any:
    """x * 2^n, where t is the float32 n + ROUND. In two factors, so that tiny results round once."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def factor(n: Any) -> Any:
            biased = builder.add(n, ir.Constant(I32, 127))
            return builder.bitcast(builder.shl(biased, ir.Constant(I32, 23)), F32)

        n = builder.sub(builder.bitcast(args[1], I32), builder.bitcast(ir.Constant(F32, ROUND), I32))
        half = builder.ashr(n, ir.Constant(I32, 1))
        return builder.fmul(builder.fmul(args[0], factor(half)), factor(builder.sub(n, half)))

    return types.float32(types.float32, types.float32), emit


# ---- half floats ----------------------------------------------------------------------------------------------------


def emit_f16(builder: Any, half: Any) -> Any:
    """f16 bits (i16, or a vector of them) -> float32, exact: shift into place, then rescale by 2^112."""
    n = getattr(half.type, "count", 0)

    def const(element: Any, value: Any) -> Any:
        return splat(element, n, value) if n else ir.Constant(element, value)

    wide, real = (ir.VectorType(t, n) if n else t for t in (I32, F32))
    h = builder.zext(half, wide)
    magnitude = builder.shl(builder.and_(h, const(I32, 0x7FFF)), const(I32, 13))
    sign = builder.shl(builder.and_(h, const(I32, 0x8000)), const(I32, 16))
    finite = builder.bitcast(builder.fmul(builder.bitcast(magnitude, real), const(F32, 2.0**112)), wide)
    special = builder.icmp_unsigned(">=", magnitude, const(I32, 0x7C00 << 13))  # infinity and NaN keep their bits
    bits = builder.select(special, builder.or_(magnitude, const(I32, 0x7F800000)), finite)
    return builder.bitcast(builder.or_(bits, sign), real)


@intrinsic
def f16_to_f32(_context: Any, half: Any) -> Any:
    """The value of a half float's 16 bits."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return emit_f16(builder, args[0])

    return types.float32(types.uint16), emit


def emit_bf16(builder: Any, bits: Any) -> Any:
    """bf16 bits (i16) -> float32: they are its upper half."""
    return builder.bitcast(builder.shl(builder.zext(bits, I32), ir.Constant(I32, 16)), F32)


def _from_bytes(element: Any, result: Any, convert: Any, doc: str) -> Any:
    """An intrinsic (bytes, offset) -> `result` that reads one number at any alignment."""

    def read(_context: Any, data: Any, offset: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            address = pointer(context, builder, signature.args[0], args[0], args[1])
            value = builder.load(builder.bitcast(address, element.as_pointer()))
            value.align = 1
            return convert(builder, value)

        return result(data, types.intp), emit

    read.__doc__ = doc
    return intrinsic(read)


f16_at = _from_bytes(I16, types.float32, emit_f16, "The half float at a byte offset.")
bf16_at = _from_bytes(I16, types.float32, emit_bf16, "The bfloat16 at a byte offset.")
f32_at = _from_bytes(F32, types.float32, lambda builder, value: value, "The float32 at a byte offset.")
u16_at = _from_bytes(I16, types.uint16, lambda builder, value: value, "The 16 bits at a byte offset.")


@intrinsic
def f32_to_f16(_context: Any, x: Any) -> Any:
    """A float32 as the bits of the nearest half float, halves to even; a NaN stays one."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def const(value: int) -> Any:
            return ir.Constant(I32, value)

        bits = builder.bitcast(args[0], I32)
        a = builder.and_(bits, const(0x7FFFFFFF))
        sign = builder.and_(builder.lshr(bits, const(16)), const(0x8000))
        odd = builder.and_(builder.lshr(a, const(13)), const(1))
        normal = builder.lshr(builder.add(builder.add(a, const(0xFFF - 0x38000000)), odd), const(13))
        # below 2^-14: adding 0.5 lets the float unit round to multiples of 2^-24
        shifted = builder.fadd(builder.bitcast(a, F32), ir.Constant(F32, 0.5))
        tiny = builder.sub(builder.bitcast(shifted, I32), const(0x3F000000))
        out = builder.select(builder.icmp_unsigned("<", a, const(0x38800000)), tiny, normal)
        out = builder.select(builder.icmp_unsigned(">=", a, const(0x477FF000)), const(0x7C00), out)
        nan = builder.or_(const(0x7E00), builder.and_(builder.lshr(a, const(13)), const(1023)))
        out = builder.select(builder.icmp_unsigned(">", a, const(0x7F800000)), nan, out)
        return builder.trunc(builder.or_(out, sign), I16)

    return types.uint16(types.float32), emit


# ---- sums and dot products -------------------------------------------------------------------------------------------


def _fold(builder: Any, lanes: Any) -> Any:
    """The sum of 16 lanes as a fixed tree: 8 + 8, 4 + 4, 2 + 2, 1 + 1."""
    for half in (8, 4, 2, 1):
        undefined = ir.Constant(lanes.type, ir.Undefined)
        low, high = (ir.Constant(ir.VectorType(I32, half), list(range(s, s + half))) for s in (0, half))
        lanes = builder.fadd(
            builder.shuffle_vector(lanes, undefined, low), builder.shuffle_vector(lanes, undefined, high)
        )
    return builder.extract_element(lanes, ir.Constant(I32, 0))


@intrinsic
def sum64(_context: Any, x: Any, i: Any) -> Any:
    """float32 sum of x[i] .. x[i + 63]: 16 lanes, then the tree."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total = splat(F32, 16, 0.0)
        for part in range(0, 64, 16):
            index = builder.add(args[1], ir.Constant(ir.IntType(64), part))
            total = builder.fadd(total, load_vector(context, builder, signature.args[0], args[0], index, F32, 16))
        return _fold(builder, total)

    return types.float32(x, types.intp), emit


@intrinsic
def dot_f32(_context: Any, w: Any, i: Any, x: Any, j: Any, n: Any) -> Any:
    """float32 sum of w[i + m] * x[j + m] for m < n: lane m % 16 takes it with one fma, then the tree."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        w_type, _, x_type, _, _ = signature.args
        total = cgutils.alloca_once_value(builder, splat(F32, 16, 0.0))
        lanes = ir.Constant(ir.IntType(64), 16)
        whole = builder.and_(args[4], ir.Constant(ir.IntType(64), -16))
        with cgutils.for_range(builder, builder.sdiv(args[4], lanes)) as loop:
            m = builder.mul(loop.index, lanes)
            a = load_vector(context, builder, w_type, args[0], builder.add(args[1], m), F32, 16)
            b = load_vector(context, builder, x_type, args[2], builder.add(args[3], m), F32, 16)
            builder.store(call(builder, "llvm.fma.v16f32", a.type, a, b, builder.load(total)), total)
        with cgutils.for_range(builder, builder.sub(args[4], whole)) as loop:
            m = builder.add(whole, loop.index)
            a = builder.load(pointer(context, builder, w_type, args[0], builder.add(args[1], m)))
            b = builder.load(pointer(context, builder, x_type, args[2], builder.add(args[3], m)))
            lane = builder.trunc(loop.index, I32)
            value = builder.load(total)
            fused = builder.fma(a, b, builder.extract_element(value, lane))
            builder.store(builder.insert_element(value, fused, lane), total)
        return _fold(builder, builder.load(total))

    return types.float32(w, types.intp, x, types.intp, types.intp), emit
