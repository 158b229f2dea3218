"""Checks of what was found in a model file (`edgellm.doctor.model`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgellm.doctor.checks import REPORT, Check, fault, gib

SHOWN_TEXTS = 2  # examples of texts that a tokenizer changes


def judge_model(m: dict[str, Any]) -> Iterator[Check]:
    """The checks in the order of the page."""
    header = m["header"]
    if "error" in header:
        yield fault("file", header["error"], exit_code=header["exit_code"])  # says itself what to do
        return
    what = "packed, " if header["packed"] else ""
    what += f"{gib(header['bytes'])}, {header['tensors']} tensors, the header is as it must be"
    yield Check("file", "ok", f"{m['file']}: {what}")
    for warning in m["warnings"]:
        yield Check("file", "warn", warning, "the model runs; a newer conversion may not have this")
    if "checksums" in m:
        yield _or_fault("checksums", m["checksums"], "every tensor is as it was packed", "pack the model again")
    config = m["config"]
    if "error" in config:
        yield fault("model", config["error"], "see README.md for what edgellm runs", config["exit_code"])
    else:
        unused = f", {config['unused_tensors']} tensors that the model does not use" if config["unused_tensors"] else ""
        kind = "" if config["writes_text"] else " (an encoder: it makes embeddings, no text)"
        yield Check("model", "ok", f"{config['architecture']}{kind}, {', '.join(config['types'])}{unused}")
    yield from _fit(m.get("memory"))
    yield from _tokenizer(m["tokenizer"], config.get("writes_text", True))
    if config.get("writes_text", True):
        yield from _template(m["template"])
    yield from _runs(m.get("runs", []))


def _or_fault(area: str, part: dict[str, Any], text: str, advice: str) -> Check:
    return fault(area, part["error"], advice, part["exit_code"]) if "error" in part else Check(area, "ok", text)


def _fit(memory: dict[str, Any] | None) -> Iterator[Check]:
    if memory is None:
        return
    if "error" in memory:
        yield fault("fit", memory["error"], REPORT, memory["exit_code"])
        return
    need, n_ctx, trained = gib(memory["total"]), memory["n_ctx"], memory["n_ctx_train"]
    text = f"{need} with a context of {n_ctx:,} tokens, {gib(memory['available'])} are free"
    if not memory["fits"]:
        yield fault("fit", f"it takes {text}", f"try {', '.join(memory['suggestions'])}", 4)
    elif n_ctx < trained:
        text += f"; trained for {trained:,}"
        yield Check("fit", "warn", text, "a smaller KV type (-ctk q8_0) makes room for more context")
    else:
        yield Check("fit", "ok", text)


def _tokenizer(t: dict[str, Any], writes_text: bool) -> Iterator[Check]:
    if "error" in t:
        yield fault("tokenizer", t["error"], "the model runs on token ids only; convert it again", t["exit_code"])
        return
    text = f"{t['kind']}, {t['pieces']:,} pieces"
    if t["obeyed"]:
        yield fault(
            "tokenizer", f"{text}; what a person writes becomes a control token: {', '.join(t['obeyed'][:5])}", REPORT
        )
    if t["changed"]:
        examples = ", ".join(f"'{c['text']}' -> '{c['back']}'" for c in t["changed"][:SHOWN_TEXTS])
        many = f"{len(t['changed'])} of {t['texts']}"
        yield Check(
            "tokenizer", "warn", f"{text}; {many} hard texts come back changed: {examples}",
            "its vocabulary cannot spell these; the model was trained so, or the file lacks pieces",
        )  # fmt: skip
    else:
        how = "come back as the vocabulary folds them" if t["folds"] else "come back as they were"
        yield Check("tokenizer", "ok", f"{text}; all {t['texts']} hard texts {how}")
    if writes_text and not t["end_tokens"]:
        yield Check("tokenizer", "warn", "there is no end token", "answers end by -n or a stop string (-r) only")


def _template(t: dict[str, Any]) -> Iterator[Check]:
    if not t.get("present", True):
        yield Check("template", "ok", "none: the file continues texts, it is no chat model")
    elif "error" in t:
        yield fault("template", t["error"], "give another with --chat-template-file", t["exit_code"])
    elif not t["keeps_message"]:
        yield fault("template", "it leaves the message out", "give another with --chat-template-file", 3)
    elif not t["safe"]:
        yield fault("template", "control pieces in a message become control tokens", REPORT)
    else:
        notes = [
            "takes a system message" if t["system"] else "takes no system message",
            "messages cannot forge control tokens",
            "only new text is worked on" if t["append_only"] else "earlier answers are rewritten, so turns cost more",
        ]
        if not t["turns"]:
            notes.append("it cannot be seen where turns begin, so drop-turns keeps whole messages only")
        yield Check("template", "ok", f"renders; {'; '.join(notes)}")


def _runs(runs: list[dict[str, Any]]) -> Iterator[Check]:
    for run in runs:
        name = run["backend"]
        if "skipped" in run:
            yield Check("run", "ok", f"{name}: not tried, {run['skipped']}")
        elif "error" in run:
            yield fault("run", f"{name}: {run['error']}", REPORT, run["exit_code"])
        elif "nmse" not in run:
            yield Check("run", "ok", f"{name}: a finite result in {1000 * run['seconds']:.0f} ms")
        elif run["nmse"] > run["limit"]:
            yield fault("run", f"{name}: its result differs: NMSE {run['nmse']:.2g} of {run['limit']:.0g}", REPORT)
        else:
            same = "the same result" if run["nmse"] == 0 else f"close to it (NMSE {run['nmse']:.1g})"
            yield Check("run", "ok", f"{name}: {same} in {1000 * run['seconds']:.0f} ms")
