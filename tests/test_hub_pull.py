"""`pull` against a hub of our own: cut connections, wrong bytes, refusals, the cache as the hub's client has it."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hub_place import model_bytes

import edgellm
from edgellm.errors import (
    Cancelled,
    DownloadError,
    MissingPackageError,
    ModelFileNotFoundError,
    ModelFormatError,
    ModelReferenceError,
    OutputError,
)
from edgellm.hub import fetch, pull, resolve, transfer
from edgellm.hub.cache import CachedRepo
from edgellm.hub.choice import part_names

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def data(hub):
    """The file of the repository o/r."""
    found = model_bytes(200_000)
    hub.add("o/r", {"README.md": b"hello", "m-Q4_0.gguf": found})
    return found


def leftovers(tmp_path) -> list[str]:
    return sorted(p.name for p in tmp_path.rglob("*.incomplete"))


# ---- the good cases


def test_pull_once(hub, data, tmp_path):
    path = pull("hf:o/r")
    assert path.read_bytes() == data and path.name == "m-Q4_0.gguf" and path.is_relative_to(tmp_path / "cache")
    assert hub.bytes_sent == len(data) and not leftovers(tmp_path)
    seen = len(hub.requests)
    assert pull("hf:o/r:q4_0") == path == resolve("hf:o/r/m-Q4_0.gguf")
    assert len(hub.requests) == seen  # it is here: no network at all


def test_the_cache_is_that_of_the_hubs_own_client(hub, data, tmp_path):
    """The same files, links and notes as `hf_hub_download` makes, and each finds what the other has fetched."""
    from huggingface_hub import hf_hub_download, scan_cache_dir

    theirs = tmp_path / "theirs"
    hf_hub_download("o/r", "m-Q4_0.gguf", cache_dir=theirs, endpoint=hub.url)
    pull("hf:o/r")

    def tree(root):
        files = [p for p in root.rglob("*") if not p.is_dir() and ".locks" not in p.parts]
        return {
            p.relative_to(root).as_posix(): os.readlink(p) if p.is_symlink() else p.read_bytes()
            for p in files if p.name != "CACHEDIR.TAG"
        }  # fmt: skip

    assert tree(tmp_path / "cache") == tree(theirs)
    here = hf_hub_download("o/r", "m-Q4_0.gguf", cache_dir=tmp_path / "cache", local_files_only=True)
    assert here == str(pull("hf:o/r"))
    seen = scan_cache_dir(tmp_path / "cache")
    assert not seen.warnings and [r.repo_id for r in seen.repos] == ["o/r"]
    assert CachedRepo("o/r", theirs).find(edgellm.hub.parse("hf:o/r:Q4_0"))[0].read_bytes() == data


def test_load_and_estimate_take_references(hub, tmp_path):
    from edgellm.builtin import builtin_model

    hub.add("o/toy", {"toy.gguf": builtin_model().read_bytes()})
    seen = []
    with edgellm.load("hf:o/toy", n_ctx=64, backend="reference", progress=lambda p: seen.append(p.stage)) as model:
        assert model.path.endswith("toy.gguf") and {"downloading", "loading"} <= set(seen)
    before = len(hub.requests)
    assert edgellm.estimate("hf:o/toy", n_ctx=64).n_ctx == 64
    assert len(hub.requests) == before
    with pytest.raises(ModelFileNotFoundError, match="edgellm pull hf:o/other"):
        edgellm.load("hf:o/other", offline=True)


def test_split_models_come_whole(hub, tmp_path):
    names = part_names("Q8_0/big-Q8_0-00001-of-00003.gguf")
    good = {name: model_bytes(5000, i) for i, name in enumerate(names)}
    hub.add("o/big", good | {"big-Q4_0.gguf": model_bytes()})
    path = pull("hf:o/big:Q8_0")
    assert [path.with_name(os.path.basename(n)).read_bytes() for n in names] == list(good.values())
    path.with_name(os.path.basename(names[1])).unlink()
    before = hub.bytes_sent
    pull("hf:o/big:Q8_0")  # the blob is still there, so the link is all that was missing
    assert hub.bytes_sent == before


def test_to_a_folder(hub, data, tmp_path):
    target = tmp_path / "here"
    path = pull("hf:o/r", to=target)
    assert path == target / "m-Q4_0.gguf" and path.read_bytes() == data and not path.is_symlink()
    assert os.listdir(target) == ["m-Q4_0.gguf"] and CachedRepo("o/r").commits() == []
    sent = hub.bytes_sent
    assert pull("hf:o/r", to=target) == path and hub.bytes_sent == sent  # the same file is there already
    path.write_bytes(b"something else")
    with pytest.raises(OutputError, match="another file"):
        pull("hf:o/r", to=target)
    assert path.read_bytes() == b"something else"
    pull("hf:o/r")
    seen = len(hub.requests)
    assert pull("hf:o/r", to=tmp_path / "other", offline=True).read_bytes() == data  # from the cache
    assert len(hub.requests) == seen
    with pytest.raises(ModelFileNotFoundError):
        pull("hf:o/r:Q8_0", to=tmp_path / "other", offline=True)


def test_small_files_have_gits_checksum(hub, tmp_path):
    hub.add("o/small", {"s.gguf": model_bytes()}, lfs=False)
    report = fetch("hf:o/small")
    assert report.files[0].sha256 is None and Path(report.path).read_bytes() == model_bytes()
    hub.add("o/bad", {"s.gguf": model_bytes()}, lfs=False)
    hub.spoiled = True
    with pytest.raises(DownloadError, match="SHA-1"):
        pull("hf:o/bad")


def test_revisions(hub, tmp_path):
    old = hub.add("o/r", {"m.gguf": model_bytes(100, 1)})
    first = pull("hf:o/r")
    hub.add("o/r", {"m.gguf": model_bytes(100, 2)})
    hub.add("o/r", {"m.gguf": model_bytes(100, 3)}, branch="refs/pr/1")
    assert pull("hf:o/r") == first  # what is here is used
    newer = pull("hf:o/r", update=True)
    assert newer.read_bytes() == model_bytes(100, 2) and pull("hf:o/r") == newer
    assert pull("hf:o/r@refs/pr/1").read_bytes() == model_bytes(100, 3)
    assert pull(f"hf:o/r@{old}") == first == pull("hf:o/r", revision=old)
    with pytest.raises(DownloadError, match="no revision nowhere"):
        pull("hf:o/r@nowhere")


def test_dry_run(hub, data, tmp_path):
    report = fetch("hf:o/r", dry_run=True)
    assert (report.bytes, report.fetched, report.files[0].kept) == (len(data), len(data), 0)
    assert report.files[0].sha256 == hashlib.sha256(data).hexdigest() and hub.bytes_sent == 0
    assert not os.path.exists(report.path) and not (tmp_path / "cache").exists()
    assert pull("hf:o/r") == Path(report.path)
    assert fetch("hf:o/r", dry_run=True).fetched == 0


# ---- connections


def test_ten_cuts_at_random_places(hub, data, tmp_path):
    """Each attempt goes on where the one before ended: no byte comes twice, and the checksum is right."""
    hub.cuts = sorted(random.Random(7).sample(range(1, len(data)), 10))
    cuts = list(hub.cuts)
    assert pull("hf:o/r").read_bytes() == data
    ranges = [r.headers.get("range") for r in hub.requests if r.path.startswith("/storage/")]
    assert ranges == [None, *(f"bytes={cut}-" for cut in cuts)]
    assert hub.bytes_sent == len(data) and not leftovers(tmp_path)


def test_after_many_failures_the_part_is_kept(hub, data, tmp_path):
    hub.cuts = [70_000] * 20
    with pytest.raises(DownloadError, match="was cut.*bytes kept 70000") as caught:
        pull("hf:o/r")
    assert caught.value.kept == 70_000 and len(leftovers(tmp_path)) == 1
    hub.cuts = []
    assert fetch("hf:o/r", dry_run=True).fetched == len(data) - 70_000
    before = hub.bytes_sent
    report = fetch("hf:o/r")
    assert Path(report.path).read_bytes() == data
    assert hub.bytes_sent - before == report.fetched == len(data) - 70_000


def test_a_server_without_ranges(hub, data):
    hub.ranges, hub.cuts = False, [50_000, 60_000]
    assert pull("hf:o/r").read_bytes() == data
    assert hub.bytes_sent == 110_000 + len(data)


def test_hiccups_of_the_hub(hub, data):
    hub.statuses = [(500, {}), (429, {"Retry-After": "0"}), (503, {})]
    assert pull("hf:o/r").read_bytes() == data


def test_no_hub_at_all(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="no connection to the hub"):
        pull("hf:o/r")


@pytest.mark.parametrize("storage", [False, True])
@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (401, {}, "refuses the token"),
        (401, {"X-Error-Code": "GatedRepo"}, "accept its terms"),
        (403, {"X-Error-Code": "GatedRepo"}, "accept its terms"),
        (403, {}, "rights of HF_TOKEN"),
        (404, {"X-Error-Code": "RepoNotFound"}, "no such repository"),
        (404, {"X-Error-Code": "EntryNotFound"}, "no such file"),
        (429, {}, "too many requests"),
        (500, {}, "status 500; try again later"),
    ],
)
def test_refusals(hub, data, status, headers, said, storage, tmp_path):
    hub.statuses, hub.only_files = [(status, headers)] * 9, storage
    with pytest.raises(DownloadError, match=said) as caught:
        pull("hf:o/r")
    assert caught.value.status == status and "hf_secret" not in str(caught.value) and "hf:o/r" in str(caught.value)
    hub.statuses = []
    assert pull("hf:o/r").read_bytes() == data


def test_the_token_goes_to_the_hub_only(hub, data):
    hub.token = "hf_secret"
    pull("hf:o/r")
    with_token = {r.path.split("/")[1]: "authorization" in r.headers for r in hub.requests}
    assert with_token == {"api": True, "o": True, "storage": False}


def test_without_a_token(hub, data, monkeypatch):
    import huggingface_hub

    hub.token = "x"
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(DownloadError, match="or a private one; check the name, and set HF_TOKEN"):
        pull("hf:o/r")


# ---- bytes


def test_wrong_bytes_are_thrown_away(hub, data, tmp_path):
    hub.spoiled = True
    with pytest.raises(DownloadError, match="SHA-256.*thrown away"):
        pull("hf:o/r")
    assert not leftovers(tmp_path) and CachedRepo("o/r").commits() == [] and CachedRepo("o/r").find(
        edgellm.hub.parse("hf:o/r")
    ) is None
    hub.spoiled = False
    assert pull("hf:o/r").read_bytes() == data


@pytest.mark.parametrize("stale", [b"x" * 1000, b"", bytes(200_000), bytes(999_999)])
def test_a_wrong_part_begins_anew(hub, data, stale, tmp_path):
    digest = hashlib.sha256(data).hexdigest()
    part = CachedRepo("o/r").blob(digest).with_name(digest + ".incomplete")
    part.parent.mkdir(parents=True)
    part.write_bytes(stale)
    assert pull("hf:o/r").read_bytes() == data
    assert not leftovers(tmp_path)


def test_a_whole_part_needs_no_bytes(hub, data):
    digest = hashlib.sha256(data).hexdigest()
    part = CachedRepo("o/r").blob(digest).with_name(digest + ".incomplete")
    part.parent.mkdir(parents=True)
    part.write_bytes(data)
    assert pull("hf:o/r").read_bytes() == data and hub.bytes_sent == 0


def test_what_is_no_model(hub, tmp_path):
    hub.add("o/html", {"m.gguf": b"<html>" * 1000})
    with pytest.raises(ModelFormatError, match="GGUF"):
        pull("hf:o/html")
    hub.add("o/st", {"model.safetensors": b"x"})
    with pytest.raises(ModelReferenceError, match="no GGUF files"):
        pull("hf:o/st")


GOOD = {"rfilename": "m.gguf", "size": 9, "blobId": "a" * 40, "lfs": {"sha256": "b" * 64, "size": 9}}
LISTINGS = [
    "text", [], {}, {"sha": "c" * 40}, {"sha": "../x", "siblings": [GOOD]}, {"sha": "c" * 40, "siblings": 3},
    {"sha": "c" * 40, "siblings": [{}]}, {"sha": "c" * 40, "siblings": [GOOD | {"lfs": {"sha256": "../x", "size": 9}}]},
    {"sha": "c" * 40, "siblings": [GOOD | {"lfs": {"sha256": "b" * 64, "size": -1}}]},
    {"sha": "c" * 40, "siblings": [GOOD | {"lfs": {"sha256": "b" * 64, "size": "9"}}]},
    {"sha": "c" * 40, "siblings": [GOOD | {"lfs": None, "blobId": 4}]},
    {"sha": "c" * 40, "siblings": [GOOD | {"lfs": "b" * 64}]},
]  # fmt: skip


@pytest.mark.parametrize("listing", LISTINGS, ids=range(len(LISTINGS)))
def test_a_listing_that_cannot_be(hub, data, listing, tmp_path):
    hub.listing = listing
    with pytest.raises(DownloadError, match="cannot be read"):
        pull("hf:o/r")
    assert not (tmp_path / "cache").exists()


def test_names_that_would_leave_the_folder_are_not_there(hub, data, tmp_path):
    names = ["../../evil.gguf", "/abs.gguf", "a/../../b.gguf", "c:\\x.gguf", "a\nb.gguf"]
    hub.listing = {"sha": "c" * 40, "siblings": [GOOD | {"rfilename": name} for name in names]}
    with pytest.raises(ModelReferenceError, match="no GGUF files"):
        pull("hf:o/r")


# ---- stopping


def test_cancel_while_the_hub_says_nothing(hub, data, tmp_path):
    """The call ends although the server holds its bytes back, and the next one goes on."""
    hub.hold, cancel = threading.Event(), threading.Event()

    def look(progress):
        if progress.done > 0:
            cancel.set()

    with pytest.raises(Cancelled, match="kept"):
        pull("hf:o/r", cancel=cancel, progress=look)
    assert len(leftovers(tmp_path)) == 1 and not hub.hold.is_set()
    hub.hold.set()
    hub.hold = None
    assert pull("hf:o/r").read_bytes() == data


def test_a_callback_that_says_no(hub, data):
    hub.piece_pause = 0.01
    with pytest.raises(Cancelled, match="progress callback"):
        pull("hf:o/r", progress=lambda p: p.done < 20_000)
    hub.piece_pause = 0
    before = hub.bytes_sent
    seen = []
    assert pull("hf:o/r", progress=seen.append).read_bytes() == data
    assert hub.bytes_sent - before < len(data) and seen[-1].done == seen[-1].total == len(data)
    assert [p.done for p in seen] == sorted(p.done for p in seen) and {p.unit for p in seen} == {"bytes"}


def test_an_error_of_a_callback_reaches_the_caller(hub, data):
    with pytest.raises(ZeroDivisionError):
        pull("hf:o/r", progress=lambda p: 1 // 0)
    assert pull("hf:o/r").read_bytes() == data


def test_two_downloads_of_one_file(hub, data):
    """The second waits for the first, and then has nothing left to fetch."""
    hub.piece_pause = 0.002
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(pull("hf:o/r"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(paths) == 3 and len(set(paths)) == 1 and hub.bytes_sent == len(data)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT for another process")
def test_ctrl_c_then_again(hub, data, tmp_path):
    """A process that is interrupted leaves what has come; the command goes on from there."""
    command = [sys.executable, "-m", "edgellm", "pull", "hf:o/r"]
    hub.piece_pause = 0.02
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while hub.bytes_sent < 20_000 and running.poll() is None:
        threading.Event().wait(0.01)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "") and re.search("kept.*goes on", err), err
    [part] = tmp_path.rglob("*.incomplete")
    kept = part.stat().st_size
    assert 0 < kept < len(data)
    hub.piece_pause, before = 0, hub.bytes_sent
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == data and hub.bytes_sent - before == len(data) - kept


# ---- this machine


def test_offline(hub, data, monkeypatch):
    for environment, offline in (({}, True), ({"HF_HUB_OFFLINE": "1"}, None), ({"HF_HUB_OFFLINE": "ON"}, False)):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            with pytest.raises(ModelFileNotFoundError, match="network is off; run `edgellm pull hf:o/r:Q4_0`"):
                pull("hf:o/r:Q4_0", offline=offline)
    assert hub.requests == []
    path = pull("hf:o/r:Q4_0")
    assert pull("hf:o/r:Q4_0", offline=True) == path


def test_without_the_package(hub, data, monkeypatch):
    """What is here can be used without it; what is not says how to install it."""
    path = pull("hf:o/r")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert pull("hf:o/r") == path
    with pytest.raises(MissingPackageError, match=r"pip install 'edgellm\[hub\]'"):
        pull("hf:o/other")


def test_a_full_disk(hub, data, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match="not enough room") as caught:
        pull("hf:o/r")
    assert (caught.value.needed, caught.value.free) == (len(data), 1000) and hub.bytes_sent == 0


def test_a_cache_that_is_a_file(hub, data, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(OutputError):
        pull("hf:o/r")


def test_systems_without_links(hub, data, monkeypatch):
    """The file itself then lies in the snapshot, as the hub's client does it."""

    def refuse(self, *args, **kwargs):
        raise OSError(1, "no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    path = pull("hf:o/r")
    assert path.read_bytes() == data and not path.is_symlink() and pull("hf:o/r", update=True) == path


def test_aliases_are_pulled(hub, data):
    from edgellm.hub.aliases import set_alias

    set_alias("mine", "hf:o/r:Q4_0")
    path = pull("mine")
    assert path.read_bytes() == data and resolve("mine") == path
    for bad in ("nothing", "hf:", "./x"):
        with pytest.raises(ModelReferenceError):
            pull(bad)


def test_a_connection_that_stalls_is_taken_up_anew(hub, monkeypatch):
    """Every answer stops after a piece; nobody ends the wait but the limit."""
    from edgellm.hub import client

    monkeypatch.setattr(client, "TIMEOUT", 0.2)
    data = model_bytes(3 * 4096)
    hub.add("o/slow", {"m.gguf": data})
    hub.hold = threading.Event()
    assert pull("hf:o/slow").read_bytes() == data
    asked = [r.headers.get("range") for r in hub.requests if r.path.startswith("/storage/")]
    assert asked == [None, "bytes=4096-", "bytes=8192-", "bytes=12288-"]
