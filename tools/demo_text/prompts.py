"""Prompts: the frozen questions that judge the model, and the check that none was trained on."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .dialogue import Dialogue


@dataclass(frozen=True)
class Prompt:
    """A question, the template it came from, and the keywords of a right answer."""

    skill: str
    template: str
    prompt: str
    keywords: tuple[tuple[str, ...], ...]

    def is_right(self, answer: str) -> bool:
        """Whether the answer holds one keyword of every group."""
        return all(any(occurs(keyword, answer) for keyword in group) for group in self.keywords)


def occurs(keyword: str, answer: str) -> bool:
    """Whether the answer holds the keyword as whole words; capitals in the keyword must match."""
    flags = re.IGNORECASE if keyword == keyword.lower() else 0
    return re.search(rf"(?<!\w){re.escape(keyword)}(?!\w)", answer, flags) is not None


def load_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file, in its order."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [Prompt(row["skill"], row["template"], row["prompt"], tuple(map(tuple, row["keywords"]))) for row in rows]


def forbidden_pattern(prompts: list[Prompt]) -> re.Pattern[str]:
    """A pattern that finds any of the templates, however filled, anywhere in a text."""
    parts = {".+?".join(re.escape(piece) for piece in prompt.template.rstrip(" .!?").split("{}")) for prompt in prompts}
    return re.compile("|".join(sorted(parts)), re.IGNORECASE)


def check_unseen(dialogues: Iterable[Dialogue], prompts: list[Prompt]) -> None:
    """Raise if a user's message of the training dialogues follows a template of the prompts."""
    pattern = forbidden_pattern(prompts)
    for dialogue in dialogues:
        for text in dialogue.user_texts():
            if pattern.search(text):
                raise ValueError(f"this training message follows the template of a held-out prompt: {text!r}")


def judge(prompts: list[Prompt], answer: Callable[[str], str]) -> list[dict]:
    """Ask every prompt and say which answers are right."""
    results = []
    for prompt in prompts:
        said = answer(prompt.prompt)
        right = prompt.is_right(said)
        results.append({"skill": prompt.skill, "prompt": prompt.prompt, "answer": said, "right": right})
    return results
