"""What `import edgellm` needs in a frozen program: modules that are only looked up by name, the built-in model, and the
binding of the compiled library. Numba and LLVM (over 100 MB) stay out where the compiled library is there."""

from PyInstaller.utils.hooks import can_import_module, collect_data_files, collect_submodules

_NATIVE = can_import_module("edgellm._native")
# The commands have a hook of their own: a program with a window has no use for them.
_LEFT_OUT = ["edgellm.cli", "edgellm.chat", "edgellm.__main__", "edgellm._pyinstaller"]
if _NATIVE:
    _LEFT_OUT += [f"edgellm.backends.numba_{part}" for part in ("", "choice", "matrix", "kernels")]


def _wanted(name: str) -> bool:
    return not any(name == out or name.startswith(out + ".") for out in _LEFT_OUT)


hiddenimports = collect_submodules("edgellm", filter=_wanted)
datas = collect_data_files("edgellm", includes=["data/*"])
# A program that downloads models says so (--hidden-import huggingface_hub): the package reaches for half of PyPI.
excludedimports = [*_LEFT_OUT, "huggingface_hub", "filelock"]
if _NATIVE:
    hiddenimports += ["_cffi_backend"]  # imported by the compiled library, where PyInstaller does not look
    excludedimports += ["numba", "llvmlite"]
