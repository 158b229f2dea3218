"""The pickled table of a PyTorch checkpoint, read by an interpreter that cannot run anything.

Python's own `pickle` is never used: it calls whatever a file names. Here, the few opcodes that tables of tensors are
made of act on plain values, and the few names of `NAMES` are marks with a fixed meaning. Any other opcode or name is
refused, and there is no second way to read such a file. Opcodes: Lib/pickletools.py of CPython; what PyTorch writes:
torch/_utils.py and torch/serialization.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import ModelFormatError, one_line

MAX_BYTES = 1 << 24
MAX_STEPS = 1 << 19  # a tensor takes about 30
MAX_DIMS = 16
MAX_SIZE = (1 << 63) - 1

# typed storages of PyTorch -> element type by its safetensors name
STORAGES = {
    "torch FloatStorage": "F32", "torch HalfStorage": "F16", "torch BFloat16Storage": "BF16",
    "torch DoubleStorage": "F64", "torch LongStorage": "I64", "torch IntStorage": "I32", "torch ShortStorage": "I16",
    "torch CharStorage": "I8", "torch ByteStorage": "U8", "torch BoolStorage": "BOOL",
}  # fmt: skip
ORDERED, TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
PARAMETER = "torch._utils _rebuild_parameter"
NAMES = frozenset({*STORAGES, ORDERED, TENSOR, PARAMETER})


class Name(NamedTuple):
    """An allowed global, as a mark on the stack."""

    text: str


class Table(dict):
    """An OrderedDict of the file."""


@dataclass(frozen=True)
class Storage:
    """Elements that tensors are views of: member `key` of the archive, element type, number of elements."""

    key: str
    dtype: str
    numel: int


@dataclass(frozen=True)
class View:
    """A tensor: `shape` and `strides` in elements, `first` is its first element in the storage."""

    storage: Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK = object()


class Reader:
    """Interprets one pickle. `path` and `base`, its offset in the file, are for error messages."""

    def __init__(self, data: bytes, path: str, base: int) -> None:
        self._data, self._path, self._base = data, path, base
        self._pos, self._at = 0, 0  # next byte; start of the current opcode
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        """The value of the pickle: dict, list, tuple, str, int, float, bool, None, View. Raises ModelFormatError."""
        for _ in range(MAX_STEPS):
            self._at = self._pos
            code = self._take(1)
            if code == b".":
                value = self._pop()
                if self._stack or self._pos != len(self._data):
                    self.fail("Z5", "there is more after the end of the table", "pickle")
                return value
            step = _STEPS.get(code)
            if step is None:
                self.fail("Z5", "the table holds an operation that is not allowed; it was not run", "opcode", code)
            step(self)
        return self.fail("Z5", "the table of tensors takes too many steps", "opcodes", f"over {MAX_STEPS}", MAX_STEPS)

    def fail(self, rule: str, message: str, field: str, value: Any = None, limit: Any = None) -> Any:
        raise ModelFormatError(
            message, path=self._path, offset=self._base + self._at, field=field, value=value, limit=limit, rule=rule
        )

    # ---- bytes and stack -----------------------------------------------------------------------------------------

    def _take(self, n: int) -> bytes:
        if n > len(self._data) - self._pos:
            self.fail("Z5", "the table of tensors is cut off", "pickle", n, len(self._data) - self._pos)
        self._pos += n
        return self._data[self._pos - n : self._pos]

    def _uint(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _text(self, n: int) -> str:
        try:
            return self._take(n).decode("utf-8")
        except UnicodeDecodeError:
            return self.fail("Z5", "a text of the table is not UTF-8", "pickle")

    def _line(self) -> str:
        end = self._data.find(b"\n", self._pos, self._pos + 256)
        if end < 0:
            self.fail("Z5", "a name of the table has no end", "pickle")
        text = self._text(end - self._pos)
        self._pos += 1
        return text

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            self.fail("Z5", "an operation of the table has no operand", "pickle")
        return self._stack.pop()

    def _top(self, kind: type, what: str) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            self.fail("Z5", f"the table stores something in what is no {what}", "pickle")
        return self._stack[-1]

    def _since_mark(self) -> list[Any]:
        for i in range(len(self._stack) - 1, -1, -1):
            if self._stack[i] is _MARK:
                items = self._stack[i + 1 :]
                del self._stack[i:]
                return items
        return self.fail("Z5", "an operation of the table has no mark", "pickle")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    # ---- operations ----------------------------------------------------------------------------------------------

    def _proto(self) -> None:
        version = self._uint(1)
        if not 2 <= version <= 5:
            self.fail("Z5", "this version of pickle is not read", "protocol", version, "2 to 5")

    def _put(self, key: int) -> None:
        self._memo[key] = self._stack[-1] if self._stack else self._pop()

    def _get(self, key: int) -> None:
        if key not in self._memo:
            self.fail("Z5", "the table refers to what it has not stored", "memo", key)
        self._push(self._memo[key])

    def _append(self, items: list[Any]) -> None:
        self._top(list, "list").extend(items)

    def _set_items(self, items: list[Any]) -> None:
        table = self._top(dict, "table")
        if len(items) % 2:
            self.fail("Z5", "a key of the table has no value", "pickle")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, (str, int)):
                self.fail("Z5", "a key of the table is no text", "pickle", type(key).__name__)
            if key in table:
                self.fail("Z5", "a key appears twice", "pickle", key)
            table[key] = value

    def _tuple(self, n: int) -> None:
        items = [self._pop() for _ in range(n)]
        self._push(tuple(reversed(items)))

    def _global(self, module: Any, name: Any) -> None:
        text = f"{module} {name}" if isinstance(module, str) and isinstance(name, str) else "no text"
        if text not in NAMES:
            self.fail(
                "Z6", "the checkpoint names code that a table of tensors does not need; it was not run", "name",
                one_line(text), "tensors in the usual storages",
            )  # fmt: skip
        self._push(Name(text))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._global(module, name)

    def _reduce(self) -> None:
        args, function = self._pop(), self._pop()
        if not isinstance(function, Name) or function.text in STORAGES or not isinstance(args, tuple):
            self.fail("Z7", "the table calls something that is not allowed; it was not run", "REDUCE",
                      function.text if isinstance(function, Name) else type(function).__name__)  # fmt: skip
        if function.text == ORDERED:
            if args:
                self.fail("Z7", "an OrderedDict is made in an unknown way", "REDUCE", len(args), "no arguments")
            self._push(Table())
        elif function.text == PARAMETER:
            if len(args) != 3 or not isinstance(args[0], View):
                self.fail("Z7", "a parameter is made in an unknown way", "REDUCE", len(args), "3 arguments")
            self._push(args[0])
        else:
            self._push(self._view(args))

    def _view(self, args: tuple[Any, ...]) -> View:
        """_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata]); see rule Z9."""
        if len(args) not in (6, 7) or not isinstance(args[0], Storage):
            self.fail("Z7", "a tensor is made in an unknown way", "REDUCE", len(args), "6 or 7 arguments")
        storage, first, shape, strides = args[:4]
        for what, numbers in (("offset", (first,)), ("size", shape), ("stride", strides)):
            good = isinstance(numbers, tuple) and len(numbers) <= MAX_DIMS
            if not good or not all(type(n) is int and 0 <= n <= MAX_SIZE for n in numbers):
                self.fail("Z9", f"the {what} of a tensor is negative or no whole number", what, None,
                          f"0 to {MAX_SIZE}, at most {MAX_DIMS} dimensions")  # fmt: skip
        if len(shape) != len(strides):
            self.fail("Z9", "a tensor has another number of strides than of sizes", "stride", len(strides), len(shape))
        count, last = 1, first
        for n, stride in zip(shape, strides, strict=True):
            count, last = count * n, last + (n - 1) * stride
        if count and (last >= storage.numel or count > storage.numel):
            self.fail("Z9", "a tensor reaches outside of its storage or repeats it", "size and stride",
                      f"{count} elements up to {last}", storage.numel)  # fmt: skip
        return View(storage, first, shape, strides)

    def _persistent(self) -> None:
        """('storage', type, key, device, number of elements)"""
        pid = self._pop()
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            self.fail("Z7", "a storage is given in an unknown way", "persistent id", type(pid).__name__)
        _, kind, key, _, numel = pid
        if not isinstance(kind, Name) or kind.text not in STORAGES or not isinstance(key, str):
            self.fail("Z7", "a storage is given in an unknown way", "persistent id", type(kind).__name__)
        if type(numel) is not int or not 0 <= numel <= MAX_SIZE:
            self.fail("Z8", "a storage has no sound number of elements", "storage", None, f"0 to {MAX_SIZE}")
        self._push(Storage(key, STORAGES[kind.text], numel))

    def _build(self) -> None:
        """Attributes of a state_dict (its _metadata) say nothing about weights and are dropped."""
        state = self._pop()
        if not isinstance(state, dict) or not self._stack or not isinstance(self._stack[-1], Table):
            self.fail("Z7", "the table sets the state of something that is no OrderedDict; it was not run", "BUILD")


_STEPS: dict[bytes, Callable[[Reader], None]] = {
    b"\x80": Reader._proto,
    b"\x95": lambda r: r._take(8) and None,  # FRAME
    b"(": lambda r: r._push(_MARK),
    b"N": lambda r: r._push(None),
    b"\x88": lambda r: r._push(True),
    b"\x89": lambda r: r._push(False),
    b"K": lambda r: r._push(r._uint(1)),
    b"M": lambda r: r._push(r._uint(2)),
    b"J": lambda r: r._push(int.from_bytes(r._take(4), "little", signed=True)),
    b"\x8a": lambda r: r._push(int.from_bytes(r._take(r._uint(1)), "little", signed=True)),
    b"G": lambda r: r._push(struct.unpack(">d", r._take(8))[0]),
    b"X": lambda r: r._push(r._text(r._uint(4))),
    b"\x8c": lambda r: r._push(r._text(r._uint(1))),
    b")": lambda r: r._push(()),
    b"\x85": lambda r: r._tuple(1),
    b"\x86": lambda r: r._tuple(2),
    b"\x87": lambda r: r._tuple(3),
    b"t": lambda r: r._push(tuple(r._since_mark())),
    b"]": lambda r: r._push([]),
    b"a": lambda r: r._append([r._pop()]),
    b"e": lambda r: r._append(r._since_mark()),
    b"}": lambda r: r._push({}),
    b"s": lambda r: r._set_items([r._pop(), r._pop()][::-1]),
    b"u": lambda r: r._set_items(r._since_mark()),
    b"q": lambda r: r._put(r._uint(1)),
    b"r": lambda r: r._put(r._uint(4)),
    b"\x94": lambda r: r._put(len(r._memo)),
    b"h": lambda r: r._get(r._uint(1)),
    b"j": lambda r: r._get(r._uint(4)),
    b"c": lambda r: r._global(r._line(), r._line()),
    b"\x93": Reader._stack_global,
    b"R": Reader._reduce,
    b"Q": Reader._persistent,
    b"b": Reader._build,
}
