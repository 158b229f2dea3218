"""The hub's cache on disk, in the layout of its own client, so that files are shared with every program that uses it.

    models--OWNER--NAME/refs/BRANCH             a text: the commit
    models--OWNER--NAME/snapshots/COMMIT/FILE   a link to the blob (on systems without links: the file itself)
    models--OWNER--NAME/blobs/DIGEST            the bytes; DIGEST.incomplete while they come

The layout is documented (huggingface_hub, "Understand caching"); tests hold it to that package.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import ModelReferenceError, OutputError
from ..folders import hub_folder
from .choice import choose, fitting, part_names
from .reference import Reference, is_safe_name, is_safe_revision, parse

PART = ".incomplete"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REF_BYTES = 200


def is_commit(text: object) -> bool:
    """Whether this is the full name of a commit."""
    return isinstance(text, str) and _COMMIT.fullmatch(text) is not None


def is_digest(text: object) -> bool:
    """Whether this is a SHA-256 (LFS files), or the SHA-1 that git gives small files."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def linked_to(path: Path) -> Path | None:
    """The blob that a file of a snapshot is a link to (which may be a link itself); None: the file is no link."""
    return Path(os.path.normpath(path.parent / os.readlink(path))) if path.is_symlink() else None


class CachedRepo:
    """One repository in the cache; it need not be there. `repo`: "owner/name"."""

    def __init__(self, repo: str, root: Path | None = None) -> None:
        self.repo, self.root = repo, root or hub_folder()
        self.folder = self.root / ("models--" + repo.replace("/", "--"))

    # ---- reading

    def commit(self, revision: str) -> str | None:
        """The commit that a branch or tag was at when it was last asked for; a commit is itself."""
        if is_commit(revision):
            return revision
        try:
            with open(self.folder / "refs" / revision, encoding="ascii") as file:
                text = file.read(_REF_BYTES).strip()
        except (OSError, UnicodeDecodeError):
            return None
        return text if is_commit(text) else None

    def files(self, commit: str) -> dict[str, Path]:
        """Name -> path of the GGUF files of a commit that are here, links that lead nowhere left out."""
        start = self.folder / "snapshots" / commit
        found: dict[str, Path] = {}
        for folder, _, names in os.walk(start):
            for file in (Path(folder) / n for n in names):
                name = file.relative_to(start).as_posix()
                if is_safe_name(name) and file.is_file():
                    found[name] = file
        return dict(sorted(found.items()))

    def find(self, ref: Reference) -> list[Path] | None:
        """The files of the model that `ref` asks for, if all are here; no network is touched.

        Without a quantisation the choice is among what is here. Raises ModelReferenceError where several files fit.
        """
        commit = self.commit(ref.branch)
        if commit is None:
            return None
        if ref.file is not None:
            paths = [self.folder / "snapshots" / commit / n for n in part_names(ref.file)]
            return paths if all(p.is_file() for p in paths) else None
        files = self.files(commit)
        return [files[name] for name in choose(files, ref)] if fitting(files, ref) else None

    def commits(self) -> list[str]:
        """Commits with a snapshot here."""
        with contextlib.suppress(OSError):
            return sorted(n for n in os.listdir(self.folder / "snapshots") if is_commit(n))
        return []

    def branches(self) -> dict[str, str]:
        """Commit -> a branch or tag that is at it, `main` before others."""
        start = self.folder / "refs"
        found: dict[str, str] = {}
        names = [Path(f, n).relative_to(start).as_posix() for f, _, ns in os.walk(start) for n in ns]
        for name in sorted(names, key=lambda n: (n != "main", n)):
            commit = self.commit(name) if is_safe_revision(name) else None
            if commit is not None:
                found.setdefault(commit, name)
        return found

    def parts(self) -> list[Path]:
        """Unfinished downloads."""
        with contextlib.suppress(OSError):
            return sorted(p for p in (self.folder / "blobs").iterdir() if p.name.endswith(PART))
        return []

    # ---- writing

    def blob(self, digest: str) -> Path:
        """Where the bytes with that digest belong."""
        if not is_digest(digest):
            raise ValueError(f"{digest!r} is no digest")
        return self.folder / "blobs" / digest

    def lock(self, digest: str) -> Path:
        """The lock file of a download: that of the hub's own client."""
        return self.root / ".locks" / self.folder.name / f"{digest}.lock"

    def place(self, digest: str, commit: str, name: str) -> Path:
        """Make the file `name` of a commit out of the blob; returns its path. Raises OutputError."""
        if not (is_commit(commit) and is_safe_name(name)):
            raise ValueError(f"{commit!r} and {name!r} cannot become a path")
        blob, path = self.blob(digest), self.folder / "snapshots" / commit / name
        try:
            if path.is_file():
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # a link that leads nowhere
            try:
                path.symlink_to(os.path.relpath(blob, path.parent))
            except OSError:  # a system or a disk without links
                os.replace(blob, path)
        except OSError as error:
            raise OutputError(f"the file cannot be put into the cache: {error.strerror}", path=path) from None
        return path

    def set_branch(self, revision: str, commit: str) -> None:
        """Note that a branch or tag is at `commit`. A cache that cannot be written is left as it is."""
        if is_commit(revision) or not is_safe_revision(revision):
            return
        path = self.folder / "refs" / revision
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(commit, encoding="ascii")
            os.replace(temporary, path)

    def remove(self, paths: list[Path]) -> int:
        """Remove files of snapshots, and each blob that nothing else needs; returns the bytes that became free.

        A repository without files goes as a whole. Raises ModelReferenceError for a path outside of it, OutputError.
        """
        for path in paths:
            self._check_inside(path)
        freed = 0
        try:
            for path in paths:
                freed += self._remove_file(path)
            if not any(self._links()):
                freed += sum(part.stat().st_size for part in self.parts())
                shutil.rmtree(self.folder)
                shutil.rmtree(self.root / ".locks" / self.folder.name, ignore_errors=True)
        except OSError as error:
            raise OutputError(f"this cannot be removed: {error.strerror}", path=error.filename) from None
        return freed

    def remove_parts(self) -> int:
        """Remove unfinished downloads; returns their bytes."""
        freed = 0
        for part in self.parts():
            with contextlib.suppress(OSError):  # another program may be at it
                size = part.stat().st_size
                part.unlink()
                freed += size
        return freed

    def _check_inside(self, path: Path) -> None:
        snapshots = Path(os.path.realpath(self.folder / "snapshots"))
        inside = Path(os.path.realpath(path.parent)).is_relative_to(snapshots)
        if not inside or not snapshots.is_relative_to(os.path.realpath(self.root)) or self.folder.is_symlink():
            raise ModelReferenceError(path, "this is not in the hub's cache; nothing was removed")

    def _remove_file(self, path: Path) -> int:
        blob = linked_to(path)
        size = path.stat().st_size if path.is_file() and not (blob or path).is_symlink() else 0
        path.unlink()
        for folder in path.parents:  # folders that are empty now, up to `snapshots`
            if folder.name == "snapshots":
                break
            try:
                folder.rmdir()
            except OSError:
                break
        if blob is None:
            return size
        ours = os.path.realpath(blob.parent) == os.path.realpath(self.folder / "blobs")
        if not ours or any(linked_to(other) == blob for other in self._links()):
            return 0
        blob.unlink(missing_ok=True)
        return size

    def _links(self) -> Iterator[Path]:
        """All files of all snapshots, GGUF or not."""
        for folder, _, names in os.walk(self.folder / "snapshots"):
            yield from (Path(folder) / name for name in names)


def cached_repos(root: Path | None = None) -> Iterator[CachedRepo]:
    """All repositories of models in the cache, by name; folders with other names are left out."""
    root = root or hub_folder()
    try:
        names = sorted(os.listdir(root))
    except OSError:
        return
    for name in names:
        kind, *parts = name.split("--")
        with contextlib.suppress(ModelReferenceError):
            if kind == "models" and len(parts) == 2:
                yield CachedRepo(parse("/".join(parts)).repo, root)
