"""Every error that edgellm raises on purpose.

All are subclasses of `EdgeLLMError`, so `except edgellm.EdgeLLMError` catches everything. The text of each is one clear
line: what is wrong, where (file, offset, field, value, limit) and what to do next. `exit_code` is what the command line
returns: 2 for usage or a missing path, 3 for a refused file, 4 for memory, 1 for anything else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_MAX_VALUE_CHARS = 120
_MAX_CHOICES = 30


class EdgeLLMError(Exception):
    """Base of all errors of edgellm. `exit_code` is the status with which a command ends."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by state: the constructors take other arguments than the finished message."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[EdgeLLMError], args: tuple[Any, ...], state: dict[str, Any]) -> EdgeLLMError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def one_line(text: object, limit: int = _MAX_VALUE_CHARS) -> str:
    """Text that is safe to print: one line, no control characters or lone surrogates, at most `limit` characters.

    Names and values in messages come out of files that nobody checked, so they may hold newlines, terminal escapes or
    megabytes of text.
    """
    raw = text if isinstance(text, str) else repr(text)
    cut = raw[:limit]
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in cut)
    if len(raw) > limit or len(shown) > 2 * limit:
        shown = shown[: 2 * limit] + "..."
    return shown


def _with_details(message: str, details: Iterable[tuple[str, Any]], path: object = None) -> str:
    """`path: message (offset 12, field version, value 9, limit 2 or 3)` with the parts that are known."""
    parts = [f"{name} {one_line(value)}" for name, value in details if value is not None]
    text = one_line(message, 600)
    if path is not None:
        text = f"{one_line(str(path), 400)}: {text}"
    return f"{text} ({', '.join(parts)})" if parts else text


class ModelFormatError(EdgeLLMError):
    """A model file breaks a rule of its format, so it is refused before anything in it is used.

    `rule` is a short stable code for the broken rule (`"H2"`, `"K6"`, `"T11"`, ...; `formats/container.md` lists them
    with their reasons). `path`, `offset` (bytes from the start of the file), `field`, `value` (what was found) and
    `limit` (what would have been legal) are kept as attributes; those that do not apply are None.
    """

    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        path: object = None,
        offset: int | None = None,
        field: str | None = None,
        value: Any = None,
        limit: Any = None,
        rule: str | None = None,
    ) -> None:
        self.message, self.path, self.offset = message, path, offset
        self.field, self.value, self.limit, self.rule = field, value, limit, rule
        details = [("rule", rule), ("offset", offset), ("field", field), ("value", value), ("limit", limit)]
        super().__init__(_with_details(message, details, path))


class SessionFileError(ModelFormatError):
    """A session file is damaged, of another model, or contradicts itself (rules D1 to D9 of `formats/session.md`)."""


class MissingKeyError(ModelFormatError):
    """A metadata key that is needed is not in the file (rule K11)."""


class WrongKeyTypeError(ModelFormatError):
    """A metadata key is there with another type than the one it must have (rule K12)."""


class MissingTensorError(ModelFormatError):
    """A tensor that the model needs is not in the file (rule T12)."""


class UnsupportedArchitectureError(ModelFormatError):
    """The file is sound, but its model family is not one that edgellm knows."""

    def __init__(self, arch: str, supported: Iterable[str] = (), *, path: object = None) -> None:
        self.arch, self.supported = arch, tuple(supported)
        known = ", ".join(sorted(self.supported)) or "none"
        super().__init__(
            f"model family '{one_line(arch)}' is not supported; supported families: {known}",
            path=path,
            field="general.architecture",
            rule="P10",
        )


class UnsupportedQuantError(ModelFormatError):
    """A tensor has an element type that edgellm cannot read (rule T8): unknown, removed, or not built yet."""


class UnsupportedFeatureError(ModelFormatError):
    """The file is sound but asks for something that edgellm does not do (a rope scaling, a kind of adapter)."""


class TokenizerError(ModelFormatError):
    """The vocabulary of a file is broken, or its kind is not supported; also an unknown token id or piece."""


class TemplateError(EdgeLLMError):
    """A chat template does not parse, fails while it renders, or uses more than its budget."""


class GrammarError(EdgeLLMError):
    """A JSON Schema, grammar or regular expression cannot be held to: wrong, too large, or not to be enforced exactly.

    `keyword` and `pointer` (a JSON pointer) say where in a schema; None where that is not known.
    """

    exit_code = 2

    def __init__(self, message: str, *, keyword: str | None = None, pointer: str | None = None) -> None:
        self.keyword, self.pointer = keyword, pointer
        super().__init__(_with_details(message, [("keyword", keyword), ("at", pointer)]))


class ModelFileNotFoundError(EdgeLLMError, FileNotFoundError):
    """No file at the path that was given."""

    exit_code = 2

    def __init__(self, path: object, message: str = "no such file; check the path") -> None:
        self.path = path
        super().__init__(f"{one_line(str(path), 400)}: {message}")


class ModelReferenceError(EdgeLLMError, ValueError):
    """A reference (`hf:owner/repo:QUANT`, an alias) is misspelled, or names no model or several.

    `reference` is what was given, `choices` what there is instead.
    """

    exit_code = 2

    def __init__(self, reference: object, message: str, choices: Iterable[str] = ()) -> None:
        self.reference, self.choices = reference, tuple(choices)
        shown = ", ".join(one_line(c) for c in self.choices[:_MAX_CHOICES])
        more = f" and {len(self.choices) - _MAX_CHOICES} more" if len(self.choices) > _MAX_CHOICES else ""
        tail = f": {shown}{more}" if self.choices else ""
        super().__init__(f"{one_line(str(reference), 400)}: {one_line(message, 600)}{tail}")


class DownloadError(EdgeLLMError):
    """A model could not be fetched: no network, refused by the hub, or the bytes are not those that it states.

    `reference` is what was asked for, `status` the HTTP status where the hub answered (else None), `kept` the bytes
    that stay on disk, from which the next attempt goes on.
    """

    def __init__(self, message: str, *, reference: object = None, status: int | None = None, kept: int = 0) -> None:
        self.message, self.reference, self.status, self.kept = message, reference, status, kept
        super().__init__(_with_details(message, [("HTTP status", status), ("bytes kept", kept or None)], reference))


class MissingPackageError(EdgeLLMError, ImportError):
    """An optional package is needed and not installed; the message has the command that installs it."""

    def __init__(self, what: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f"{what} needs a package that is not installed; pip install 'edgellm[{extra}]'")


class ModelFileChanged(EdgeLLMError):
    """The file was replaced, cut or written to while a model had it open; load it again."""

    def __init__(self, path: object, message: str = "the file changed while it was open; load the model again") -> None:
        self.path = path
        super().__init__(f"{one_line(str(path), 400)}: {message}")


class DraftModelError(EdgeLLMError):
    """A model cannot make drafts for another one: their tokens are not the same. `token`: the first id that differs."""

    exit_code = 3

    def __init__(self, path: object, model: object, message: str, token: int | None = None) -> None:
        self.path, self.model, self.token = path, model, token
        draft, text = one_line(str(path), 400), f"{one_line(str(model), 400)}: {one_line(message, 600)}"
        super().__init__(f"{draft}: cannot draft for {text}; choose a small model of the same family")


class OutputError(EdgeLLMError):
    """An output file could not be written (no permission, disk full, ...). Nothing half-written stays.

    `needed` and `free` are bytes, known when the disk is full. `exit_code` is 2 when the path itself is no good.
    """

    def __init__(
        self,
        message: str,
        *,
        path: object = None,
        needed: int | None = None,
        free: int | None = None,
        exit_code: int = 1,
    ) -> None:
        self.path, self.needed, self.free, self.exit_code = path, needed, free, exit_code
        details = [("bytes needed", needed), ("bytes free", free)]
        super().__init__(_with_details(message, details, path))


class ConvertError(EdgeLLMError):
    """A checkpoint cannot be converted or quantised: what was found, where, and what is expected. No output is left.

    The exit code is 3 because the usual reason is a source that is refused.
    """

    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        path: object = None,
        offset: int | None = None,
        field: str | None = None,
        value: Any = None,
        limit: Any = None,
        rule: str | None = None,
    ) -> None:
        self.message, self.path, self.offset = message, path, offset
        self.field, self.value, self.limit, self.rule = field, value, limit, rule
        details = [("rule", rule), ("offset", offset), ("field", field), ("value", value), ("limit", limit)]
        super().__init__(_with_details(message, details, path))


class NotEnoughMemoryError(EdgeLLMError):
    """The model or its cache does not fit. `need` and `have` are bytes; `suggestions` are things to try."""

    exit_code = 4

    def __init__(self, need: int, have: int, suggestions: Iterable[str] = (), *, what: str = "the model") -> None:
        self.need, self.have, self.suggestions = need, have, tuple(suggestions)
        tail = f"; try: {', '.join(self.suggestions)}" if self.suggestions else ""
        super().__init__(f"{what} needs {need / 2**20:.0f} MiB of memory, {have / 2**20:.0f} MiB are available{tail}")


class ContextOverflowError(EdgeLLMError):
    """The prompt (or `what` it was) has more tokens than the context window."""

    def __init__(
        self, n_prompt: int, n_ctx: int, what: str = "the prompt", advice: str = "shorten the prompt or raise n_ctx"
    ) -> None:
        self.n_prompt, self.n_ctx = n_prompt, n_ctx
        super().__init__(f"{what} has {n_prompt} tokens, the context window holds {n_ctx}; {advice}")


class NonFiniteError(EdgeLLMError):
    """A NaN or infinity appeared. `step` names the first bad plan step, `detail` says more where more is known."""

    def __init__(self, step: object, detail: str = "") -> None:
        self.step, self.detail = step, detail
        tail = f": {detail}" if detail else ""
        super().__init__(
            f"a value is not finite after step {one_line(str(step))}{tail}; the model file is damaged or unfit"
        )


class PlanError(EdgeLLMError):
    """A plan breaks a rule of the op table: a fault in a model family file of edgellm, not in the user's input."""


class BackendError(EdgeLLMError):
    """A backend failed or is not available. `code` is the status of the C library where there is one."""

    def __init__(self, message: str, code: int | None = None) -> None:
        self.code = code
        super().__init__(message if code is None else f"{message} (native status {code})")


class Cancelled(EdgeLLMError):
    """The call was stopped from outside (`cancel()`, Ctrl-C); nothing of it was kept."""

    def __init__(self, message: str = "cancelled") -> None:
        super().__init__(message)


class ModelClosedError(EdgeLLMError):
    """A model, session or file was used after `close()`."""

    def __init__(self, message: str = "the model is closed; load it again") -> None:
        super().__init__(message)


class QueueFullError(EdgeLLMError):
    """So many calls wait for the model already as `load(max_queue=)` allows; `n_waiting` and `limit` say how many."""

    def __init__(self, n_waiting: int, limit: int) -> None:
        self.n_waiting, self.limit = n_waiting, limit
        super().__init__(
            f"{n_waiting} calls wait for this model already, max_queue allows {limit}; try again when one has ended"
        )


class InvalidArgumentError(EdgeLLMError, ValueError):
    """An argument or option has a value that is not allowed."""

    exit_code = 2
