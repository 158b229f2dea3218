"""Kernels of the Numba backend: one small file per kind of work.

`jit` compiles a kernel the first time it is called and keeps the machine code on disk; `intrinsics` and `unpack` are
the few places that write LLVM instructions by hand (vector loads, exact integer dot products, half floats); `linear`,
`vector` and `attention` are the kernels; `pool` hands their work to threads. Kernels are plain functions over arrays
that release the GIL; none starts threads by itself, so any number of Python threads may call them at once.

Every sum is added in the order that formats/arithmetic.md gives, so the results are those of the native kernels.
"""
