"""The models of this machine: what is in the hub's cache, in edgellm's own folder, and the built-in one."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from ..builtin import builtin_model
from ..errors import EdgeLLMError, ModelFileNotFoundError, ModelReferenceError, OutputError
from ..folders import models_folder
from ..gguf import GGUFFile, open_gguf
from .aliases import BUILTIN, read_aliases, remove_alias
from .cache import CachedRepo, cached_repos
from .choice import group_parts, quant_label
from .reference import Reference, is_reference, parse


@dataclass(frozen=True)
class LocalModel:
    """A model that is here. `ref` is what to write for it; `problem` says why it cannot be used, None where it can.

    `where`: "hub", "folder" (edgellm's own) or "builtin". `architecture`, `parameters` and `quant` come from the header
    of the file, None where that cannot be read. `bytes` counts all `files`.
    """

    ref: str
    aliases: tuple[str, ...]
    where: str
    path: str
    files: tuple[str, ...]
    bytes: int
    architecture: str | None = None
    parameters: int | None = None
    quant: str | None = None
    revision: str | None = None
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"aliases": list(self.aliases), "files": list(self.files)}


def local_models() -> list[LocalModel]:
    """All models of this machine. A file that cannot be read is in the list, with its `problem`."""
    return [_with_header(model) for model in _models()]


def unfinished() -> list[tuple[str, int]]:
    """(reference, bytes) of downloads that were stopped."""
    parts = ((repo, sum(p.stat().st_size for p in repo.parts())) for repo in cached_repos())
    return [(str(Reference(repo.repo)), size) for repo, size in parts if size]


def find_models(ref: str) -> list[LocalModel]:
    """The models here that `ref` names: an alias, a name of `local_models`, a file of their folders, or a reference.

    A reference without a quantisation and without a file is all of its repository.
    Raises ModelReferenceError, ModelFileNotFoundError where there is none.
    """
    target = read_aliases().get(ref, ref)
    models = _models()
    if is_reference(target):
        wanted = parse(target)
        whole = wanted.file is None and wanted.quant is None
        repo = CachedRepo(wanted.repo)
        paths = [str(p) for p in ([] if whole else repo.find(wanted) or [])]
        commit = None if wanted.revision is None else repo.commit(wanted.revision)
        inside = str(repo.folder) + os.sep
        found = [
            m for m in models
            if (m.path.startswith(inside) and commit in (None, m.revision) if whole else m.path in paths)
        ]  # fmt: skip
    else:
        path = os.path.abspath(target)
        found = [m for m in models if m.ref == target or os.path.abspath(m.path) == path]
    if not found:
        if os.path.isfile(target):
            tail = "" if target == ref else f"; `edgellm alias --remove {ref}` forgets the name"
            raise ModelReferenceError(ref, f"this file is neither in the hub's cache nor in edgellm's folder{tail}")
        raise ModelFileNotFoundError(ref, "no such model is here; `edgellm list` shows those there are")
    return found


def remove_models(models: list[LocalModel]) -> int:
    """Remove models' files, blobs that nothing else needs, and their aliases; returns the bytes that became free.

    Raises ModelReferenceError for the built-in model or a file outside of the two folders, OutputError.
    """
    freed = 0
    for model in models:
        if model.where == "hub":
            freed += CachedRepo(parse(model.ref).repo).remove([Path(f) for f in model.files])
        elif model.where == "folder":
            freed += _remove_own(model)
        else:
            raise ModelReferenceError(model.ref, "the built-in model is a part of edgellm and cannot be removed")
        for alias in model.aliases:
            remove_alias(alias)
    return freed


def _remove_own(model: LocalModel) -> int:
    folder = os.path.realpath(models_folder())
    freed = 0
    for file in model.files:
        if os.path.dirname(os.path.realpath(file)) != folder and not os.path.islink(file):
            raise ModelReferenceError(file, "this is not in edgellm's folder of models; nothing was removed")
        try:
            freed += 0 if os.path.islink(file) else os.path.getsize(file)
            os.unlink(file)
        except OSError as error:
            raise OutputError(f"this cannot be removed: {error.strerror}", path=file) from None
    return freed


# ---- where models are


def _models() -> list[LocalModel]:
    """All models, with the names that stand for them; nothing of a file is read."""
    names = _names_by_path()
    models = (*_builtin(), *_in_folder(), *_in_hub())
    return [replace(m, aliases=tuple(names.get(os.path.abspath(m.path), ()))) for m in models]


def _builtin() -> Iterator[LocalModel]:
    try:
        path = str(builtin_model())
    except EdgeLLMError:
        return
    yield LocalModel(BUILTIN, (), "builtin", path, (path,), os.path.getsize(path))


def _in_folder() -> Iterator[LocalModel]:
    try:
        folder = models_folder()
        names = os.listdir(folder)
    except (OSError, RuntimeError):
        return
    for first, parts in group_parts(names).items():
        paths = [str(folder / name) for name in parts]
        if all(os.path.isfile(p) for p in paths):
            ref = first[: -len(".gguf")]
            yield LocalModel(ref, (), "folder", paths[0], tuple(paths), sum(map(os.path.getsize, paths)))


def _in_hub() -> Iterator[LocalModel]:
    for repo in cached_repos():
        branches = repo.branches()
        for commit in repo.commits():
            files = repo.files(commit)
            branch = branches.get(commit, commit)
            for first, parts in group_parts(files).items():
                paths = tuple(str(files[name]) for name in parts)
                ref = _spelling(repo, first, None if branch == "main" else branch)
                sizes = sum(os.path.getsize(p) for p in paths)
                yield LocalModel(ref, (), "hub", paths[0], paths, sizes, revision=commit)


def _spelling(repo: CachedRepo, first: str, revision: str | None) -> str:
    """The shortest reference that finds this file again."""
    short = Reference(repo.repo, quant_label(first), revision=revision)
    try:
        found = repo.find(short) if short.quant else None
    except ModelReferenceError:
        found = None
    same = found is not None and found[0].as_posix().endswith("/" + first)
    return str(short if same else Reference(repo.repo, file=first, revision=revision))


def _names_by_path() -> dict[str, list[str]]:
    """Path of a model's first file -> the aliases that lead to it now."""
    names: dict[str, list[str]] = {}
    for alias, target in read_aliases().items():
        path = target
        if is_reference(target):
            with contextlib.suppress(ModelReferenceError):  # several files fit, or somebody wrote it by hand
                ref = parse(target)
                found = CachedRepo(ref.repo).find(ref)
                path = target if found is None else str(found[0])
        names.setdefault(os.path.abspath(path), []).append(alias)
    return names


# ---- what headers say


def _with_header(model: LocalModel) -> LocalModel:
    """The model with what its header says; nothing in a file can do more than fill `problem`."""
    try:
        with open_gguf(model.path) as file:
            return replace(
                model,
                architecture=str(file.get("general.architecture", str, "unknown")),
                parameters=sum(prod(t.shape) for t in file.tensors.values()),
                quant=_quant(file, model.path),
            )
    except EdgeLLMError as error:
        return replace(model, problem=str(error))
    except OSError as error:
        return replace(model, problem=error.strerror or str(error))


def _quant(file: GGUFFile, path: str) -> str | None:
    """The file's name says which mix it is; else the type that most of its bytes have."""
    label = quant_label(os.path.basename(path))
    if label is not None or not file.tensors:
        return label
    sizes: Counter[str] = Counter()
    for tensor in file.tensors.values():
        sizes[tensor.type.name] += tensor.n_bytes
    return sizes.most_common(1)[0][0]


