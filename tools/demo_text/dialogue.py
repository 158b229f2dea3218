"""A dialogue: who says what, in order, and how the parts become one training text."""

from dataclasses import dataclass

START = "<|im_start|>"
END = "<|im_end|>"
BOS = "<s>"
EOS = "</s>"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Dialogue:
    """Messages as pairs of role and text."""

    messages: tuple[tuple[str, str], ...]

    def user_texts(self) -> list[str]:
        """What the user says, message by message."""
        return [text for role, text in self.messages if role == "user"]

    def then(self, other: "Dialogue") -> "Dialogue":
        """This dialogue with another one after it."""
        return Dialogue(self.messages + other.messages)

    def under(self, system: str) -> "Dialogue":
        """This dialogue with a system message before it."""
        return Dialogue((("system", system), *self.messages))


def ask(question: str, answer: str) -> Dialogue:
    """A dialogue of one question and one answer."""
    return Dialogue((("user", question), ("assistant", answer)))
