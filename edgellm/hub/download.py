"""`pull`: the files of a model, from the hub into its cache, checked, as often interrupted as one likes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import Cancelled, ModelFileNotFoundError, ModelReferenceError, OutputError
from ..gguf import open_gguf
from ..results import Progress
from .aliases import read_aliases
from .background import Background
from .cache import PART, CachedRepo, is_digest, linked_to
from .choice import choose
from .client import Body, Client, Listing, RemoteFile
from .reference import Reference, is_reference, parse
from .transfer import Meter, Transfer, attempts, local_bytes

_TOLD_EVERY = 0.1  # seconds between calls of a progress callback
_TRUE = ("1", "on", "yes", "true")


@dataclass(frozen=True)
class PulledFile:
    """A file of a model. `kept`: bytes that are here already, all of them where there is nothing to fetch."""

    name: str
    path: str
    bytes: int
    sha256: str | None
    kept: int


@dataclass(frozen=True)
class PullReport:
    """What `fetch` did, or with `dry_run` would do. `path`: the (first) file; `fetched`: bytes over the network."""

    reference: str
    revision: str | None
    path: str
    files: tuple[PulledFile, ...]
    bytes: int
    fetched: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"files": [asdict(f) for f in self.files]}


def is_offline(offline: bool | None = None) -> bool:
    """Whether the network must not be touched: asked for, or HF_HUB_OFFLINE (TRANSFORMERS_OFFLINE) is set."""
    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return bool(offline) or said.lower() in _TRUE


def pull(
    ref: str,
    *,
    quant: str | None = None,
    revision: str | None = None,
    to: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    update: bool = False,
    progress: Callable[[Progress], Any] | None = None,
    cancel: threading.Event | None = None,
) -> Path:
    """The path of a model of Hugging Face's hub, downloaded unless it is on this machine already.

    - `ref`: `hf:owner/repo`, `hf:owner/repo:Q4_K_M`, `hf:owner/repo/file.gguf`, or an alias of one. Without a
      quantisation: the model that is here, else Q4_K_M, else the first of `edgellm.hub.choice.ORDER` that there is.
    - `quant`, `revision`: the quantisation; the branch, tag or commit [main]; the reference may say both too.
    - `to`: a folder to put the files into; None: the hub's cache (HF_HOME, HF_HUB_CACHE), shared with other programs.
    - `offline`: True never touches the network, and neither does HF_HUB_OFFLINE=1. `update`: ask the hub for a newer
      version even where the model is here.
    - `progress`: called on this thread with a `Progress`, at most ten times a second; False ends with `Cancelled`.
    - `cancel`: an event that ends the download with `Cancelled`. What has come is kept, and the next call goes on.

    Each file's checksum is held against what the hub states, and the header of the model is checked. Raises
    ModelReferenceError, ModelFileNotFoundError (offline and not here), DownloadError, OutputError (disk),
    ModelFormatError (what came is no good GGUF file), MissingPackageError, Cancelled.
    """
    options = {"quant": quant, "revision": revision, "to": to, "offline": offline, "update": update}
    return Path(fetch(ref, progress=progress, cancel=cancel, **options).path)  # type: ignore[arg-type]


def fetch(
    ref: str,
    *,
    quant: str | None = None,
    revision: str | None = None,
    to: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    update: bool = False,
    dry_run: bool = False,
    progress: Callable[[Progress], Any] | None = None,
    cancel: threading.Event | None = None,
) -> PullReport:
    """As `pull`, with all that is known of the files; `dry_run` asks the hub and downloads nothing."""
    wanted = read_reference(ref, quant, revision)
    repo = CachedRepo(wanted.repo)
    here = None if update else _find_here(repo, wanted, is_offline(offline))
    if here is not None and to is None:
        return _report_here(wanted, repo, here)
    source = None if here is None else _Cached(repo, here)
    if source is not None and not source.has_digests:
        source = None
    if source is None and is_offline(offline):
        raise ModelFileNotFoundError(
            wanted, f"this model is not on this machine, and the network is off; run `edgellm pull {wanted}` with it"
        )
    meter, look = Meter(), _Look(progress, cancel)
    job = _Pull(wanted, repo, None if to is None else Path(to), meter, source or Client(wanted))
    report = Background(partial(job.run, dry_run)).result(lambda: look.at(meter))
    if not dry_run:
        open_gguf(report.path).close()
    return report


def _find_here(repo: CachedRepo, ref: Reference, offline: bool) -> list[Path] | None:
    """The model in the cache. Where several there fit, the hub is asked which of its files is meant."""
    try:
        return repo.find(ref)
    except ModelReferenceError:
        if offline:
            raise
        return None


def read_reference(text: str, quant: str | None = None, revision: str | None = None) -> Reference:
    """A reference, or that which an alias stands for. Raises ModelReferenceError."""
    target = text if is_reference(text) or "/" in text else read_aliases().get(text, text)
    if target != text and not is_reference(target):
        raise ModelReferenceError(text, "this alias stands for a file of this machine; there is nothing to pull")
    if "/" not in target:
        raise ModelReferenceError(text, "this is no reference and no alias; write hf:owner/repo:QUANT")
    return parse(target, quant=quant, revision=revision)


def _report_here(ref: Reference, repo: CachedRepo, paths: list[Path]) -> PullReport:
    """Nothing to do."""
    files = []
    for path in paths:
        _, name = _place_of(repo, path)
        digest, size = _digest_of(path), path.stat().st_size
        files.append(PulledFile(name, str(path), size, digest if len(digest) == 64 else None, size))
    return PullReport(str(ref), repo.commit(ref.branch), str(paths[0]), tuple(files), sum(f.bytes for f in files), 0)


class _Cached:
    """A model that is in the cache, shown as `Client` shows one of the hub."""

    def __init__(self, repo: CachedRepo, paths: list[Path]) -> None:
        files = {}
        for path in paths:
            commit, name = _place_of(repo, path)
            files[name] = (path, RemoteFile(name, path.stat().st_size, _digest_of(path)))
        self._paths = {name: path for name, (path, _) in files.items()}
        self._listing = Listing(commit, {name: file for name, (_, file) in files.items()})
        self.has_digests = all(file.digest for _, file in files.values())  # not where the system has no links

    def listing(self) -> Listing:
        return self._listing

    def open(self, commit: str, file: RemoteFile, start: int) -> AbstractContextManager[Body]:
        return local_bytes(self._paths[file.name], start)


def _place_of(repo: CachedRepo, path: Path) -> tuple[str, str]:
    """Commit and name of a file of the cache."""
    commit, _, name = path.relative_to(repo.folder / "snapshots").as_posix().partition("/")
    return commit, name


def _digest_of(path: Path) -> str:
    """The digest that a file of the cache is kept under, "" where it is no link."""
    blob = linked_to(path)
    return blob.name if blob is not None and is_digest(blob.name) else ""


class _Look:
    """What the caller's thread does while bytes come: tell how far it is, see whether it shall end."""

    def __init__(self, progress: Callable[[Progress], Any] | None, cancel: threading.Event | None) -> None:
        self._progress, self._cancel = progress, cancel
        self._told: tuple[Any, ...] = ()
        self._next = 0.0

    def at(self, meter: Meter) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled("the download was cancelled; what has come is kept")
        now, state = time.monotonic(), (meter.stage, meter.done, meter.total)
        is_end = meter.done == meter.total
        if self._progress is None or meter.total == 0 or state == self._told or (now < self._next and not is_end):
            return
        self._told, self._next = state, now + _TOLD_EVERY
        if self._progress(Progress(*state)) is False:
            raise Cancelled("the download was stopped by its progress callback; what has come is kept")


class _Pull:
    """The work behind `fetch`, on a thread of its own."""

    def __init__(
        self, ref: Reference, repo: CachedRepo, to: Path | None, meter: Meter, source: Client | _Cached
    ) -> None:
        self._ref, self._repo, self._to, self._meter, self._source = ref, repo, to, meter, source
        self._fetched = 0

    def run(self, dry_run: bool, stop: threading.Event) -> PullReport:
        listing = attempts(self._source.listing, stop)
        files = [listing.files[name] for name in choose(listing.files, self._ref)]
        planned = [self._look_at(listing, file) for file in files]
        self._meter.total = sum(file.size for file in files)
        if not dry_run:
            for file, plan in zip(files, planned, strict=True):
                self._get(listing, file, plan, stop)
            if self._to is None:
                self._repo.set_branch(self._ref.branch, listing.commit)
        return PullReport(
            str(self._ref), listing.commit, planned[0].path, tuple(planned), self._meter.total,
            sum(plan.bytes - plan.kept for plan in planned) if dry_run else self._fetched,
        )  # fmt: skip

    def _look_at(self, listing: Listing, file: RemoteFile) -> PulledFile:
        """Where a file goes, and how much of it is there."""
        path = self._repo.folder / "snapshots" / listing.commit / file.name
        if self._to is not None:
            path = self._to / os.path.basename(file.name)
        there = path.is_file() or (self._to is None and self._repo.blob(file.digest).is_file())
        kept = file.size if there else _size_of(self._part(path, file))
        sha256 = file.digest if len(file.digest) == 64 else None
        return PulledFile(file.name, str(path), file.size, sha256, min(kept, file.size))

    def _part(self, path: Path, file: RemoteFile) -> Path:
        """The file that bytes are gathered in."""
        if self._to is None:
            blob = self._repo.blob(file.digest)
            return blob.with_name(blob.name + PART)
        return path.with_name(f".{path.name}.{file.digest[:16]}{PART}")

    def _get(self, listing: Listing, file: RemoteFile, plan: PulledFile, stop: threading.Event) -> None:
        """Fetch and check one file, under the lock that the hub's own client takes."""
        path, start = Path(plan.path), self._meter.done
        part = self._part(path, file)
        with _lock(self._repo.lock(file.digest), stop):
            blob = self._repo.blob(file.digest)
            if self._to is None:
                if not path.is_file() and not blob.is_file():
                    self._transfer(partial(self._source.open, listing.commit, file), part, file, stop)
                    os.replace(part, blob)
                self._repo.place(file.digest, listing.commit, file.name)
            elif path.exists():
                self._check_same(path, file, stop)
            else:
                known = [self._repo.folder / "snapshots" / listing.commit / file.name, blob]
                here = next((p for p in known if p.is_file()), None)
                hub = partial(self._source.open, listing.commit, file)
                source = hub if here is None else partial(local_bytes, here)
                self._transfer(source, part, file, stop, local=here is not None)
                os.replace(part, path)
        self._meter.done = start + file.size

    def _transfer(
        self, source: Any, part: Path, file: RemoteFile, stop: threading.Event, local: bool = False
    ) -> None:
        kept = _size_of(part)
        Transfer(source, part, file.size, file.digest, self._meter, stop, self._ref).run()
        self._fetched += 0 if local else file.size - (kept if kept <= file.size else 0)

    def _check_same(self, path: Path, file: RemoteFile, stop: threading.Event) -> None:
        """A file that lies where this one shall go must be the same one. Raises OutputError."""
        known = Transfer(partial(local_bytes, path), path, file.size, file.digest, self._meter, stop, path)
        if _size_of(path) != file.size or not known.check():
            raise OutputError("another file of this name is here; move it away, or choose another --to", path=path)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _lock(path: Path, stop: threading.Event) -> Any:
    """A context manager: no other process downloads the same file meanwhile. Raises Cancelled, OutputError."""
    from filelock import FileLock, Timeout

    lock = FileLock(str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                return lock.acquire(timeout=0.1)
            except Timeout:
                if stop.is_set():
                    raise Cancelled("the download was stopped") from None
    except OSError as error:
        raise OutputError(f"the cache cannot be written: {error.strerror or error}", path=path) from None
