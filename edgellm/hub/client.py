"""Talking to the hub. The only file that needs `huggingface_hub`: its connections, token and errors, loaded when used.

Bytes come over plain HTTP with ranges, because the package's own download starts anew after a process has ended
(version 2), and a model of gigabytes must go on where it was. What the hub answers is checked like any hostile input.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ..errors import DownloadError, MissingPackageError
from .cache import is_commit, is_digest
from .reference import Reference, is_safe_name

TIMEOUT = 10.0  # seconds without a byte
_LISTING_BYTES = 32 << 20
_MAX_FILE = 1 << 46
_AGAIN = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class RemoteFile:
    """A GGUF file of a repository: bytes, and its SHA-256 (64 digits) or, where it is small, git's SHA-1 (40)."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Listing:
    """What a repository holds at a commit; GGUF files only."""

    commit: str
    files: dict[str, RemoteFile]


class Transient(Exception):
    """Worth another attempt, after `wait` seconds where the hub says so. `error` is raised when all have failed."""

    def __init__(self, error: DownloadError, wait: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.wait = error, wait


@dataclass(frozen=True)
class Body:
    """The bytes of a file from `start` on, in pieces as they arrive."""

    start: int
    pieces: Iterator[bytes]


class Client:
    """Requests about one reference. Raises MissingPackageError where `huggingface_hub` is not installed."""

    def __init__(self, ref: Reference) -> None:
        try:
            from huggingface_hub import constants, get_session, get_token
            from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its HTTP package
        except ImportError:
            raise MissingPackageError("getting models from the hub", "hub") from None
        self.ref = ref
        self._session, self._http_error = get_session(), HTTPError
        self._endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        if not self._endpoint.startswith(("http://", "https://")):
            raise self._error("HF_ENDPOINT is set to something that is no address; unset it")
        self._token = get_token()

    def listing(self) -> Listing:
        """The GGUF files at the revision of the reference. Raises Transient, DownloadError."""
        url = f"{self._endpoint}/api/models/{self.ref.repo}/revision/{quote(self.ref.branch, safe='')}?blobs=true"
        with self._get(url) as response:
            text = bytearray()
            for piece in response.iter_bytes():
                text += piece
                if len(text) > _LISTING_BYTES:
                    raise self._error("the hub's list of files is longer than any should be")
        try:
            return _read_listing(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise self._error("the hub's list of files cannot be read; is HF_ENDPOINT right?") from None

    @contextmanager
    def open(self, commit: str, file: RemoteFile, start: int) -> Iterator[Body]:
        """The bytes of a file, from `start` on or from its beginning where the server knows no ranges."""
        url = f"{self._endpoint}/{self.ref.repo}/resolve/{commit}/{quote(file.name)}"
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        with self._get(url, headers) as response:
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise self._error("the server sends the file in a coding that was not asked for")
            begins = f"bytes {start}-"
            if response.status_code == 206 and not response.headers.get("Content-Range", "").startswith(begins):
                raise self._error("the server sends another part of the file than was asked for")
            yield Body(start if response.status_code == 206 else 0, response.iter_raw())

    @contextmanager
    def _get(self, url: str, headers: dict[str, str] | None = None) -> Iterator[Any]:
        """A response to be read as it comes. The session leaves the token out where it is sent on to another host."""
        sent = {"User-Agent": "edgellm"} | (headers or {})
        if self._token:
            sent["Authorization"] = f"Bearer {self._token}"
        what = "no connection to the hub"
        try:
            with self._session.stream("GET", url, headers=sent, timeout=TIMEOUT, follow_redirects=True) as response:
                what = "the connection to the hub was cut"
                if response.status_code not in (200, 206):
                    raise self._refused(response)
                yield response
        except self._http_error as error:
            text = f"{what} ({type(error).__name__}); check the network and try again"
            raise Transient(self._error(text)) from None

    def _refused(self, response: Any) -> Exception:
        """What an answer that is no success means, and what to do next."""
        status, code = response.status_code, response.headers.get("X-Error-Code")
        text = f"the hub answers with status {status}; try again later"
        if code == "GatedRepo":
            text = "the model is gated: accept its terms on its page, then set HF_TOKEN to a token of your account"
        elif status == 401 and self._token:
            text = "the hub refuses the token; check HF_TOKEN, or log in again with `hf auth login`"
        elif code == "RevisionNotFound":
            text = f"the repository has no revision {self.ref.branch}"
        elif code == "EntryNotFound":
            text = "the repository has no such file"
        elif status in (401, 404):
            text = "the hub has no such repository, or a private one; check the name, and set HF_TOKEN for private ones"
        elif status == 403:
            text = "the hub does not allow this; check the rights of HF_TOKEN"
        elif status == 429:
            text = "the hub has had too many requests from here; wait some minutes, or set HF_TOKEN"
        error = self._error(text, status)
        return Transient(error, _seconds(response.headers.get("Retry-After"))) if status in _AGAIN else error

    def _error(self, text: str, status: int | None = None) -> DownloadError:
        return DownloadError(text, reference=self.ref, status=status)


def _seconds(text: str | None) -> float | None:
    """Retry-After as seconds; None where it is a date or nonsense."""
    return float(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 9 else None


def _read_listing(data: Any) -> Listing:
    """Raises ValueError, KeyError, TypeError or AttributeError for what a listing cannot be."""
    files = {}
    for entry in data["siblings"]:
        name, lfs = entry["rfilename"], entry.get("lfs")
        if not is_safe_name(name):  # all the files that are no GGUF, and names that would leave the folder
            continue
        size, digest = (lfs["size"], lfs["sha256"]) if lfs else (entry["size"], entry["blobId"])
        if type(size) is not int or not 0 <= size < _MAX_FILE or not is_digest(digest):
            raise ValueError(name)
        files[name] = RemoteFile(name, size, digest)
    if not is_commit(data["sha"]):
        raise ValueError(data["sha"])
    return Listing(data["sha"], files)
