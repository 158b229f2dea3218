"""A small server that speaks the hub's protocol as `huggingface_hub` and `edgellm pull` need it, with faults on demand.

    with HubServer() as hub:
        commit = hub.add("owner/repo", {"model-Q4_0.gguf": data})
        hub.cuts = [1000, 5000]     # the next answers end when these bytes of a file have been sent

It knows the model info and the resolve address (ETag, X-Linked-Etag, X-Linked-Size, X-Repo-Commit, ranges), and sends
files on to an address of "storage" on another port, as the real one does.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

PIECE = 4096


@dataclass
class Request:
    """What came: `sent` counts the bytes of a file that went out."""

    method: str
    path: str
    headers: dict[str, str]
    sent: int = 0


@dataclass
class Repo:
    files: dict[str, bytes]
    lfs: bool = True


def git_digest(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class HubServer:
    """The faults: see the fields. All of them may be changed while it runs."""

    cuts: list[int] = field(default_factory=list)  # places in a file where answers end, used up one by one
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # (status, headers) of the next answers
    only_files: bool = False  # `statuses` are for the bytes of files only
    spoiled: bool = False  # files are sent with a wrong byte in the middle
    ranges: bool = True
    token: str | None = None  # what a client must bring
    listing: Any = None  # sent instead of the model's info
    hold: threading.Event | None = None  # bytes of files wait for it after the first piece
    piece_pause: float = 0.0  # seconds between pieces
    requests: list[Request] = field(default_factory=list)
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)  # (repository, commit)
    branches: dict[tuple[str, str], str] = field(default_factory=dict)  # (repository, branch) -> commit

    def add(self, repo: str, files: dict[str, bytes], branch: str = "main", lfs: bool = True) -> str:
        """A new commit with these files at the end of a branch."""
        commit = hashlib.sha1(repr((repo, sorted(files.items()), lfs)).encode()).hexdigest()
        self.repos[repo, commit] = Repo(dict(files), lfs)
        self.branches[repo, branch] = commit
        return commit

    def __enter__(self) -> HubServer:
        self._servers = [_Server(("127.0.0.1", 0), _Handler) for _ in range(2)]
        for server in self._servers:
            server.hub = self
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url, self.storage = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)
        return self

    def __exit__(self, *error: object) -> None:
        if self.hold is not None:
            self.hold.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def find(self, repo: str, revision: str) -> tuple[str, Repo] | None:
        commit = self.branches.get((repo, revision), revision)
        return (commit, self.repos[repo, commit]) if (repo, commit) in self.repos else None

    def info(self, repo: str, commit: str, found: Repo) -> Any:
        """The answer of the address `api/models/...?blobs=true`."""
        if self.listing is not None:
            return self.listing
        siblings = []
        for name, data in found.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_digest(data)}
            if found.lfs:
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        return {"id": repo, "sha": commit, "siblings": siblings}

    @property
    def bytes_sent(self) -> int:
        return sum(r.sent for r in self.requests)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave in the middle are what tests are about; anything else is a fault of this file."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Nothing on stderr."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server.hub  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        self._request = Request(self.command, path, {k.lower(): v for k, v in self.headers.items()})
        hub.requests.append(self._request)
        is_file = path.startswith("/storage/")
        if hub.statuses and (is_file or not hub.only_files):
            self._refuse(*hub.statuses.pop(0))
        elif is_file:
            self._storage(hub, path)
        elif hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._refuse(401, {"X-Error-Message": "Invalid username or password."})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(hub, match[1], match[2] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/(refs/[^/]+/[^/]+|[^/]+)/(.+)", path):
            self._resolve(hub, *match.groups())
        else:
            self._refuse(404, {})

    def _info(self, hub: HubServer, repo: str, revision: str) -> None:
        found = hub.find(repo, revision)
        if found is None:
            known = any(r == repo for r, _ in hub.repos)
            self._refuse(404, {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})
            return
        self._send(200, json.dumps(hub.info(repo, *found)).encode(), {"Content-Type": "application/json"})

    def _resolve(self, hub: HubServer, repo: str, revision: str, name: str) -> None:
        found = hub.find(repo, revision)
        if found is None or name not in found[1].files:
            self._refuse(404, {"X-Error-Code": "EntryNotFound" if found else "RevisionNotFound"})
            return
        commit, data = found[0], found[1].files[name]
        etag = hashlib.sha256(data).hexdigest() if found[1].lfs else git_digest(data)
        headers = {
            "X-Repo-Commit": commit, "ETag": f'"{etag}"', "X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data)),
            "Location": f"{hub.storage}/storage/{repo}/{commit}/{name}",
        }  # fmt: skip
        self._send(302, b"", headers)

    def _storage(self, hub: HubServer, path: str) -> None:
        """The bytes of a file, from where the range begins, as far as the next cut."""
        owner, name, commit, file = path.removeprefix("/storage/").split("/", 3)
        data = hub.repos[f"{owner}/{name}", commit].files[file]
        if hub.spoiled:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if hub.ranges else None
        start = int(match[1]) if match else 0
        headers = {"Content-Length": str(len(data) - start)}
        if match:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._head(206 if match else 200, headers)
        if self.command == "HEAD":
            return
        end = hub.cuts.pop(0) if hub.cuts else len(data)
        try:
            for place in range(start, end, PIECE):
                piece = data[place : min(place + PIECE, end)]
                self.wfile.write(piece)
                self._request.sent += len(piece)
                self._pause(hub)
        except OSError:  # the client has left
            end = 0
        self.close_connection = end < len(data)

    def _pause(self, hub: HubServer) -> None:
        if hub.hold is not None:
            self.wfile.flush()
            hub.hold.wait(60)
        elif hub.piece_pause:
            threading.Event().wait(hub.piece_pause)

    def _refuse(self, status: int, headers: dict[str, str]) -> None:
        self._send(status, b"", headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._head(status, headers | {"Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
