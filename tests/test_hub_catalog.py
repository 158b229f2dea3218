"""Names of models, what is on this machine, and taking it off again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gguf_bytes import Raw
from hub_place import model_bytes
from hypothesis import given
from hypothesis import strategies as st

from edgellm import cli
from edgellm.builtin import builtin_model
from edgellm.errors import ModelFileNotFoundError, ModelReferenceError
from edgellm.folders import config_folder, hub_folder, models_folder
from edgellm.hub import pull, resolve
from edgellm.hub.aliases import aliases_file, is_alias_name, read_aliases, remove_alias, set_alias
from edgellm.hub.cache import CachedRepo
from edgellm.hub.catalog import find_models, local_models, remove_models, unfinished


@pytest.fixture
def run(capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*args):
        code = cli.execute([str(a) for a in args])
        out, err = capsys.readouterr()
        assert "Traceback" not in err and "hf_secret" not in out + err
        return code, out, err

    return run


@pytest.fixture
def repo(hub):
    """o/r with two quantisations, the README of the repository, and a second repository in parts."""
    hub.add("o/r", {"README.md": b"x", "m-Q4_K_M.gguf": model_bytes(10), "m-Q8_0.gguf": model_bytes(20, 2)})
    names = [f"big-F16-{i:05d}-of-00002.gguf" for i in (1, 2)]
    hub.add("o/big", {name: model_bytes(i) for i, name in enumerate(names)})
    return hub


def own(name: str, data: bytes) -> Path:
    """A file in edgellm's own folder."""
    path = models_folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# ---- names


def test_what_a_name_means(repo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve(None) == resolve("builtin") == builtin_model()
    assert resolve("no/such.gguf") == Path("no/such.gguf")  # a path is a path; who opens it says what is wrong
    assert resolve(Path("anything")) == Path("anything")
    mine = own("mine.gguf", model_bytes())
    assert resolve("mine") == resolve(str(mine)) == mine
    (tmp_path / "folder").mkdir()
    assert resolve("folder") == Path("folder")
    set_alias("folder", "hf:o/r")
    assert resolve("folder").name == "m-Q4_K_M.gguf"  # an alias stands before a folder, behind a file
    (tmp_path / "word").write_bytes(model_bytes())
    set_alias("word", "hf:o/r")
    assert resolve("word") == Path("word")
    set_alias("file", str(tmp_path / "word"))
    assert resolve("file") == tmp_path / "word"
    with pytest.raises(ModelFileNotFoundError, match="edgellm list"):
        resolve("nothing")
    with pytest.raises(ModelFileNotFoundError, match="write hf:o/r:Q4_0"):
        resolve("o/r:Q4_0")


def test_aliases(repo, tmp_path):
    assert read_aliases() == {}
    assert set_alias("a", "HF:o/r:Q8_0") == "hf:o/r:Q8_0"
    (tmp_path / "x.gguf").write_bytes(b"")
    set_alias("b", str(tmp_path / "x.gguf"))
    assert read_aliases() == {"a": "hf:o/r:Q8_0", "b": str(tmp_path / "x.gguf")}
    assert remove_alias("a") == "hf:o/r:Q8_0" and list(read_aliases()) == ["b"]
    assert sorted(os.listdir(config_folder())) == ["aliases.json"]
    for name, target in (("a/b", "hf:o/r"), ("builtin", "hf:o/r"), ("-x", "hf:o/r"), ("x.gguf", "hf:o/r"), ("c", "b"),
                         ("hf:x", "hf:o/r"), ("c", "hf:../r"), ("c", "nowhere.gguf"), ("", "hf:o/r")):  # fmt: skip
        with pytest.raises(ModelReferenceError):
            set_alias(name, target)
    with pytest.raises(ModelReferenceError, match="aliases are: b"):
        remove_alias("a")


BROKEN = [
    b"", b"[]", b"{", b'{"aliases": []}', b'{"aliases": {"a": 1}}', b'{"aliases": {"../a": "hf:o/r"}}', b"\xff",
    b'{"aliases": {"a": "x\\u001b[31m"}}', b"[" * 100_000, b'{"aliases": {"a": ""}}', b" " * (1 << 21),
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_damaged_file_of_aliases(repo, text):
    aliases_file().parent.mkdir(parents=True)
    aliases_file().write_bytes(text)
    for call in (read_aliases, lambda: set_alias("a", "hf:o/r"), lambda: resolve("word"), local_models):
        with pytest.raises(ModelReferenceError, match="aliases is damaged"):
            call()
    assert aliases_file().read_bytes() == text and resolve("x.gguf") == Path("x.gguf")


@given(st.text(max_size=20))
def test_alias_names_are_words(name):
    if is_alias_name(name):
        assert os.path.basename(name) == name and not name.startswith(("-", ".")) and name.isascii()


def test_folders_are_those_of_the_hubs_client(tmp_path):
    """For all settings of the environment."""
    code = "from huggingface_hub import constants as c; from edgellm.folders import hub_folder as h; " + (
        "import os; print(os.path.normpath(c.HF_HUB_CACHE) == os.path.normpath(h()), h())"
    )
    names = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")
    clean = {k: v for k, v in os.environ.items() if k not in names}
    for chosen in ({}, {"HF_HOME": "~/x"}, {"HF_HOME": "/h", "HF_HUB_CACHE": "/c"}, {"XDG_CACHE_HOME": "/x"},
                   {"HUGGINGFACE_HUB_CACHE": "/old"}):  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code], env=clean | chosen, capture_output=True, text=True)
        assert done.stdout.startswith("True"), (chosen, done.stdout, done.stderr)


# ---- what is here


def test_the_list(repo, tmp_path):
    pull("hf:o/r")
    pull("hf:o/r:q8_0")
    pull("hf:o/big")
    own("mine.gguf", model_bytes())
    set_alias("small", "hf:o/r:q4_k_m")
    models = {m.ref: m for m in local_models()}
    assert list(models) == ["builtin", "mine", "hf:o/big:F16", "hf:o/r:Q4_K_M", "hf:o/r:Q8_0"]
    assert [m.where for m in models.values()] == ["builtin", "folder", "hub", "hub", "hub"]
    assert models["hf:o/r:Q4_K_M"].aliases == ("small",) and models["hf:o/r:Q8_0"].aliases == ()
    for ref, model in models.items():
        assert str(resolve(ref, offline=True)) == model.path
        assert model.bytes == sum(os.path.getsize(f) for f in model.files)
    small = models["hf:o/r:Q4_K_M"]
    assert (small.architecture, small.quant, small.problem) == ("llama", "Q4_K_M", None) and small.parameters == 139
    assert len(models["hf:o/big:F16"].files) == 2


def test_broken_files_are_listed(repo, run, tmp_path):
    own("bad.gguf", b"GGUF" + b"\xff" * 40)
    own("notes.txt", b"")
    repo.add("o/odd", {"\u202e.gguf": model_bytes()})
    own("other-00001-of-00002.gguf", bytes(Raw()))  # a part is missing
    models = local_models()
    assert [m.ref for m in models] == ["builtin", "bad"] and models[1].problem and models[1].architecture is None
    code, out, err = run("list")
    assert code == 0 and "broken" in out and "bad cannot be used" in err
    data = json.loads(run("list", "--json")[1])
    assert data["unfinished"] == [] and data["models"][1]["problem"]


def test_ambiguous_quantisations_are_listed_by_file(repo):
    repo.add("o/two", {"a-Q4_0.gguf": model_bytes(1), "b-Q4_0.gguf": model_bytes(2), "c.gguf": model_bytes(3)})
    for name in "ab":
        pull(f"hf:o/two/{name}-Q4_0.gguf")
    pull("hf:o/two/c.gguf")
    refs = [m.ref for m in local_models()][1:]
    assert refs == ["hf:o/two/a-Q4_0.gguf", "hf:o/two/b-Q4_0.gguf", "hf:o/two/c.gguf"]
    assert len({resolve(ref, offline=True) for ref in refs}) == 3
    with pytest.raises(ModelReferenceError, match="several files fit"):
        resolve("hf:o/two:Q4_0", offline=True)
    repo.add("o/two", repo.repos["o/two", repo.branches["o/two", "main"]].files | {"d-Q4_K_M.gguf": model_bytes(4)})
    assert resolve("hf:o/two").name == "d-Q4_K_M.gguf"  # the hub can tell


# ---- taking away


def blobs(repo: str) -> set[str]:
    return {p.name for p in (CachedRepo(repo).folder / "blobs").glob("*")}


def test_one_model_goes_the_other_stays(repo):
    first, second = pull("hf:o/r"), pull("hf:o/r:Q8_0")
    set_alias("one", "hf:o/r:Q4_K_M")
    set_alias("two", "hf:o/r:Q8_0")
    assert remove_models(find_models("one")) == len(model_bytes(10))
    assert not first.exists() and second.is_file() and len(blobs("o/r")) == 1 and list(read_aliases()) == ["two"]
    assert remove_models(find_models("hf:o/r")) == len(model_bytes(20))
    assert not CachedRepo("o/r").folder.exists() and read_aliases() == {}


def test_blobs_that_another_revision_needs_stay(repo):
    """Two commits share a file, as two revisions of a repository mostly do."""
    old = pull("hf:o/r:Q8_0")
    repo.add("o/r", {"m-Q8_0.gguf": model_bytes(20, 2), "m-Q2_K.gguf": model_bytes(1)})
    new = pull("hf:o/r:Q8_0", update=True)
    assert old != new and os.path.realpath(old) == os.path.realpath(new)
    assert remove_models(find_models("hf:o/r:Q8_0")) == 0
    assert old.is_file() and not new.exists()
    assert remove_models(find_models("hf:o/r")) == len(model_bytes(20)) and not CachedRepo("o/r").folder.exists()


def test_what_others_have_put_into_the_cache_stays(repo):
    from huggingface_hub import hf_hub_download, scan_cache_dir

    readme = Path(hf_hub_download("o/r", "README.md", cache_dir=hub_folder(), endpoint=repo.url))
    remove_models(find_models(str(pull("hf:o/r"))))
    assert readme.read_bytes() == b"x" and not scan_cache_dir(hub_folder()).warnings
    assert [m.ref for m in local_models()] == ["builtin"]


def test_nothing_outside_is_removed(repo, tmp_path):
    """Neither a path of the user's, nor what a link in the cache leads to."""
    precious = tmp_path / "precious.gguf"
    precious.write_bytes(model_bytes())
    set_alias("mine", str(precious))
    for ref in (str(precious), "mine"):
        with pytest.raises(ModelReferenceError, match="neither in the hub's cache"):
            find_models(ref)
    with pytest.raises(ModelReferenceError, match="built-in"):
        remove_models(find_models("builtin"))
    path = pull("hf:o/r")
    (path.parent / "linked.gguf").symlink_to(precious)
    assert remove_models(find_models("hf:o/r/linked.gguf")) == 0 and precious.exists()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x-Q8_0.gguf").write_bytes(model_bytes())
    commit = "d" * 40
    (path.parent.parent / commit).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    found = find_models(f"hf:o/r/x-Q8_0.gguf@{commit}")
    with pytest.raises(ModelReferenceError, match="not in the hub's cache"):
        remove_models(found)
    assert os.listdir(tmp_path / "elsewhere") == ["x-Q8_0.gguf"] and builtin_model().is_file()


def test_a_blob_that_is_shared_between_caches_stays(repo, tmp_path):
    """Newer clients keep some blobs in a store for all caches and link to them."""
    path = pull("hf:o/r")
    [blob] = blobs("o/r")
    store = tmp_path / "store" / ("e" * 64)
    store.parent.mkdir()
    os.replace(CachedRepo("o/r").blob(blob), store)
    CachedRepo("o/r").blob(blob).symlink_to(store)
    assert path.read_bytes() == model_bytes(10) and local_models()[1].ref == "hf:o/r:Q4_K_M"
    assert remove_models(find_models("hf:o/r")) == 0 and store.is_file() and not CachedRepo("o/r").folder.exists()


def test_own_models_are_removed(repo):
    path = own("mine.gguf", model_bytes())
    assert remove_models(find_models("mine")) == len(model_bytes()) and not path.exists()
    with pytest.raises(ModelFileNotFoundError, match="edgellm list"):
        find_models("mine")


# ---- the commands


def test_commands(repo, run, tmp_path, monkeypatch):
    code, out, err = run("pull", "-hf", "o/r:Q8_0", "--as", "mine")
    path = out.strip()
    assert (code, err) == (0, "") and os.path.isfile(path) and read_aliases() == {"mine": "hf:o/r:Q8_0"}
    assert run("pull", "mine", "--offline")[1] == out
    assert json.loads(run("pull", "mine", "--json")[1])["path"] == path
    code, out, err = run("pull", "hf:o/r", "--quant", "Q4_K_M", "--dry-run")
    assert code == 0 and "to download  m-Q4_K_M.gguf" in out and "of" in err
    code, out, err = run("ls")
    assert code == 0 and "mine, hf:o/r:Q8_0" in out and err == ""
    assert path in run("list", "--paths")[1]
    assert run("alias")[1] == "mine  hf:o/r:Q8_0\n"
    assert json.loads(run("alias", "other", "hf:o/r", "--json")[1]) == {"other": "hf:o/r"}
    assert run("alias", "--remove", "other")[0] == 0
    code, out, err = run("rm", "mine")
    assert code == 2 and "--yes" in err and os.path.isfile(path)
    data = json.loads(run("rm", "mine", "--yes", "--json")[1])
    assert data == {"removed": [path], "bytes_freed": len(model_bytes(20))} and not os.path.exists(path)
    assert run("alias")[1] == ""


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["pull", "hf:o/r:Q5_0"], 2, "no file has that quantisation; there are: Q4_K_M, Q8_0"),
        (["pull", "hf:o/none"], 1, "no such repository"),
        (["pull", "word"], 2, "write hf:owner/repo:QUANT"),
        (["pull", "hf:o/r", "--offline"], 2, "the network is off"),
        (["pull", "hf:o/r", "--as", "a/b"], 2, "cannot be an alias"),
        (["run", "-hf"], 2, "needs a repository"),
        (["run", "word", "prompt"], 2, "edgellm list"),
        (["show", "o/r"], 2, "write hf:o/r"),
        (["rm", "hf:o/r", "-y"], 2, "no such model is here"),
        (["rm", "x", "--json"], 2, "--yes"),
        (["alias", "x"], 2, "stand for"),
        (["alias", "--remove", "x"], 2, "no alias of that name"),
        (["pack", "builtin"], 2, "say where to write"),
    ],
)
def test_mistakes(repo, run, args, code, said):
    found, out, err = run(*args)
    assert (found, out) == (code, "") and said in err and err.count("\n") == 1, err


def test_a_model_by_name_in_commands(repo, run):
    repo.add("o/toy", {"toy.gguf": builtin_model().read_bytes()})
    assert run("alias", "toy", "hf:o/toy")[0] == 0
    assert run("tokenize", "toy", "hi", "--ids")[1] == run("tokenize", "hi", "--ids")[1]
    assert json.loads(run("show", "-hf", "o/toy", "--json")[1])["summary"]["file"].endswith("toy.gguf")
    assert run("run", "--hf-repo=o/toy", "-p", "a", "--raw", "-n", "2", "--backend", "reference", "--temp", "0")[0] == 0
    assert json.loads(run("doctor", "toy", "--json")[1])["model"]["file"].endswith("toy.gguf")


def test_unfinished_downloads_are_shown_and_removed(repo, run):
    part = CachedRepo("o/r").blob("a" * 64).with_name("a" * 64 + ".incomplete")
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(1000))
    assert unfinished() == [("hf:o/r", 1000)]
    assert "1.0 kB of a stopped download" in run("list")[2]
    assert run("rm", "--unfinished", "hf:o/r")[2] == "1.0 kB are free again\n" and unfinished() == []


def test_help_needs_no_package(repo):
    code = (
        "import sys; sys.modules['huggingface_hub'] = None; from edgellm import cli; "
        "sys.exit(cli.execute(['pull', '--help']) or cli.execute(['list']))"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and "builtin" in done.stdout, done.stderr
