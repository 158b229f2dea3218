"""Compressed panels: panels whose zero codes are not stored. The twin of the C packer; pictures in formats/panels.md.

An index of one record per group of 16 rows comes first, then a stream of tiles per group. A tile keeps its scales, a
mask with a bit for each code, and the codes that are not the code of 0; so rows come back bit for bit.
"""

from __future__ import annotations

import numpy as np

from ..blocks import BlockType
from ..errors import InvalidArgumentError
from .codecs import as_bytes
from .panels import LINE, ROWS, _check, _panel_type, pack_panels, unpack_panels

ZERO_CODE = {"Q8_0": 128, "Q4_0": 8}  # the unsigned code of the weight 0, of the types that have such a form
PAD = 1280  # bytes behind the last stream: kernels read so far from a tile's first byte on, whatever the tile says
RECORD = np.dtype([("offset", "<u8"), ("bytes", "<u8")])  # of a group's stream; offset from the record on


def has_compressed(type: BlockType | str | int) -> bool:
    """Whether a block type has a compressed form."""
    return _panel_type(type).name in ZERO_CODE


def index_bytes(rows: int, k: int, type: BlockType | str | int) -> int:
    """Bytes before the first stream. Raises InvalidArgumentError for a type or k without such a form."""
    kind = _compressed_type(type)
    _check(rows, k, kind)
    return -(-(-(-rows // ROWS) * RECORD.itemsize) // LINE) * LINE


def pack_compressed(blocks: object, rows: int, k: int, type: BlockType | str | int) -> np.ndarray:
    """Row-major blocks of a (rows, k) matrix -> compressed panels, flat uint8. Loses nothing."""
    kind, start = _compressed_type(type), index_bytes(rows, k, type)
    groups = -(-rows // ROWS)
    dense = pack_panels(blocks, rows, k, kind).reshape(groups, -1)
    streams = [_stream(group, min(ROWS, rows - g * ROWS), k, kind) for g, group in enumerate(dense)]
    records = np.zeros(groups, dtype=RECORD)
    records["bytes"] = [len(stream) for stream in streams]
    ends = start + np.cumsum(records["bytes"], dtype=np.int64)
    records["offset"] = np.concatenate([[start], ends[:-1]]) - np.arange(groups) * RECORD.itemsize
    index = records.tobytes().ljust(start, b"\0")
    return np.frombuffer(index + b"".join(streams) + bytes(PAD), dtype=np.uint8).copy()


def unpack_compressed(panels: object, rows: int, k: int, type: BlockType | str | int) -> np.ndarray:
    """The inverse of `pack_compressed`: uint8 (rows, bytes of a row). Raises InvalidArgumentError as
    `check_compressed`, and where a tile says that it goes on behind its stream."""
    kind = _compressed_type(type)
    raw = as_bytes(panels)
    records = check_compressed(raw, rows, k, kind)
    first = records["offset"].astype(np.int64) + np.arange(len(records)) * RECORD.itemsize
    dense = [
        _group(raw[at : at + int(size)].tobytes(), k, kind, g)
        for g, (at, size) in enumerate(zip(first, records["bytes"], strict=True))
    ]
    return unpack_panels(np.concatenate(dense), rows, k, kind)


def check_compressed(panels: np.ndarray, rows: int, k: int, type: BlockType | str | int) -> np.ndarray:
    """The records of compressed panels, uint8, after they were held to each other and to the bytes that are there.

    Raises InvalidArgumentError that names the first group that is wrong.
    """
    start, groups = index_bytes(rows, k, type), -(-rows // ROWS)
    if panels.size < start + PAD:
        raise InvalidArgumentError(f"compressed panels of ({rows}, {k}) take more than {panels.size} bytes")
    records = panels[: groups * RECORD.itemsize].view(RECORD)
    least, most = _stream_sizes(k, type)
    wrong = (records["bytes"] < least) | (records["bytes"] > most) | (records["bytes"] % LINE != 0)
    if wrong.any():
        raise InvalidArgumentError(f"compressed panels: group {int(wrong.argmax())} has a size that cannot be")
    ends = start + np.cumsum(records["bytes"], dtype=np.int64)  # sizes are small: no sum can be too large
    offsets = np.concatenate([[start], ends[:-1]]) - np.arange(groups) * RECORD.itemsize
    wrong = records["offset"] != offsets.astype(np.uint64)
    if wrong.any():
        raise InvalidArgumentError(
            f"compressed panels: group {int(wrong.argmax())} does not begin where the one before it ends"
        )
    if panels.size != ends[-1] + PAD:
        raise InvalidArgumentError(f"compressed panels of ({rows}, {k}) have {ends[-1] + PAD} bytes, not {panels.size}")
    return records


def _compressed_type(type: BlockType | str | int) -> BlockType:
    kind = _panel_type(type)
    if kind.name not in ZERO_CODE:
        raise InvalidArgumentError(f"{kind.name} has no compressed panels; these types do: {', '.join(ZERO_CODE)}")
    return kind


def _line_counts(k: int) -> list[int]:
    """Lines of 16 rows x 4 k of each tile of a group: 16, and 8 of a half tile."""
    return [16] * (k // 64) + [8] * (k % 64 // 32)


def _stream_sizes(k: int, type: BlockType | str | int) -> tuple[int, int]:
    """(least, most) bytes of a group's stream: without and with all codes."""
    counts = _line_counts(k)
    per_line = LINE if _compressed_type(type).name == "Q8_0" else LINE // 2
    least = sum(LINE + 8 * n for n in counts)
    whole = [-(-size // LINE) * LINE for size in (least, least + per_line * sum(counts))]
    return whole[0], whole[1]


def _stream(group: np.ndarray, n_rows: int, k: int, kind: BlockType) -> bytes:
    """A group of dense panels, uint8, of which the first n_rows rows are the matrix's, as a stream of whole lines."""
    zero, at, parts = ZERO_CODE[kind.name], 0, []
    for n_lines in _line_counts(k):
        size = LINE * (1 + n_lines if kind.name == "Q8_0" else 1 + n_lines // 2)
        tile, at = group[at : at + size], at + size
        codes = _codes(tile[LINE:], kind)  # (n_lines, 64), unsigned
        codes[:, 4 * n_rows :] = zero  # rows that only pad
        live = codes != zero
        parts += [tile[:LINE].tobytes(), np.packbits(live, axis=1, bitorder="little").tobytes()]
        if kind.name == "Q8_0":
            parts.append(codes[live].tobytes())
        else:
            parts += [_nibbles(codes[j][live[j]], codes[j + 1][live[j + 1]]) for j in range(0, n_lines, 2)]
    stream = b"".join(parts)
    return stream.ljust(-(-len(stream) // LINE) * LINE, b"\0")


def _codes(lines: np.ndarray, kind: BlockType) -> np.ndarray:
    """The lines of a tile of panels as unsigned codes, uint8 (n_lines, 64) in order of k."""
    codes = lines ^ 0x80 if kind.name == "Q8_0" else np.concatenate([lines & 15, lines >> 4])
    return codes.reshape(-1, LINE)


def _nibbles(even: np.ndarray, odd: np.ndarray) -> bytes:
    """The codes of two lines, those of the first in lower nibbles; the shorter line ends in zeros."""
    out = np.zeros(max(len(even), len(odd)), dtype=np.uint8)
    out[: len(even)] = even
    out[: len(odd)] |= odd << 4
    return out.tobytes()


def _group(stream: bytes, k: int, kind: BlockType, number: int) -> np.ndarray:
    """The inverse of `_stream`: a group of dense panels, uint8."""
    at, parts, q8 = 0, [], kind.name == "Q8_0"
    for n_lines in _line_counts(k):
        scales = np.frombuffer(stream, np.uint8, LINE, at) if at + LINE + 8 * n_lines <= len(stream) else None
        if scales is None:
            raise InvalidArgumentError(f"compressed panels: a tile of group {number} goes on behind its stream")
        masks = np.frombuffer(stream, np.uint8, 8 * n_lines, at + LINE).reshape(n_lines, 8)
        live = np.unpackbits(masks, axis=1, bitorder="little").astype(bool)
        counts = live.sum(axis=1)
        at += LINE + 8 * n_lines
        n_values = int(counts.sum() if q8 else np.maximum(counts[0::2], counts[1::2]).sum())
        if at + n_values > len(stream):
            raise InvalidArgumentError(f"compressed panels: a tile of group {number} goes on behind its stream")
        values = np.frombuffer(stream, np.uint8, n_values, at)
        at += n_values
        codes = np.full((n_lines, LINE), ZERO_CODE[kind.name], dtype=np.uint8)
        if q8:
            codes[live] = values
        else:
            _spread(codes, live, counts, values)
        lines = codes.reshape(-1) ^ 0x80 if q8 else codes.reshape(2, -1)[0] | codes.reshape(2, -1)[1] << 4
        parts += [scales, lines]
    return np.concatenate(parts)


def _spread(codes: np.ndarray, live: np.ndarray, counts: np.ndarray, values: np.ndarray) -> None:
    """Writes the nibbles of each pair of lines where its masks say."""
    at = 0
    for j in range(0, len(codes), 2):
        longer = int(max(counts[j], counts[j + 1]))
        pair, at = values[at : at + longer], at + longer
        codes[j][live[j]] = pair[: counts[j]] & 15
        codes[j + 1][live[j + 1]] = pair[: counts[j + 1]] >> 4
