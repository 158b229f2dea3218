"""Checkpoints -> GGUF: `convert` reads a Hugging Face folder or a llama2.c `.bin` and writes one file.

The work goes tensor by tensor and stretch by stretch, so its memory stays far below the size of the model, and the
output appears under its name only when it is complete.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..errors import ConvertError, InvalidArgumentError, ModelFileNotFoundError
from ..imatrix import Imatrix
from ..progress import ProgressCallback
from .choice import parse_wish
from .pipeline import ConvertReport, check_output, write_model

__all__ = ["ConvertReport", "convert"]


def convert(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str],
    outtype: str = "f16",
    tokenizer: str | os.PathLike[str] | None = None,
    progress: ProgressCallback | None = None,
    overwrite: bool = True,
    lora: str | os.PathLike[str] | None = None,
    *,
    imatrix: str | os.PathLike[str] | Imatrix | None = None,
    tensor_types: Sequence[str | tuple[str, str]] = (),
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    pure: bool = False,
) -> ConvertReport:
    """Write `src` as the GGUF file `out`.

    `src`: a Hugging Face folder (`config.json`, safetensors or PyTorch `.bin`, tokenizer), into which the LoRA adapter
    of the folder `lora` is merged where one is given; or a llama2.c `.bin`, which needs `tokenizer`,
    its tokenizer file. `outtype`: the type of the matrices, or a mix of types: all names of `edgellm.quantize`, and its
    options `imatrix`, `tensor_types`, `output_tensor_type`, `token_embedding_type` and `pure`. The file has the bytes
    that quantising an F32 file would give; no such file is made. Vectors stay F32.
    `progress(Progress)` is called after every stretch; it may return False to stop.

    Raises ModelFileNotFoundError, ModelFormatError, UnsupportedArchitectureError, TokenizerError, ConvertError,
    InvalidArgumentError, OutputError, Cancelled. The output is then not there (an old one stays as it was).
    """
    wish = parse_wish(outtype, imatrix, tensor_types, output_tensor_type, token_embedding_type, pure)
    path = os.fspath(src)
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    check_output(out, [], overwrite)
    if os.path.isdir(path):
        from . import hf

        if tokenizer is not None:
            raise InvalidArgumentError("a tokenizer file goes with a llama2.c checkpoint; a folder brings its own")
        with hf.open_folder(path, lora) as folder:
            return write_model(hf.read(folder), out, wish, progress, overwrite)
    if lora is not None:
        raise InvalidArgumentError("an adapter goes with a Hugging Face folder, not with a file")
    return _convert_file(path, out, wish, tokenizer, progress, overwrite)


def _convert_file(path, out, wish, tokenizer, progress, overwrite) -> ConvertReport:  # type: ignore[no-untyped-def]
    from . import llama2c

    if not os.path.lexists(path):
        raise ModelFileNotFoundError(path)
    _refuse_others(path)
    if not llama2c.looks_like(path):
        raise ConvertError("neither a Hugging Face folder nor a llama2.c checkpoint", path=path)
    if tokenizer is None:
        raise InvalidArgumentError(f"{path}: a llama2.c checkpoint needs its tokenizer file too (--tokenizer tok.bin)")
    checkpoint = llama2c.Checkpoint(path)
    try:
        return write_model(llama2c.read(checkpoint, tokenizer), out, wish, progress, overwrite)
    finally:
        checkpoint.close()


def _refuse_others(path: str) -> None:
    """Files that people give by mistake, with what to do instead."""
    from ..gguf.source import MappedFile

    if path.endswith((".safetensors", ".json")):
        raise ConvertError("give the folder that holds this file, not the file", path=path)
    file = MappedFile(path)
    magic = bytes(file.buffer[:8])
    file.close()
    if magic[:4] == b"GGUF":
        raise ConvertError("this is a GGUF file already; `edgellm quantize` changes its type", path=path)
    if magic[:4] == b"PK\x03\x04":
        raise ConvertError("this looks like a PyTorch checkpoint; give the folder that holds it", path=path)
    if magic[:1] == b"\x80":
        raise ConvertError("PyTorch's old format (bare pickle) is not read; save it as safetensors", path=path)
