"""The part of `tools/parity.py` that runs llama.cpp (llama-cpp-python), in an environment of its own.

    python tools/parity_llama.py FOLDER NAME ...

reads FOLDER/cases.json and evaluates FOLDER/NAME.gguf for every NAME. It writes FOLDER/NAME.llama.npz with `logits`,
float32 (n, vocab), or FOLDER/NAME.llama.txt with the reason why llama.cpp refuses the file. A name is printed before
its turn, so that the caller knows where llama.cpp ended the process. With --texts before FOLDER every file answers for
all texts of FOLDER/texts.json, which have one length: `logits` is (texts, n, vocab).
"""

import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np


def answers(path: Path, texts: list[list[int]], n_ctx: int) -> list[np.ndarray]:
    """Logits float32 (n, vocab) of each text, with an F32 cache and without flash attention."""
    usual = llama_cpp.llama_context_default_params()  # the wrapper's own defaults would hide the file's YaRN factors
    yarn = {name: getattr(usual, name) for name in ("yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow")}
    model = llama_cpp.Llama(
        str(path), n_ctx=n_ctx, n_batch=512, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False,
        type_k=0, type_v=0, **yarn,
    )  # fmt: skip
    out = []
    for ids in texts:
        model.reset()
        model.eval(ids)
        out.append(np.array(model.scores[: len(ids)], dtype=np.float32))
    return out


def logits_of(folder: Path, name: str, many: bool) -> np.ndarray:
    """What the file must answer for."""
    if many:
        job = json.loads((folder / "texts.json").read_text())
        return np.stack(answers(folder / f"{name}.gguf", job["texts"], job["n_ctx"]))
    case = next(case for case in json.loads((folder / "cases.json").read_text()) if case["name"] == name)
    n_ctx = case["n_ctx"] or case["config"]["max_position_embeddings"]
    return answers(folder / f"{name}.gguf", [case["ids"]], n_ctx)[0]


def reason(log: list[str]) -> str:
    """The line of llama.cpp's log that says what is wrong: the first one, without the names of its functions."""
    told = [line.strip().removeprefix("llama_model_load: ") for line in log if "error" in line.lower()]
    return told[0].rsplit("error loading model: ", 1)[-1] if told else ""


def main() -> None:
    log: list[str] = []
    collect = llama_cpp.llama_log_callback(lambda level, text, data: log.append(text.decode(errors="replace")))
    llama_cpp.llama_log_set(collect, None)
    many, arguments = sys.argv[1] == "--texts", sys.argv[1:]
    folder, names = Path(arguments[many]), arguments[many + 1 :]
    (folder / "llama.json").write_text(json.dumps({"llama-cpp-python": llama_cpp.__version__}))
    for name in names:
        print(name, flush=True)
        log.clear()
        try:
            np.savez(folder / f"{name}.llama.npz", logits=logits_of(folder, name, many))
        except Exception as error:  # whatever it is, the other files still have their turn
            (folder / f"{name}.llama.txt").write_text(reason(log) or str(error))


if __name__ == "__main__":
    main()
