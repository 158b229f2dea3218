"""The vocabulary: a sentencepiece model trained on the demo text, and dialogues as token lists."""

import io
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import sentencepiece

from .dialogue import END, START, Dialogue

SAMPLE = 30000


class Vocabulary:
    """Encodes plain text with sentencepiece, and inserts the marks of the chat template by their ids."""

    def __init__(self, model: bytes) -> None:
        self.model = model
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.bos, self.eos = self.pieces.bos_id(), self.pieces.eos_id()
        self.start, self.end = self.pieces.piece_to_id(START), self.pieces.piece_to_id(END)
        self.newline = self.pieces.encode("\n")

    @classmethod
    def train(cls, dialogues: Iterable[Dialogue], prose: str, size: int) -> "Vocabulary":
        """Learn the pieces from a sample of dialogues and from the prose."""
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=training_lines(dialogues, prose), model_writer=model, vocab_size=size, model_type="bpe",
            byte_fallback=True, control_symbols=[START, END], split_digits=True, add_dummy_prefix=False,
            remove_extra_whitespaces=False, normalization_rule_name="identity", character_coverage=1.0,
            max_sentence_length=100000, num_threads=1, minloglevel=2, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        )  # fmt: skip
        return cls(model.getvalue())

    def save(self, folder: Path) -> None:
        """Write tokenizer.model."""
        (folder / "tokenizer.model").write_bytes(self.model)

    def encode_prose(self, text: str) -> list[int]:
        """A passage of plain text as a document."""
        return [self.bos, *self.pieces.encode(text), self.eos]

    def encode_message(self, role: str, text: str) -> list[int]:
        """One message between its marks, with the line break after it."""
        return [self.start, *self.pieces.encode(f"{role}\n{text}"), self.end, *self.newline]

    def encode_dialogue(self, dialogue: Dialogue) -> tuple[list[int], list[bool]]:
        """A dialogue as a document, and for each token whether the assistant has to write it."""
        tokens, written = [self.bos], [False]
        for role, text in dialogue.messages:
            message = self.encode_message(role, text)
            lead = len(self.encode_opening(role))
            mine = role == "assistant"
            tokens += message
            written += [False] * lead + [mine] * (len(message) - lead)
        return tokens, written

    def encode_opening(self, role: str) -> list[int]:
        """The start of a message, before its text."""
        return [self.start, *self.pieces.encode(f"{role}\n")]

    def encode_question(self, question: str) -> list[int]:
        """A user's message and the opening of the answer."""
        return [self.bos, *self.encode_message("user", question), *self.encode_opening("assistant")]

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens."""
        return self.pieces.decode(tokens)


def training_lines(dialogues: Iterable[Dialogue], prose: str) -> Iterator[str]:
    """The lines from which the pieces are learnt."""
    for dialogue in islice(dialogues, SAMPLE):
        for role, text in dialogue.messages:
            yield role
            yield text
    yield from (line for line in prose.split("\n") if line)
