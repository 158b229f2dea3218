"""The tokenizer of a Hugging Face folder -> GGUF keys (`tokenizer.ggml.*`), as llama.cpp's converter writes them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..errors import ConvertError, TokenizerError, one_line
from .hf_config import HFConfig, Key
from .hf_json import from_tokenizer_json
from .hf_vocabulary import Vocabulary, looks_special
from .pieces import BYTE, CONTROL, SPACE, UNKNOWN, UNUSED, USER_DEFINED
from .sentencepiece_model import SentencePieceModel, read_model
from .strict_json import read_object

_PAD_SCORE, _ADDED_SCORE = -10000.0, -1000.0
# Role in GGUF (which spells "seperator" so) and name in Hugging Face's files; the last three are BERT's.
_ROLES = (
    ("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad"), ("cls", "cls"), ("seperator", "sep"),
    ("mask", "mask"),
)  # fmt: skip
# Pieces by which a turn ends: the first of generation_config's further end tokens that reads so becomes `eot`.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>")


def tokenizer_keys(folder: str, c: HFConfig) -> tuple[list[Key], list[str], list[str]]:
    """The keys, remarks, and the files that were read. Raises TokenizerError, ConvertError or ModelFormatError."""
    settings_path = os.path.join(folder, "tokenizer_config.json")
    settings = read_object(settings_path) if os.path.lexists(settings_path) else {}
    sp_path, json_path = os.path.join(folder, "tokenizer.model"), os.path.join(folder, "tokenizer.json")
    if os.path.lexists(sp_path):
        path, v = sp_path, _from_sentencepiece(sp_path, c.n_vocab)
    elif os.path.lexists(json_path):
        path, v = json_path, from_tokenizer_json(json_path, c.n_vocab)
    else:
        raise ConvertError("the folder has no tokenizer.model and no tokenizer.json", path=folder)
    _add_tokens(v, folder, settings)
    _check_unique(v, path)
    special = _special_ids(v, c, folder, settings, path)
    flags = {**v.flags, **_switches(settings, settings_path, v)}
    return _keys(v, special, flags), v.notes, [path, settings_path]


# ---- sentencepiece ---------------------------------------------------------------------------------------------------


def _from_sentencepiece(path: str, n_vocab: int) -> Vocabulary:
    model = read_model(path)
    _refuse_other_models(model, path)
    pieces, types, scores = [], [], []
    for piece in model.pieces[:n_vocab]:
        user = piece.type == USER_DEFINED  # matched in the text as it is, where spaces are spaces
        pieces.append(piece.text.replace(SPACE, " ") if user else piece.text)
        types.append(piece.type)
        scores.append(piece.score)
    for i in range(len(pieces), n_vocab):
        pieces.append(f"[PAD{i}]")
        types.append(UNUSED)
        scores.append(_PAD_SCORE)
    v = Vocabulary("llama", "default", pieces, types, scores)
    ids = {"bos": model.bos_id, "eos": model.eos_id, "unknown": model.unk_id, "padding": model.pad_id}
    v.special = {name: i for name, i in ids.items() if 0 <= i < n_vocab}
    v.flags = {"add_bos_token": True, "add_eos_token": False, "add_space_prefix": model.add_dummy_prefix}
    if len(model.pieces) > n_vocab:
        v.notes.append(f"{len(model.pieces) - n_vocab} pieces beyond the {n_vocab} rows of the embedding were left out")
    if model.has_charsmap:
        v.notes.append(f"the tokenizer's normaliser '{one_line(model.normalizer)}' is not applied to text")
    return v


def _refuse_other_models(model: SentencePieceModel, path: str) -> None:
    if model.model_type != "bpe":
        raise TokenizerError(
            "this kind of sentencepiece model is not supported yet", path=path, field="model_type",
            value=model.model_type, limit="bpe",
        )  # fmt: skip
    if not model.escape_whitespaces:
        raise TokenizerError(
            "a sentencepiece model without marks for spaces is not supported", path=path, field="escape_whitespaces",
            value=False,
        )  # fmt: skip


# ---- added tokens ----------------------------------------------------------------------------------------------------


def _add_tokens(v: Vocabulary, folder: str, settings: dict[str, Any]) -> None:
    """Tokens that were added after training: added_tokens.json, then added_tokens_decoder of tokenizer_config.json."""
    path = os.path.join(folder, "added_tokens.json")
    if os.path.lexists(path):
        for text, i in read_object(path).items():
            _put(v, i, text, looks_special(text), path)
    path = os.path.join(folder, "tokenizer_config.json")
    table = settings.get("added_tokens_decoder") or {}
    if not isinstance(table, dict):
        raise TokenizerError("must be an object", path=path, field="added_tokens_decoder", value=table)
    for key, row in table.items():
        text = row.get("content") if isinstance(row, dict) else None
        if not isinstance(text, str) or not key.isdecimal() or len(key) > 9:
            raise TokenizerError("must be an id with a content", path=path, field="added_tokens_decoder", value=key)
        _put(v, int(key), text, bool(row.get("special")) or looks_special(text), path)
        v.set_attributes(int(key), row)


def _put(v: Vocabulary, i: Any, text: str, control: bool, path: str) -> None:
    if type(i) is not int or i < 0 or not text:
        raise TokenizerError("an added token needs a text and an id", path=path, field=one_line(text), value=i)
    if i >= len(v.pieces):
        v.notes.append(f"added token {i} '{one_line(text, 40)}' lies beyond the embedding table and was left out")
        return
    same = v.pieces[i] == text
    if not same and v.types[i] != UNUSED:
        v.notes.append(f"added token {i} '{one_line(text, 40)}' replaces '{one_line(v.pieces[i], 40)}'")
    if same and v.types[i] in (UNKNOWN, BYTE, CONTROL):
        return
    v.pieces[i] = text if control else text.replace(SPACE, " ")
    v.types[i] = CONTROL if control else USER_DEFINED
    if v.scores is not None and not same:
        v.scores[i] = _ADDED_SCORE


def _check_unique(v: Vocabulary, path: str) -> None:
    if len(set(v.pieces)) == len(v.pieces):
        return
    seen: dict[str, int] = {}
    for i, text in enumerate(v.pieces):
        if text in seen:
            raise TokenizerError(f"pieces {seen[text]} and {i} have the same text", path=path, value=text, rule="V5")
        seen[text] = i


# ---- special ids and switches ----------------------------------------------------------------------------------------


def _special_ids(v: Vocabulary, c: HFConfig, folder: str, settings: dict[str, Any], path: str) -> dict[str, int]:
    """Ids by role. The text in tokenizer_config.json counts first, then config.json, then the tokenizer's own."""
    ids = {text: i for i, text in enumerate(v.pieces)}
    found: dict[str, int] = {}
    for role, name in _ROLES if v.model == "bert" else _ROLES[:4]:
        text = settings.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        configured = _id_list(c.raw.get(f"{name}_token_id"), len(v.pieces), c.path, f"{name}_token_id")
        if isinstance(text, str) and text in ids:
            found[role] = ids[text]
        elif configured and (role == "eos" or v.types[configured[0]] in (CONTROL, UNKNOWN)):
            found[role] = configured[0]  # the default ids of a config often name ordinary pieces
        elif role in v.special:
            found[role] = v.special[role]
    if v.model == "bert" and "cls" in found:  # BERT begins a text with it; llama.cpp looks for no other name
        found.setdefault("bos", found["cls"])
    ends = _generation_ends(folder, len(v.pieces))
    if ends and "eos" not in found:
        found["eos"] = ends[0]
    found.update(_further_ends(v, [i for i in ends if i != found.get("eos")]))
    return found


def _id_list(value: Any, n_vocab: int, path: str, name: str) -> list[int]:
    """A token id or a list of them; null and -1 stand for none."""
    values = value if isinstance(value, list) else [] if value in (None, -1) else [value]
    for i in values:
        if type(i) is not int or not 0 <= i < n_vocab:
            raise TokenizerError(
                "a token id names no piece", path=path, field=name, value=i, limit=f"0 to {n_vocab - 1}", rule="V2"
            )
    return values


def _generation_ends(folder: str, n_vocab: int) -> list[int]:
    path = os.path.join(folder, "generation_config.json")
    if not os.path.lexists(path):
        return []
    return _id_list(read_object(path).get("eos_token_id"), n_vocab, path, "eos_token_id")


def _further_ends(v: Vocabulary, ids: list[int]) -> dict[str, int]:
    """generation_config may list several end tokens; GGUF has room for end of turn and end of message beside `eos`."""
    rest = sorted(dict.fromkeys(ids), key=lambda i: v.pieces[i] not in _TURN_ENDS)
    found = {}
    for i in list(rest):
        if v.pieces[i] == "<|eom_id|>":
            found["eom"] = i
            rest.remove(i)
    if rest:
        found["eot"] = rest.pop(0)
    if rest and "eom" not in found:
        found["eom"] = rest.pop(0)
    known = [v.pieces[i] for i in rest if v.pieces[i] not in _TURN_ENDS]
    if known:
        v.notes.append(f"GGUF has no key for these further end tokens: {one_line(', '.join(known))}")
    return found


def _switches(settings: dict[str, Any], path: str, v: Vocabulary) -> dict[str, bool]:
    out = {}
    names = {"add_bos_token": "add_bos_token", "add_eos_token": "add_eos_token"}
    if v.model == "llama":
        names["add_prefix_space"] = "add_space_prefix"
    for name, key in names.items():
        value = settings.get(name)
        if value is None:
            continue
        if not isinstance(value, bool):
            raise TokenizerError("must be true or false", path=path, field=name, value=value)
        out[key] = value
    return out


def _keys(v: Vocabulary, special: dict[str, int], flags: dict[str, bool]) -> list[Key]:
    keys: list[Key] = [
        ("tokenizer.ggml.model", v.model, "str"),
        ("tokenizer.ggml.pre", v.pre, "str"),
        ("tokenizer.ggml.tokens", v.pieces, "str"),
    ]
    if v.scores is not None:
        keys.append(("tokenizer.ggml.scores", v.scores, "f32"))
    keys.append(("tokenizer.ggml.token_type", v.types, "i32"))
    if v.merges is not None:
        keys.append(("tokenizer.ggml.merges", v.merges, "str"))
    keys += [(f"tokenizer.ggml.{role}_token_id", i, "u32") for role, i in special.items()]
    keys += [(f"tokenizer.ggml.{name}", value, "bool") for name, value in flags.items()]
    if v.charsmap:
        keys.append(("tokenizer.ggml.precompiled_charsmap", np.frombuffer(v.charsmap, np.uint8), None))
    keys += [(f"edgellm.tokenizer.{name}", value, "bool") for name, value in v.own_flags.items() if value]
    normalized = v.attributes.pop("normalized", [])
    if v.model == "gpt2":  # elsewhere they are found as they are written only
        v.attributes["normalized"] = [i for i in normalized if v.types[i] == USER_DEFINED]
    return keys + [(f"edgellm.tokenizer.{name}", sorted(ids), "u32") for name, ids in v.attributes.items() if ids]
