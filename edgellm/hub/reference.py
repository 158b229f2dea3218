"""What a user writes to name a model of the hub: `hf:owner/repo`, with a quantisation or a file, and a revision."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import ModelReferenceError, one_line

PREFIX = "hf:"
_MAX_CHARS = 1000
_WORD = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
_QUANT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9])?")
_REVISION = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_./-]{0,198}[A-Za-z0-9_])?")
_FORMS = "write hf:owner/repo, hf:owner/repo:Q4_K_M or hf:owner/repo/file.gguf, perhaps with @revision at the end"


@dataclass(frozen=True)
class Reference:
    """A model in a repository of the hub. At most one of `quant` and `file` is given; `revision` None: main."""

    repo: str
    quant: str | None = None
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        """The shortest spelling that `parse` reads back."""
        part = f"/{self.file}" if self.file else f":{self.quant}" if self.quant else ""
        return f"{PREFIX}{self.repo}{part}{f'@{self.revision}' if self.revision else ''}"

    @property
    def branch(self) -> str:
        return self.revision or "main"


def is_reference(text: object) -> bool:
    """Whether this names a model of the hub, rightly or not."""
    return isinstance(text, str) and text.lower().startswith(PREFIX)


def parse(text: str, *, quant: str | None = None, revision: str | None = None) -> Reference:
    """Read `hf:owner/repo[:QUANT | /path/file.gguf][@revision]`; the prefix may be left out.

    `quant` and `revision` (options of a command) add what the text does not say. Raises ModelReferenceError for
    anything else, and where text and options contradict each other.
    """
    rest = text[len(PREFIX) :] if is_reference(text) else text
    if len(rest) > _MAX_CHARS:
        raise ModelReferenceError(text, f"this is longer than {_MAX_CHARS} characters; {_FORMS}")
    if "://" in rest or rest.startswith("//"):
        raise ModelReferenceError(text, f"addresses are not taken; {_FORMS}")
    rest, said_revision = _take_revision(rest)
    repo, file, said_quant = _take_parts(rest)
    owner, _, name = repo.partition("/")
    if not (_WORD.fullmatch(owner) and _WORD.fullmatch(name)) or ".." in repo or "--" in repo:
        raise ModelReferenceError(text, f"this does not name a repository; {_FORMS}")
    found = Reference(
        repo, _one(text, "quantisation", said_quant, quant), file, _one(text, "revision", said_revision, revision)
    )
    if found.file is not None and found.quant is not None:
        raise ModelReferenceError(text, "give a file or a quantisation, not both")
    if found.file is not None and not is_safe_name(found.file):
        raise ModelReferenceError(text, f"the file's name must be a relative path that ends in .gguf; {_FORMS}")
    if found.quant is not None and not _QUANT.fullmatch(found.quant):
        raise ModelReferenceError(text, f"'{one_line(found.quant)}' is no name of a quantisation such as Q4_K_M")
    if found.revision is not None and not is_safe_revision(found.revision):
        raise ModelReferenceError(text, f"'{one_line(found.revision)}' is no branch, tag or commit")
    return found


def _take_revision(rest: str) -> tuple[str, str | None]:
    """`a/b@main:Q8_0` and `a/b:Q8_0@main` -> (a/b:Q8_0, main)."""
    head, at, tail = rest.rpartition("@")
    if not at or tail.lower().endswith(".gguf"):  # a file's name may hold an @
        return rest, None
    revision, colon, quant = tail.partition(":")
    return f"{head}{colon}{quant}", revision


def _take_parts(rest: str) -> tuple[str, str | None, str | None]:
    """owner/repo, file, quantisation."""
    parts = rest.split("/", 2)
    if len(parts) == 3:
        return "/".join(parts[:2]), parts[2], None
    repo, colon, quant = rest.partition(":")
    return repo, None, quant if colon else None


def _one(text: str, what: str, said: str | None, option: str | None) -> str | None:
    """What the reference and the option say together."""
    if said is not None and option is not None and said.lower() != option.lower():
        raise ModelReferenceError(text, f"the option asks for the {what} {one_line(option)}; give one of the two")
    return option if said is None else said


def is_safe_name(name: object) -> bool:
    """Whether a GGUF file's name out of a repository may become a path below a folder, on any system."""
    if not isinstance(name, str) or not 0 < len(name) <= 500 or not name.lower().endswith(".gguf"):
        return False
    if not name.isprintable() or any(c in name for c in '\\:*?"<>|'):
        return False
    return all(part.strip(" .") and part == part.strip(" ") and part[-1] != "." for part in name.split("/"))


def is_safe_revision(name: object) -> bool:
    """Whether a branch, tag or commit may become the path of a file in a folder `refs`."""
    return isinstance(name, str) and _REVISION.fullmatch(name) is not None and not re.search(r"\.\.|//|/\.|\./", name)
