"""Writes edgellm/tokenizers/unicode_categories.py: the general category of every code point, run by run.

The categories are asked of the regular expressions of the `tokenizers` package (`pip install tokenizers`), because its
results are what models were trained on; Python's own `unicodedata` differs from one Python version to the next.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "edgellm" / "tokenizers" / "unicode_categories.py"
NAMES = [
    "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po",
    "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Co",
]  # fmt: skip
HEAD = '''"""General categories of all code points (Unicode 16). Made by tools/gen_unicode.py; do not edit.

`RUNS` lists "category, number of code points" from U+0000 on: "Cc32 Zs1 Po3" is 32 control characters, a space, three
punctuation marks. Code points that have no character are Cn (surrogates too).
"""

RUNS = """
'''


def categories() -> list[str]:
    from tokenizers import Regex, pre_tokenizers

    found = ["Cn"] * 0x110000
    text = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    for name in NAMES:
        split = pre_tokenizers.Split(Regex(rf"\p{{{name}}}+"), "removed", invert=True)
        for part, _ in split.pre_tokenize_str(text):
            for c in part:
                found[ord(c)] = name
    return found


def main() -> None:
    runs: list[list] = []
    for name in categories():
        if runs and runs[-1][0] == name:
            runs[-1][1] += 1
        else:
            runs.append([name, 1])
    body = textwrap.fill(" ".join(f"{name}{n}" for name, n in runs), 118)
    TARGET.write_text(f'{HEAD}{body}\n"""\n', encoding="utf-8")


if __name__ == "__main__":
    main()
