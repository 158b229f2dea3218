"""Train the built-in demo model on the CPU, from text that this script generates and Grimm's tales.

The result is a Hugging Face folder for `edgellm convert`, with a report of what it can do.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from demo_text import corpus
from demo_text.folder import write_folder, write_json
from demo_text.generator import Generator
from demo_text.llama import Llama, Shape
from demo_text.long_texts import LongTexts
from demo_text.ngram import KneserNey
from demo_text.prompts import Prompt, check_unseen, judge, load_prompts
from demo_text.training import Log, Plan, continue_greedily, held_out_loss, train
from demo_text.vocabulary import Vocabulary
from demo_text.words import Words
from safetensors.torch import load_file

TOOLS = Path(__file__).resolve().parent
PROMPTS = TOOLS / "demo_prompts.json"
GRIMM = TOOLS.parent.parent / "shared" / "data" / "text" / "grimm.txt"
HELD_SEED = 1_000_003
LONG_SEED = 2_000_003
HELD_SHARE = 0.02
HELD_ROWS = 40
DIALOGUES_PER_PASSAGE = 24
PASSAGE_LENGTH = 1000


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model, the loss log and the report")
    parser.add_argument("--steps", type=int, default=4000, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of text and weights (default: %(default)s)")
    parser.add_argument("--grimm", type=Path, default=GRIMM, help="Grimm's tales as plain text (default: %(default)s)")
    parser.add_argument("--width", type=int, default=Shape.width, help="width of the network (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=Shape.layers, help="layers (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=Shape.hidden, help="feed-forward width (default: %(default)s)")
    parser.add_argument("--peak", type=float, default=Plan.peak, help="rate of the matrices (default: %(default)s)")
    parser.add_argument(
        "--long-texts",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of dialogues that copy and edit whole paragraphs (default: none)",
    )
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="start from the weights of an earlier run")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; results repeat exactly with one (default)")
    return parser.parse_args()


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


def checked(generator: Generator, prompts: list[Prompt]) -> Iterator:
    """The generator's dialogues, none of which may follow a held-out template."""
    for dialogue in generator.dialogues():
        check_unseen((dialogue,), prompts)
        yield dialogue


def training_documents(
    generator: Generator, prose: str, vocabulary: Vocabulary, prompts: list[Prompt], long_texts: float
) -> Iterator[corpus.Document]:
    """Dialogues without end, with a passage of prose after every few; the prose is cut anew each time round."""
    rng = random.Random(generator.rng.random())
    dialogues = checked(generator, prompts)
    if long_texts > 0.0:
        dialogues = LongTexts(generator.words, prose, LONG_SEED).mixed(dialogues, long_texts)
    while True:
        pieces = corpus.passages(prose, rng, PASSAGE_LENGTH)
        rng.shuffle(pieces)
        for piece in pieces:
            for dialogue in islice(dialogues, DIALOGUES_PER_PASSAGE):
                yield corpus.dialogue_document(vocabulary, dialogue)
            yield corpus.prose_document(vocabulary, piece)


def held_out_rows(words: Words, prose: str, vocabulary: Vocabulary, length: int) -> dict[str, np.ndarray]:
    """Rows of dialogues from another seed, and rows of the tail of the prose."""
    dialogues = Generator(words, HELD_SEED).dialogues()
    talk = (corpus.dialogue_document(vocabulary, dialogue) for dialogue in dialogues)
    tail = corpus.passages(prose, random.Random(HELD_SEED), PASSAGE_LENGTH)
    tokens = sum((corpus.prose_document(vocabulary, passage)[0] for passage in tail), [])
    rows = np.array(tokens[: len(tokens) // length * length], dtype=np.uint16).reshape(-1, length)
    return {"dialogues": corpus.pack(talk, HELD_ROWS, length).tokens, "prose": rows[:HELD_ROWS]}


def counted_tokens(generator: Generator, prose: str, vocabulary: Vocabulary, size: int) -> np.ndarray:
    """What the n-gram model counts: as many dialogue tokens as the network sees in all, and the prose once.

    The network reads the prose several times; counting it several times would spoil the n-gram model's discounts.
    """
    tokens = list(chain.from_iterable(
        vocabulary.encode_prose(piece) for piece in corpus.passages(prose, generator.rng, PASSAGE_LENGTH)
    ))  # fmt: skip
    size += len(tokens)
    for dialogue in generator.dialogues():
        tokens += vocabulary.encode_dialogue(dialogue)[0]
        if len(tokens) >= size:
            return np.array(tokens, dtype=np.uint16)
    raise AssertionError("the generator never ends")


def losses(held: dict[str, np.ndarray], measure) -> dict[str, float]:
    """Nats per token on each held-out part and on all of them."""
    return {name: round(measure(rows), 4) for name, rows in {**held, "all": np.concatenate([*held.values()])}.items()}


def answer_with(model: Llama, vocabulary: Vocabulary, question: str) -> str:
    """The model's greedy answer to a question."""
    stops = {vocabulary.end, vocabulary.eos, vocabulary.start, vocabulary.bos}
    return vocabulary.decode(continue_greedily(model, vocabulary.encode_question(question), stops))


def main() -> None:
    """Generate, train, judge, and write the folder."""
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    begun = time.time()
    prompts = load_prompts(PROMPTS)
    shape = Shape(width=options.width, layers=options.layers, hidden=options.hidden)
    plan = Plan(options.steps, options.seed, peak=options.peak, rest_peak=min(Plan.rest_peak, options.peak))
    prose, held_prose = corpus.split_prose(options.grimm.read_text(encoding="utf-8"), HELD_SHARE)
    words = Words(prose)
    vocabulary = Vocabulary.train(Generator(words, options.seed).dialogues(), prose, shape.vocab)
    documents = training_documents(Generator(words, options.seed), prose, vocabulary, prompts, options.long_texts)
    rows = corpus.pack(documents, plan.steps * plan.batch, shape.context)
    held = held_out_rows(words, held_prose, vocabulary, shape.context)
    say(f"{rows.tokens.size} tokens ready after {time.time() - begun:.0f} s")
    counted = counted_tokens(Generator(words, options.seed), prose, vocabulary, rows.tokens.size)
    ngram = losses(held, KneserNey(counted, shape.vocab).loss)
    say(f"5-gram model, held-out loss: {ngram}")

    model = Llama(shape)
    if options.resume is not None:
        model.load_state_dict(load_file(options.resume / "model.safetensors"))
    say(f"{model.parameter_count()} parameters")
    log = Log(options.out / "loss.json")
    options.out.mkdir(parents=True, exist_ok=True)
    train(model, rows, plan, log, lambda: write_folder(options.out, model, vocabulary))
    write_folder(options.out, model, vocabulary)

    results = judge(prompts, lambda question: answer_with(model, vocabulary, question))
    report = {
        "parameters": model.parameter_count(), "steps": plan.steps, "seed": options.seed,
        "training_tokens": rows.tokens.size, "held_out_loss": losses(held, lambda part: held_out_loss(model, part)),
        "five_gram_loss": ngram, "right": sum(result["right"] for result in results), "asked": len(results),
        "seconds": round(time.time() - begun),
    }  # fmt: skip
    write_json(options.out / "report.json", {**report, "prompts": results})
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
