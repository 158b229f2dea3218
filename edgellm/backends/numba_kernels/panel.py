"""Sixteen rows of block weights times columns of activations: a vector lane is a row (order: formats/arithmetic.md).

`unpacker(type)` turns blocks of 16 rows into lines in scratch memory (first-level cache); `multiplier(type, n)` meets
them with n columns. Integer sums are exact whatever instruction makes them: `vpdpbusd` where the processor has it,
`vpmaddubsw` for small codes, else what LLVM finds for widened products. So all processors give the same bits.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ...blocks import BlockType
from . import lines
from .intrinsics import F32, I8, I16, I32, I64, call, load_vector, pointer, splat, store_vector
from .lines import BYTES, FLOATS, ROWS, WORDS, Later, shuffled

_LINE = 64  # bytes of a cache line


def per_sum(type: BlockType) -> int:
    """Activations per integer sum."""
    return 32 if type.block_size == 32 else 16


def _at(type: BlockType, name: str) -> int:
    """Byte of a field in its block; -1: there is none."""
    return int(type.dtype.fields[name][1]) if name in type.dtype.fields else -1


def _features(context: Any) -> set[str]:
    """What the processor that Numba compiles for can do, as LLVM names it: "+avx2", ..."""
    return set(context.codegen().magic_tuple()[2].split(","))


def n_groups(type: BlockType) -> int:
    """Groups of a block that share an integer scale."""
    return type.block_size // lines.FORMATS[type.name].group


def unpacker(type: BlockType) -> Any:
    """An intrinsic (w, offset, stride, ahead, b, codes, steps, lows, scale, low): block b of the scratch memory.

    The block starts at byte `offset` of w in the first row, rows are `stride` bytes apart. codes int8
    (blocks, block_size / 4, 16, 4), steps and lows int32 (blocks, groups, 16), scale and low float32 (blocks, 16).
    The same block of the rows `ahead` bytes further on is asked for from memory.
    """
    format = lines.FORMATS[type.name]

    def unpack(_context, w, offset, stride, ahead, b, codes, steps, lows, scale, low):
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            w, offset, stride, ahead, b, *targets = args
            address = pointer(context, builder, signature.args[0], w, offset)
            asking = _Prefetch(builder, pointer(context, builder, signature.args[0], w, ahead), type.type_size * ROWS)
            in_hardware = "+f16c" in _features(context)
            d_at, m_at = _at(type, "d"), max(_at(type, "m"), _at(type, "dmin"))
            if d_at >= 0:
                d = lines.half_floats(builder, address, stride, d_at, in_hardware)
            else:  # MXFP4
                d = lines.half_powers(builder, address, stride, _at(type, "e"))
            m = [lines.half_floats(builder, address, stride, m_at, in_hardware)] if m_at >= 0 else []
            if _at(type, "dmin") >= 0:
                m = [builder.fneg(m[0])]
            block = format.emit(builder, lines.loader(builder, address, stride, asking.ask))
            values = (*block, [Later(lambda: d, ())], [Later(lambda value=value: value, ()) for value in m])
            for target, kind, vectors in zip(targets, signature.args[5:], values, strict=True):
                for i, later in sorted(enumerate(vectors), key=lambda item: item[1].source):
                    vector = later.get()
                    each = 64 if vector.type == BYTES else ROWS
                    first = builder.mul(b, ir.Constant(I64, len(vectors) * each))
                    store_vector(context, builder, kind, target, builder.add(first, ir.Constant(I64, i * each)), vector)
            asking.ask(type.type_size * ROWS)
            return context.get_dummy_value()

        arrays = (codes, steps, lows, scale, low)
        return types.void(w, types.intp, types.intp, types.intp, types.intp, *arrays), emit

    return intrinsic(unpack)


class _Prefetch:
    """Asks the memory for n bytes from `address` on, some at a time; nothing happens where no memory is."""

    def __init__(self, builder: Any, address: Any, n: int) -> None:
        self._b, self._address, self._places = builder, address, list(range(0, n, _LINE))

    def ask(self, n: int) -> None:
        flags = [ir.Constant(I32, value) for value in (0, 3, 1)]  # to read, keep near, data
        for at in self._places[: n // _LINE]:
            call(self._b, "llvm.prefetch.p0", ir.VoidType(), self._b.gep(self._address, [ir.Constant(I64, at)]), *flags)
        self._places = self._places[n // _LINE :]


# ---- exact products --------------------------------------------------------------------------------------------------


class _Products:
    """Adds codes [16 rows][4] times 4 activations to a row's total. `have`: see `_features`."""

    def __init__(self, builder: Any, have: set[str], largest: int) -> None:
        self._b = builder
        self._name = "pairs"
        if "+avx512vnni" in have and "+avx512f" in have:
            self._name = "llvm.x86.avx512.vpdpbusd.512"
        elif "+avxvnni" in have or ("+avx512vnni" in have and "+avx512vl" in have):
            self._name = "llvm.x86.avx512.vpdpbusd.256"
        elif "+avx2" in have and largest < 64:  # two products of larger codes do not fit 16 bits
            self._name = "maddubs"

    def start(self) -> Any:
        return splat(I32, 32 if self._name == "pairs" else 16, 0)

    def add(self, total: Any, codes: Any, four: Any) -> Any:
        """`codes` <64 x i8> unsigned, `four` an i32 that holds 4 int8."""
        b = self._b
        x = b.insert_element(ir.Constant(WORDS, ir.Undefined), four, ir.Constant(I32, 0))
        x = shuffled(b, x, ir.Constant(WORDS, ir.Undefined), [0] * ROWS)
        if self._name.endswith("512"):
            return call(b, self._name, WORDS, total, b.bitcast(codes, WORDS), x)
        if self._name != "pairs":
            return self._halves(total, codes, b.bitcast(x, BYTES))
        wide = ir.VectorType(I32, 64)
        product = b.mul(b.zext(codes, wide), b.sext(b.bitcast(x, BYTES), wide))
        even, odd = (shuffled(b, product, product, list(range(i, 64, 2))) for i in (0, 1))
        return b.add(total, b.add(even, odd))

    def _halves(self, total: Any, codes: Any, x: Any) -> Any:
        b, eight, out = self._b, ir.VectorType(I32, 8), []
        for i in range(2):
            w, v = (shuffled(b, both, both, list(range(32 * i, 32 * i + 32))) for both in (codes, x))
            part = shuffled(b, total, total, list(range(8 * i, 8 * i + 8)))
            if self._name == "maddubs":
                sums = call(b, "llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(I16, 16), w, v)
                sums = call(b, "llvm.x86.avx2.pmadd.wd", eight, sums, splat(I16, 16, 1))
                out.append(b.add(part, sums))
            else:
                out.append(call(b, self._name, eight, part, b.bitcast(w, eight), b.bitcast(v, eight)))
        return shuffled(b, *out, list(range(16)))

    def end(self, total: Any) -> Any:
        """<16 x i32>, a row's total."""
        if self._name != "pairs":
            return total
        even, odd = (shuffled(self._b, total, total, list(range(i, 32, 2))) for i in (0, 1))
        return self._b.add(even, odd)


# ---- the sum over blocks ---------------------------------------------------------------------------------------------


def multiplier(type: BlockType, n_columns: int) -> Any:
    """An intrinsic that adds n blocks of 16 rows times `n_columns` columns to float32 totals (columns, 16).

    (codes, steps, lows, scale, low) are the scratch memory of `unpacker`, its block 0 is block `b0` of the rows; q int8
    (columns, k), d float32 (columns, k / block_size), s int32 (columns, k / per_sum) are the activations; `m` is the
    first column.
    """

    def multiply(_context, codes, steps, lows, scale, low, n, b0, q, d, s, k, m, totals):
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _Multiply(context, builder, type, n_columns, signature.args, args).emit()
            return context.get_dummy_value()

        intp = types.intp
        return types.void(codes, steps, lows, scale, low, intp, intp, q, d, s, intp, intp, totals), emit

    return intrinsic(multiply)


class _Multiply:
    """Emits one multiplication; the names are those of `multiplier`."""

    def __init__(self, context: Any, builder: Any, type: BlockType, n_columns: int, kinds: Any, args: Any) -> None:
        self.context, self.b, self.type = context, builder, type
        self.format = lines.FORMATS[type.name]
        names = ("codes", "steps", "lows", "scale", "low", "n", "b0", "q", "d", "s", "k", "m", "totals")
        self.arrays = {name: (kind, arg) for name, kind, arg in zip(names, kinds, args, strict=True)}
        self.columns = [self.int("m", i) for i in range(n_columns)]
        largest = 255 if self.format.offset == 128 else 63
        self.products = _Products(builder, _features(context), largest)
        self.has_steps = type.block_size == 256 and not type.name.startswith("TQ")
        self.has_lows, self.has_m = _at(type, "dmin") >= 0, _at(type, "m") >= 0

    def int(self, name: str, plus: int = 0) -> Any:
        value = self.arrays[name][1]
        return self.b.add(value, ir.Constant(I64, plus)) if plus else value

    def times(self, value: Any, n: int) -> Any:
        return self.b.mul(value, ir.Constant(I64, n))

    def vector(self, name: str, index: Any, element: Any, n: int) -> Any:
        kind, array = self.arrays[name]
        return load_vector(self.context, self.b, kind, array, index, element, n)

    def one(self, name: str, index: Any, element: Any) -> Any:
        kind, array = self.arrays[name]
        address = pointer(self.context, self.b, kind, array, index)
        value = self.b.load(self.b.bitcast(address, element.as_pointer()))
        value.align = 1
        return value

    def spread(self, value: Any, n: int = ROWS) -> Any:
        whole = ir.Constant(ir.VectorType(value.type, n), ir.Undefined)
        return shuffled(self.b, self.b.insert_element(whole, value, ir.Constant(I32, 0)), whole, [0] * n)

    def emit(self) -> None:
        b = self.b
        kind, totals = self.arrays["totals"]
        places = [self.times(column, ROWS) for column in self.columns]
        sums = [cgutils.alloca_once(b, FLOATS) for _ in places]
        for total, place in zip(sums, places, strict=True):
            b.store(self.vector("totals", place, F32, ROWS), total)
        with cgutils.for_range(b, self.int("n")) as loop:
            block = b.add(self.int("b0"), loop.index)
            self._block(loop.index, block, sums)
        for total, place in zip(sums, places, strict=True):
            store_vector(self.context, b, kind, totals, place, b.load(total))

    def _block(self, i: Any, block: Any, sums: list[Any]) -> None:
        """Block `block` of the rows, at i in the scratch memory."""
        b, blocks = self.b, self.b.udiv(self.int("k"), ir.Constant(I64, self.type.block_size))
        dots, low_sums = self._integers(i, block)
        scale = self.vector("scale", self.times(i, ROWS), F32, ROWS)
        low = self.vector("low", self.times(i, ROWS), F32, ROWS) if self.has_lows or self.has_m else None
        for c, column in enumerate(self.columns):
            at = b.add(b.mul(column, blocks), block)
            dx = self.spread(self.one("d", at, F32))
            total = self._fma(b.fmul(scale, dx), b.sitofp(dots[c], FLOATS), b.load(sums[c]))
            if low is not None:
                summed = b.sitofp(low_sums[c], FLOATS) if self.has_lows else self.spread(
                    b.sitofp(self.one("s", at, I32), F32)
                )
                total = self._fma(b.fmul(low, dx), summed, total)
            b.store(total, sums[c])

    def _fma(self, x: Any, y: Any, z: Any) -> Any:
        return call(self.b, "llvm.fma.v16f32", FLOATS, x, y, z)

    def _integers(self, i: Any, block: Any) -> tuple[list[Any], list[Any]]:
        """For each column the block's exact sums: of products, and of minimums times activations."""
        b, groups = self.b, n_groups(self.type)
        if groups == 1:
            dots, _ = self._group(self.times(i, 512), block, ir.Constant(I64, 0))
            return dots, []
        dots = [cgutils.alloca_once(b, WORDS) for _ in self.columns]
        low_sums = [cgutils.alloca_once(b, WORDS) for _ in self.columns]
        for total in dots + low_sums:
            b.store(splat(I32, ROWS, 0), total)
        with cgutils.for_range(b, ir.Constant(I64, groups)) as loop:
            at = b.add(self.times(i, groups), loop.index)  # the group, in the scratch memory
            parts, sums = self._group(self.times(at, self.format.group * ROWS), block, loop.index)
            step = self.vector("steps", self.times(at, ROWS), I32, ROWS) if self.has_steps else None
            least = self.vector("lows", self.times(at, ROWS), I32, ROWS) if self.has_lows else None
            for c, part in enumerate(parts):
                part = b.mul(part, step) if self.has_steps else part
                b.store(b.add(b.load(dots[c]), part), dots[c])
                if self.has_lows:
                    b.store(b.add(b.load(low_sums[c]), b.mul(least, self.spread(sums[c]))), low_sums[c])
        return [b.load(total) for total in dots], [b.load(total) for total in low_sums]

    def _group(self, first: Any, block: Any, group: Any) -> tuple[list[Any], list[Any]]:
        """Of one group, whose codes begin at `first`: sums of products (without the codes' offset), and of x."""
        b, size = self.b, self.format.group
        start = b.add(self.times(block, self.type.block_size), self.times(group, size))  # weight in the row
        places = [b.add(b.mul(column, self.int("k")), start) for column in self.columns]
        totals = [self.products.start() for _ in self.columns]
        for j in range(0, size, 4):
            codes = self.vector("codes", b.add(first, ir.Constant(I64, j * ROWS)), I8, 64)
            for c, place in enumerate(places):
                four = self.one("q", b.add(place, ir.Constant(I64, j)), I32)
                totals[c] = self.products.add(totals[c], codes, four)
        dots, each = [self.products.end(total) for total in totals], per_sum(self.type)
        sums = []
        for c, place in enumerate(places):
            at, total = b.udiv(place, ir.Constant(I64, each)), None
            for j in range(size // each):
                value = self.one("s", b.add(at, ir.Constant(I64, j)), I32)
                total = value if total is None else b.add(total, value)
            sums.append(total)
            if self.format.offset:
                off = b.mul(total, ir.Constant(I32, self.format.offset))
                dots[c] = b.sub(dots[c], self.spread(off))
        return dots, sums
