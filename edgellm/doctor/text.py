"""Self-tests of what is text in a model: the tokenizer and the chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgellm.errors import EdgeLLMError, one_line

if TYPE_CHECKING:
    from edgellm.tokenizers import Tokenizer

# What tokenizers get wrong: white space, digits, scripts without spaces, marks that combine, emoji of several code
# points, both directions, code, controls, and the characters that vocabularies use as signs of their own.
HARD_TEXTS = (
    "Hello, world!",
    "don't we'll I'VE they'd",
    "  two before,  two between, one after ",
    "tab\tnewline\nthree\n\n\nend\r\n",
    "1 12 123 1234 12345678901234567890 3.14159 1e-9",
    "for (int i = 0; i < n; ++i) { a[i] += b->c; }",
    "naïve café coöperate Zürich Ærøskøbing",
    "e\u0301 n\u0303 o\u0308 \u1e9b\u0323",
    "日本語の文章と漢字、カタカナ。",
    "中文分词没有空格",
    "한국어 띄어쓰기",
    "Привет, мир! Ёлка",
    "العربية من اليمين",
    "עברית",
    "हिन्दी में लिखना",
    "ภาษาไทยไม่มีช่องว่าง",
    "😀🎉 👩‍👩‍👧‍👦 👍🏽 🇩🇪",
    "∀x∈ℝ: ∫f(x)dx ≤ ∑|aᵢ|²",
    "\u00a0\u2003\u200b\ufeff\u2028",
    "Ġhigh Ċline ## @@ <0x41> <unk> </s>",
    "\x00\x01\x7f\x85",
    "\U00010348\U0001d11e\U0002070e",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "https://example.org/a?b=c&d=%20e#f",
    "",
)
# kinds whose vocabulary folds characters together before it cuts, so that a text may come back another one
_FOLDING = ("bert", "t5")
MAX_CONTROLS = 100  # control pieces that are tried in messages


def tokenizer_facts(tokenizer: Tokenizer) -> dict[str, Any]:
    """Round trips of HARD_TEXTS, and whether control pieces stay text where a person wrote them.

    `changed` are the texts that came back changed. A vocabulary that `folds` changes texts by design; then these are
    the texts that become other tokens when what came back is cut again, where the vocabulary knows all of it.
    """
    folds = tokenizer.kind in _FOLDING
    changed = []
    for text in HARD_TEXTS:
        ids = tokenizer.encode(text, add_special=False)
        back = tokenizer.decode(ids)
        good = back == text
        if folds:
            good = tokenizer.unk_id in ids or tokenizer.encode(back, add_special=False) == ids
        if not good:
            changed.append({"text": one_line(text), "back": one_line(back)})
    controls = sorted(tokenizer.control_ids)[:MAX_CONTROLS]
    obeyed = [one_line(piece) for piece in map(tokenizer.piece, controls) if piece and _controls(tokenizer, piece)]
    return {
        "kind": tokenizer.kind,
        "pieces": tokenizer.n_vocab,
        "texts": len(HARD_TEXTS),
        "folds": folds,
        "changed": changed,
        "controls": len(tokenizer.control_ids),
        "obeyed": obeyed,
        "end_tokens": [one_line(tokenizer.piece(token)) for token in sorted(tokenizer.eog_ids)],
    }


def _controls(tokenizer: Tokenizer, text: str) -> int:
    """Control tokens that a person's text becomes."""
    return sum(map(tokenizer.is_control, tokenizer.encode(text, add_special=False)))


def template_facts(template: str, tokenizer: Tokenizer, path: object) -> dict[str, Any]:
    """Whether the chat template renders, and what conversations with it can rely on.

    `system`: it takes a system message. `append_only`: a second question leaves the text before it as it was, so that
    only what is new must be worked on. `turns`: it can be seen where questions begin (`drop-turns`). `safe`: control
    pieces in a message stay text. `error`: why a plain question cannot be rendered.
    """
    from edgellm.prompt import ChatPrompt
    from edgellm.turns import question_header, text_of

    prompt = ChatPrompt(template, tokenizer, path)
    question, answer = {"role": "user", "content": "probe one"}, {"role": "assistant", "content": "probe two"}
    facts: dict[str, Any] = {"present": True}
    try:
        first = text_of(prompt.render([question]).parts)
    except EdgeLLMError as error:
        return facts | {"error": str(error), "exit_code": error.exit_code}
    facts["keeps_message"] = "probe one" in first
    facts["system"] = _renders(prompt, [{"role": "system", "content": "probe zero"}, question], "probe zero")
    try:
        second = text_of(prompt.render([question, answer, {"role": "user", "content": "probe three"}]).parts)
        facts["append_only"] = second.startswith(first + "probe two")
    except EdgeLLMError:
        facts["append_only"] = False
    facts["turns"] = question_header(lambda messages, new: prompt.render(messages, new).parts) is not None
    evil = " ".join(map(tokenizer.piece, sorted(tokenizer.control_ids)[:MAX_CONTROLS]))
    facts["safe"] = _control_tokens(prompt, tokenizer, f"probe {evil}") == _control_tokens(prompt, tokenizer, "probe")
    return facts


def _renders(prompt: Any, messages: list[dict[str, str]], wanted: str) -> bool:
    from edgellm.turns import text_of

    try:
        return wanted in text_of(prompt.render(messages).parts)
    except EdgeLLMError:
        return False


def _control_tokens(prompt: Any, tokenizer: Tokenizer, content: str) -> int:
    return sum(map(tokenizer.is_control, prompt.ids([{"role": "user", "content": content}])))
